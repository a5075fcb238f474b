//! Attempts that fail: what is tried again, who is at fault, and when it is enough.

use std::sync::Arc;

use super::*;
use crate::scheduler::execution::Blame;
use crate::scheduler::fleet::Hold;
use crate::scheduler::record::RecordKey;

/// How many attempts may end by nobody's fault. A fleet whose workers come and go that often does not get the action done.
const BLAMELESS_ATTEMPTS_MAX: u32 = 100;

/// How an attempt failed.
pub(super) struct Failure {
    pub(super) worker: Arc<str>,
    /// Shown to the client, so it names no worker.
    pub(super) sentence: String,
    pub(super) blame: Blame,
}

impl Core {
    pub(super) fn attempt_failed(&mut self, worker: WorkerId, lease: Lease, sentence: String) {
        if let Some(execution) = self.executions.get_mut(&lease.execution) {
            execution.failed_on.insert(worker);
        }
        self.retry(lease, Failure { worker: self.standings.name(worker), sentence, blame: Blame::Attempt });
    }

    /// Queues an execution again after an attempt that brought no answer, unless it has had its chances.
    pub(super) fn retry(&mut self, lease: Lease, failure: Failure) {
        let id = lease.execution;
        self.erase(RecordKey::Lease(lease));
        let execution = self.executions.get_mut(&id).expect("an attempt that fails has its execution");
        execution.note_failure(lease, &failure.sentence, failure.blame);
        let last_word = self.enough(id);
        self.effects.push(Effect::AttemptFailed {
            lease,
            worker: failure.worker,
            sentence: failure.sentence,
        });
        if self.goes_on_without(lease) {
            return;
        }
        if let Some(response) = last_word {
            return self.finish(id, response);
        }
        self.keep_execution(id);
        self.enter(id, Stage::Queued);
        #[cfg(test)]
        if self.bug == Some(Bug::LostRequeue) {
            return;
        }
        self.place(id);
    }

    /// What clients are told if the execution has had its chances.
    fn enough(&self, id: ExecutionId) -> Option<ExecuteResponse> {
        let execution = &self.executions[&id];
        if execution.losses >= self.config.quarantine_after {
            return Some(answers::quarantined(execution.losses, &execution.failed));
        }
        let blameless = execution.attempts.saturating_sub(execution.failures);
        let is_out = execution.failures >= self.config.attempts_max || blameless >= BLAMELESS_ATTEMPTS_MAX;
        is_out.then(|| answers::out_of_attempts(execution.attempts, &execution.failed))
    }

    /// Ends the leases of a worker that have run for too long, and looks again when the next one may.
    pub(super) fn check_leases(&mut self, worker: WorkerId) {
        for lease in self.fleet.overdue(worker, self.now) {
            if self.fleet.holding(worker, lease) == Some(Hold::Running) {
                self.overran(worker, lease);
            }
        }
        if let Some(next) = self.fleet.first_deadline(worker) {
            self.timers.bring_forward(Timer::Leases(worker), next);
        }
    }

    /// A lease took longer than its command and all that belongs to it may take.
    fn overran(&mut self, worker: WorkerId, lease: Lease) {
        let sentence = "the worker did not answer in time";
        self.kill(worker, lease);
        self.is_unwell(worker, lease.execution, sentence);
        self.attempt_failed(worker, lease, sentence.to_owned());
    }

    /// A worker was told to stop a lease and does not say that it has.
    pub(super) fn kill_not_confirmed(&mut self, worker: WorkerId, lease: Lease) {
        self.is_unwell(worker, lease.execution, "an action that was to be stopped went on");
        self.drop_worker(worker, "it did not confirm a kill");
    }

    /// Has a worker stop a lease. It holds its share until the worker has confirmed.
    pub(super) fn kill(&mut self, worker: WorkerId, lease: Lease) {
        self.timers.clear(Timer::Hedge(lease));
        self.fleet.mark_dying(worker, lease);
        self.send_kill(worker, lease);
        #[cfg(test)]
        if self.bug == Some(Bug::ForgetDyingLease) {
            self.fleet.release(worker, lease);
        }
    }

    /// Tells a worker to stop a dying lease; one that is away is told when it is back.
    pub(super) fn send_kill(&mut self, worker: WorkerId, lease: Lease) {
        if self.standings.is_connected(worker) {
            self.timers.set(Timer::Kill(worker, lease), self.now + self.config.kill_timeout);
            self.effects.push(Effect::Kill { worker, lease });
        }
    }
}
