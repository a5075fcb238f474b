//! Restarts: a scheduler ends without a word, and the next one goes on from the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;

use super::memory::Memory;
use super::*;
use crate::error::Result;
use crate::proto::rev2::{ActionResult, ExecuteResponse};
use crate::scheduler::{Command, Config, Handle, Lease, Offer, OperationId, Outcome, Settle, Stage, Task};
use crate::scheduler::{Watch, WorkerId, WorkerSession};
use crate::tasks::{self, Shutdown};

/// Takes every answer, and knows which actions have been settled.
#[derive(Default)]
struct Results(Mutex<BTreeSet<crate::digest::Digest>>);

#[async_trait]
impl Settle for Results {
    async fn settle(&self, task: &Task, response: ExecuteResponse) -> Result<ExecuteResponse> {
        self.0.lock().expect("no panic").insert(task.action_digest);
        Ok(response)
    }
}

struct Farm {
    handle: Handle,
    running: JoinHandle<Result<()>>,
    shutdown: Shutdown,
}

impl Farm {
    async fn start(path: &Path, config: Config) -> Self {
        let shutdown = Shutdown::new();
        let settle = Arc::new(Results::default());
        let (handle, running) =
            Handle::resume(config, settle, path.to_owned(), shutdown.clone()).await.unwrap();
        Self { handle, running, shutdown }
    }

    async fn start_from(journal: Arc<Memory>, config: Config) -> Self {
        let shutdown = Shutdown::new();
        let settle = Arc::new(Results::default());
        let (handle, running) = Handle::resume_from(journal, config, settle, shutdown.clone()).await.unwrap();
        Self { handle, running, shutdown }
    }

    /// Ends it in the middle of whatever it does.
    async fn kill(self) {
        self.running.abort();
        assert!(self.running.await.unwrap_err().is_cancelled());
    }

    async fn stop(self) {
        self.shutdown.cancel();
        soon(self.running).await.unwrap().unwrap();
    }

    async fn join(&self, worker: u128, slots: u32, leases: Vec<Lease>) -> WorkerSession {
        let (worker, name) = (WorkerId::new(worker), format!("worker {worker}"));
        let offer = Offer { worker, name, owner: "".into(), slots, properties: BTreeMap::new(), leases };
        self.handle.join(offer).await.unwrap()
    }

    async fn completed(&self, operation: OperationId) {
        let watch = self.handle.watch(operation).await.unwrap();
        completed(&mut watch.expect("an operation that was promised is known")).await;
    }
}

async fn completed(watch: &mut Watch) {
    let mut update = watch.current();
    while update.stage != Stage::Completed {
        update = soon(watch.next()).await.expect("an operation is completed before it is forgotten");
    }
    let status = update.response.as_ref().unwrap().status.clone().unwrap_or_default();
    assert_eq!(status.code, 0, "{}", status.message);
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("this happens soon")
}

async fn started(worker: &mut WorkerSession) -> (Lease, Arc<Task>) {
    loop {
        match soon(worker.next()).await.expect("the worker is wanted") {
            Command::Start { lease, task } => return (lease, task),
            Command::Acknowledge { .. } | Command::Kill { .. } | Command::Warm { .. } => {}
        }
    }
}

fn answer() -> Outcome {
    let response = ExecuteResponse { result: Some(ActionResult::default()), ..ExecuteResponse::default() };
    Outcome::Response(Box::new(response))
}

/// Answers everything at once, and keeps the names of the actions that it ran.
fn work(mut worker: WorkerSession) -> (Arc<Mutex<Vec<crate::digest::Digest>>>, JoinHandle<()>) {
    let ran = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&ran);
    let running = tasks::spawn("worker", async move {
        while let Some(command) = worker.next().await {
            let said = match command {
                Command::Start { lease, task } => {
                    log.lock().expect("no panic").push(task.action_digest);
                    worker.finished(lease, answer()).await
                }
                Command::Kill { lease } => worker.finished(lease, Outcome::Killed).await,
                Command::Acknowledge { .. } | Command::Warm { .. } => Ok(()),
            };
            if said.is_err() {
                return;
            }
        }
    });
    (ran, running)
}

