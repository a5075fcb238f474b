//! Dispatch: how many actions pass through the farm when workers answer at once, and how soon each reaches its worker.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use croft::config::{Config, Listener, Role};
use croft::digest::{Digest, Function};
use croft::listen;
use croft::proto::rev2::execution_client::ExecutionClient;
use croft::proto::rev2::execution_server::ExecutionServer;
use croft::proto::rev2::{Action, Command, Directory, DirectoryNode, ExecuteRequest};
use croft::proto::worker::workers_server::WorkersServer;
use croft::server::Server;
use croft::systemd::Sockets;
use croft::tasks::{self, Shutdown};
use croft::worker::link::Stop;
use futures_util::stream::{self, StreamExt};
use prost::Message;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};

use crate::client::Client;
use crate::fleet::{Arrived, Fleet};
use crate::relay::Relay;
use crate::{Figure, Goal, Rounds, median};

/// Workers, each with one slot and a connection.
const WORKERS: u32 = 200;

/// Connections of clients, and actions that are under way at saturation.
const CONNECTIONS: usize = 4;
const AT_ONCE: usize = 1000;

/// Actions of one round.
const ACTIONS: usize = 20_000;

/// Actions that are stored with one request.
const BATCH: usize = 1000;

/// A round at saturation ends after this time, whatever is done by then: some ten times what it takes.
const ROUND_MAX: Duration = Duration::from_secs(60);

/// Actions that are under way while load is offered, at most: what comes in a second. A target that is further behind has
/// missed any goal, and what it is not sent any more counts as never arrived.
const BEHIND_MAX: usize = RATE as usize / 2;

/// How long after the last action was offered a target may take to end what is under way.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for: actions a second at saturation, and milliseconds until the worker has an action at half the load.
const RATE: f64 = 5000.0;
const WAIT_MS: f64 = 20.0;

/// The part of the rate that must be left when operations survive a restart.
const KEPT_PART: f64 = 0.8;

/// A server in this process with threads of its own, whose names show what it costs.
struct Target {
    name: &'static str,
    public: String,
    workers: String,
    shutdown: Shutdown,
    runtime: Option<tokio::runtime::Runtime>,
    _data: tempfile::TempDir,
}

/// A target with its workers and clients.
struct Stand {
    target: Target,
    clients: Vec<Channel>,
    /// When each action was sent that has not reached a worker, by its hash.
    sent: Arc<Mutex<HashMap<String, Instant>>>,
    /// Milliseconds from sending an action to its receipt by a worker.
    waits: Arc<Mutex<Vec<f64>>>,
    /// Actions per second, of each round.
    rates: Vec<f64>,
    _fleet: Fleet,
}

/// What one target was measured at.
struct Measured {
    /// Actions per second.
    rate: f64,
    /// Milliseconds from sending an action to its receipt by a worker, at half of [`RATE`].
    p50: f64,
    p99: f64,
}

pub(crate) async fn figures(rounds: Rounds) -> Vec<Figure> {
    let targets = [Target::relay().await, Target::farm(false).await, Target::farm(true).await];
    let [limit, plain, kept] = measure(rounds, targets).await;
    let figure = |name: &str, (ours, limit): (f64, f64), unit, goal| Figure {
        name: name.into(),
        ours,
        limit,
        limit_name: "bare relay over gRPC",
        unit,
        goal,
    };
    let mut figures = Vec::new();
    for (journal, ours, goal) in
        [("without a journal", &plain, Goal::Rate(RATE)), ("with a journal", &kept, Goal::Shown)]
    {
        let name = |what: &str| format!("dispatch {journal}{what}");
        figures.push(figure(&name(""), (ours.rate, limit.rate), "/s", goal));
        figures.push(figure(&name(", p50"), (ours.p50, limit.p50), "ms", Goal::Shown));
        figures.push(figure(&name(", p99"), (ours.p99, limit.p99), "ms", Goal::AtMost(WAIT_MS)));
    }
    figures.push(Figure {
        limit_name: "without a journal",
        ..figure("dispatch, what a journal leaves", (kept.rate, plain.rate), "/s", Goal::Ratio(KEPT_PART))
    });
    figures
}

/// Measures the targets by turns, so that whatever else the machine does meets all of them.
async fn measure<const N: usize>(rounds: Rounds, targets: [Target; N]) -> [Measured; N] {
    let mut stands = Vec::new();
    for target in targets {
        stands.push(Stand::new(target).await);
    }
    for round in 0..rounds.0.min(3) {
        for stand in &mut stands {
            stand.saturate(round).await;
        }
    }
    let mut measured = Vec::new();
    for stand in stands {
        measured.push(stand.pace(rounds.0).await);
    }
    measured.try_into().unwrap_or_else(|_| unreachable!("each target has its figures"))
}

