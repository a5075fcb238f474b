//! The simulation's own books: what the scheduler has said and heard, over all its lives, and whether that is allowed.
//!
//! They are kept from events and effects alone, so they cannot share a mistake with the core.

mod kinds;
mod leases;
mod promises;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::actions::{action_number, is_result_of};
use crate::proto::rev2::ExecuteResponse;
use crate::scheduler::config::Config;
use crate::scheduler::core::inspect::ensure;
use crate::scheduler::event::{Effect, Event, Refusal};
use crate::scheduler::id::{ExecutionId, OperationId};
use crate::scheduler::record::Record;
use crate::scheduler::requirements::Requirements;
use crate::scheduler::task::{Stage, Task, Update};

pub(super) use kinds::KINDS;
use leases::Leases;
use promises::Promises;

#[derive(Default)]
pub(super) struct Books {
    /// What this life of the scheduler has said of each operation.
    pub(super) operations: BTreeMap<OperationId, Operation>,
    leases: Leases,
    promises: Promises,
    requirements: BTreeMap<u64, Arc<Requirements>>,
    /// How urgent the most urgent of those is who have ever asked for an execution, also in earlier lives of the scheduler.
    urgency: BTreeMap<ExecutionId, i32>,
    /// Who asked for each operation; after a restart, who asked first for what it waits for.
    askers: BTreeMap<OperationId, Arc<Task>>,
    /// How many starts there were in this life of the scheduler, and how many of them by age.
    starts: u64,
    by_age: u64,
    /// How often each thing happened that a scheduler must cope with.
    pub(super) seen: BTreeMap<&'static str, u64>,
}

pub(super) struct Operation {
    execution: ExecutionId,
    pub(super) task: Arc<Task>,
    pub(super) stage: Stage,
    response: Option<Arc<ExecuteResponse>>,
}

/// There are at least so many starts to one by age. One of 16 is to be by age, and may reserve a worker instead.
const BY_AGE_EVERY: u64 = 15;

/// The operation that is in line from here on.
fn queues(effect: &Effect) -> Option<OperationId> {
    let Effect::Report { operation, update } = effect else { return None };
    (update.stage == Stage::Queued).then_some(*operation)
}

/// Nothing can be wrong after this that was right before.
pub(super) fn is_dull(event: &Event, effects: &[Effect]) -> bool {
    let may_be = match event {
        Event::Heartbeat { .. } | Event::Progress { .. } | Event::Tick | Event::Delete { .. } => true,
        Event::Watched { .. } | Event::Unwatched { .. } | Event::Cancel { .. } => true,
        Event::Restore(_) | Event::Submit(_) | Event::Mark { .. } | Event::Stop => false,
        Event::WorkerJoined { .. } | Event::WorkerAway { .. } | Event::WorkerLeft { .. } => false,
        Event::Finished { .. } | Event::Settled { .. } => false,
    };
    may_be && effects.is_empty()
}

type Checked = Result<(), String>;

impl Books {
    /// Enters one event and all that followed from it.
    pub(super) fn enter(&mut self, event: &Event, effects: &[Effect]) -> Checked {
        if let Event::Submit(submission) = event {
            let number = action_number(&submission.task);
            let requirements = self.effective(&submission.requirements);
            self.requirements.insert(number, requirements);
            self.askers.insert(submission.operation, Arc::clone(&submission.task));
        }
        if let Event::Settled { lease, result } = event {
            self.promises.settled(*lease, result.is_ok());
        }
        let brought_back = self.leases.enter_event(event);
        for lease in &brought_back {
            self.see(if self.leases.is_adrift(*lease) { "taken over" } else { "brought back" });
        }
        for effect in effects {
            self.see(kinds::kind(effect));
            self.enter_effect(event, effect)?;
        }
        self.leases.leave_event(event);
        if is_dull(event, effects) {
            return Ok(());
        }
        self.leases.check_kept(&brought_back)?;
        self.check_order(effects)?;
        self.leases.check_merging()?;
        self.leases.check_told()?;
        self.check_idle()
    }

    /// What is to run elsewhere runs anywhere where there is no other worker when it comes.
    fn effective(&mut self, requirements: &Arc<Requirements>) -> Arc<Requirements> {
        if requirements.avoided().is_none() {
            return Arc::clone(requirements);
        }
        if self.leases.has_taker(requirements) == Some(true) {
            self.see("elsewhere");
            return Arc::clone(requirements);
        }
        self.see("nowhere else");
        Arc::new(requirements.anywhere())
    }