fn config() -> Config {
    Config { reconnect_within: Duration::from_millis(100), ..Config::default() }
}

const WORKERS: u128 = 5;
const SLOTS: u32 = 10;
const QUEUED: usize = 500;

/// A farm with finished, running and queued actions, and their operations in that order.
async fn busy(farm: &Farm) -> (Vec<WorkerSession>, Vec<Watch>) {
    let mut workers = Vec::new();
    for worker in 0..WORKERS {
        workers.push(farm.join(worker, SLOTS, Vec::new()).await);
    }
    let mut watches = Vec::new();
    for number in 0..WORKERS as usize * SLOTS as usize + QUEUED + 20 {
        watches.push(farm.handle.submit(Task::example(&number.to_string())).await.unwrap());
    }
    // Twenty run to their end; the workers have as many others then.
    for worker in &mut workers {
        for _ in 0..4 {
            let (lease, _) = started(worker).await;
            worker.finished(lease, answer()).await.unwrap();
        }
    }
    (workers, watches)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_the_queued_are_queued_the_running_taken_over_and_the_finished_known() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scheduler");
    // Whoever is away has all the time that the test takes.
    let config = Config { reconnect_within: Duration::from_secs(60), ..Config::default() };
    let farm = Farm::start(&path, config.clone()).await;
    let (mut workers, mut watches) = busy(&farm).await;
    let mut held: BTreeMap<WorkerId, Vec<Lease>> = BTreeMap::new();
    for worker in &mut workers {
        for _ in 0..SLOTS {
            let lease = started(worker).await.0;
            held.entry(worker.id()).or_default().push(lease);
        }
    }
    let finished = async {
        loop {
            let mut done = Vec::new();
            for watch in &mut watches {
                if watch.current().stage == Stage::Completed {
                    done.push(watch.id());
                }
            }
            if done.len() == 20 {
                return done;
            }
            tokio::task::yield_now().await;
        }
    };
    let finished = soon(finished).await;
    let operations: Vec<OperationId> = watches.iter().map(Watch::id).collect();
    farm.kill().await;
    drop((workers, watches));

    let farm = Farm::start(&path, config).await;
    let listed = farm.handle.list(None, 1000).await.unwrap();
    let count = |stage| listed.iter().filter(|(_, update)| update.stage == stage).count();
    let counts = [Stage::Queued, Stage::Executing, Stage::Completed].map(count);
    assert_eq!(counts, [QUEUED, WORKERS as usize * SLOTS as usize, 20]);
    for operation in &finished {
        let mut watch = farm.handle.watch(*operation).await.unwrap().unwrap();
        assert_eq!(watch.current().stage, Stage::Completed);
    }
    let mut ran = Vec::new();
    for (worker, leases) in held {
        let session = farm.join(worker.number(), SLOTS, leases.clone()).await;
        for lease in leases {
            session.finished(lease, answer()).await.unwrap();
        }
        ran.push(work(session).0);
    }
    for operation in operations {
        farm.completed(operation).await;
    }
    let ran: usize = ran.iter().map(|ran| ran.lock().expect("no panic").len()).sum();
    assert_eq!(ran, QUEUED, "only what was queued is started");
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_on_workers_that_are_gone_runs_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scheduler");
    let farm = Farm::start(&path, config()).await;
    let (workers, watches) = busy(&farm).await;
    let operations: Vec<OperationId> = watches.iter().map(Watch::id).collect();
    farm.kill().await;
    drop((workers, watches));
    let farm = Farm::start(&path, config()).await;
    work(farm.join(100, SLOTS, Vec::new()).await);
    for operation in operations {
        farm.completed(operation).await;
    }
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_keeps_what_is_queued_and_what_runs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scheduler");
    let farm = Farm::start(&path, config()).await;
    let mut worker = farm.join(1, 1, Vec::new()).await;
    let first = farm.handle.submit(Task::example("running")).await.unwrap();
    let second = farm.handle.submit(Task::example("queued")).await.unwrap();
    started(&mut worker).await;
    let operations = [first.id(), second.id()];
    farm.stop().await;
    // Nothing is killed: the worker may come back with it.
    assert!(soon(worker.next()).await.is_none());

    let farm = Farm::start(&path, config()).await;
    let (ran, _) = work(farm.join(2, 1, Vec::new()).await);
    for operation in operations {
        farm.completed(operation).await;
    }
    assert_eq!(ran.lock().expect("no panic").len(), 2);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_farm_without_a_journal_forgets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scheduler");
    let config = Config { journal: false, ..config() };
    let farm = Farm::start(&path, config.clone()).await;
    let watch = farm.handle.submit(Task::example("a")).await.unwrap();
    farm.stop().await;
    assert!(!path.exists());
    let farm = Farm::start(&path, config).await;
    assert!(farm.handle.watch(watch.id()).await.unwrap().is_none());
    farm.stop().await;
}

