//! Workers that answer each action at once, so that only its way through the farm takes time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use croft::proto::rev2::{ActionResult, ExecuteResponse, ExecutedActionMetadata};
use croft::proto::worker::finished::Outcome;
use croft::proto::worker::scheduler_message::Message as FromScheduler;
use croft::proto::worker::worker_message::Message as FromWorker;
use croft::proto::worker::workers_client::WorkersClient;
use croft::proto::worker::{Finished, Heartbeat, Hello, Start, WorkerMessage};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Messages on their way to the scheduler: a worker of one slot has an answer and a heartbeat.
const OUTBOX_MAX: usize = 4;

const HEARTBEAT: Duration = Duration::from_secs(5);

/// Is told the hash of each action that reached a worker, and when.
pub(crate) type Arrived = Arc<dyn Fn(&str, Instant) + Send + Sync>;

/// Workers of one slot each, every one with a connection of its own. Dropping them disconnects them.
pub(crate) struct Fleet(#[expect(dead_code, reason = "it is there to be dropped")] JoinSet<()>);

impl Fleet {
    pub(crate) async fn connect(address: &str, workers: u32, arrived: &Arrived) -> Self {
        let mut tasks = JoinSet::new();
        for number in 0..workers {
            let channel = crate::dispatch::channel(address).await;
            let (outbox, inbox) = greet(channel, number).await;
            tasks.spawn(serve(outbox, inbox, Arc::clone(arrived)));
        }
        Self(tasks)
    }
}

type Inbox = Streaming<croft::proto::worker::SchedulerMessage>;

async fn greet(channel: Channel, number: u32) -> (mpsc::Sender<WorkerMessage>, Inbox) {
    let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
    let hello = Hello {
        name: format!("bench-{number}"),
        slots: 1,
        worker: Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes()),
        ..Hello::default()
    };
    outbox.try_send(said(FromWorker::Hello(hello))).unwrap();
    let mut inbox =
        WorkersClient::new(channel).work(ReceiverStream::new(messages)).await.unwrap().into_inner();
    let welcome = inbox.message().await.unwrap().unwrap().message;
    assert!(matches!(welcome, Some(FromScheduler::Welcome(_))), "{welcome:?}");
    (outbox, inbox)
}

async fn serve(outbox: mpsc::Sender<WorkerMessage>, mut inbox: Inbox, arrived: Arrived) {
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        let answer = tokio::select! {
            // A stream that breaks is the end of the farm.
            message = inbox.message() => match message.ok().flatten().and_then(|message| message.message) {
                Some(FromScheduler::Start(start)) => answer(start, &arrived),
                Some(FromScheduler::Acknowledge(_) | FromScheduler::Warm(_)) => continue,
                Some(other) => panic!("an action that runs at once is not {other:?}"),
                None => return,
            },
            _ = heartbeat.tick() => FromWorker::Heartbeat(Heartbeat {}),
        };
        if outbox.send(said(answer)).await.is_err() {
            return;
        }
    }
}

fn answer(start: Start, arrived: &Arrived) -> FromWorker {
    arrived(&start.action_digest.unwrap_or_default().hash, Instant::now());
    let metadata = ExecutedActionMetadata { worker: "bench".into(), ..ExecutedActionMetadata::default() };
    let result = ActionResult { execution_metadata: Some(metadata), ..ActionResult::default() };
    let response = ExecuteResponse { result: Some(result), ..ExecuteResponse::default() };
    FromWorker::Finished(Finished { lease: start.lease, outcome: Some(Outcome::Response(response)) })
}

fn said(message: FromWorker) -> WorkerMessage {
    WorkerMessage { message: Some(message) }
}
