//! A worker and a scheduler of the test's own: whole leases over the real stream, in the real sandbox.

mod bounds;
mod hints;
mod inputs;
mod limits;
mod machine;
mod rate;
mod usage;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::ops::RangeFrom;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use croft::credential::Credential;
use croft::digest::{Digest, Function};
use croft::error::Result;
use croft::proto::rev2::platform::Property;
use croft::proto::rev2::{self, ExecuteResponse};
use croft::proto::worker::finished::Outcome;
use croft::proto::worker::scheduler_message::Message as FromScheduler;
use croft::proto::worker::worker_message::Message as FromWorker;
use croft::proto::worker::workers_server::{Workers, WorkersServer};
use croft::proto::worker::{
    Acknowledge, Finished, Hello, Kill, Lease, SchedulerMessage, Start, Welcome, WorkerMessage,
};
use croft::store::{Blob, Cas, Key, Store};
use croft::tasks::{self, Shutdown};
use croft::worker::link::{self, Link};
use croft::worker::{Config, Worker};
use futures_util::{FutureExt, Stream, StreamExt};
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(30);

/// Blobs in memory; those that are large or end in a NUL are given out as files, as the disk tier does.
#[derive(Default)]
struct Memory(Mutex<HashMap<Key, Bytes>>);

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        let Some(bytes) = self.0.lock().expect("no panic").get(key).cloned() else { return Ok(None) };
        if range.start == 0 && bytes.ends_with(b"\n") {
            let mut file = tempfile::NamedTempFile::new().expect("a file");
            file.write_all(&bytes).expect("write");
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o444)).expect("chmod");
            let file = Arc::new(File::open(file.path()).expect("open"));
            return Ok(Some(Blob::File { file, offset: 0, size: bytes.len() as u64 }));
        }
        Ok(Some(Blob::Whole(bytes.slice(usize::try_from(range.start).expect("small")..))))
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        let bytes = blob.into_bytes(u64::MAX).await?;
        self.0.lock().expect("no panic").insert(key.clone(), bytes);
        Ok(())
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let blobs = self.0.lock().expect("no panic");
        Ok(keys.iter().filter(|key| !blobs.contains_key(key)).cloned().collect())
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.0.lock().expect("no panic").remove(key);
        Ok(())
    }
}

/// A scheduler that hands each connection to the test.
struct Scheduler {
    connections: mpsc::Sender<Connection>,
}

/// One connection of a worker.
struct Connection {
    hello: Hello,
    from: Streaming<WorkerMessage>,
    to: mpsc::Sender<Result<SchedulerMessage, Status>>,
}

#[async_trait]
impl Workers for Scheduler {
    type WorkStream = Pin<Box<dyn Stream<Item = Result<SchedulerMessage, Status>> + Send>>;

    async fn work(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let mut from = request.into_inner();
        let first = from.message().await?.and_then(|message| message.message);
        let Some(FromWorker::Hello(hello)) = first else { return Err(Status::invalid_argument("no hello")) };
        let (to, messages) = mpsc::channel(16);
        let interval = croft::proto::Duration { seconds: 0, nanos: 100_000_000 };
        let welcome = Welcome { heartbeat_interval: Some(interval) };
        to.try_send(Ok(said(FromScheduler::Welcome(welcome)))).expect("room");
        self.connections.send(Connection { hello, from, to }).await.expect("the test listens");
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(messages).boxed()))
    }
}

fn said(message: FromScheduler) -> SchedulerMessage {
    SchedulerMessage { message: Some(message) }
}

/// A worker that is connected to the test.
struct Farm {
    cas: Cas,
    store: Arc<Memory>,
    connections: mpsc::Receiver<Connection>,
    connection: Connection,
    drain: Shutdown,
    shutdown: Shutdown,
    worker: tokio::task::JoinHandle<Result<()>>,
    directory: tempfile::TempDir,
    attempts: u32,
    /// What the next actions demand.
    properties: Vec<Property>,
}

