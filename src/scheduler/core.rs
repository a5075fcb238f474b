//! The scheduler as a value: it takes one event and says what must happen. It decides everything and does nothing.
//!
//! There is no clock, no random number, no runtime and no unordered map in here, so a run is repeated exactly by repeating
//! its events. What holds after every event:
//!
//! * an execution is in one state, and it is in the queue if and only if that state is `Queued`;
//! * a lease runs on one worker, and a worker is given no more than it offers;
//! * equal actions that may merge have one execution;
//! * nothing queued would fit a connected worker that takes work, as it stands, unless that is reserved for what has waited longer.

mod attempts;
mod availability;
mod clients;
mod hedging;
#[cfg(test)]
pub(super) mod inspect;
mod packing;
mod placing;
mod records;
mod report;
mod restore;
mod sessions;
#[cfg(test)]
mod tests;
mod warming;
mod why;
mod workers;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::proto::rev2::{ExecuteResponse, ExecutedActionMetadata};

use super::answers;
use super::config::Config;
use super::event::{Effect, Event};
use super::execution::Execution;
use super::executions::{Executions, Mergeable};
use super::fleet::Fleet;
use super::history::History;
use super::id::{ExecutionId, Lease, OperationId, Time, WorkerId};
use super::operations::Operations;
use super::queue::Queue;
use super::standing::Standings;
use super::task::Stage;
use super::timers::{Timer, Timers};
use super::warming::Warming;

pub(super) use why::why_completed;

#[derive(Debug)]
pub(super) struct Core {
    config: Arc<Config>,
    operations: Operations,
    executions: Executions,
    /// The executions that equal tasks join.
    mergeable: Mergeable,
    queue: Queue,
    fleet: Fleet,
    warming: Warming,
    history: History,
    /// The executions that have two leases.
    hedged: BTreeSet<ExecutionId>,
    standings: Standings,
    timers: Timers,
    /// How many executions have arrived.
    arrivals: u64,
    /// The time of the event in hand; time never goes back.
    now: Time,
    /// What the event in hand has caused so far.
    effects: Vec<Effect>,
    /// A mistake made on purpose, to show that the simulation finds it.
    #[cfg(test)]
    pub(super) bug: Option<Bug>,
}

/// Mistakes that a scheduler can make.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// An attempt that failed is not put back into the queue.
    LostRequeue,
    /// A worker's answer counts although its lease is over.
    AcceptLateAnswer,
    /// A worker is taken to have one slot more than it offers.
    OverCommit,
    /// Equal actions do not share an execution.
    RunEqualsTwice,
    /// A killed lease frees its slot before the worker has confirmed.
    ForgetDyingLease,
    /// Every action is as urgent as every other.
    IgnorePriority,
    /// A connected worker is given work although it was taken out.
    StartOnCordoned,
    /// A worker whose connection broke is given work.
    StartOnAway,
    /// What a worker brings back is taken for lost.
    ResumeDropsLease,
    /// What ran when the scheduler ended is queued when it starts again.
    RestartForgetsLease,
    /// The journal is not told that an execution is over.
    RestartRunsAgain,
    /// A worker is told that its answer is safe before the journal is told of it.
    AckBeforeDurable,
    /// A worker is not told that what it runs was cancelled.
    CancelForgetsKill,
    /// A worker is not told that the other lease of what it runs has won.
    HedgeNeverKilled,
    /// Starts are not counted to their invocations.
    UnfairToSecond,
    /// No start goes by age.
    StarveOld,
    /// A worker stays reserved for a line of which nothing is left.
    LeakReservation,
    /// What is to run elsewhere runs anywhere.
    RunOnAvoided,
    /// A worker whose connection broke is told to make inputs ready.
    WarmOnAway,
    /// A worker is told to make any number of inputs ready.
    WarmWithoutBound,
}

/// What one action's step causes, with a journal: the room is made at once.
const EFFECTS_USUAL: usize = 8;

impl Core {
    pub(super) fn new(config: Arc<Config>) -> Self {
        Self {
            history: History::new(config.history_max),
            config,
            operations: Operations::default(),
            executions: Executions::default(),
            mergeable: Mergeable::default(),
            queue: Queue::default(),
            fleet: Fleet::default(),
            warming: Warming::default(),
            hedged: BTreeSet::new(),
            standings: Standings::default(),
            timers: Timers::default(),
            arrivals: 0,
            now: Time::START,
            effects: Vec::new(),
            #[cfg(test)]
            bug: None,
        }
    }

