//! A worker whose identity was stolen: what it was given, and nothing of what others were given.

use std::time::Duration;

use croft::proto::rev2::action_cache_client::ActionCacheClient;
use croft::proto::rev2::{
    ActionResult, ExecuteResponse, GetActionResultRequest, UpdateActionResultRequest, WaitExecutionRequest,
};
use croft::proto::worker::finished::Outcome;
use croft::proto::worker::scheduler_message::Message as FromScheduler;
use croft::proto::worker::worker_message::Message as FromWorker;
use croft::proto::worker::workers_client::WorkersClient;
use croft::proto::worker::{Finished, Hello, Lease, Output, SchedulerMessage, Start, WorkerMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::{Bearer, Doors};
use crate::client::{Client, Inputs, finish, shell, stdout};
use crate::farm::Farm;

const LIMIT: Duration = Duration::from_secs(30);

/// A worker of the test's own.
struct Worker {
    to: mpsc::Sender<WorkerMessage>,
    from: Streaming<SchedulerMessage>,
}

impl Worker {
    async fn connect(farm: &Farm, bearer: Bearer, hello: Hello) -> Result<Self, Status> {
        let channel =
            Channel::from_shared(format!("http://{}", farm.workers)).unwrap().connect().await.unwrap();
        let (to, messages) = mpsc::channel(16);
        to.send(said(FromWorker::Hello(hello))).await.unwrap();
        let mut client = WorkersClient::with_interceptor(channel, bearer);
        let from = client.work(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Self { to, from })
    }

    async fn say(&self, message: FromWorker) {
        self.to.send(said(message)).await.unwrap();
    }

    async fn next(&mut self) -> Result<FromScheduler, Status> {
        let message = tokio::time::timeout(LIMIT, self.from.message()).await.expect("in time")?;
        Ok(message.and_then(|message| message.message).expect("the stream goes on"))
    }

    async fn start(&mut self) -> Start {
        loop {
            if let FromScheduler::Start(start) = self.next().await.unwrap() {
                return start;
            }
        }
    }

    /// How the scheduler ends the session.
    async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

fn said(message: FromWorker) -> WorkerMessage {
    WorkerMessage { message: Some(message) }
}

fn hello(number: u8, name: &str) -> Hello {
    Hello { name: name.into(), slots: 1, worker: vec![number; 16].into(), ..Hello::default() }
}

fn finished(lease: &Lease, text: &'static str) -> FromWorker {
    let result = ActionResult { stdout_raw: text.into(), ..ActionResult::default() };
    let response = ExecuteResponse { result: Some(result), ..ExecuteResponse::default() };
    FromWorker::Finished(Finished { lease: Some(lease.clone()), outcome: Some(Outcome::Response(response)) })
}

/// Two workers with a token each; whoever has none builds in the instance without a name.
fn doors() -> Doors {
    ["a", "b"].into_iter().fold(Doors::new().anonymous("read,write,execute", ""), |doors, name| {
        doors.token(name, "work", "**").token(name, "read,write", "main")
    })
}

#[tokio::test]
async fn a_worker_answers_only_for_what_it_was_given() {
    let doors = doors();
    let farm = doors.start(&[("CROFT_ROLES", "[\"cas\", \"scheduler\"]")]);
    let mut genuine = Worker::connect(&farm, doors.bearer("b"), hello(2, "b")).await.unwrap();
    let client = Client::new(&farm).await;
    let action = client.action(&shell("echo genuine", &[]), &Inputs::default(), |_| {}).await;
    let request = client.request(&action);
    let mut operations = client.execution.clone().execute(request).await.unwrap().into_inner();
    let lease = genuine.start().await.lease.unwrap();

    let stolen = doors.bearer("a");
    for message in [
        finished(&lease, "forged"),
        FromWorker::Output(Output { lease: Some(lease.clone()), data: "forged".into(), ..Output::default() }),
    ] {
        let mut thief =
            Worker::connect(&farm, stolen.clone(), Hello { slots: 1, ..hello(1, "a") }).await.unwrap();
        thief.say(message).await;
        assert_eq!(thief.end().await.code(), Code::PermissionDenied);
    }
    for hello in [hello(2, "c"), hello(1, "b"), Hello { leases: vec![lease.clone()], ..hello(1, "a") }] {
        let refusal = Worker::connect(&farm, stolen.clone(), hello).await.map(|_| ()).unwrap_err();
        assert_eq!(refusal.code(), Code::PermissionDenied, "{refusal:?}");
    }

    genuine.say(finished(&lease, "genuine\n")).await;
    let response = tokio::time::timeout(LIMIT, finish(&mut operations)).await.unwrap().unwrap();
    assert_eq!(stdout(&response), "genuine\n");
}

#[tokio::test]
async fn after_a_restart_of_the_scheduler_a_lease_is_still_that_of_who_was_given_it() {
    const ROLES: [(&str, &str); 1] = [("CROFT_ROLES", "[\"cas\", \"scheduler\"]")];
    let (doors, data) = (doors(), tempfile::tempdir().unwrap());
    let mut farm = doors.start_in(data.path(), &ROLES);
    let mut genuine = Worker::connect(&farm, doors.bearer("b"), hello(2, "b")).await.unwrap();
    let client = Client::new(&farm).await;
    let action = client.action(&shell("echo genuine", &[]), &Inputs::default(), |_| {}).await;
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    let name = operations.message().await.unwrap().unwrap().name;
    let lease = genuine.start().await.lease.unwrap();
    farm.kill();

    let farm = doors.start_in(data.path(), &ROLES);
    let holding = |number, name| Hello { leases: vec![lease.clone()], ..hello(number, name) };
    for stolen in [holding(2, "b"), hello(2, "c"), hello(1, "b"), holding(1, "a")] {
        let refusal = Worker::connect(&farm, doors.bearer("a"), stolen).await.map(|_| ()).unwrap_err();
        assert_eq!(refusal.code(), Code::PermissionDenied, "{refusal:?}");
    }
    let genuine = Worker::connect(&farm, doors.bearer("b"), holding(2, "b")).await.unwrap();
    genuine.say(finished(&lease, "genuine\n")).await;
    let client = Client::new(&farm).await;
    let waiting = client.execution.clone().wait_execution(WaitExecutionRequest { name }).await;
    let response = tokio::time::timeout(LIMIT, finish(&mut waiting.unwrap().into_inner())).await;
    assert_eq!(stdout(&response.unwrap().unwrap()), "genuine\n");
}

#[tokio::test]
async fn a_worker_cannot_write_the_action_cache_or_read_another_instance() {
    let doors = doors();
    let farm = doors.start(&[]);
    let channel = farm.channel().await;
    let mut cache: ActionCacheClient<InterceptedService<Channel, Bearer>> =
        ActionCacheClient::with_interceptor(channel, doors.bearer("a"));
    let digest = Some(croft::digest::Function::Sha256.hash(b"an action").to_proto());
    let update = UpdateActionResultRequest {
        instance_name: "main".into(),
        action_digest: digest.clone(),
        action_result: Some(ActionResult::default()),
        ..Default::default()
    };
    let refusal = cache.update_action_result(update).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    assert!(
        refusal.message().contains("token:a") && refusal.message().contains("cache-write"),
        "{refusal:?}"
    );
    let get = |instance: &str| GetActionResultRequest {
        instance_name: instance.into(),
        action_digest: digest.clone(),
        ..Default::default()
    };
    assert_eq!(cache.get_action_result(get("main")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(cache.get_action_result(get("other")).await.unwrap_err().code(), Code::PermissionDenied);
}