impl Stand {
    async fn new(target: Target) -> Self {
        let sent = Arc::new(Mutex::new(HashMap::<String, Instant>::new()));
        let waits = Arc::new(Mutex::new(Vec::new()));
        let arrived: Arrived = {
            let (sent, waits) = (Arc::clone(&sent), Arc::clone(&waits));
            Arc::new(move |hash, at| {
                if let Some(sent) = sent.lock().unwrap().remove(hash) {
                    waits.lock().unwrap().push((at - sent).as_secs_f64() * 1000.0);
                }
            })
        };
        let fleet = Fleet::connect(&target.workers, WORKERS, &arrived).await;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(channel(&target.public).await);
        }
        Self { target, clients, sent, waits, rates: Vec::new(), _fleet: fleet }
    }

    async fn saturate(&mut self, round: usize) {
        let actions = self.target.actions(&self.clients[0], round).await;
        let (before, start) = (cpu(), Instant::now());
        let done = saturate(&self.clients, &actions).await;
        let rate = done as f64 / start.elapsed().as_secs_f64();
        println!("{}: {done} done, {rate:.0} /s", self.target.name);
        explain(&before, done);
        self.rates.push(rate);
    }

    async fn pace(self, round: usize) -> Measured {
        let actions = self.target.actions(&self.clients[0], round).await;
        let before = cpu();
        let (sent, done) = pace(&self.clients, &actions, (RATE / 2.0, &self.sent)).await;
        let mut waits = std::mem::take(&mut *self.waits.lock().unwrap());
        let arrived = waits.len();
        waits.resize(ACTIONS, f64::INFINITY);
        waits.sort_by(f64::total_cmp);
        let [p50, p99] = [ACTIONS / 2, ACTIONS * 99 / 100].map(|index| waits[index]);
        println!(
            "{} at {} /s: {ACTIONS} offered, {sent} sent, {arrived} arrived, {done} done; p50 {p50:.2} ms, p99 {p99:.2} ms",
            self.target.name,
            RATE / 2.0
        );
        explain(&before, done);
        Measured { rate: median(self.rates), p50, p99 }
    }
}

/// Runs `actions`, always as many at once as may be, for [`ROUND_MAX`] at most. Returns how many were done.
async fn saturate(clients: &[Channel], actions: &[Digest]) -> usize {
    let runs = actions.iter().enumerate().map(|(number, action)| {
        let client = clients[number % clients.len()].clone();
        tasks::spawn("action", run(client, *action))
    });
    let mut done = 0;
    let mut runs = stream::iter(runs).buffer_unordered(AT_ONCE);
    let count = async {
        while let Some(ended) = runs.next().await {
            ended.unwrap();
            done += 1;
        }
    };
    let _ = tokio::time::timeout(ROUND_MAX, count).await;
    done
}