impl Farm {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let store = Arc::new(Memory::default());
        let cas = Cas::new(store.clone());
        let mut config = Config { slots: Some(2.try_into().expect("not zero")), ..Config::default() };
        change(&mut config);
        let worker = Worker::start(config, cas.clone(), directory.path(), &crate::farm::executable())
            .await
            .expect("the worker starts");
        let (sender, mut connections) = mpsc::channel(4);
        let shutdown = Shutdown::new();
        let address = serve(Scheduler { connections: sender }).await;
        let connect: link::Connect = Arc::new(move || {
            async move {
                let endpoint =
                    tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
                Ok(Credential::default().over(endpoint.connect_lazy()))
            }
            .boxed()
        });
        let drain = Shutdown::new();
        let stop = link::Stop { drain: drain.clone(), now: shutdown.clone() };
        let worker = tasks::spawn("worker", Link::new(worker, connect, stop).run());
        let connection = within(connections.recv()).await.expect("a connection");
        Self {
            cas,
            store,
            connections,
            connection,
            drain,
            shutdown,
            worker,
            directory,
            attempts: 0,
            properties: Vec::new(),
        }
    }

    async fn put(&self, bytes: impl Into<Bytes>) -> rev2::Digest {
        self.cas.put_bytes(Function::Sha256, bytes.into()).await.expect("stored").to_proto()
    }

    /// Starts a shell script with one input file and one executable.
    async fn start_script(&mut self, script: &str, change: impl FnOnce(&mut rev2::Command)) -> Lease {
        let (plain, tool) = (self.put("plain\n").await, self.put("#!/bin/sh\necho tool\n").await);
        let file = |name: &str, digest, is_executable| rev2::FileNode {
            name: name.into(),
            digest: Some(digest),
            is_executable,
            node_properties: None,
        };
        let files = vec![file("plain", plain, false), file("tool", tool, true)];
        let root = rev2::Directory { files, ..rev2::Directory::default() };
        let root = self.put(root.encode_to_vec()).await;
        let variable =
            rev2::command::EnvironmentVariable { name: "PATH".into(), value: "/usr/bin:/bin".into() };
        let mut command = rev2::Command {
            arguments: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            environment_variables: vec![variable],
            ..rev2::Command::default()
        };
        change(&mut command);
        let command = self.put(command.encode_to_vec()).await;
        self.start_action(command, root, 20).await
    }

    async fn start_action(&mut self, command: rev2::Digest, root: rev2::Digest, timeout: i64) -> Lease {
        self.attempts += 1;
        let lease = Lease { execution: Bytes::from_static(&[7; 16]), attempt: self.attempts };
        let start = Start {
            lease: Some(lease.clone()),
            digest_function: 1,
            command_digest: Some(command),
            input_root_digest: Some(root),
            timeout: Some(croft::proto::Duration { seconds: timeout, nanos: 0 }),
            properties: self.properties.clone(),
            ..Start::default()
        };
        self.tell(FromScheduler::Start(start)).await;
        lease
    }

    async fn tell(&self, message: FromScheduler) {
        self.connection.to.send(Ok(said(message))).await.expect("connected");
    }

    /// Ends the connection and waits for the next.
    async fn reconnect(&mut self) {
        let (to, _) = mpsc::channel(1);
        // Dropping the sender ends the stream.
        drop(std::mem::replace(&mut self.connection.to, to));
        self.connection = within(self.connections.recv()).await.expect("a new connection");
    }

    /// The end of the next lease, which is acknowledged.
    async fn finished(&mut self) -> Finished {
        let finished = self.unacknowledged().await;
        self.tell(FromScheduler::Acknowledge(Acknowledge { lease: finished.lease.clone() })).await;
        finished
    }

    /// The end of the next lease.
    async fn unacknowledged(&mut self) -> Finished {
        loop {
            let message =
                within(self.connection.from.message()).await.expect("connected").expect("a message");
            if let Some(FromWorker::Finished(finished)) = message.message {
                return finished;
            }
        }
    }

    /// The next message that is no heartbeat and no progress.
    async fn message(&mut self) -> FromWorker {
        loop {
            let message =
                within(self.connection.from.message()).await.expect("connected").expect("a message");
            match message.message.expect("a known one") {
                FromWorker::Heartbeat(_) | FromWorker::Progress(_) => {}
                message => return message,
            }
        }
    }

    async fn response(&mut self) -> ExecuteResponse {
        match self.finished().await.outcome {
            Some(Outcome::Response(response)) => response,
            other => panic!("{other:?}"),
        }
    }

    async fn run(&mut self, script: &str, outputs: &[&str]) -> ExecuteResponse {
        let outputs = outputs.iter().map(|output| (*output).to_owned()).collect();
        self.start_script(script, |command| command.output_paths = outputs).await;
        self.response().await
    }

    async fn text(&self, digest: Option<&rev2::Digest>) -> String {
        let Some(digest) = digest else { return String::new() };
        let digest = Digest::from_proto(Function::Sha256, Some(digest)).expect("a digest");
        let bytes = self.cas.read(&digest, u64::MAX).await.expect("read").expect("stored");
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    }

    /// Ends the worker and checks that it leaves nothing behind.
    async fn stop(self) {
        self.shutdown.cancel();
        within(self.worker).await.expect("no panic").expect("a clean end");
        let left: Vec<_> = std::fs::read_dir(self.directory.path().join("actions")).expect("list").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

async fn serve(scheduler: Scheduler) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(WorkersServer::new(scheduler));
    tasks::spawn("scheduler", server.serve_with_incoming(incoming));
    address
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

fn code(response: &ExecuteResponse) -> i32 {
    response.status.as_ref().expect("a status").code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_runs_from_inputs_to_outputs() {
    let mut farm = Farm::start().await;
    assert_eq!(farm.connection.hello.slots, 2);
    assert!(farm.connection.hello.properties.iter().any(|property| property.name == "OSFamily"));
    let script = "cat plain; ./tool; echo err >&2; mkdir d; echo x > d/ä; ln -s ä d/link; echo y > out; \
                  chmod +x out; test ! -x plain; exit 3";
    let response = farm.run(script, &["out", "d", "absent"]).await;
    assert_eq!(code(&response), 0, "{response:?}");
    let result = response.result.expect("a result");
    assert_eq!(result.exit_code, 3);
    assert_eq!(farm.text(result.stdout_digest.as_ref()).await, "plain\ntool\n");
    assert_eq!(farm.text(result.stderr_digest.as_ref()).await, "err\n");
    let [file] = result.output_files.as_slice() else { panic!("{result:?}") };
    assert!(file.path == "out" && file.is_executable);
    assert_eq!(farm.text(file.digest.as_ref()).await, "y\n");
    let [directory] = result.output_directories.as_slice() else { panic!("{result:?}") };
    let digest = Digest::from_proto(Function::Sha256, directory.tree_digest.as_ref()).expect("a digest");
    let tree: rev2::Tree = farm.cas.message(&digest).await.expect("read").expect("stored");
    let root = tree.root.expect("a root");
    assert_eq!((root.files[0].name.as_str(), root.symlinks[0].target.as_str()), ("ä", "ä"));
    let metadata = result.execution_metadata.expect("metadata");
    let times = [
        metadata.worker_start_timestamp,
        metadata.input_fetch_start_timestamp,
        metadata.input_fetch_completed_timestamp,
        metadata.execution_start_timestamp,
        metadata.execution_completed_timestamp,
        metadata.output_upload_start_timestamp,
        metadata.output_upload_completed_timestamp,
        metadata.worker_completed_timestamp,
    ];
    let times: Vec<_> = times.map(|time| time.map(|time| (time.seconds, time.nanos)).expect("set")).into();
    assert!(times.is_sorted(), "{times:?}");
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_is_the_same_for_the_next_action() {
    let mut farm = Farm::start().await;
    let first = farm
        .run("chmod 777 plain tool && echo changed > plain && echo changed > tool && cat plain tool", &[])
        .await;
    let result = first.result.expect("a result");
    assert_eq!(farm.text(result.stdout_digest.as_ref()).await, "changed\nchanged\n");
    let second = farm.run("cat plain tool", &[]).await.result.expect("a result");
    assert_eq!(farm.text(second.stdout_digest.as_ref()).await, "plain\n#!/bin/sh\necho tool\n");
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_request_is_answered_and_runs_nothing() {
    let mut farm = Farm::start().await;
    let absent = Function::Sha256.hash(b"absent").to_proto();
    farm.start_action(absent.clone(), absent, 10).await;
    let response = farm.response().await;
    assert_eq!((code(&response), response.status.expect("a status").details.len()), (9, 1));
    let response = farm.run("true", &["/etc/passwd"]).await;
    assert_eq!(code(&response), 3);
    assert!(response.status.expect("a status").message.contains("`/etc/passwd` is absolute"));
    farm.start_script("true", |command| command.working_directory = "nowhere".into()).await;
    assert_eq!(code(&farm.response().await), 3);
    #[expect(deprecated, reason = "clients of REv2 2.0 send this field")]
    farm.start_script("echo > d", |command| command.output_directories = vec!["d".into()]).await;
    let result = farm.response().await.result.expect("a result");
    assert_ne!(result.exit_code, 0, "an old output directory exists before the command runs");
    let response = farm.run("mkdir o; mkfifo o/p", &["o"]).await;
    assert_eq!(code(&response), 9);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_keeps_what_was_printed() {
    let mut farm = Farm::start().await;
    let command = rev2::Command {
        arguments: ["/bin/sh", "-c", "echo before; sleep 600 & sleep 600"].map(str::to_owned).into(),
        ..rev2::Command::default()
    };
    let command = farm.put(command.encode_to_vec()).await;
    let root = farm.put(rev2::Directory::default().encode_to_vec()).await;
    farm.start_action(command, root, 1).await;
    let response = farm.response().await;
    assert_eq!(code(&response), 4, "{response:?}");
    let result = response.result.expect("a result");
    assert_eq!(farm.text(result.stdout_digest.as_ref()).await, "before\n");
    assert_eq!(result.exit_code, 137);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_lease_says_so_and_frees_its_slot() {
    let mut farm = Farm::start().await;
    for _ in 0..3 {
        let lease = farm.start_script("sleep 600", |_| {}).await;
        let kill = Kill { lease: Some(lease.clone()) };
        farm.connection.to.send(Ok(said(FromScheduler::Kill(kill)))).await.expect("connected");
        let finished = farm.finished().await;
        assert_eq!((finished.lease, finished.outcome), (Some(lease), Some(Outcome::Killed(true))));
    }
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_its_connection_and_is_answered_until_that_is_acknowledged() {
    let mut farm = Farm::start().await;
    let lease = farm.start_script("sleep 0.5; cat /proc/sys/kernel/random/uuid", |_| {}).await;
    farm.reconnect().await;
    assert_eq!(farm.connection.hello.leases, std::slice::from_ref(&lease));
    let first = farm.unacknowledged().await;
    assert_eq!(first.lease, Some(lease.clone()));
    farm.reconnect().await;
    assert_eq!(farm.connection.hello.leases, std::slice::from_ref(&lease));
    assert_eq!(farm.finished().await, first, "the same answer: it ran once");
    // The worker takes orders in their order: what it says to this one, it says after it has taken the acknowledgement.
    let response = farm.run("echo again", &[]).await;
    assert_eq!(code(&response), 0);
    farm.tell(FromScheduler::Kill(Kill { lease: Some(lease) })).await;
    let outcome = farm.unacknowledged().await.outcome;
    assert_eq!(outcome, Some(Outcome::Killed(true)), "what is not held does not run, and that is said");
    farm.reconnect().await;
    assert_eq!(farm.connection.hello.leases, []);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_started_twice_runs_once() {
    let mut farm = Farm::start().await;
    let lease = farm.start_script("sleep 0.2", |_| {}).await;
    farm.attempts -= 1;
    assert_eq!(farm.start_script("sleep 0.2", |_| {}).await, lease);
    assert_eq!(farm.finished().await.lease, Some(lease));
    let next = farm.start_script("true", |_| {}).await;
    assert_eq!(farm.finished().await.lease, Some(next), "the connection held, and there is no second answer");
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_lease_tells_how_far_it_is() {
    let mut farm = Farm::start().await;
    let lease = farm.start_script("sleep 600", |_| {}).await;
    let progress = loop {
        let message = within(farm.connection.from.message()).await.expect("connected").expect("a message");
        if let Some(FromWorker::Progress(progress)) = message.message {
            break progress;
        }
    };
    assert_eq!(progress.lease, Some(lease));
    let metadata = progress.metadata.expect("metadata");
    assert!(
        metadata.input_fetch_completed_timestamp.is_some() && metadata.execution_start_timestamp.is_some()
    );
    assert!(metadata.execution_completed_timestamp.is_none());
    // What runs is killed then.
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_says_so_finishes_and_says_goodbye() {
    let mut farm = Farm::start().await;
    let lease = farm.start_script("sleep 2", |_| {}).await;
    // The next connection shows that the worker has taken the lease.
    farm.reconnect().await;
    assert_eq!(farm.connection.hello.leases, std::slice::from_ref(&lease));
    farm.drain.cancel();
    assert!(matches!(farm.message().await, FromWorker::Draining(_)));
    farm.reconnect().await;
    assert!(matches!(farm.message().await, FromWorker::Draining(_)), "a new connection hears of it, too");
    assert_eq!(farm.finished().await.lease, Some(lease));
    assert!(matches!(farm.message().await, FromWorker::Goodbye(_)));
    farm.stop().await;
}
