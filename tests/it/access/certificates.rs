//! Identities by certificates, from the handshake to the end of their validity.

use std::time::{Duration, Instant, SystemTime};

use croft::proto::rev2::FindMissingBlobsRequest;
use croft::proto::worker::worker_message::Message as FromWorker;
use croft::proto::worker::workers_client::WorkersClient;
use croft::proto::worker::{Hello, WorkerMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::authority::{Issued, Wanted};
use crate::client::{Client, Inputs, shell, stdout};
use crate::farm::Farm;
use crate::tls::Setup;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the short-lived certificates hold: enough for a handshake on a busy machine.
const SHORT: Duration = Duration::from_secs(6);

const RULES: &str = "[{who=[\"spiffe://farm.example/developer/*\"],may=[\"read\",\"write\",\"execute\"]},\
    {who=[\"spiffe://farm.example/worker/*\"],may=[\"work\"]}]";

fn farm(setup: &Setup) -> Farm {
    let tls = setup.server(Some(true));
    let workers = format!("{{listen=\"127.0.0.1:0\",tls={tls}}}");
    let environment = [
        ("CROFT_ACCESS__RULES", RULES),
        ("CROFT_PUBLIC__TLS", tls.as_str()),
        ("CROFT_WORKERS", workers.as_str()),
    ];
    Farm::start_with(&environment)
}

fn issue(setup: &Setup, path: &str, end: SystemTime) -> Issued {
    let uris = vec![format!("spiffe://farm.example/{path}")];
    setup.authority.issue_as(&Wanted { uris, ..Wanted::new("somebody").ending(end) })
}

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_spiffe_id_executes_and_another_may_nothing() {
    let setup = Setup::new();
    let farm = farm(&setup);
    let developer = setup.client_of(&farm.public, Some(&issue(&setup, "developer/ann", in_an_hour()))).await;
    let action = developer.action(&shell("echo by ann", &[]), &Inputs::default(), |_| {}).await;
    let response = developer.execute(developer.request(&action)).await.unwrap();
    assert_eq!(stdout(&response), "by ann\n");

    let other = setup.client_of(&farm.public, Some(&issue(&setup, "visitor/eve", in_an_hour()))).await;
    let refusal = other.execute(other.request(&action)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    let name = "`certificate:spiffe://farm.example/visitor/eve`";
    assert!(refusal.message().contains(name) && refusal.message().contains("any right"), "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_certificate_has_expired_opens_nothing_more() {
    let setup = Setup::new();
    let farm = farm(&setup);
    let end = SystemTime::now() + SHORT;
    let (developer, worker) = (issue(&setup, "developer/ann", end), issue(&setup, "worker/1", end));
    let client = Client::over(setup.channel(&farm.public, Some(&developer)).await.unwrap());
    let ask = async || client.cas.clone().find_missing_blobs(FindMissingBlobsRequest::default()).await;
    ask().await.unwrap();
    let ended = end_of_work(setup.channel(&farm.workers, Some(&worker)).await.unwrap()).await;
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert!(ended.message().contains("has expired"), "{ended:?}");
    assert!(SystemTime::now() > end - Duration::from_secs(1), "it was let work until then");
    let start = Instant::now();
    while ask().await.is_ok() {
        assert!(start.elapsed() < PATIENCE, "it is let in still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refusal = ask().await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated);
    assert!(refusal.message().contains("expired"), "{refusal:?}");
}

/// How the scheduler ends the stream of a worker that does nothing.
async fn end_of_work(channel: Channel) -> Status {
    let (messages, outgoing) = mpsc::channel(1);
    let hello = Hello { name: "w".into(), slots: 1, worker: vec![7; 16].into(), ..Hello::default() };
    messages.send(WorkerMessage { message: Some(FromWorker::Hello(hello)) }).await.unwrap();
    let work = async {
        let mut incoming =
            WorkersClient::new(channel).work(ReceiverStream::new(outgoing)).await?.into_inner();
        let mut welcomes = 0;
        while incoming.message().await?.is_some() {
            welcomes += 1;
        }
        panic!("the stream ended without a status after {welcomes} messages");
    };
    let ended: Result<(), Status> = tokio::time::timeout(PATIENCE, work).await.expect("in time");
    ended.unwrap_err()
}
