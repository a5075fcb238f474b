//! Workers that only wait a moment and answer, so that a book of ten thousand operations is full in seconds.

use std::time::{Duration, SystemTime};

use croft::digest::Digest;
use croft::proto::rev2::platform::Property;
use croft::proto::rev2::{ActionResult, ExecuteResponse, ExecutedActionMetadata, OutputFile};
use croft::proto::worker::finished::Outcome;
use croft::proto::worker::scheduler_message::Message as FromScheduler;
use croft::proto::worker::worker_message::Message as FromWorker;
use croft::proto::worker::workers_client::WorkersClient;
use croft::proto::worker::{
    Finished, Heartbeat, Hello, ResourceUsage, SchedulerMessage, Start, WorkerMessage,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// What actions demand that run here.
pub(crate) const POOL: &str = "default";

/// The path of the one output of each action.
pub(crate) const OUTPUT: &str = "bazel-out/k8-fastbuild/bin/src/net/socket.o";

const SLOTS: u32 = 32;

const HEARTBEAT: Duration = Duration::from_secs(5);

/// Of 256 actions, those that fail.
const FAILURES: u8 = 4;

/// The last of the workers makes another output of this part of 256 actions, which audits find.
const DEVIATIONS: u8 = 64;

/// The workers, each with a connection of its own. Dropping them disconnects them.
pub(crate) struct Fleet(#[expect(dead_code, reason = "it is there to be dropped")] JoinSet<()>);

/// One of them.
#[derive(Clone)]
struct Worker {
    name: String,
    output: Digest,
    /// What comes out where it deviates.
    other: Option<Digest>,
}

impl Fleet {
    /// As many workers as there are channels; their identifiers are 16 times their number, from 1 on.
    pub(crate) async fn connect(channels: Vec<Channel>, [output, other]: [Digest; 2]) -> Self {
        let (mut tasks, count) = (JoinSet::new(), channels.len());
        for (number, channel) in (1..).zip(channels) {
            let name = format!("builder-{}", number + 1);
            let other = (usize::from(number) == count).then_some(other);
            let worker = Worker { name, output, other };
            let (outbox, inbox) = worker.greet(channel, number).await;
            tasks.spawn(worker.serve(outbox, inbox));
        }
        Self(tasks)
    }
}

impl Worker {
    async fn greet(
        &self,
        channel: Channel,
        number: u8,
    ) -> (mpsc::Sender<WorkerMessage>, Streaming<SchedulerMessage>) {
        let property = |name: &str, value: &str| Property { name: name.into(), value: value.into() };
        let hello = Hello {
            name: self.name.clone(),
            slots: SLOTS,
            worker: vec![number; 16].into(),
            properties: vec![
                property("ISA", "x86-64"),
                property("OSFamily", "linux"),
                property("Pool", POOL),
            ],
            ..Hello::default()
        };
        // Each slot has an answer, and there is a heartbeat.
        let (outbox, messages) = mpsc::channel(SLOTS as usize + 2);
        outbox.try_send(said(FromWorker::Hello(hello))).unwrap();
        let inbox = WorkersClient::new(channel).work(ReceiverStream::new(messages)).await.unwrap();
        (outbox, inbox.into_inner())
    }

    /// Until the farm ends.
    async fn serve(self, outbox: mpsc::Sender<WorkerMessage>, mut inbox: Streaming<SchedulerMessage>) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                message = inbox.message() => match message.ok().flatten() {
                    Some(SchedulerMessage { message: Some(FromScheduler::Start(start)) }) => {
                        let (worker, outbox) = (self.clone(), outbox.clone());
                        running.spawn(async move { outbox.send(said(worker.answer(start).await)).await });
                    }
                    Some(_) => {}
                    None => return,
                },
                _ = heartbeat.tick() => {
                    if outbox.send(said(FromWorker::Heartbeat(Heartbeat {}))).await.is_err() {
                        return;
                    }
                }
                Some(_) = running.join_next() => {}
            }
        }
    }

    /// What becomes of an action, and how long it takes, follows from its digest.
    async fn answer(&self, start: Start) -> FromWorker {
        let hash = hex::decode(start.action_digest.unwrap_or_default().hash).unwrap();
        let begun = SystemTime::now();
        let took = Duration::from_millis(4 + u64::from(hash[1]) / 4 + u64::from(hash[2] / 250) * 400);
        tokio::time::sleep(took).await;
        let metadata = metadata(&self.name, (begun, took), &hash);
        let output = self.other.filter(|_| hash[3] < DEVIATIONS).unwrap_or(self.output);
        let mut result = ActionResult { execution_metadata: Some(metadata), ..ActionResult::default() };
        if hash[0] < FAILURES {
            result.exit_code = 1;
            result.stderr_raw =
                b"src/net/socket.cc:42:7: error: no member named 'reset' in 'Socket'\n".into();
        } else {
            let digest = Some(output.to_proto());
            result.output_files.push(OutputFile { path: OUTPUT.into(), digest, ..OutputFile::default() });
        }
        let response = ExecuteResponse { result: Some(result), ..ExecuteResponse::default() };
        FromWorker::Finished(Finished { lease: start.lease, outcome: Some(Outcome::Response(response)) })
    }
}

fn metadata(worker: &str, (begun, took): (SystemTime, Duration), hash: &[u8]) -> ExecutedActionMetadata {
    let at = |part: f64| Some(croft::proto::timestamp(begun + took.mul_f64(part)));
    let mut metadata = ExecutedActionMetadata {
        worker: worker.to_owned(),
        worker_start_timestamp: at(0.0),
        worker_completed_timestamp: at(1.0),
        input_fetch_start_timestamp: at(0.0),
        input_fetch_completed_timestamp: at(0.2),
        execution_start_timestamp: at(0.2),
        execution_completed_timestamp: at(0.9),
        output_upload_start_timestamp: at(0.9),
        output_upload_completed_timestamp: at(1.0),
        ..ExecutedActionMetadata::default()
    };
    let nanos = i32::try_from(took.mul_f64(0.6).as_nanos()).unwrap();
    let usage = ResourceUsage {
        cpu_time: Some(croft::proto::Duration { seconds: 0, nanos }),
        peak_memory_bytes: (u64::from(hash[4]) + 8) << 20,
        peak_processes: 3,
        ..ResourceUsage::default()
    };
    usage.attach(&mut metadata);
    metadata
}

fn said(message: FromWorker) -> WorkerMessage {
    WorkerMessage { message: Some(message) }
}
