//! The one task that feeds the core and performs its effects.
//!
//! It never waits on a client or a worker: clients see a cell with the latest state, a worker has a bounded outbox and is
//! lost when that is full, settling an answer is a task of its own, and what must be durable before it is said waits at a gate.

mod gate;
mod restore;
mod settling;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::{Error, Kind, Result};
use crate::metrics;
use crate::tasks::Shutdown;

use super::config::Config;
use super::core::{Core, why_completed};
use super::departures::{Departures, Gone};
use super::event::{Effect, Event, Refusal, Submission};
use super::handle::{Message, Watch};
use super::id::{ExecutionId, Lease, OperationId, Time, WorkerId};
use super::journal::Writer;
use super::requirements::{Capacity, Requirements};
use super::session::{Command, WorkerSession};
use super::task::{Offer, Stage, Task, Update};
use super::view::Why;
use super::{Listed, Settle};
use gate::{Gate, Gated};
pub(super) use restore::{Restored, restore};
use settling::Settling;

/// How many operations one answer lists: what the driver spends on it at most.
const LIST_MAX: usize = 1000;

/// Commands that one slot may have on their way at most: the kill of a lease that the worker has answered meanwhile, the start of the
/// next, and its kill. Any more can only come when the worker has answered, and so read, the next.
const COMMANDS_PER_SLOT: usize = 3;

/// How long the end of the farm waits for the journal. What it does not have by then was promised to nobody.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Driver {
    core: Core,
    started: Instant,
    operations: BTreeMap<OperationId, watch::Sender<Arc<Update>>>,
    connections: BTreeMap<WorkerId, Connection>,
    /// Those with thanks that wait for room.
    thanked_late: BTreeSet<WorkerId>,
    /// How many connections of workers there have been.
    connected: u64,
    departures: Arc<Departures>,
    /// Why the submission in hand was not accepted.
    refusal: Option<Refusal>,
    settling: Settling,
    gate: Gate,
}

/// The way to a worker that is connected.
struct Connection {
    number: u64,
    outbox: mpsc::Sender<Command>,
    /// The part of the outbox that thanks leave free.
    reserved: usize,
    /// Thanks that wait for room; there are no more than answers which the worker keeps for them.
    thanks: VecDeque<Lease>,
}

impl Driver {
    pub(super) fn new(config: Arc<Config>, settle: Arc<dyn Settle>, messages: mpsc::Sender<Message>) -> Self {
        Self {
            core: Core::new(Arc::clone(&config)),
            started: Instant::now(),
            operations: BTreeMap::new(),
            connections: BTreeMap::new(),
            thanked_late: BTreeSet::new(),
            connected: 0,
            departures: Arc::new(Departures::default()),
            refusal: None,
            settling: Settling::new(config, settle, messages),
            gate: Gate::default(),
        }
    }

    /// Goes on from what the journal holds, and keeps it up to date through `writer`.
    pub(super) fn resume(mut self, writer: Writer, restored: Restored) -> Self {
        self.gate = Gate::new(Some(writer));
        for change in restored.changes {
            self.gate.record(change);
        }
        self.feed(Event::Restore(restored.records));
        self.gate.hand_over();
        self
    }

