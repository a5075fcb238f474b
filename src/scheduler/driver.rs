//! The one task that feeds the core and performs its effects.
//!
//! It never waits on a client or a worker: clients see a cell with the latest state, a worker has a bounded outbox and is
//! lost when that is full, and settling an answer is a task of its own.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::{Error, Kind, Result};
use crate::metrics;
use crate::proto::rev2::ExecuteResponse;
use crate::tasks::{self, Shutdown};

use super::config::Config;
use super::core::Core;
use super::departures::{Departures, Gone};
use super::event::{Effect, Event, Refusal, Submission};
use super::handle::{Message, Watch};
use super::id::{ExecutionId, Lease, OperationId, Time, WorkerId};
use super::requirements::{Capacity, Requirements};
use super::session::{Command, WorkerSession};
use super::task::{Offer, Task, Update};
use super::{Listed, Settle};

/// How many answers are checked and written at once; the rest wait in line, each as one response in memory.
const SETTLING_MAX: usize = 256;

/// How many operations one answer lists: what the driver spends on it at most.
const LIST_MAX: usize = 1000;

pub(super) struct Driver {
    core: Core,
    started: Instant,
    operations: BTreeMap<OperationId, watch::Sender<Arc<Update>>>,
    connections: BTreeMap<WorkerId, Connection>,
    /// How many connections of workers there have been.
    connected: u64,
    departures: Arc<Departures>,
    /// Why the submission in hand was not accepted.
    refusal: Option<Refusal>,
    settling: Settling,
}

/// The way to a worker that is connected.
struct Connection {
    number: u64,
    outbox: mpsc::Sender<Command>,
}

/// What it takes to settle an answer outside of the driver's task.
#[derive(Clone)]
struct Settling {
    config: Arc<Config>,
    settle: Arc<dyn Settle>,
    permits: Arc<Semaphore>,
    messages: mpsc::Sender<Message>,
}

