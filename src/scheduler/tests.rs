//! Driver and handle, with real tasks and channels. What is decided is tested in `core/tests.rs`.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};

use crate::error::{Error, Kind, Result};
use crate::proto::rev2::{ActionResult, ExecuteResponse, ExecutedActionMetadata};
use crate::tasks::Shutdown;

use super::{Command, Config, Handle, Lease, Offer, OperationId, Outcome, Platform, Settle, Stage, Task};
use super::{Update, Watch, WorkerId, WorkerSession};

/// How settling goes.
enum Settling {
    Works,
    Fails,
    Hangs,
}

#[async_trait]
impl Settle for Settling {
    async fn settle(&self, _: &Task, mut response: ExecuteResponse) -> Result<ExecuteResponse> {
        match self {
            Self::Works => response.message = "settled".into(),
            Self::Fails => return Err(Error::new(Kind::Corrupt, "output x is missing")),
            Self::Hangs => std::future::pending().await,
        }
        Ok(response)
    }
}

struct Farm {
    handle: Handle,
    shutdown: Shutdown,
}

impl Farm {
    fn start(config: Config, settling: Settling) -> Self {
        let shutdown = Shutdown::new();
        Self { handle: Handle::start(config, Arc::new(settling), shutdown.clone()), shutdown }
    }

    async fn submit(&self, action: &str) -> Watch {
        self.handle.submit(Task::example(action)).await.unwrap()
    }

    /// The status codes of all operations.
    async fn codes(&self) -> Vec<i32> {
        let mut codes = Vec::new();
        let mut last = None;
        loop {
            let page = self.handle.list(last, usize::MAX).await.unwrap();
            let Some((id, _)) = page.last() else { return codes };
            last = Some(*id);
            codes.extend(page.iter().map(|(_, update)| code(update)));
        }
    }

