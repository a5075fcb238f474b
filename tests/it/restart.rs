//! The farm is killed or stopped with actions queued and some running, and the next one goes on as if nothing had been.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use croft::digest::Digest;
use croft::proto::rev2::execution_stage::Value as Stage;
use croft::proto::rev2::{Action, ActionResult, Directory, ExecuteResponse, WaitExecutionRequest};
use croft::proto::worker::finished::Outcome;
use croft::proto::worker::scheduler_message::Message as FromScheduler;
use croft::proto::worker::worker_message::Message as FromWorker;
use croft::proto::worker::workers_client::WorkersClient;
use croft::proto::worker::{Finished, Heartbeat, Hello, Lease, SchedulerMessage, Start, WorkerMessage};
use futures_util::stream::{self, StreamExt};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::client::{Client, Inputs, code, finish, message, metadata, shell};
use crate::farm::Farm;

const WORKERS: usize = 50;
/// What each worker has done when the farm is killed; it has one more in hand then.
const DONE_EACH: usize = 2;
const QUEUED: usize = 5000;
const ACTIONS: usize = WORKERS * (DONE_EACH + 1) + QUEUED;

/// Calls of the client at once.
const AT_ONCE: usize = 100;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often each action was started, by its hash.
type Starts = Arc<Mutex<BTreeMap<String, usize>>>;

/// A worker of one slot, of the test's own, through all its connections.
struct Worker {
    id: Bytes,
    held: Vec<Lease>,
    starts: Starts,
}

/// One connection of a worker.
struct Connection {
    outbox: mpsc::Sender<WorkerMessage>,
    inbox: Streaming<SchedulerMessage>,
}

impl Connection {
    async fn say(&self, message: FromWorker) {
        self.outbox.send(WorkerMessage { message: Some(message) }).await.unwrap();
    }

    /// The next message but heartbeats go out meanwhile; `None` when the farm is gone.
    async fn next(&mut self) -> Option<FromScheduler> {
        let mut heartbeat = tokio::time::interval(Duration::from_secs(5));
        loop {
            tokio::select! {
                message = self.inbox.message() => return message.ok()??.message,
                _ = heartbeat.tick() => {
                    let message = Some(FromWorker::Heartbeat(Heartbeat {}));
                    self.outbox.try_send(WorkerMessage { message }).ok()?;
                }
            }
        }
    }
}

impl Worker {
    fn new(starts: &Starts) -> Self {
        let id = Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        Self { id, held: Vec::new(), starts: Arc::clone(starts) }
    }

    async fn connect(&self, address: &str) -> Connection {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let (outbox, messages) = mpsc::channel(64);
        let hello = Hello {
            name: hex::encode(&self.id),
            slots: 1,
            worker: self.id.clone(),
            leases: self.held.clone(),
            ..Hello::default()
        };
        outbox.try_send(WorkerMessage { message: Some(FromWorker::Hello(hello)) }).unwrap();
        let mut inbox =
            WorkersClient::new(channel).work(ReceiverStream::new(messages)).await.unwrap().into_inner();
        let welcome = inbox.message().await.unwrap().unwrap().message;
        assert!(matches!(welcome, Some(FromScheduler::Welcome(_))), "{welcome:?}");
        Connection { outbox, inbox }
    }

    fn note(&self, start: &Start) {
        let hash = start.action_digest.as_ref().unwrap().hash.clone();
        *self.starts.lock().unwrap().entry(hash).or_default() += 1;
    }

    /// Answers some actions, keeps the next one in hand, and waits for the end of the farm once the answers are safe.
    async fn work_and_hold(mut self, address: String, is_set: mpsc::Sender<()>) -> Self {
        let mut connection = self.connect(&address).await;
        let (mut done, mut safe) = (0, 0);
        while let Some(message) = connection.next().await {
            match message {
                FromScheduler::Start(start) => {
                    self.note(&start);
                    if done == DONE_EACH {
                        self.held.extend(start.lease);
                    } else {
                        done += 1;
                        connection.say(finished(start.lease)).await;
                    }
                }
                FromScheduler::Acknowledge(_) => safe += 1,
                FromScheduler::Warm(_) => {}
                other => panic!("{other:?}"),
            }
            if safe == DONE_EACH && self.held.len() == 1 {
                is_set.send(()).await.unwrap();
            }
        }
        self
    }