impl Driver {
    pub(super) fn new(config: Arc<Config>, settle: Arc<dyn Settle>, messages: mpsc::Sender<Message>) -> Self {
        let permits = Arc::new(Semaphore::new(SETTLING_MAX));
        Self {
            core: Core::new(Arc::clone(&config)),
            started: Instant::now(),
            operations: BTreeMap::new(),
            connections: BTreeMap::new(),
            connected: 0,
            departures: Arc::new(Departures::default()),
            refusal: None,
            settling: Settling { config, settle, permits, messages },
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Message>, shutdown: Shutdown) {
        let departures = Arc::clone(&self.departures);
        loop {
            let deadline = self.core.deadline().and_then(|at| self.started.checked_add(at.since_start()));
            let first = tokio::select! {
                () = shutdown.cancelled() => break,
                message = inbox.recv() => message,
                () = departures.any() => None,
                () = sleep_until(deadline) => None,
            };
            self.turn(first, &mut inbox);
            // Under load there is always a next message; whoever was woken gets a turn all the same.
            tokio::task::yield_now().await;
        }
        self.stop();
    }

    /// Does everything that is there to do.
    ///
    /// The departures are taken before the inbox is emptied and handled after: what a worker said before it left counts.
    fn turn(&mut self, first: Option<Message>, inbox: &mut mpsc::Receiver<Message>) {
        let gone = self.departures.take();
        let waiting = inbox.len();
        let rest = std::iter::from_fn(|| inbox.try_recv().ok()).take(waiting);
        for message in first.into_iter().chain(rest) {
            self.receive(message);
        }
        for gone in gone {
            self.left(gone);
        }
        self.feed(Event::Tick);
        metrics::QUEUE_LENGTH.set(gauge(self.core.queued()));
        metrics::WORKERS.set(gauge(self.core.workers()));
    }

    /// Kills what runs and lets everybody go: dropping the driver ends all sessions and watches.
    fn stop(mut self) {
        self.feed(Event::Stop);
        metrics::QUEUE_LENGTH.set(0);
        metrics::WORKERS.set(0);
    }

    // A reply that nobody waits for any more is dropped with what it holds, and a dropped watch or session says so itself.
    fn receive(&mut self, message: Message) {
        match message {
            Message::Submit { task, requirements, reply } => {
                let _ = reply.send(self.submit(*task, requirements));
            }
            Message::Watch { operation, reply } => {
                let _ = reply.send(self.watch(operation));
            }
            Message::Cancel { operation, reply } => self.end(operation, Event::Cancel { operation }, reply),
            Message::Delete { operation, reply } => self.end(operation, Event::Delete { operation }, reply),
            Message::List { after, limit, reply } => {
                let _ = reply.send(self.list(after, limit));
            }
            Message::Join { offer, capacity, reply } => {
                let _ = reply.send(self.join(offer, capacity));
            }
            Message::Overview { reply } => {
                let _ = reply.send(self.core.overview(self.now()));
            }
            Message::Why { operation, reply } => {
                let _ = reply.send(self.core.why(self.now(), operation));
            }
            Message::Demand { reply } => {
                let _ = reply.send(self.core.demand());
            }
            Message::Event(event) => self.feed(event),
        }
    }

    fn left(&mut self, gone: Gone) {
        match gone {
            Gone::Watch(operation) => self.feed(Event::Unwatched { operation }),
            Gone::Worker(worker, number) => {
                if self.connections.get(&worker).is_some_and(|connection| connection.number == number) {
                    self.connections.remove(&worker);
                    self.feed(Event::WorkerAway { worker });
                }
            }
        }
    }

    fn submit(&mut self, task: Task, requirements: Arc<Requirements>) -> Result<Watch> {
        let operation = OperationId::new(random());
        let submission = Submission {
            operation,
            execution: ExecutionId::new(random()),
            task: Arc::new(task),
            requirements,
            at: SystemTime::now(),
        };
        self.feed(Event::Submit(Box::new(submission)));
        match self.refusal.take() {
            Some(refusal) => Err(refused(refusal)),
            None => Ok(self.follow(operation).expect("an accepted operation is reported at once")),
        }
    }

    fn watch(&mut self, operation: OperationId) -> Option<Watch> {
        let watch = self.follow(operation)?;
        self.feed(Event::Watched { operation });
        Some(watch)
    }

    fn follow(&self, operation: OperationId) -> Option<Watch> {
        let updates = self.operations.get(&operation)?.subscribe();
        Some(Watch::new(operation, updates, self.departures.guard(Gone::Watch(operation))))
    }

    fn end(&mut self, operation: OperationId, event: Event, reply: oneshot::Sender<bool>) {
        let is_known = self.operations.contains_key(&operation);
        self.feed(event);
        let _ = reply.send(is_known);
    }

    fn list(&self, after: Option<OperationId>, limit: usize) -> Vec<Listed> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.operations.range((start, Bound::Unbounded)).take(limit.min(LIST_MAX));
        range.map(|(operation, updates)| (*operation, Arc::clone(&updates.borrow()))).collect()
    }

    /// A worker that connects again replaces its old connection, whose end means nothing any more.
    fn join(&mut self, offer: Offer, capacity: Capacity) -> WorkerSession {
        let worker = offer.worker;
        // A lease costs three commands at most: start, kill, and thanks for the answer. A slot is given again only after the worker
        // has answered, so the thanks of one lease and the start of the next are there together.
        let (outbox, commands) = mpsc::channel(4 * capacity.slots as usize);
        self.connected += 1;
        self.connections.insert(worker, Connection { number: self.connected, outbox });
        let name = offer.name.into();
        let capacity = Arc::new(capacity);
        self.feed(Event::WorkerJoined { worker, name, capacity, leases: offer.leases });
        let guard = self.departures.guard(Gone::Worker(worker, self.connected));
        WorkerSession::new(worker, commands, self.settling.messages.clone(), guard)
    }

