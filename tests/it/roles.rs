//! A farm in several processes: what each serves, and that work goes on when one of them, or the way between them, is gone for a while.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant, SystemTime};

use croft::digest::Digest;
use croft::proto::longrunning::Operation;
use croft::proto::rev2::capabilities_client::CapabilitiesClient;
use croft::proto::rev2::{
    ExecuteResponse, GetCapabilitiesRequest, ServerCapabilities, WaitExecutionRequest, execution_stage,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::{Code, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{Client, Inputs, code, finish, message, metadata, shell, stdout};
use crate::execution::{runs, wait_for};
use crate::farm::Farm;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a farm tells the health of, the whole first.
const SERVICES: [&str; 8] = [
    "",
    "build.bazel.remote.asset.v1.Fetch",
    "build.bazel.remote.execution.v2.ActionCache",
    "build.bazel.remote.execution.v2.Capabilities",
    "build.bazel.remote.execution.v2.ContentAddressableStorage",
    "build.bazel.remote.execution.v2.Execution",
    "google.bytestream.ByteStream",
    "google.longrunning.Operations",
];

/// How long the way between a worker and its scheduler is cut.
const CUT: Duration = Duration::from_secs(3);

/// Prints something that no other run prints.
const UNIQUE: &str = "cat /proc/sys/kernel/random/uuid";

/// One process of a farm, with its own data, on ports that stay its own when it starts again.
struct Process {
    farm: Farm,
    data: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Process {
    fn start(role: &str, more: &[(&'static str, String)]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut environment = vec![("CROFT_ROLES", format!("[\"{role}\"]"))];
        environment.extend_from_slice(more);
        let farm = Farm::start_in(data.path(), &borrowed(&environment));
        Self { farm, data, environment }
    }

    fn cas() -> Self {
        Self::start("cas", &[])
    }

    fn scheduler(cas: &Self) -> Self {
        let ports = ["CROFT_WORKERS__LISTEN", "CROFT_PUBLIC__LISTEN"].map(|key| (key, free_address()));
        Self::start("scheduler", &[&ports[..], &[tier(cas)]].concat())
    }

    /// A worker of one slot for the scheduler at `scheduler`.
    fn worker(name: &str, scheduler: &str, cas: &Self) -> Self {
        let own = [
            ("CROFT_WORKER__NAME", name.to_owned()),
            ("CROFT_WORKER__SLOTS", "1".to_owned()),
            ("CROFT_WORKER__SCHEDULER", format!("grpc://{scheduler}")),
            tier(cas),
        ];
        Self::start("worker", &own)
    }

    fn start_again(&mut self) {
        self.farm = Farm::start_in(self.data.path(), &borrowed(&self.environment));
    }

    async fn is_ready(&self) -> bool {
        self.farm.page("/readyz").await.0 == 200
    }

    async fn until_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready().await {
            assert!(Instant::now() < deadline, "it does not get ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn capabilities(&self) -> ServerCapabilities {
        let mut client = CapabilitiesClient::new(self.farm.channel().await);
        client.get_capabilities(GetCapabilitiesRequest::default()).await.unwrap().into_inner()
    }
}

fn borrowed<'a>(environment: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    environment.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

fn tier(cas: &Process) -> (&'static str, String) {
    ("CROFT_STORAGE__TIER", format!("[{{kind=\"farm\",endpoints=[\"http://{}\"]}}]", cas.farm.public))
}

/// A port that was free a moment ago.
fn free_address() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A client with its blobs in one process and its actions in another.
async fn client(cas: &Process, scheduler: &Process) -> Client {
    let execution = Client::new(&scheduler.farm).await;
    Client {
        execution: execution.execution,
        operations: execution.operations,
        ..Client::new(&cas.farm).await
    }
}

async fn action(client: &Client, script: &str) -> Digest {
    client.action(&shell(script, &[]), &Inputs::default(), |_| {}).await
}

async fn begin(client: &Client, action: &Digest) -> Streaming<Operation> {
    client.execution.clone().execute(client.request(action)).await.unwrap().into_inner()
}

/// Begins an action and returns once a worker runs it.
async fn begin_and_run(client: &Client, action: &Digest) -> (String, Streaming<Operation>) {
    let mut operations = begin(client, action).await;
    loop {
        let operation = operations.message().await.unwrap().unwrap();
        if metadata(&operation).stage() == execution_stage::Value::Executing {
            return (operation.name, operations);
        }
    }
}

fn worker_of(response: &ExecuteResponse) -> String {
    let result = response.result.as_ref().unwrap_or_else(|| panic!("{}", message(response)));
    result.execution_metadata.as_ref().unwrap().worker.clone()
}

fn began(response: &ExecuteResponse) -> SystemTime {
    let metadata = response.result.as_ref().unwrap().execution_metadata.as_ref().unwrap();
    let begin = metadata.execution_start_timestamp.as_ref().unwrap();
    let since = Duration::new(begin.seconds.try_into().unwrap(), begin.nanos.try_into().unwrap());
    SystemTime::UNIX_EPOCH + since
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_are_one_farm_and_each_tells_what_it_is() {
    let cas = Process::cas();
    let scheduler = Process::scheduler(&cas);
    let worker = Process::worker("alone", &scheduler.farm.workers, &cas);
    worker.until_ready().await;
    let client = client(&cas, &scheduler).await;
    let inputs = Inputs::default().file("in", "hello");
    let action = client.action(&shell("cat in in > out", &["out"]), &inputs, |_| {}).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), 0, "{}", message(&response));
    assert_eq!(worker_of(&response), "alone");
    let output = &response.result.as_ref().unwrap().output_files[0];
    let output = Digest::from_proto(client.function, output.digest.as_ref()).unwrap();
    assert_eq!(client.read_blob(&output).await.unwrap(), b"hellohello");
    assert!(client.execute(client.request(&action)).await.unwrap().cached_result);

    let (of_cas, of_scheduler) = (cas.capabilities().await, scheduler.capabilities().await);
    assert!(of_cas.cache_capabilities.is_some() && of_cas.execution_capabilities.is_none());
    assert!(of_scheduler.cache_capabilities.is_none());
    assert!(of_scheduler.execution_capabilities.unwrap().exec_enabled);
    let nobody = Client::new(&cas.farm).await;
    let error = nobody.execute(nobody.request(&action)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert_eq!((cas.farm.workers.as_str(), worker.farm.public.as_str()), ("", ""));
    assert!(cas.is_ready().await && scheduler.is_ready().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_ready_while_it_has_a_scheduler() {
    let cas = Process::cas();
    let mut scheduler = Process::scheduler(&cas);
    let worker = Process::worker("w", &scheduler.farm.workers, &cas);
    worker.until_ready().await;
    scheduler.farm.kill();
    let deadline = Instant::now() + PATIENCE;
    while worker.is_ready().await {
        assert!(Instant::now() < deadline, "it does not notice");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It is lost, or nobody answers any more.
    let (status, reason) = worker.farm.page("/readyz").await;
    assert!(status == 503 && reason.contains("scheduler"), "{status} {reason}");
    scheduler.start_again();
    worker.until_ready().await;
    let workers = format!("http://{}", scheduler.farm.workers);
    let endpoint = tonic::transport::Endpoint::from_shared(workers).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    for service in ["", "croft.worker.v1.Workers", "externalscaler.ExternalScaler"] {
        let check = HealthCheckRequest { service: service.into() };
        let answer = health.check(check).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_goes_on_while_its_scheduler_is_killed_and_started_again() {
    let cas = Process::cas();
    let mut scheduler = Process::scheduler(&cas);
    let worker = Process::worker("w", &scheduler.farm.workers, &cas);
    worker.until_ready().await;
    let before = client(&cas, &scheduler).await;
    let action = action(&before, &format!("sleep 3.25; {UNIQUE}")).await;
    let (name, operations) = begin_and_run(&before, &action).await;
    wait_for(|| runs("sleep\x003.25\0")).await;
    scheduler.farm.kill();
    drop(operations);
    let seen = SystemTime::now();
    scheduler.start_again();
    let after = client(&cas, &scheduler).await;
    let request = WaitExecutionRequest { name };
    let mut operations = after.execution.clone().wait_execution(request).await.unwrap().into_inner();
    let response = finish(&mut operations).await.unwrap();
    assert_eq!(code(&response), 0, "{}", message(&response));
    assert!(began(&response) <= seen, "it ran once, from before the scheduler died");
    let cached = after.execute(after.request(&action)).await.unwrap();
    assert!(cached.cached_result);
    let printed =
        |response: &ExecuteResponse| response.result.as_ref().unwrap().stdout_digest.clone().unwrap();
    assert_eq!(printed(&cached), printed(&response));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_goes_on_while_the_way_to_its_scheduler_is_cut() {
    let cas = Process::cas();
    let scheduler = Process::scheduler(&cas);
    let (open, is_open) = watch::channel(true);
    let way = relay(scheduler.farm.workers.clone(), is_open).await;
    let worker = Process::worker("w", &way, &cas);
    worker.until_ready().await;
    let client = client(&cas, &scheduler).await;
    // The first is answered after the way is open again, the second while it is cut.
    for seconds in ["4.25", "1.25"] {
        let action = action(&client, &format!("sleep {seconds}; {UNIQUE}")).await;
        let (_, mut operations) = begin_and_run(&client, &action).await;
        wait_for(|| runs(&format!("sleep\0{seconds}\0"))).await;
        open.send_replace(false);
        tokio::time::sleep(CUT).await;
        let seen = SystemTime::now();
        open.send_replace(true);
        let response = finish(&mut operations).await.unwrap();
        assert_eq!(code(&response), 0, "{}", message(&response));
        assert!(began(&response) <= seen, "it ran once");
    }
}

/// Carries connections to `target` while `is_open`; cuts them, and lets in no other, while it is not.
async fn relay(target: String, is_open: watch::Receiver<bool>) -> String {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (target, mut is_open) = (target.clone(), is_open.clone());
            tokio::spawn(async move {
                if !*is_open.borrow() {
                    return;
                }
                let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = is_open.wait_for(|is_open| !is_open) => {}
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_stop_finishes_what_it_runs_and_starts_nothing_else() {
    let cas = Process::cas();
    let scheduler = Process::scheduler(&cas);
    let mut worker = Process::worker("first", &scheduler.farm.workers, &cas);
    worker.until_ready().await;
    let client = client(&cas, &scheduler).await;
    let (running, waiting) =
        (action(&client, "sleep 2; echo running").await, action(&client, "echo waiting").await);
    let (_, mut first) = begin_and_run(&client, &running).await;
    let mut second = begin(&client, &waiting).await;
    worker.farm.ask_to_stop();
    let response = finish(&mut first).await.unwrap();
    assert_eq!((worker_of(&response).as_str(), stdout(&response).as_str()), ("first", "running\n"));
    let status = tokio::task::spawn_blocking(move || worker.farm.wait()).await.unwrap();
    assert!(status.success(), "{status}");
    let _next = Process::worker("second", &scheduler.farm.workers, &cas);
    let response = finish(&mut second).await.unwrap();
    assert_eq!((worker_of(&response).as_str(), stdout(&response).as_str()), ("second", "waiting\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_twice_stops_and_its_action_runs_elsewhere() {
    let cas = Process::cas();
    let scheduler = Process::scheduler(&cas);
    let mut worker = Process::worker("first", &scheduler.farm.workers, &cas);
    worker.until_ready().await;
    let client = client(&cas, &scheduler).await;
    let action = action(&client, "sleep 5").await;
    let (_, mut operations) = begin_and_run(&client, &action).await;
    worker.farm.ask_to_stop();
    let deadline = Instant::now() + PATIENCE;
    while worker.is_ready().await {
        assert!(Instant::now() < deadline, "it does not say that it stops");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(worker.farm.terminate().success());
    let _next = Process::worker("second", &scheduler.farm.workers, &cas);
    let response = finish(&mut operations).await.unwrap();
    assert_eq!((code(&response), worker_of(&response).as_str()), (0, "second"), "{}", message(&response));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_the_load() {
    let cas = Process::cas();
    let scheduler = Process::scheduler(&cas);
    let workers = ["one", "two"].map(|name| Process::worker(name, &scheduler.farm.workers, &cas));
    for worker in &workers {
        worker.until_ready().await;
    }
    let client = client(&cas, &scheduler).await;
    let runs = (0..4).map(async |number| {
        let action = action(&client, &format!("sleep 1; echo {number}")).await;
        client.execute(client.request(&action)).await.unwrap()
    });
    let responses = futures_util::future::join_all(runs).await;
    let names: BTreeSet<String> = responses.iter().map(worker_of).collect();
    assert_eq!(names, BTreeSet::from(["one".to_owned(), "two".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_is_to_finish_what_runs_is_not_ready_meanwhile_and_then_stops() {
    let mut farm = Farm::start_with(&[("CROFT_WORKER__DRAIN_TIMEOUT", "1min")]);
    let client = Client::new(&farm).await;
    let action = action(&client, "sleep 2; echo done").await;
    let (_, mut operations) = begin_and_run(&client, &action).await;
    assert_eq!(farm.page("/readyz").await.0, 200);
    let mut health = HealthClient::new(farm.channel().await);
    let mut changes = Vec::new();
    for service in SERVICES {
        let watch = HealthCheckRequest { service: service.into() };
        let mut statuses = health.watch(watch).await.unwrap().into_inner();
        let first = statuses.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving, "{service}");
        changes.push(statuses);
    }
    farm.ask_to_stop();
    let deadline = Instant::now() + PATIENCE;
    while farm.page("/readyz").await.0 == 200 {
        assert!(Instant::now() < deadline, "it does not say that it stops");
    }
    assert_eq!(farm.page("/readyz").await, (503, "it is stopping\n".to_owned()));
    assert_eq!(farm.page("/livez").await.0, 200);
    for mut statuses in changes {
        assert_eq!(statuses.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    }
    assert!(farm.is_alive());
    let response = finish(&mut operations).await.unwrap();
    assert_eq!((code(&response), stdout(&response).as_str()), (0, "done\n"), "{}", message(&response));
    assert!(tokio::task::spawn_blocking(move || farm.wait()).await.unwrap().success());
}
