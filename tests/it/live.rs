//! What a client sees of an action while it runs: its output, its worker, its times; and that it is told when to come back.

use std::time::Duration;

use croft::proto::bytestream::ReadRequest;
use croft::proto::longrunning::{GetOperationRequest, Operation};
use croft::proto::rev2::{ExecuteOperationMetadata, execution_stage};
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

use crate::client::{Client, Inputs, finish, metadata, shell};
use crate::farm::Farm;

/// How long something may take that takes a second or two on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Executes `script` and returns the first message with metadata that `is_wanted`, and the rest of the stream.
async fn until(
    client: &Client,
    script: &str,
    is_wanted: impl Fn(&ExecuteOperationMetadata) -> bool,
) -> (Operation, Streaming<Operation>) {
    let action = client.action(&shell(script, &[]), &Inputs::default(), |_| {}).await;
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    let wanted = async {
        loop {
            let operation = operations.message().await.unwrap().expect("the stream goes on until it is done");
            assert!(!operation.done, "the command is still to run");
            if is_wanted(&metadata(&operation)) {
                return operation;
            }
        }
    };
    let operation = tokio::time::timeout(PATIENCE, wanted).await.expect("in time");
    (operation, operations)
}

fn executes(metadata: &ExecuteOperationMetadata) -> bool {
    metadata.stage() == execution_stage::Value::Executing
}

#[tokio::test]
async fn what_a_command_prints_is_read_while_it_runs_and_after() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (operation, mut rest) = until(&client, "echo one; echo oops >&2; sleep 5; echo two", executes).await;
    let names = metadata(&operation);
    assert_eq!(names.stdout_stream_name, format!("{}/logs/stdout", operation.name));
    let request = ReadRequest { resource_name: names.stdout_stream_name.clone(), ..ReadRequest::default() };
    let mut pieces = client.bytes.clone().read(request).await.unwrap().into_inner();
    assert_eq!(pieces.message().await.unwrap().unwrap().data, "one\n");
    let get = GetOperationRequest { name: operation.name.clone() };
    assert!(!client.operations.clone().get_operation(get).await.unwrap().into_inner().done);
    assert_eq!(client.read(&names.stderr_stream_name, 0, 2).await.unwrap(), b"oo");
    assert_eq!(pieces.message().await.unwrap().unwrap().data, "two\n");
    assert!(pieces.message().await.unwrap().is_none(), "the stream ends with the operation");
    finish(&mut rest).await.unwrap();
    assert_eq!(client.read(&names.stdout_stream_name, 4, 0).await.unwrap(), b"two\n");
    assert_eq!(client.read(&names.stdout_stream_name, 8, 0).await.unwrap(), b"");
    let foreign = client.read(&format!("other/{}", names.stdout_stream_name), 0, 0).await.unwrap_err();
    assert_eq!(foreign.code(), Code::NotFound);
}

#[tokio::test]
async fn more_output_than_is_kept_goes_on_with_the_result() {
    const BYTES: usize = 3_000_000;
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let script = format!("head -c {BYTES} /dev/zero | tr '\\0' x; sleep 3; echo end");
    let (operation, _rest) = until(&client, &script, executes).await;
    let text = client.read(&metadata(&operation).stdout_stream_name, 0, 0).await.unwrap();
    assert_eq!(text.len(), BYTES + 4);
    assert!(text.starts_with(b"xxx") && text.ends_with(b"xend\n"));
}

#[tokio::test]
async fn the_output_of_a_cancelled_operation_ends() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (operation, mut rest) = until(&client, "echo one; sleep 3600", executes).await;
    let name = metadata(&operation).stdout_stream_name;
    let request = ReadRequest { resource_name: name, ..ReadRequest::default() };
    let mut pieces = client.bytes.clone().read(request).await.unwrap().into_inner();
    assert_eq!(pieces.message().await.unwrap().unwrap().data, "one\n");
    let cancel = croft::proto::longrunning::CancelOperationRequest { name: operation.name };
    client.operations.clone().cancel_operation(cancel).await.unwrap();
    finish(&mut rest).await.unwrap();
    assert!(pieces.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_running_operation_tells_when_it_was_queued_and_soon_where_it_runs() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (operation, _rest) = until(&client, "sleep 30", |_| true).await;
    let early = metadata(&operation).partial_execution_metadata.unwrap();
    assert!(early.queued_timestamp.is_some());
    let runs = |metadata: &ExecuteOperationMetadata| {
        let partial = metadata.partial_execution_metadata.as_ref();
        partial.is_some_and(|partial| partial.execution_start_timestamp.is_some())
    };
    let (operation, _rest) = until(&client, "sleep 31", runs).await;
    let partial = metadata(&operation).partial_execution_metadata.unwrap();
    assert!(!partial.worker.is_empty());
    assert!(partial.queued_timestamp.is_some() && partial.worker_start_timestamp.is_some());
    assert!(partial.execution_completed_timestamp.is_none());
}

#[tokio::test]
async fn a_full_farm_says_when_to_come_again() {
    let farm = Farm::start_with(&[("CROFT_SCHEDULER__OPERATIONS_MAX", "1")]);
    let client = Client::new(&farm).await;
    let (_operation, _rest) = until(&client, "sleep 60", executes).await;
    let action = client.action(&shell("true", &[]), &Inputs::default(), |_| {}).await;
    let error = client.execute(client.request(&action)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
}