    /// Hands an event to the core and performs what follows, and what follows from that.
    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now();
            for effect in self.core.handle(now, event) {
                events.extend(self.perform(effect));
            }
        }
    }

    fn now(&self) -> Time {
        Time::after_start(self.started.elapsed())
    }

    /// Performs one effect. Returns what went wrong with it.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Start { worker, lease, task } => {
                return self.command(worker, Command::Start { lease, task });
            }
            Effect::Kill { worker, lease } => return self.command(worker, Command::Kill { lease }),
            Effect::Acknowledge { worker, lease } => {
                return self.command(worker, Command::Acknowledge { lease });
            }
            Effect::Keep(_) | Effect::Erase(_) => {}
            Effect::Settle { lease, task, response } => self.settle(lease, task, response),
            Effect::Report { operation, update } => self.report(operation, update),
            Effect::Refuse(refusal) => self.refusal = Some(refusal),
            Effect::Forget { operation } => {
                self.operations.remove(&operation);
            }
            Effect::Drop { worker, reason } => {
                tracing::warn!(%worker, reason, "a worker is given up");
                self.connections.remove(&worker);
            }
            Effect::Hedge { lease, hedging } => {
                metrics::HEDGES.with_label_values(&[hedging.name()]).inc();
                tracing::info!(execution = %lease.execution, attempt = lease.attempt, outcome = hedging.name(), "a hedge");
            }
            Effect::Judged { worker, name, availability } => {
                tracing::warn!(%worker, %name, ?availability, "a worker was judged by its failures");
            }
            Effect::AttemptFailed { lease, worker, sentence } => {
                metrics::EXECUTION_FAILURES.inc();
                tracing::warn!(execution = %lease.execution, attempt = lease.attempt, %worker, sentence, "an attempt failed");
            }
        }
        None
    }

    /// Puts a command into a worker's outbox. A worker that does not take its commands is lost.
    fn command(&mut self, worker: WorkerId, command: Command) -> Option<Event> {
        let connection = self.connections.get(&worker)?;
        if connection.outbox.try_send(command).is_ok() {
            return None;
        }
        tracing::warn!(%worker, "a worker does not take its commands");
        self.connections.remove(&worker);
        Some(Event::WorkerAway { worker })
    }

    fn report(&mut self, operation: OperationId, update: Arc<Update>) {
        if let Some(updates) = self.operations.get(&operation) {
            updates.send_replace(update);
            return;
        }
        self.operations.insert(operation, watch::Sender::new(update));
    }

    fn settle(&self, lease: Lease, task: Arc<Task>, response: Box<ExecuteResponse>) {
        let settling = self.settling.clone();
        tasks::spawn("settle", async move {
            let result = settling.settle(&task, *response).await;
            // The driver is gone only when the farm stops, and then nobody waits for the answer.
            let _ = settling.messages.send(Message::Event(Event::Settled { lease, result })).await;
        });
    }
}

impl Settling {
    async fn settle(&self, task: &Task, response: ExecuteResponse) -> Result<Box<ExecuteResponse>, String> {
        let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
        match tokio::time::timeout(self.config.settle_timeout, self.settle.settle(task, response)).await {
            Ok(Ok(response)) => Ok(Box::new(response)),
            Ok(Err(error)) => {
                tracing::warn!(action = %task.action_digest, error = error.chain(), "an answer could not be settled");
                Err(error.to_string())
            }
            Err(_) => Err("checking the outputs took too long".to_owned()),
        }
    }
}

/// Without a deadline, never.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn refused(refusal: Refusal) -> Error {
    let sentence = match refusal {
        Refusal::TooManyOfIdentity => "this client has as many actions in hand as the farm takes of one",
        Refusal::TooManyOfInvocation => "this build has as many actions in hand as the farm takes of one",
        Refusal::TooManyOperations => "the farm has as many actions in hand as it takes",
        Refusal::TooManyShapes => {
            "the farm has as many different sets of platform properties queued as it takes"
        }
    };
    Error::new(Kind::Exhausted, sentence)
}

fn random() -> u128 {
    Uuid::new_v4().as_u128()
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
