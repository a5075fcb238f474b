//! A peer that is gone without a word, as behind a cable that was pulled.

use std::sync::Mutex;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use super::pipe::Joined;
use super::*;
use crate::proto::worker::workers_client::WorkersClient;
use crate::proto::worker::workers_server::{Workers, WorkersServer};
use crate::proto::worker::{SchedulerMessage, WorkerMessage};
use crate::tasks;

/// So short that the test need not wait.
const SHORT: Served = Served {
    pings: Pings { interval: Duration::from_millis(20), timeout: Duration::from_millis(50) },
    is_measured: true,
};

/// Bytes on their way.
const BYTES: usize = 64 << 10;

/// The scheduler's end of one stream: says when it is over.
struct Scheduler(Mutex<Option<oneshot::Sender<()>>>);

#[tonic::async_trait]
impl Workers for Scheduler {
    type WorkStream = BoxStream<'static, Result<SchedulerMessage, Status>>;

    async fn work(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let (mut incoming, over) = (request.into_inner(), self.0.lock().unwrap().take().unwrap());
        tasks::spawn("test", async move {
            while let Ok(Some(_)) = incoming.message().await {}
            let _ = over.send(());
        });
        Ok(Response::new(stream::pending().boxed()))
    }
}

/// Carries bytes both ways until it is told to be silent. Both connections stay open then.
async fn carry((mut one, mut other): (DuplexStream, DuplexStream), silence: oneshot::Receiver<()>) {
    tokio::select! {
        carried = tokio::io::copy_bidirectional(&mut one, &mut other) => drop(carried),
        _ = silence => std::future::pending().await,
    }
}

async fn connect(connection: DuplexStream) -> Channel {
    let connection = Mutex::new(Some(connection));
    let connector = tower::service_fn(move |_| {
        let connection = connection.lock().unwrap().take().map(TokioIo::new);
        std::future::ready(connection.ok_or(io::Error::from(io::ErrorKind::ConnectionRefused)))
    });
    Endpoint::from_static("http://in-memory.invalid").connect_with_connector(connector).await.unwrap()
}

#[tokio::test]
async fn a_stream_ends_whose_peer_has_fallen_silent() {
    let (worker, of_worker) = tokio::io::duplex(BYTES);
    let (of_scheduler, scheduler) = tokio::io::duplex(BYTES);
    let (silence, silenced) = oneshot::channel();
    let cable = tasks::spawn("test", carry((of_worker, of_scheduler), silenced));
    let (over, ended) = oneshot::channel();
    let routes = Routes::new(WorkersServer::new(Scheduler(Mutex::new(Some(over)))));
    let (shutdown, incoming) =
        (Shutdown::new(), stream::iter([Ok(Joined::new(scheduler))]).chain(stream::pending()));
    let serving = tasks::spawn("test", serve_incoming(incoming, routes, SHORT, shutdown.clone()));

    let mut client = WorkersClient::new(connect(worker).await);
    let answers = client.work(stream::pending()).await.unwrap();
    silence.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("this happens soon").unwrap();

    drop(answers);
    cable.abort();
    serving.abort();
}