    /// Whether it can be told from outside where this is to run.
    pub(super) fn is_clear(&self, requirements: &Requirements) -> bool {
        self.leases.has_taker(requirements).is_some()
    }

    pub(super) fn see(&mut self, kind: &'static str) {
        *self.seen.entry(kind).or_default() += 1;
    }

    pub(super) fn live(&self) -> impl Iterator<Item = OperationId> {
        self.operations.iter().filter(|(_, one)| one.stage != Stage::Completed).map(|(id, _)| *id)
    }

    fn note_urgency(&mut self, record: &Record) {
        let Record::Live { operation, execution } = record else { return };
        let Some(task) = self.askers.get(operation) else { return };
        let urgency = self.urgency.entry(*execution).or_insert(task.priority);
        *urgency = task.priority.min(*urgency);
    }

    fn enter_effect(&mut self, event: &Event, effect: &Effect) -> Checked {
        match effect {
            Effect::Start { worker, lease, task } => {
                self.leases.leave_event(event);
                ensure!(!self.promises.is_over(lease.execution), "{lease:?} starts after it was completed");
                let number = action_number(task);
                ensure!(
                    self.is_wanted(number),
                    "{lease:?} of action {number} starts, and nobody waits for it"
                );
                if self.leases.start((*worker, *lease), task, &self.requirements[&number])? {
                    self.see("hedge");
                }
                Ok(())
            }
            Effect::Warm { worker, execution, task } => {
                let is_queued = |one: &Operation| one.stage == Stage::Queued && one.execution == *execution;
                ensure!(self.operations.values().any(is_queued), "{execution:?} is warmed and not queued");
                self.leases.warm(*worker, *execution, &self.requirements[&action_number(task)])
            }
            Effect::Kill { worker, lease } => self.leases.kill(*worker, *lease),
            Effect::Settle { lease, .. } => {
                self.leases.check_settle(event, *lease)?;
                self.promises.settle(*lease);
                Ok(())
            }
            Effect::Report { operation, update } => self.report(event, *operation, update),
            Effect::Forget { operation } => {
                let one = self.operations.remove(operation);
                self.askers.remove(operation);
                let is_completed = one.is_some_and(|one| one.stage == Stage::Completed);
                ensure!(is_completed, "{operation:?} is forgotten before it is completed");
                self.promises.may_be_gone(*operation);
                Ok(())
            }
            Effect::Drop { worker, .. } => {
                self.leases.lose(*worker);
                Ok(())
            }
            Effect::AttemptFailed { lease, .. } => {
                self.leases.fail(*lease);
                Ok(())
            }
            Effect::Keep(record) => {
                if let Record::Leased { lease, worker, .. } = record
                    && self.leases.cool(lease.execution) == Some(*worker)
                {
                    self.see("started where it is warm");
                }
                self.leases.keep(record);
                self.promises.keep(record);
                self.note_urgency(record);
                Ok(())
            }
            Effect::Erase(key) => {
                self.leases.erase(key);
                self.promises.erase(key);
                Ok(())
            }
            Effect::Acknowledge { lease, .. } => self.promises.check_acknowledge(*lease, &self.leases),
            Effect::Judged { worker, availability, .. } => {
                self.leases.judge(*worker, availability);
                Ok(())
            }
            Effect::Refuse(_) | Effect::Hedge { .. } => Ok(()),
        }
    }

    fn is_wanted(&self, number: u64) -> bool {
        let mut live = self.operations.values().filter(|one| one.stage != Stage::Completed);
        live.any(|one| action_number(&one.task) == number)
    }

    fn report(&mut self, event: &Event, operation: OperationId, update: &Update) -> Checked {
        let old = self.operations.get(&operation).map(|one| one.stage);
        let is_restored = matches!(event, Event::Restore(_));
        let is_allowed = match (old, update.stage) {
            (None, Stage::Queued | Stage::Executing) => true,
            (None, Stage::Completed) => is_restored,
            (Some(Stage::Queued), _) => update.stage != Stage::Queued,
            (Some(Stage::Executing), _) => true,
            (Some(Stage::Completed), _) => false,
        };
        ensure!(is_allowed, "{operation:?} goes from {old:?} to {:?}", update.stage);
        let has_response = update.response.is_some();
        ensure!(has_response == (update.stage == Stage::Completed), "{operation:?} has a wrong response");
        let result = update.response.as_ref().and_then(|response| response.result.as_ref());
        let is_own = result.is_none_or(|result| is_result_of(result, &update.task));
        ensure!(is_own, "{operation:?} gets the result of another action");
        if is_restored {
            self.askers.insert(operation, Arc::clone(&update.task));
        }
        let (execution, task) = (update.execution, Arc::clone(&update.task));
        let response = update.response.clone();
        self.operations.insert(operation, Operation { execution, task, stage: update.stage, response });
        Ok(())
    }

