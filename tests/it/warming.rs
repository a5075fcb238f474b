//! Inputs that are on a worker before their action starts there.

use std::time::{Duration, Instant};

use croft::proto::longrunning::{CancelOperationRequest, GetOperationRequest, Operation};
use croft::proto::rev2::execution_stage;
use croft::proto::worker::worker_message::Message as FromWorker;
use croft::proto::worker::workers_client::WorkersClient;
use croft::proto::worker::{Goodbye, Hello, WorkerMessage};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::client::{Client, Inputs, finish, metadata, shell, stdout};
use crate::farm::Farm;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Begins an action; returns its operation and what follows.
async fn begin(client: &Client, script: &str, inputs: &Inputs) -> (Operation, Streaming<Operation>) {
    let action = client.action(&shell(script, &[]), inputs, |_| {}).await;
    let mut stream = client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    (stream.message().await.unwrap().unwrap(), stream)
}

/// How many input roots were staged so far, and how many were there when they were wanted.
async fn staged(farm: &Farm) -> (u64, u64) {
    let (_, page) = farm.page("/metrics").await;
    let count = |outcome: &str| -> u64 {
        let label = format!("croft_worker_input_roots_total{{outcome=\"{outcome}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&label)).map_or(0, |number| number.parse().unwrap())
    };
    (count("built") + count("delta"), count("hit"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_actions_inputs_are_there_before_the_first_one_ends() {
    let farm = Farm::start_with(&[("CROFT_WORKER__SLOTS", "1")]);
    let client = Client::new(&farm).await;
    let (first, _of_first) = begin(&client, "sleep 600", &Inputs::default().file("in", "first")).await;
    let deadline = Instant::now() + PATIENCE;
    while staged(&farm).await.0 < 1 {
        assert!(Instant::now() < deadline, "the first one's inputs are not staged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (second, mut of_second) = begin(&client, "cat in", &Inputs::default().file("in", "second")).await;
    assert_eq!(metadata(&second).stage(), execution_stage::Value::Queued);
    while staged(&farm).await.0 < 2 {
        assert!(Instant::now() < deadline, "the next one's inputs are not staged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let get = GetOperationRequest { name: first.name.clone() };
    let first_after = client.operations.clone().get_operation(get).await.unwrap().into_inner();
    assert!(!first_after.done, "the first one still runs");
    let (_, hits) = staged(&farm).await;
    let cancel = CancelOperationRequest { name: first.name.clone() };
    client.operations.clone().cancel_operation(cancel).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, finish(&mut of_second)).await.expect("it ends").unwrap();
    assert_eq!(stdout(&ended), "second");
    assert_eq!(staged(&farm).await, (2, hits + 1), "nothing was staged again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_message_of_an_unknown_kind_is_ignored() {
    let farm = Farm::start_with(&[("CROFT_WORKERS__LISTEN", "127.0.0.1:0")]);
    let endpoint = Endpoint::from_shared(format!("http://{}", farm.workers)).unwrap();
    let (outbox, messages) = tokio::sync::mpsc::channel(8);
    let hello = Hello { name: "newer".into(), slots: 1, worker: vec![9; 16].into(), ..Hello::default() };
    outbox.try_send(WorkerMessage { message: Some(FromWorker::Hello(hello)) }).unwrap();
    // What a newer kind of message looks like once it is decoded.
    outbox.try_send(WorkerMessage { message: None }).unwrap();
    let mut client = WorkersClient::new(endpoint.connect().await.unwrap());
    let mut inbox = client.work(ReceiverStream::new(messages)).await.unwrap().into_inner();
    assert!(inbox.message().await.unwrap().is_some(), "the welcome");
    crate::operator::until_said(&farm, &["status"], "newer").await;
    outbox.try_send(WorkerMessage { message: None }).unwrap();
    outbox.try_send(WorkerMessage { message: Some(FromWorker::Goodbye(Goodbye {})) }).unwrap();
    let left = async { while inbox.message().await.unwrap().is_some() {} };
    tokio::time::timeout(PATIENCE, left).await.expect("the goodbye is heard");
    let (_, status) = farm.page("/status.json").await;
    assert!(!status.contains("newer"), "a goodbye that was heard: {status}");
}
