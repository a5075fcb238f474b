//! What it costs to be watched: two farms side by side, one of which exports a hundredth of its traces and is scraped each second.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::client::Client;
use crate::farm::Farm;
use crate::{Figure, Goal, Rounds, actions, blobs, median};

/// Actions of one turn: about a second of them.
const ACTIONS: usize = 500;

const SCRAPE_EACH: Duration = Duration::from_secs(1);

/// A collector that keeps nothing.
struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        _request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The two farms take turns, and each begins as often as the other, so that what the machine does meanwhile meets both.
pub(crate) async fn figures(rounds: Rounds) -> Vec<Figure> {
    let mut watching = JoinSet::new();
    let collector = collect(&mut watching).await;
    let plain = Farm::start();
    let watched =
        Arc::new(Farm::start_with(&[("CROFT_TRACE__ENDPOINT", &collector), ("CROFT_TRACE__SAMPLE", "0.01")]));
    watching.spawn(scrape(Arc::clone(&watched)));
    let clients = [Client::new(&plain).await, Client::new(&watched).await];
    let mut rates = [const { [const { Vec::new() }; 2] }; 2];
    for round in 0..2 * rounds.0 {
        for farm in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let numbers = round * ACTIONS..(round + 1) * ACTIONS;
            rates[0][farm].push(actions::no_op_rate(&clients[farm], numbers).await);
            rates[1][farm].push(blobs::batch_rate(&clients[farm], round).await);
        }
    }
    let names = ["no-op actions, traced (1 %) and scraped", "1 KiB blobs, traced (1 %) and scraped"];
    let figures = names.into_iter().zip(rates).map(|(name, [plain, watched])| Figure {
        name: name.into(),
        ours: median(watched),
        limit: median(plain),
        limit_name: "a farm that is neither",
        unit: "/s",
        goal: Goal::Ratio(0.97),
    });
    figures.collect()
}

async fn collect(tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = Server::builder()
        .add_service(TraceServiceServer::new(Collector))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tasks.spawn(async { serving.await.unwrap() });
    address
}

async fn scrape(farm: Arc<Farm>) {
    let mut turns = tokio::time::interval(SCRAPE_EACH);
    loop {
        turns.tick().await;
        assert_eq!(farm.page("/metrics").await.0, 200);
    }
}
