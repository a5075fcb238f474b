//! What waits for the journal and what does not; workers that do not read; what a start takes over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::super::handle::Handle;
use super::super::journal::memory::Memory;
use super::super::journal::tests::{execution, leased, live};
use super::super::journal::{Journal, Progress};
use super::super::record::Record;
use super::*;
use crate::proto::rev2::ExecuteResponse;

/// Settles everything, and recalls the result of the action of this name.
struct Settler(&'static str);

#[async_trait]
impl Settle for Settler {
    async fn settle(&self, _: &Task, response: ExecuteResponse) -> Result<ExecuteResponse> {
        Ok(response)
    }

    async fn recall(&self, asked: &Task) -> Option<ExecuteResponse> {
        let is_known = asked.action_digest == Task::example(self.0).action_digest;
        is_known.then(|| ExecuteResponse { message: "recalled".into(), ..ExecuteResponse::default() })
    }
}

/// A driver without its task, and the journal that it writes.
struct Desk {
    driver: Driver,
    journal: Arc<Memory>,
    _inbox: mpsc::Receiver<Message>,
}

impl Desk {
    /// With a journal that makes nothing durable until it is told to.
    fn held() -> Self {
        let journal = Arc::new(Memory::default());
        journal.hold(true);
        let writer = Writer::start(Arc::clone(&journal) as Arc<dyn Journal>).unwrap();
        let (messages, inbox) = mpsc::channel(16);
        let config = Arc::new(Config { journal: true, ..Config::default() });
        let driver = Driver::new(config, Arc::new(Settler("")), messages);
        Self { driver: driver.resume(writer, Restored::default()), journal, _inbox: inbox }
    }

    /// Something is on its way to the journal.
    fn record(&mut self, number: u32) {
        let record = live(number);
        self.driver.gate.record((record.key(), Some(record)));
        self.driver.gate.hand_over();
    }

    /// Lets the journal work and waits for it.
    async fn catch_up(&mut self) {
        self.journal.hold(false);
        self.driver.gate.hand_over();
        while !self.driver.gate.is_clear() {
            let progress = soon(self.driver.gate.progress()).await;
            self.driver.gate.note(progress).unwrap();
        }
        self.driver.release();
    }

    fn submit(&mut self, name: &str) -> oneshot::Receiver<Result<Watch>> {
        let (reply, answer) = oneshot::channel();
        let task = Box::new(Task::example(name));
        let requirements = Requirements::resolve(&Config::default(), &task.platform).unwrap();
        self.driver.receive(Message::Submit { task, requirements: requirements.into(), reply });
        self.driver.gate.hand_over();
        answer
    }

    fn join(&mut self, slots: u32) -> WorkerSession {
        let offer = Offer {
            worker: WorkerId::new(7),
            name: "worker".into(),
            owner: "".into(),
            slots,
            properties: BTreeMap::new(),
            leases: Vec::new(),
        };
        let capacity = Capacity::resolve(&Config::default(), &offer).unwrap();
        self.driver.join(offer, capacity)
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("this happens soon")
}

fn lease(number: u32) -> Lease {
    Lease { execution: ExecutionId::new(number.into()), attempt: 1 }
}

#[tokio::test]
async fn a_submission_is_answered_when_it_is_durable_but_started_at_once() {
    let mut desk = Desk::held();
    let mut worker = desk.join(1);
    desk.record(1);
    let mut answer = desk.submit("a");
    assert!(matches!(soon(worker.next()).await, Some(Command::Start { .. })));
    assert!(answer.try_recv().is_err());
    desk.catch_up().await;
    assert!(answer.try_recv().unwrap().is_ok());
}

#[tokio::test]
async fn nothing_waits_for_a_journal_that_has_everything() {
    let mut desk = Desk::held();
    desk.record(1);
    desk.catch_up().await;
    let operation = OperationId::new(1);
    let update = queued("a");
    desk.driver.perform(Effect::Report {
        operation,
        update: Arc::new(Update { stage: Stage::Completed, ..update }),
    });
    assert!(desk.driver.operations.contains_key(&operation));
}

fn queued(name: &str) -> Update {
    let (stage, queued_at) = (Stage::Queued, SystemTime::UNIX_EPOCH);
    let execution = ExecutionId::new(1);
    Update {
        execution,
        stage,
        task: Arc::new(Task::example(name)),
        queued_at,
        attempt: 0,
        metadata: None,
        response: None,
    }
}

#[tokio::test]
async fn what_waits_is_said_in_its_order_and_not_before_its_records() {
    let mut desk = Desk::held();
    let mut worker = desk.join(1);
    let operation = OperationId::new(1);
    desk.driver.perform(Effect::Report { operation, update: Arc::new(queued("a")) });
    desk.record(1);
    let end = Update { stage: Stage::Completed, ..queued("a") };
    desk.driver.perform(Effect::Report { operation, update: Arc::new(end) });
    desk.record(2);
    desk.driver.perform(Effect::Acknowledge { worker: worker.id(), lease: lease(1) });
    desk.record(3);
    desk.driver.perform(Effect::Forget { operation });
    let mut watch = desk.driver.follow(operation).unwrap();

    desk.driver.gate.note(Progress { durable: 0, failure: None }).unwrap();
    desk.driver.release();
    assert_eq!(watch.current().stage, Stage::Queued);
    desk.driver.gate.note(Progress { durable: 1, failure: None }).unwrap();
    desk.driver.release();
    assert_eq!(watch.current().stage, Stage::Completed);
    assert_eq!(desk.driver.connections[&worker.id()].outbox.capacity(), 4);
    desk.catch_up().await;
    assert!(matches!(soon(worker.next()).await, Some(Command::Acknowledge { .. })));
    assert!(!desk.driver.operations.contains_key(&operation));
}

#[tokio::test]
async fn a_journal_that_is_far_behind_stops_submissions_and_nothing_else() {
    let mut desk = Desk::held();
    for number in 0..100_000 {
        let record = live(number);
        desk.driver.gate.record((record.key(), Some(record)));
    }
    desk.driver.gate.hand_over();
    let error = desk.submit("a").try_recv().unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
    desk.join(1);
    desk.catch_up().await;
    let mut answer = desk.submit("a");
    desk.catch_up().await;
    assert!(answer.try_recv().unwrap().is_ok());
}

#[tokio::test]
async fn a_burst_of_thanks_waits_for_room_and_loses_no_worker() {
    let mut desk = Desk::held();
    let mut worker = desk.join(1);
    for number in 1..=100 {
        desk.driver.perform(Effect::Acknowledge { worker: worker.id(), lease: lease(number) });
    }
    // There is room for whatever else must be said.
    assert!(desk.driver.command(worker.id(), Command::Kill { lease: lease(1000) }).is_none());
    let mut thanked = Vec::new();
    while thanked.len() < 100 {
        match soon(worker.next()).await.unwrap() {
            Command::Acknowledge { lease } => thanked.push(lease),
            Command::Kill { lease: killed } => assert_eq!(killed, lease(1000)),
            other @ (Command::Start { .. } | Command::Warm { .. }) => panic!("{other:?}"),
        }
        desk.driver.catch_up_on_thanks();
    }
    assert_eq!(thanked, (1..=100).map(lease).collect::<Vec<_>>());
    assert!(desk.driver.thanked_late.is_empty());
}

#[tokio::test]
async fn a_worker_that_does_not_take_its_commands_is_lost() {
    let mut desk = Desk::held();
    let mut worker = desk.join(1);
    let mut said = 0;
    let lost = loop {
        match desk.driver.command(worker.id(), Command::Kill { lease: lease(said) }) {
            None => said += 1,
            Some(event) => break event,
        }
        assert!(said < 100, "a full outbox is noticed");
    };
    assert!(matches!(lost, Event::WorkerAway { worker: id } if id == worker.id()));
    for _ in 0..said {
        assert!(soon(worker.next()).await.is_some());
    }
    assert!(soon(worker.next()).await.is_none());
}

#[tokio::test]
async fn what_ran_to_its_end_unnoticed_is_finished_at_the_start() {
    let journal =
        Arc::new(Memory::with([execution(1), live(1), leased(1), execution(2), live(2), leased(2)]));
    let restored =
        restore(&(Arc::clone(&journal) as Arc<dyn Journal>), &(Arc::new(Settler("1")) as _)).await.unwrap();
    let finished = restored.records.iter().find_map(|record| match record {
        Record::Finished { operation, update } => Some((*operation, Arc::clone(update))),
        Record::Execution(_) | Record::Live { .. } | Record::Leased { .. } | Record::Worker { .. } => None,
    });
    let (operation, update) = finished.unwrap();
    assert_eq!((operation, update.stage), (OperationId::new(1), Stage::Completed));
    assert_eq!(update.response.as_ref().unwrap().message, "recalled");
    for record in [execution(2), live(2), leased(2)] {
        assert!(restored.records.contains(&record), "{record:?}");
    }
    assert_eq!(restored.records.len(), 4);
    let keys: Vec<_> = restored.changes.iter().map(|(key, record)| (key.clone(), record.is_some())).collect();
    assert_eq!(keys[0], (live(1).key(), true));
    assert_eq!(keys[1..].iter().filter(|(_, is_kept)| !is_kept).count(), 2);
}

#[tokio::test]
async fn a_result_is_not_recalled_for_what_never_started() {
    let journal = Arc::new(Memory::with([execution(1), live(1)]));
    let restored = restore(&(journal as Arc<dyn Journal>), &(Arc::new(Settler("1")) as _)).await.unwrap();
    assert_eq!((restored.records.len(), restored.changes.len()), (2, 0));
}

#[tokio::test]
async fn a_commit_that_fails_ends_the_scheduler_with_the_reason() {
    let journal = Arc::new(Memory::with([execution(1), live(1), leased(1)]));
    journal.fail();
    let (handle, running) = Handle::resume_from(
        Arc::clone(&journal) as Arc<dyn Journal>,
        Config::default(),
        Arc::new(Settler("1")),
        Shutdown::new(),
    )
    .await
    .unwrap();
    let error = soon(running).await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Kind::Exhausted, "write the scheduler's journal")
    );
    assert_eq!(handle.overview().await.unwrap_err().kind(), Kind::Unavailable);
}