/// A day in a farm: actions finish, are cancelled, are shared, fail and are tried again, are forgotten.
async fn story(farm: &Farm) {
    let mut watches = Vec::new();
    for number in 0..30 {
        watches.push(farm.handle.submit(Task::example(&(number % 20).to_string())).await.unwrap());
    }
    let mut lost = farm.join(1, 3, Vec::new()).await;
    let mut faulty = farm.join(2, 3, Vec::new()).await;
    for _ in 0..3 {
        started(&mut lost).await;
        let (lease, _) = started(&mut faulty).await;
        faulty.finished(lease, Outcome::Fault("no room".into())).await.unwrap();
    }
    for watch in &watches[15..20] {
        farm.handle.cancel(watch.id()).await.unwrap();
    }
    lost.leave().await.unwrap();
    faulty.leave().await.unwrap();
    work(farm.join(3, 2, Vec::new()).await);
    for watch in watches.iter_mut().take(10) {
        completed(watch).await;
        farm.handle.delete(watch.id()).await.unwrap();
    }
    for watch in &mut watches[20..] {
        completed(watch).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_prefix_of_the_commits_is_a_state_to_go_on_from() {
    let journal = Arc::new(Memory::default());
    let farm = Farm::start_from(Arc::clone(&journal), config()).await;
    story(&farm).await;
    farm.stop().await;
    let commits = journal.commits();
    assert!(commits.len() > 20, "{} commits", commits.len());
    let mut state: BTreeMap<RecordKey, Record> = BTreeMap::new();
    for commit in commits {
        for (key, record) in commit {
            match record {
                Some(record) => state.insert(key, record),
                None => state.remove(&key),
            };
        }
        goes_on_from(state.values().cloned().collect()).await;
    }
}

/// Everything that is live ends well, nothing that was finished runs, and nothing is left in the journal that nobody needs.
async fn goes_on_from(records: Vec<Record>) {
    let mut live = Vec::new();
    let mut finished = BTreeSet::new();
    for record in &records {
        match record {
            Record::Live { operation, .. } => live.push(*operation),
            Record::Finished { operation, .. } => {
                finished.insert(*operation);
            }
            Record::Execution(_) | Record::Leased { .. } | Record::Worker { .. } => {}
        }
    }
    let journal = Arc::new(Memory::with(records));
    let config = Config { reconnect_within: Duration::from_millis(5), ..Config::default() };
    let farm = Farm::start_from(Arc::clone(&journal), config).await;
    work(farm.join(9, 4, Vec::new()).await);
    for operation in &live {
        farm.completed(*operation).await;
    }
    for operation in &finished {
        let mut watch = farm.handle.watch(*operation).await.unwrap().unwrap();
        assert_eq!(watch.current().stage, Stage::Completed);
    }
    farm.stop().await;
    let left = journal.records();
    assert_eq!(left.len(), live.len() + finished.len(), "{left:?}");
    assert!(left.iter().all(|record| matches!(record, Record::Finished { .. })), "{left:?}");
}