    /// Takes one event and says what must happen, in this order.
    ///
    /// Deadlines expire on `Tick` alone. So the driver can deliver everything that has arrived before it lets time pass,
    /// and a farm that was held up for a while does not take its workers for dead while their heartbeats wait.
    pub(super) fn handle(&mut self, now: Time, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        if matches!(event, Event::Submit(_) | Event::Finished { .. } | Event::Settled { .. }) {
            self.effects.reserve(EFFECTS_USUAL);
        }
        self.apply(event);
        self.fill_released();
        std::mem::take(&mut self.effects)
    }

    /// When a `Tick` is due if nothing else happens before.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.timers.next()
    }

    /// How many executions wait for a worker.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Restore(records) => self.restore(records),
            Event::Submit(submission) => self.submit(&submission),
            Event::Watched { operation } => self.watched(operation),
            Event::Unwatched { operation } => self.unwatched(operation),
            Event::Cancel { operation } => self.cancel(operation, "the client cancelled the operation"),
            Event::Delete { operation } => self.delete(operation),
            Event::WorkerJoined { worker, name, owner, capacity, leases } => {
                self.connect(worker, (name, owner), capacity);
                self.resume(worker, &leases);
            }
            Event::WorkerAway { worker } => self.worker_away(worker),
            Event::WorkerLeft { worker } => self.worker_left(worker),
            Event::Mark { worker, availability, by_operator } => self.mark(worker, availability, by_operator),
            Event::Heartbeat { worker } => self.heard(worker),
            Event::Progress { worker, lease, metadata } => self.progress(worker, lease, metadata),
            Event::Finished { worker, lease, outcome } => self.finished(worker, lease, outcome),
            Event::Settled { lease, result } => self.settled(lease, result),
            Event::Tick => self.tick(),
            Event::Stop => self.stop(),
        }
    }

    fn tick(&mut self) {
        while let Some(timer) = self.timers.pop_due(self.now) {
            self.expire(timer);
        }
    }

    fn expire(&mut self, timer: Timer) {
        match timer {
            Timer::Abandon(operation) => self.cancel(operation, "no client watched the operation"),
            Timer::Forget => self.forget_old(),
            Timer::Leases(worker) => self.check_leases(worker),
            Timer::Hedge(lease) => self.hedge(lease),
            Timer::Kill(worker, lease) => self.kill_not_confirmed(worker, lease),
            Timer::Away(worker) => self.drop_worker(worker, "it did not come back"),
            Timer::Probation(worker) => self.try_again(worker),
            Timer::Silence(worker) => self.drop_worker(worker, "it was silent"),
            Timer::Stranded(shape) => self.fail_stranded(&shape),
        }
    }

    /// Tells all operations of an execution that it is in another stage.
    fn enter(&mut self, id: ExecutionId, stage: Stage) {
        let execution = self.executions.get_mut(&id).expect("only an execution that exists enters a stage");
        execution.enter(stage);
        report(execution, &mut self.effects);
    }

    /// Tells all operations of an execution where it stands.
    fn report(&mut self, id: ExecutionId) {
        report(&self.executions[&id], &mut self.effects);
    }

    /// Ends an execution, and all operations that wait for it, with `response`.
    fn finish(&mut self, id: ExecutionId, response: ExecuteResponse) {
        let Some(execution) = self.remove_execution(id) else { return };
        let update = execution.last_word(Arc::new(response));
        #[cfg(test)]
        if self.bug == Some(Bug::RestartRunsAgain) {
            return execution.operations.iter().for_each(|one| self.finish_operation(*one, &update));
        }
        // Every end is kept before any is told: what one client was told is over does not run again for another.
        for operation in execution.operations.iter() {
            self.keep_end(*operation, &update);
        }
        for operation in execution.operations.iter() {
            self.finish_operation(*operation, &update);
        }
        self.erase_execution(id, &execution);
    }

    /// Takes an execution that is neither in line nor running out of the books.
    fn remove_execution(&mut self, id: ExecutionId) -> Option<Box<Execution>> {
        let execution = self.executions.remove(&id)?;
        self.hedged.remove(&id);
        if let Some(key) = execution.task.merge_key() {
            self.mergeable.remove_if(key, |joined| *joined == id);
        }
        Some(execution)
    }
}

fn report(execution: &Execution, effects: &mut Vec<Effect>) {
    let update = execution.told();
    let report =
        |operation: &OperationId| Effect::Report { operation: *operation, update: Arc::clone(&update) };
    effects.extend(execution.operations.iter().map(report));
}