    async fn join(&self) -> WorkerSession {
        self.handle.join(offer()).await.unwrap()
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn offer() -> Offer {
    let (name, properties) = ("worker".into(), BTreeMap::new());
    Offer {
        worker: WorkerId::new(fastrand::u128(..)),
        name,
        owner: "".into(),
        slots: 1,
        properties,
        leases: Vec::new(),
    }
}

fn answer() -> Outcome {
    let response = ExecuteResponse { result: Some(ActionResult::default()), ..ExecuteResponse::default() };
    Outcome::Response(Box::new(response))
}

/// What must happen soon; the bound is only there so that a failure ends.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("this happens soon")
}

async fn started(worker: &mut WorkerSession) -> Lease {
    loop {
        match soon(worker.next()).await {
            Some(Command::Start { lease, .. }) => return lease,
            Some(Command::Acknowledge { .. } | Command::Warm { .. }) => {}
            other => panic!("no start, but {other:?}"),
        }
    }
}

async fn killed(worker: &mut WorkerSession) -> Lease {
    match soon(worker.next()).await {
        Some(Command::Kill { lease }) => lease,
        other => panic!("no kill, but {other:?}"),
    }
}

async fn completed(watch: &mut Watch) -> Arc<Update> {
    let mut update = watch.current();
    while update.stage != Stage::Completed {
        update = soon(watch.next()).await.expect("an operation is completed before it is forgotten");
    }
    update
}

fn code(update: &Update) -> i32 {
    update.response.as_ref().and_then(|response| response.status.as_ref()).map_or(0, |status| status.code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_answer_is_settled_and_reaches_every_watch() {
    let farm = Farm::start(Config::default(), Settling::Works);
    let mut first = farm.submit("a").await;
    let mut second = farm.handle.watch(first.id()).await.unwrap().unwrap();
    assert_eq!(first.current().stage, Stage::Queued);
    let mut worker = farm.join().await;
    let lease = started(&mut worker).await;
    worker.finished(lease, answer()).await.unwrap();
    for watch in [&mut first, &mut second] {
        let update = completed(watch).await;
        let response = update.response.as_ref().unwrap();
        assert_eq!(response.message, "settled");
        let metadata = response.result.as_ref().unwrap().execution_metadata.as_ref().unwrap();
        assert!(metadata.queued_timestamp.as_ref().unwrap().seconds > 0);
    }
}

#[tokio::test]
async fn the_first_that_is_said_of_an_operation_names_who_asked_for_it_and_not_who_asked_first() {
    let farm = Farm::start(Config::default(), Settling::Works);
    let of = |invocation: &str| Task { invocation: invocation.into(), ..Task::example("a") };
    let mut first = farm.handle.submit(of("first")).await.unwrap();
    let mut second = farm.handle.submit(of("second")).await.unwrap();
    assert_eq!(first.current().execution, second.current().execution);
    assert_eq!(*first.current().task.invocation, *"first");
    assert_eq!(*second.current().task.invocation, *"second");
}

#[tokio::test]
async fn progress_reaches_the_client_with_the_time_of_queueing() {
    let farm = Farm::start(Config::default(), Settling::Works);
    let mut worker = farm.join().await;
    let mut watch = farm.submit("a").await;
    let lease = started(&mut worker).await;
    let metadata = ExecutedActionMetadata { worker: "w".into(), ..ExecutedActionMetadata::default() };
    worker.progress(lease, metadata).await.unwrap();
    let mut update = watch.current();
    while update.metadata.is_none() {
        update = soon(watch.next()).await.unwrap();
    }
    let metadata = update.metadata.as_ref().unwrap();
    assert_eq!((update.stage, metadata.worker.as_str()), (Stage::Executing, "w"));
    assert!(metadata.queued_timestamp.is_some());
}

#[tokio::test]
async fn an_action_of_a_worker_that_does_not_come_back_goes_to_another_one() {
    let config = Config { reconnect_within: Duration::from_millis(1), ..Config::default() };
    let farm = Farm::start(config, Settling::Works);
    let mut lost = farm.join().await;
    let mut watch = farm.submit("a").await;
    started(&mut lost).await;
    drop(lost);
    let mut other = farm.join().await;
    let lease = started(&mut other).await;
    assert_eq!(lease.attempt, 2);
    other.finished(lease, answer()).await.unwrap();
    assert_eq!(code(&*completed(&mut watch).await), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_worker_says_before_it_leaves_counts() {
    let farm = Farm::start(Config::default(), Settling::Works);
    for number in 0..100 {
        let mut watch = farm.submit(&number.to_string()).await;
        let mut worker = farm.join().await;
        let lease = started(&mut worker).await;
        worker.finished(lease, answer()).await.unwrap();
        drop(worker);
        assert_eq!(code(&*completed(&mut watch).await), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_departure_is_lost_when_more_leave_at_once_than_the_inbox_holds() {
    let config = Config { abandon_after: Duration::from_millis(1), ..Config::default() };
    let farm = Farm::start(config, Settling::Works);
    let mut watches = Vec::new();
    for number in 0..1500 {
        watches.push(farm.submit(&number.to_string()).await);
    }
    drop(watches);
    let all_are_cancelled = async {
        // Looking at an operation by `watch` would keep it alive.
        while farm.codes().await != [1; 1500] {
            tokio::task::yield_now().await;
        }
    };
    soon(all_are_cancelled).await;
}

#[tokio::test]
async fn an_action_that_nobody_watches_is_killed() {
    let config = Config { abandon_after: Duration::from_millis(1), ..Config::default() };
    let farm = Farm::start(config, Settling::Works);
    let mut worker = farm.join().await;
    let watch = farm.submit("a").await;
    let lease = started(&mut worker).await;
    drop(watch);
    assert_eq!(killed(&mut worker).await, lease);
}

#[tokio::test]
async fn operations_are_cancelled_listed_and_deleted_by_name() {
    let farm = Farm::start(Config::default(), Settling::Works);
    let unknown = OperationId::new(1);
    assert!(!farm.handle.cancel(unknown).await.unwrap());
    assert!(!farm.handle.delete(unknown).await.unwrap());
    assert!(farm.handle.watch(unknown).await.unwrap().is_none());

    let mut watches = [farm.submit("a").await, farm.submit("b").await, farm.submit("c").await];
    watches.sort_by_key(Watch::id);
    let page = farm.handle.list(Some(watches[0].id()), 1).await.unwrap();
    assert_eq!(page.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [watches[1].id()]);

    assert!(farm.handle.cancel(watches[2].id()).await.unwrap());
    assert_eq!(code(&*completed(&mut watches[2]).await), 1);
    assert!(farm.handle.delete(watches[2].id()).await.unwrap());
    assert!(soon(watches[2].next()).await.is_none());
    assert_eq!(farm.handle.list(None, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn undeclared_properties_are_refused_at_the_door() {
    let farm = Farm::start(Config::default(), Settling::Works);
    let platform = Platform::new([("foo".to_owned(), "bar".to_owned())]);
    let error =
        farm.handle.submit(Task { platform: Arc::new(platform), ..Task::example("a") }).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    assert_eq!(error.to_string(), "platform property `foo` is not declared by this farm");
    let properties = BTreeMap::from([("foo".to_owned(), vec!["bar".to_owned()])]);
    let error = farm.handle.join(Offer { properties, ..offer() }).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
}

#[tokio::test]
async fn a_full_scheduler_answers_exhausted() {
    let farm = Farm::start(Config { operations_max: 1, ..Config::default() }, Settling::Works);
    let _watch = farm.submit("a").await;
    assert_eq!(farm.handle.submit(Task::example("b")).await.unwrap_err().kind(), Kind::Exhausted);
}

#[tokio::test]
async fn an_answer_that_is_never_settled_fails_in_the_end() {
    for (settling, expected) in [(Settling::Fails, "output x is missing"), (Settling::Hangs, "took too long")]
    {
        let config = Config { settle_timeout: Duration::from_millis(10), ..Config::default() };
        let farm = Farm::start(config, settling);
        let mut worker = farm.join().await;
        let mut watch = farm.submit("a").await;
        for attempt in 1..=3 {
            let lease = started(&mut worker).await;
            assert_eq!(lease.attempt, attempt);
            worker.finished(lease, answer()).await.unwrap();
        }
        let update = completed(&mut watch).await;
        let status = update.response.as_ref().unwrap().status.clone().unwrap();
        assert_eq!(status.code, 14);
        assert!(status.message.contains(expected), "{}", status.message);
    }
}

#[tokio::test]
async fn stopping_kills_what_runs_and_lets_everybody_go() {
    let farm = Farm::start(Config { journal: false, ..Config::default() }, Settling::Works);
    let mut worker = farm.join().await;
    let mut watch = farm.submit("a").await;
    let lease = started(&mut worker).await;
    watch.current();
    farm.shutdown.cancel();
    assert_eq!(killed(&mut worker).await, lease);
    assert!(soon(worker.next()).await.is_none());
    while let Some(update) = soon(watch.next()).await {
        assert_ne!(update.stage, Stage::Completed);
    }
    assert_eq!(farm.handle.submit(Task::example("b")).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(worker.heartbeat().await.unwrap_err().kind(), Kind::Unavailable);
}

/// Runs whatever it is given at once, and notes in whose name.
async fn work(mut worker: WorkerSession, starts: Arc<Mutex<Vec<Arc<str>>>>) {
    while let Some(command) = worker.next().await {
        let Command::Start { lease, task } = command else { continue };
        starts.lock().unwrap().push(Arc::clone(&task.invocation));
        if worker.finished(lease, answer()).await.is_err() {
            return;
        }
    }
}

async fn submit_build(handle: &Handle, invocation: &str, actions: usize) -> Vec<Watch> {
    let submits = (0..actions).map(|number| {
        let task = Task { invocation: invocation.into(), ..Task::example(&format!("{invocation} {number}")) };
        handle.submit(task)
    });
    stream::iter(submits).buffered(64).map(Result::unwrap).collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_small_build_is_done_soon_although_a_large_one_came_first() {
    let patient = Config { unsatisfiable_after: Duration::from_secs(600), ..Config::default() };
    let farm = Farm::start(patient, Settling::Works);
    let began = Instant::now();
    let _large = submit_build(&farm.handle, "large", 100_000).await;
    let queued = began.elapsed();
    let starts = Arc::new(Mutex::new(Vec::new()));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        workers.spawn(work(farm.join().await, Arc::clone(&starts)));
    }
    let large_is_under_way = async {
        while starts.lock().unwrap().len() < 1000 {
            tokio::task::yield_now().await;
        }
    };
    soon(large_is_under_way).await;
    let began = Instant::now();
    let mut small = submit_build(&farm.handle, "small", 10).await;
    let accepted = starts.lock().unwrap().len();
    for watch in &mut small {
        completed(watch).await;
    }
    println!("100,000 queued in {queued:?}; 10 of another build were done after {:?}", began.elapsed());
    let starts = starts.lock().unwrap().clone();
    let last = starts.iter().rposition(|invocation| **invocation == *"small").unwrap();
    let of_small = starts.iter().filter(|invocation| ***invocation == *"small").count();
    assert!(of_small == 10 && last < accepted + 1000, "{of_small} started, the last at {last} of {accepted}");
}