    /// Comes back with what it has in hand, answers that, and then everything at once.
    async fn work(mut self, address: String) {
        let mut connection = self.connect(&address).await;
        for lease in std::mem::take(&mut self.held) {
            connection.say(finished(Some(lease))).await;
        }
        while let Some(message) = connection.next().await {
            match message {
                FromScheduler::Start(start) => {
                    self.note(&start);
                    connection.say(finished(start.lease)).await;
                }
                FromScheduler::Acknowledge(_) | FromScheduler::Warm(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn finished(lease: Option<Lease>) -> FromWorker {
    let response = ExecuteResponse { result: Some(ActionResult::default()), ..ExecuteResponse::default() };
    FromWorker::Finished(Finished { lease, outcome: Some(Outcome::Response(response)) })
}

/// A cache and a scheduler on ports that stay the same, with clients that may be away for long.
fn start(data: &Path, ports: &[String; 2]) -> Farm {
    let environment = [
        ("CROFT_ROLES", r#"["cas", "scheduler"]"#),
        ("CROFT_PUBLIC__LISTEN", ports[0].as_str()),
        ("CROFT_WORKERS__LISTEN", ports[1].as_str()),
        ("CROFT_SCHEDULER__ABANDON_AFTER", "10 min"),
        ("CROFT_SCHEDULER__RECONNECT_WITHIN", "5 min"),
        ("CROFT_SCHEDULER__RECOVER_WITHIN", "10 min"),
        ("CROFT_SCHEDULER__RETENTION", "10 min"),
    ];
    Farm::start_in(data, &environment)
}

fn free_ports() -> [String; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
}

async fn upload(client: &Client) -> Vec<Digest> {
    let command = client.put_message(&shell("true", &[])).await;
    let root = client.put_message(&Directory::default()).await;
    let action = |number: usize| Action {
        command_digest: Some(command.to_proto()),
        input_root_digest: Some(root.to_proto()),
        salt: number.to_be_bytes().to_vec(),
        ..Action::default()
    };
    let actions: Vec<Bytes> = (0..ACTIONS).map(|number| action(number).encode_to_vec().into()).collect();
    let mut digests = Vec::new();
    for some in actions.chunks(1000) {
        digests.extend(client.put_all(some.to_vec()).await);
    }
    digests
}

/// Begins the action and leaves it to the farm.
async fn begin(client: &Client, action: Digest) -> String {
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    operations.message().await.unwrap().unwrap().name
}

async fn wait(client: &Client, name: String) -> ExecuteResponse {
    let request = WaitExecutionRequest { name };
    let mut operations = client.execution.clone().wait_execution(request).await.unwrap().into_inner();
    finish(&mut operations).await.unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_is_killed_goes_on_with_everything_it_had() {
    let data = tempfile::tempdir().unwrap();
    let ports = free_ports();
    let mut farm = start(data.path(), &ports);
    let client = Client::new(&farm).await;
    let actions = upload(&client).await;
    let starts = Starts::default();
    let (is_set, mut sets) = mpsc::channel(WORKERS);
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| tokio::spawn(Worker::new(&starts).work_and_hold(ports[1].clone(), is_set.clone())))
        .collect();
    let calls = stream::iter(actions).map(|action| begin(&client, action)).buffered(AT_ONCE);
    let names: Vec<String> = within(calls.collect()).await;
    for _ in 0..WORKERS {
        within(sets.recv()).await.unwrap();
    }
    farm.kill();
    let mut resting = Vec::new();
    for worker in workers {
        resting.push(within(worker).await.unwrap());
    }
    assert_eq!(starts.lock().unwrap().len(), WORKERS * (DONE_EACH + 1));

    let farm = start(data.path(), &ports);
    let client = Client::new(&farm).await;
    for worker in resting {
        tokio::spawn(worker.work(ports[1].clone()));
    }
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), ACTIONS);
    let waits = stream::iter(names).map(|name| wait(&client, name)).buffer_unordered(AT_ONCE);
    let responses: Vec<ExecuteResponse> = within(waits.collect()).await;
    for response in &responses {
        assert_eq!(code(response), 0, "{}", message(response));
    }
    assert_eq!(responses.len(), ACTIONS);
    let starts = starts.lock().unwrap();
    assert_eq!(starts.len(), ACTIONS);
    let twice: Vec<_> = starts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{} actions ran again", twice.len());
}

/// A whole farm in one process. Its next worker has the same name, and that must be enough to know that the old one is gone.
fn start_whole(data: &Path, port: &str) -> Farm {
    let environment = [
        ("CROFT_PUBLIC__LISTEN", port),
        ("CROFT_SCHEDULER__RECONNECT_WITHIN", "10 min"),
        ("CROFT_SCHEDULER__RECOVER_WITHIN", "10 min"),
        ("CROFT_WORKER__SLOTS", "1"),
    ];
    Farm::start_in(data, &environment)
}

/// Ends a farm that runs one action and has another queued; on the next one both end well, and neither waits for a worker that is gone.
async fn everything_completes_after(end: impl FnOnce(&mut Farm)) {
    let data = tempfile::tempdir().unwrap();
    let [port, _] = free_ports();
    let mut farm = start_whole(data.path(), &port);
    let client = Client::new(&farm).await;
    let mut names = Vec::new();
    for script in ["sleep 2; echo one", "echo two"] {
        let action = client.action(&shell(script, &[]), &Inputs::default(), |_| {}).await;
        let mut operations =
            client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
        let name = loop {
            let operation = operations.message().await.unwrap().unwrap();
            if !names.is_empty() || metadata(&operation).stage() == Stage::Executing {
                break operation.name;
            }
        };
        names.push(name);
    }
    end(&mut farm);

    let farm = start_whole(data.path(), &port);
    let client = Client::new(&farm).await;
    for (name, printed) in names.into_iter().zip(["one\n", "two\n"]) {
        let response = within(wait(&client, name)).await;
        assert_eq!(code(&response), 0, "{}", message(&response));
        let wanted = client.function.hash(printed.as_bytes()).to_proto();
        assert_eq!(response.result.unwrap().stdout_digest, Some(wanted));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_whole_farm_ran_when_it_was_killed_runs_again_at_once() {
    everything_completes_after(Farm::kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_whole_farm_ran_when_it_was_stopped_runs_again_at_once() {
    everything_completes_after(|farm| assert!(farm.terminate().success())).await;
}