/// Offers `actions`, so many a second whether or not the farm keeps up, and notes when each was sent. Returns how many were sent, which
/// is fewer when [`BEHIND_MAX`] are under way, and how many were done.
async fn pace(
    clients: &[Channel],
    actions: &[Digest],
    (rate, sent): (f64, &Mutex<HashMap<String, Instant>>),
) -> (usize, usize) {
    let (begin, mut runs) = (Instant::now(), tokio::task::JoinSet::new());
    let (mut started, mut done) = (0, 0);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    for (number, action) in actions.iter().enumerate() {
        while begin.elapsed().as_secs_f64() * rate < number as f64 {
            tick.tick().await;
        }
        while let Some(ended) = runs.try_join_next() {
            ended.unwrap();
            done += 1;
        }
        if runs.len() < BEHIND_MAX {
            started += 1;
            sent.lock().unwrap().insert(action.hex(), Instant::now());
            runs.spawn(run(clients[number % clients.len()].clone(), *action));
        }
    }
    let count = async {
        while let Some(ended) = runs.join_next().await {
            ended.unwrap();
            done += 1;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, count).await;
    (started, done)
}

async fn run(client: Channel, action: Digest) {
    let request = ExecuteRequest { action_digest: Some(action.to_proto()), ..ExecuteRequest::default() };
    let mut operations = ExecutionClient::new(client).execute(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(operation) = operations.message().await.unwrap() {
        MESSAGES.fetch_add(1, Ordering::Relaxed);
        last = Some(operation);
    }
    assert!(last.unwrap().done);
}

/// Messages that clients got.
static MESSAGES: AtomicUsize = AtomicUsize::new(0);

impl Target {
    /// The farm without a worker of its own, with or without a journal of the scheduler.
    async fn farm(journal: bool) -> Self {
        let data = tempfile::tempdir().unwrap();
        let name = if journal { "farm, journal" } else { "farm" };
        let (runtime, stop) = (runtime(name), Stop::default());
        let loopback = || Listener::on_loopback(0);
        // Tiers and the like may be given in the environment, to be compared.
        let loaded = Config::load(None).unwrap();
        let config = Config {
            data: Some(data.path().to_owned()),
            roles: [Role::Cas, Role::Scheduler].into(),
            public: loopback(),
            workers: Some(loopback()),
            admin: loopback(),
            scheduler: croft::scheduler::Config { journal, ..loaded.scheduler.clone() },
            ..loaded
        };
        let shutdown = stop.now.clone();
        let server = runtime
            .spawn(async move { Server::start(&config, Sockets::default(), stop).await.unwrap() })
            .await
            .unwrap();
        let address = |address: Option<SocketAddr>| address.unwrap().to_string();
        let (public, workers) = (address(server.public), address(server.workers));
        runtime.spawn(server.run());
        Self { name, public, workers, shutdown, runtime: Some(runtime), _data: data }
    }

    async fn relay() -> Self {
        let (runtime, shutdown) = (runtime("relay"), Shutdown::new());
        let relay = Relay::default();
        let routes = Routes::new(ExecutionServer::new(relay.clone())).add_service(WorkersServer::new(relay));
        let address = runtime.spawn(serve(routes, shutdown.clone())).await.unwrap();
        let data = tempfile::tempdir().unwrap();
        Self {
            name: "relay",
            public: address.clone(),
            workers: address,
            shutdown,
            runtime: Some(runtime),
            _data: data,
        }
    }

    /// Distinct actions with distinct commands, stored where there is a store.
    async fn actions(&self, client: &Channel, round: usize) -> Vec<Digest> {
        let is_stored = self.public != self.workers;
        let client = Client::over(client.clone());
        let root = root().encode_to_vec();
        if is_stored {
            client.put(root.clone()).await;
        }
        let root = client.function.hash(&root);
        let mut digests = Vec::new();
        for first in (0..ACTIONS).step_by(BATCH) {
            let commands: Vec<Vec<u8>> =
                (first..first + BATCH).map(|number| command(round, number)).collect();
            let action = |command: &Vec<u8>| {
                let command_digest = Some(client.function.hash(command).to_proto());
                let action =
                    Action { command_digest, input_root_digest: Some(root.to_proto()), ..Action::default() };
                action.encode_to_vec()
            };
            let actions: Vec<Vec<u8>> = commands.iter().map(action).collect();
            digests.extend(actions.iter().map(|action| client.function.hash(action)));
            if is_stored {
                client.put_all(commands.into_iter().chain(actions).map(Into::into).collect()).await;
            }
        }
        digests
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shutdown.cancel();
        // A runtime may not be awaited inside of another.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An input root such as small builds have: what the farm reads of it to choose a worker.
fn root() -> Directory {
    let directories = ["external", "lib", "src"].map(|name| DirectoryNode {
        name: name.into(),
        digest: Some(Function::Sha256.hash(name.as_bytes()).to_proto()),
    });
    Directory { directories: directories.into(), ..Directory::default() }
}

fn command(round: usize, number: usize) -> Vec<u8> {
    let arguments = vec!["/usr/bin/compile".into(), format!("{round}/{number}.c"), "-o".into(), "out".into()];
    Command { arguments, ..Command::default() }.encode_to_vec()
}

fn runtime(name: &str) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_name(name).build().unwrap()
}

async fn serve(routes: Routes, shutdown: Shutdown) -> String {
    let listener = listen::bind("bench", "127.0.0.1:0".parse().unwrap(), None).unwrap();
    let address = listener.address().unwrap().to_string();
    tasks::spawn("listener", listen::serve(listener, routes, shutdown));
    address
}

pub(crate) async fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap().tcp_nodelay(true);
    endpoint.connect().await.unwrap()
}

/// Prints what each of `actions` has cost since `before`: server's threads and the client's and workers' have names of their own.
fn explain(before: &HashMap<String, f64>, actions: usize) {
    let spent = |(name, after): (String, f64)| {
        let micros = (after - before.get(&name).unwrap_or(&0.0)) / actions as f64 * 1e6;
        (name, micros)
    };
    let mut costs: Vec<(String, f64)> =
        cpu().into_iter().map(spent).filter(|(_, micros)| *micros >= 1.0).collect();
    costs.sort_by(|one, other| other.1.total_cmp(&one.1));
    let costs: Vec<String> = costs.iter().map(|(name, micros)| format!("{name} {micros:.0}")).collect();
    let messages = MESSAGES.swap(0, Ordering::Relaxed) as f64 / actions as f64;
    println!("us of CPU per action by thread: {}; {messages:.1} messages per action", costs.join(", "));
}

/// Seconds of CPU by the names of the process's threads.
fn cpu() -> HashMap<String, f64> {
    let mut seconds = HashMap::new();
    for entry in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("schedstat")) else { continue };
        let Ok(name) = std::fs::read_to_string(entry.path().join("comm")) else { continue };
        let nanos: f64 = stat.split(' ').next().unwrap().parse().unwrap();
        *seconds.entry(name.trim().to_owned()).or_default() += nanos / 1e9;
    }
    seconds
}