    /// Nobody has more than his share, and only who has it is refused.
    pub(super) fn check_shares(&self, config: &Config, event: &Event, effects: &[Effect]) -> Checked {
        let Event::Submit(submission) = event else { return Ok(()) };
        let Task { identity, invocation, .. } = &*submission.task;
        let count = |is_meant: &dyn Fn(&Task) -> bool| {
            self.live().filter(|operation| is_meant(&self.askers[operation])).count()
        };
        let shares = [
            (Refusal::TooManyOperations, count(&|_| true), config.operations_max),
            (
                Refusal::TooManyOfIdentity,
                count(&|task| !identity.is_empty() && task.identity == *identity),
                config.operations_per_identity_max,
            ),
            (
                Refusal::TooManyOfInvocation,
                count(&|task| task.invocation == *invocation),
                config.operations_per_invocation_max,
            ),
        ];
        for (refusal, has, most) in shares {
            let is_refused =
                effects.iter().any(|one| matches!(one, Effect::Refuse(other) if *other == refusal));
            // A restart counts all who wait for one action to the first of them, who may have more than his share then.
            let is_kept = if is_refused { has >= most } else { self.is_refused(effects) || has <= most };
            ensure!(is_kept, "{refusal:?}: {has} of {most}");
        }
        Ok(())
    }

    fn is_refused(&self, effects: &[Effect]) -> bool {
        effects.iter().any(|effect| matches!(effect, Effect::Refuse(_)))
    }

    /// Nothing starts while something more urgent with the same requirements waits, but for the few that are started because
    /// they have waited longest.
    fn check_order(&mut self, effects: &[Effect]) -> Checked {
        for (index, effect) in effects.iter().enumerate() {
            let Effect::Start { task, lease, .. } = effect else { continue };
            self.starts += 1;
            let number = action_number(task);
            let urgency = self.urgency[&lease.execution];
            // One event may end the leases of several workers: what came back into line after the start was not there for it.
            let came_after: BTreeSet<OperationId> = effects[index..].iter().filter_map(queues).collect();
            let waits = |(id, one): &(&OperationId, &Operation)| {
                let requirements = &self.requirements[&action_number(&one.task)];
                let is_equal = *requirements == self.requirements[&number];
                one.stage == Stage::Queued && is_equal && !came_after.contains(id)
            };
            let next = self.operations.iter().filter(waits).map(|(_, one)| one.task.priority).min();
            if next.is_some_and(|next| urgency > next) {
                self.see("started by age");
                self.by_age += 1;
            }
            let is_due = self.by_age * BY_AGE_EVERY <= self.starts;
            ensure!(is_due, "action {number} starts before a more urgent one");
        }
        Ok(())
    }

    /// Nothing that is queued would fit a worker that is connected and open, unless the worker is kept for something larger that
    /// waits as well: one worker at most for one set of requirements.
    fn check_idle(&self) -> Checked {
        let queued = self.operations.values().filter(|one| one.stage == Stage::Queued);
        let numbers: BTreeSet<u64> = queued.map(|one| action_number(&one.task)).collect();
        let asked: BTreeSet<&Requirements> =
            numbers.iter().map(|number| &*self.requirements[number]).collect();
        let idle: BTreeSet<_> = asked.iter().flat_map(|asked| self.leases.idle_for(asked)).collect();
        let larger = |worker| asked.iter().filter(move |asked| self.leases.is_too_busy_for(worker, asked));
        let kept_for: BTreeSet<_> = idle.iter().flat_map(|worker| larger(*worker)).collect();
        let is_kept =
            kept_for.len() >= idle.len() && idle.iter().all(|worker| larger(*worker).next().is_some());
        ensure!(is_kept, "{idle:?} are idle while something waits that fits");
        Ok(())
    }
}