    /// Runs until `shutdown`.
    ///
    /// # Errors
    /// When the journal cannot be written: the farm must not go on and promise what it cannot keep.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Message>, shutdown: Shutdown) -> Result<()> {
        let departures = Arc::clone(&self.departures);
        loop {
            let deadline = self.core.deadline().and_then(|at| self.started.checked_add(at.since_start()));
            let mut progress = None;
            let first = tokio::select! {
                // The stop comes first: a worker that ends with the farm must not be taken for one that has failed.
                biased;
                () = shutdown.cancelled() => break,
                further = self.gate.progress() => { progress = Some(further); None },
                message = inbox.recv() => message,
                () = departures.any() => None,
                () = sleep_until(deadline) => None,
            };
            if let Some(progress) = progress {
                self.gate.note(progress)?;
            }
            self.turn(first, &mut inbox);
            // Under load there is always a next message; whoever was woken gets a turn all the same.
            tokio::task::yield_now().await;
        }
        self.stop().await
    }

    /// Does everything that is there to do.
    ///
    /// The departures are taken before the inbox is emptied and handled after: what a worker said before it left counts.
    fn turn(&mut self, first: Option<Message>, inbox: &mut mpsc::Receiver<Message>) {
        self.release();
        self.catch_up_on_thanks();
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
        self.gate.hand_over();
    }

    /// Lets everybody go: dropping the driver ends all sessions and watches.
    ///
    /// With a journal nothing ends by that. Workers come back to the next start with what they run, and what was queued is queued.
    /// Without one nobody will want what runs, so it is killed.
    async fn stop(mut self) -> Result<()> {
        if !self.gate.is_durable() {
            self.feed(Event::Stop);
        }
        let flushed = tokio::time::timeout(STOP_PATIENCE, self.flush()).await;
        metrics::QUEUE_LENGTH.set(0);
        metrics::WORKERS.set(0);
        match flushed {
            Ok(result) => result,
            Err(_) => Err(Error::new(Kind::Timeout, "the scheduler's journal was not written in time")),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        self.gate.hand_over();
        while !self.gate.is_clear() {
            let progress = self.gate.progress().await;
            self.gate.note(progress)?;
        }
        self.release();
        Ok(())
    }

    // A reply that nobody waits for any more is dropped with what it holds, and a dropped watch or session says so itself.
    fn receive(&mut self, message: Message) {
        match message {
            Message::Submit { task, requirements, reply } => self.accept(*task, requirements, reply),
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
                let _ = reply.send(self.why(operation));
            }
            Message::Load { reply } => {
                let _ = reply.send(self.core.load(self.now()));
            }
            Message::FindWorkers { key, reply } => {
                let _ = reply.send(self.core.find_workers(self.now(), &key));
            }
            Message::Event(event) => self.feed(event),
        }
    }

    /// The core knows the live operations; of a finished one there is its last update.
    fn why(&self, operation: OperationId) -> Option<Why> {
        let completed = || why_completed(operation, &self.operations.get(&operation)?.borrow());
        self.core.why(self.now(), operation).or_else(completed)
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

    /// Takes a submission; the client hears of it when it is safe.
    fn accept(&mut self, task: Task, requirements: Arc<Requirements>, reply: oneshot::Sender<Result<Watch>>) {
        match self.submit(task, requirements) {
            Ok(watch) => self.say(Gated::Accept { reply, watch: Box::new(watch) }),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn submit(&mut self, task: Task, requirements: Arc<Requirements>) -> Result<Watch> {
        if self.gate.is_full() {
            return Err(Error::new(
                Kind::Exhausted,
                "the farm cannot write down new actions as fast as they come",
            ));
        }
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

    /// Ends or forgets an operation. Whoever asked hears of it when everybody would.
    fn end(&mut self, operation: OperationId, event: Event, reply: oneshot::Sender<bool>) {
        let is_known = self.operations.contains_key(&operation);
        self.feed(event);
        self.say(Gated::Ended { reply, is_known });
    }

    fn list(&self, after: Option<OperationId>, limit: usize) -> Vec<Listed> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.operations.range((start, Bound::Unbounded)).take(limit.min(LIST_MAX));
        range.map(|(operation, updates)| (*operation, Arc::clone(&updates.borrow()))).collect()
    }

    /// A worker that connects again replaces its old connection, whose end means nothing any more.
    fn join(&mut self, offer: Offer, capacity: Capacity) -> WorkerSession {
        let worker = offer.worker;
        // What it still holds may all have to be killed.
        let reserved = COMMANDS_PER_SLOT * capacity.slots as usize + offer.leases.len();
        let (outbox, commands) = mpsc::channel(reserved + capacity.slots as usize);
        self.connected += 1;
        metrics::WORKER_CONNECTIONS.inc();
        let connection = Connection { number: self.connected, outbox, reserved, thanks: VecDeque::new() };
        self.connections.insert(worker, connection);
        let Offer { name, owner, leases, .. } = offer;
        let (name, capacity) = (name.into(), Arc::new(capacity));
        if self.core.comes_back(worker, &name) {
            metrics::WORKER_RECONNECTIONS.inc();
        }
        self.feed(Event::WorkerJoined { worker, name, owner, capacity, leases });
        let guard = self.departures.guard(Gone::Worker(worker, self.connected));
        WorkerSession::new(worker, commands, self.settling.messages(), guard)
    }

    /// Hands an event to the core and performs what follows, and what follows from that.
    fn feed(&mut self, event: Event) {
        let (mut next, mut further) = (Some(event), VecDeque::new());
        while let Some(event) = next {
            let now = self.now();
            for effect in self.core.handle(now, event) {
                further.extend(self.perform(effect));
            }
            next = further.pop_front();
        }
    }

    fn now(&self) -> Time {
        Time::after_start(self.started.elapsed())
    }

    /// Performs one effect. Returns what went wrong with it.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Start { worker, lease, task } => {
                metrics::SCHEDULER_STARTS.inc();
                return self.command(worker, Command::Start { lease, task });
            }
            Effect::Warm { worker, execution, task } => {
                tracing::trace!(%worker, %execution, "inputs are made ready");
                self.hint(worker, Command::Warm { task });
            }
            Effect::Kill { worker, lease } => return self.command(worker, Command::Kill { lease }),
            Effect::Acknowledge { worker, lease } => self.say(Gated::Acknowledge { worker, lease }),
            Effect::Keep(record) => self.gate.record((record.key(), Some(record))),
            Effect::Erase(key) => self.gate.record((key, None)),
            Effect::Settle { lease, task, response } => self.settling.begin(lease, task, response),
            Effect::Report { operation, update } => match update.stage {
                Stage::Completed => self.say(Gated::Report { operation, update }),
                Stage::Queued | Stage::Executing => self.report(operation, update),
            },
            Effect::Refuse(refusal) => self.refusal = Some(refusal),
            Effect::Forget { operation } => self.say(Gated::Forget { operation }),
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

    /// Tells a worker what it may also not hear: only if there is room that nothing else may need.
    fn hint(&self, worker: WorkerId, command: Command) {
        if let Some(connection) = self.connections.get(&worker)
            && connection.outbox.capacity() > connection.reserved
        {
            // A connection that has ended takes no hints.
            let _ = connection.outbox.try_send(command);
        }
    }

    fn report(&mut self, operation: OperationId, update: Arc<Update>) {
        self.settling.note(operation, &update);
        if let Some(updates) = self.operations.get(&operation) {
            updates.send_replace(update);
            return;
        }
        self.operations.insert(operation, watch::Sender::new(update));
    }

    /// Says what must be durable first, at once or when it is.
    fn say(&mut self, gated: Gated) {
        if let Some(gated) = self.gate.pass(gated) {
            self.say_now(gated);
        }
    }

    /// Says what has become durable.
    fn release(&mut self) {
        while let Some(gated) = self.gate.release() {
            self.say_now(gated);
        }
    }

    fn say_now(&mut self, gated: Gated) {
        match gated {
            Gated::Accept { reply, watch } => {
                let _ = reply.send(Ok(*watch));
            }
            Gated::Ended { reply, is_known } => {
                let _ = reply.send(is_known);
            }
            Gated::Report { operation, update } => self.report(operation, update),
            Gated::Forget { operation } => {
                self.operations.remove(&operation);
            }
            Gated::Acknowledge { worker, lease } => self.thank(worker, lease),
        }
    }

    /// Thanks are in no hurry: they wait for room, so that a burst of them after a slow commit does not lose the worker.
    fn thank(&mut self, worker: WorkerId, lease: Lease) {
        let Some(connection) = self.connections.get_mut(&worker) else { return };
        connection.thanks.push_back(lease);
        if !connection.thank() {
            self.thanked_late.insert(worker);
        }
    }

    fn catch_up_on_thanks(&mut self) {
        let connections = &mut self.connections;
        self.thanked_late
            .retain(|worker| connections.get_mut(worker).is_some_and(|connection| !connection.thank()));
    }
}

impl Connection {
    /// Sends the thanks that there is room for. Returns whether none are left.
    fn thank(&mut self) -> bool {
        while self.outbox.capacity() > self.reserved {
            let Some(lease) = self.thanks.pop_front() else { return true };
            if self.outbox.try_send(Command::Acknowledge { lease }).is_err() {
                // The connection has ended, and the worker will ask again.
                return true;
            }
        }
        self.thanks.is_empty()
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
