//! Who takes new work: marks of operators, what a worker says of itself, and its health.
//!
//! A cordon for bad health is set even on the last worker that could run what is queued: retrying on a machine that fails everything
//! would turn a queue that waits into a build that fails. What is queued waits, an operator is told why, and the worker is
//! tried again after a while. Such a worker still counts as able, so nothing is called unsatisfiable for it.

use std::sync::Arc;

use super::*;
use crate::scheduler::answers;
use crate::scheduler::health::Culprit;
use crate::scheduler::record::{Record, RecordKey};
use crate::scheduler::task::Availability;

impl Core {
    pub(super) fn mark(&mut self, worker: WorkerId, availability: Availability, by_operator: bool) {
        if !self.standings.is_known(worker) {
            return;
        }
        let availability = shortened(availability);
        if by_operator {
            return self.mark_name(&self.standings.name(worker), availability);
        }
        self.standings.set_own(worker, availability);
        self.refresh_availability(worker);
    }

    /// An operator who opens a worker knows better than its past failures.
    fn mark_name(&mut self, name: &Arc<str>, availability: Availability) {
        let is_open = availability == Availability::Open;
        self.set_mark(name, availability);
        for worker in self.standings.named(name) {
            if is_open {
                self.timers.clear(Timer::Probation(worker));
                self.standings.forget_health(worker);
            }
            self.refresh_availability(worker);
        }
    }

    pub(super) fn set_mark(&mut self, name: &Arc<str>, availability: Availability) {
        if availability == Availability::Open {
            self.erase(RecordKey::Worker(Arc::clone(name)));
        } else {
            self.keep(Record::Worker { name: Arc::clone(name), availability: availability.clone() });
        }
        if let Some(gone) = self.standings.set_mark(name, availability) {
            self.erase(RecordKey::Worker(gone));
        }
    }

    /// Gives the worker what it may have had to let pass, or lets it rest.
    pub(super) fn refresh_availability(&mut self, worker: WorkerId) {
        let takes_work = self.standings.takes_work(worker);
        #[cfg(test)]
        let takes_work =
            takes_work || self.bug == Some(Bug::StartOnCordoned) && self.standings.is_connected(worker);
        self.fleet.set_takes_work(worker, takes_work);
        if takes_work {
            self.fill(worker);
        }
    }

    /// Whether a worker takes new work and, if not, who says so and why; it may also be away.
    pub(in crate::scheduler) fn availability(&self, worker: WorkerId) -> Availability {
        self.standings.availability(worker)
    }

    pub(in crate::scheduler) fn is_connected(&self, worker: WorkerId) -> bool {
        self.standings.is_connected(worker)
    }

    /// A worker has run an action to its end.
    pub(super) fn is_well(&mut self, worker: WorkerId) {
        // One that is out has failed more since that action began; it has its next chance in time.
        if self.standings.health(worker).is_some_and(|health| health.reason().is_none()) {
            self.standings.forget_health(worker);
        }
    }

    /// A worker has failed an action for its own reasons.
    pub(super) fn is_unwell(&mut self, worker: WorkerId, execution: ExecutionId, sentence: &str) {
        if !self.standings.is_known(worker) {
            return;
        }
        let known = self.executions.get(&execution);
        let culprit =
            known.map_or(Culprit::Execution(execution), |known| Culprit::Action(known.task.action_digest));
        let health = self.standings.health_mut(worker);
        if health.fail(culprit, sentence, &self.config) {
            let until = self.now + health.pause(&self.config);
            self.timers.set(Timer::Probation(worker), until);
            self.judged(worker);
        }
    }

    /// The time is over for which a worker's failures were held against it.
    pub(super) fn try_again(&mut self, worker: WorkerId) {
        if !self.standings.is_known(worker) {
            self.standings.forget_health(worker);
        } else if self.standings.health_mut(worker).try_again() {
            self.judged(worker);
        }
    }

    fn judged(&mut self, worker: WorkerId) {
        let (name, availability) = (self.standings.name(worker), self.standings.availability(worker));
        self.effects.push(Effect::Judged { worker, name, availability });
        self.refresh_availability(worker);
    }

    /// A worker is gone. One that was lost may come back as it was, so its failures stay known for a while.
    pub(super) fn outlive_health(&mut self, worker: WorkerId, may_come_back: bool) {
        if !may_come_back {
            self.timers.clear(Timer::Probation(worker));
            self.standings.forget_health(worker);
        } else if let Some(health) = self.standings.health(worker) {
            let pause = health.pause(&self.config);
            self.timers.set(Timer::Probation(worker), self.now + pause);
        }
    }
}

fn shortened(availability: Availability) -> Availability {
    match availability {
        Availability::Open => Availability::Open,
        Availability::Cordoned { reason } => Availability::Cordoned { reason: answers::shortened(&reason) },
        Availability::Draining { reason } => Availability::Draining { reason: answers::shortened(&reason) },
    }
}
