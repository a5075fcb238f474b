//! The Operations service: get, list, wait, cancel, delete.

use croft::proto::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest, Operation,
    WaitOperationRequest,
};
use croft::proto::rev2::{ExecuteRequest, execution_stage};
use tonic::{Code, Streaming};

use crate::client::{Client, Inputs, code, finish, metadata, response, shell};
use crate::farm::Farm;

/// An operation whose command runs, with the rest of its stream.
async fn running(client: &Client, script: &str, instance: &str) -> (Operation, Streaming<Operation>) {
    let action = client.action(&shell(script, &[]), &Inputs::default(), |_| {}).await;
    let request = ExecuteRequest { instance_name: instance.into(), ..client.request(&action) };
    let mut operations = client.execution.clone().execute(request).await.unwrap().into_inner();
    loop {
        let operation = operations.message().await.unwrap().expect("the command is still to run");
        if metadata(&operation).stage() == execution_stage::Value::Executing {
            return (operation, operations);
        }
    }
}

#[tokio::test]
async fn a_cancelled_operation_ends_with_cancelled() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (operation, mut rest) = running(&client, "sleep 3600", "").await;
    let request = CancelOperationRequest { name: operation.name.clone() };
    client.operations.clone().cancel_operation(request).await.unwrap();
    assert_eq!(code(&finish(&mut rest).await.unwrap()), Code::Cancelled as i32);
    let get = GetOperationRequest { name: operation.name };
    let after = client.operations.clone().get_operation(get).await.unwrap().into_inner();
    assert!(after.done);
    assert_eq!(code(&response(&after)), Code::Cancelled as i32);
}

#[tokio::test]
async fn waiting_ends_with_the_time_or_with_the_operation() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (operation, _rest) = running(&client, "sleep 2", "").await;
    let wait = |seconds| WaitOperationRequest {
        name: operation.name.clone(),
        timeout: Some(croft::proto::Duration { seconds, nanos: 0 }),
    };
    assert!(!client.operations.clone().wait_operation(wait(0)).await.unwrap().into_inner().done);
    let done = client.operations.clone().wait_operation(wait(60)).await.unwrap().into_inner();
    assert!(done.done);
    assert_eq!(code(&response(&done)), 0);
}

#[tokio::test]
async fn a_list_shows_the_operations_of_one_instance() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (here, _here) = running(&client, "sleep 60", "main").await;
    let (there, _there) = running(&client, "sleep 61", "").await;
    for (collection, expected) in [("main/operations", &here.name), ("operations", &there.name)] {
        let request = ListOperationsRequest { name: collection.into(), ..Default::default() };
        let answer = client.operations.clone().list_operations(request).await.unwrap().into_inner();
        let names: Vec<_> = answer.operations.iter().map(|operation| &operation.name).collect();
        assert_eq!(names, [expected]);
    }
    // Each page is a look at one operation, be it of this instance or of the other.
    let (mut token, mut names) = (String::new(), Vec::new());
    for _ in 0..3 {
        let request = ListOperationsRequest {
            name: "main/operations".into(),
            page_size: 1,
            page_token: token,
            ..Default::default()
        };
        let page = client.operations.clone().list_operations(request).await.unwrap().into_inner();
        names.extend(page.operations.into_iter().map(|operation| operation.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
        for collection in ["operations", "main/operations"] {
            let get = GetOperationRequest { name: format!("{collection}/{token}") };
            let looked = client.operations.clone().get_operation(get).await;
            assert!(looked.is_err(), "a token names no operation");
        }
    }
    assert_eq!((names.as_slice(), token.as_str()), (&[here.name.clone()][..], ""));
    let foreign = GetOperationRequest { name: here.name.replace("main/", "") };
    assert_eq!(client.operations.clone().get_operation(foreign).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn unknown_operations_are_not_found_and_deleted_ones_are_unknown() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let unknown = "operations/0123456789abcdef0123456789abcdef".to_owned();
    let cancel = CancelOperationRequest { name: unknown.clone() };
    assert_eq!(client.operations.clone().cancel_operation(cancel).await.unwrap_err().code(), Code::NotFound);
    let (operation, mut rest) = running(&client, "sleep 0.2", "").await;
    finish(&mut rest).await.unwrap();
    let delete = DeleteOperationRequest { name: operation.name.clone() };
    client.operations.clone().delete_operation(delete.clone()).await.unwrap();
    let get = GetOperationRequest { name: operation.name };
    assert_eq!(client.operations.clone().get_operation(get).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.operations.clone().delete_operation(delete).await.unwrap_err().code(), Code::NotFound);
}
