//! What workers do: join, answer, fail, vanish; and what the settling of an answer brings.

use std::sync::Arc;

use super::*;
use crate::scheduler::execution::State;
use crate::scheduler::fleet::{Hold, Worker};
use crate::scheduler::record::Record;
use crate::scheduler::requirements::Capacity;
use crate::scheduler::task::{Availability, Outcome};

/// How an attempt failed.
struct Fault {
    worker: Arc<str>,
    /// Shown to the client, so it names no worker.
    sentence: String,
    is_lost_worker: bool,
}

impl Core {
    pub(super) fn worker_joined(
        &mut self,
        worker: WorkerId,
        name: Arc<str>,
        capacity: Arc<Capacity>,
        _leases: &[Lease],
    ) {
        #[cfg(test)]
        let capacity = self.misjudged(capacity);
        let is_new_class = self.fleet.join(worker, name, capacity);
        self.heard(worker);
        if is_new_class {
            self.check_all_stranded();
        }
        self.fill(worker);
    }

    pub(super) fn mark(&mut self, _worker: WorkerId, _availability: Availability) {}

    pub(super) fn restore(&mut self, _records: Vec<Record>) {}

    /// Any word of a worker says that it lives.
    pub(super) fn heard(&mut self, worker: WorkerId) {
        if self.fleet.get(worker).is_some() {
            self.timers.set(Timer::Silence(worker), self.now + self.config.heartbeat_timeout);
        }
    }

    pub(super) fn progress(&mut self, worker: WorkerId, lease: Lease, metadata: Box<ExecutedActionMetadata>) {
        self.heard(worker);
        if self.fleet.holding(worker, lease) != Some(Hold::Running) {
            return;
        }
        if let Some(execution) = self.executions.get_mut(&lease.execution) {
            execution.advance(metadata);
            self.report(lease.execution);
        }
    }

    /// A lease ended on its worker. An answer to a lease that the worker does not hold is late and means nothing.
    pub(super) fn finished(&mut self, worker: WorkerId, lease: Lease, outcome: Outcome) {
        self.heard(worker);
        #[cfg(test)]
        let (worker, lease) = self.misread(worker, lease);
        let Some(hold) = self.fleet.holding(worker, lease) else { return };
        match hold {
            Hold::Running => self.answered(worker, lease, outcome),
            Hold::Dying => self.timers.clear(Timer::Kill(worker, lease)),
        }
        // The share is freed after a retry has been placed: a retry takes room that others have first, and
        // competes by its position for the room that it leaves.
        self.fleet.release(worker, lease);
        self.fill(worker);
    }

    fn answered(&mut self, worker: WorkerId, lease: Lease, outcome: Outcome) {
        self.timers.clear(Timer::Lease(worker, lease));
        match outcome {
            Outcome::Response(response) => self.settle(worker, lease, response),
            Outcome::Fault(sentence) => self.attempt_failed(worker, lease, sentence),
            Outcome::Killed => self.attempt_failed(worker, lease, "the worker stopped the action".into()),
        }
    }

    fn settle(&mut self, worker: WorkerId, lease: Lease, mut response: Box<ExecuteResponse>) {
        let execution = self.executions.get_mut(&lease.execution).expect("a running lease has its execution");
        execution.state = State::Settling { lease, worker };
        answers::stamp_response(&mut response, execution.queued_at);
        let task = Arc::clone(&execution.task);
        self.effects.push(Effect::Settle { lease, task, response });
    }

    pub(super) fn settled(&mut self, lease: Lease, result: Result<Box<ExecuteResponse>, String>) {
        let state = self.executions.get(&lease.execution).map(|execution| execution.state);
        let Some(State::Settling { lease: current, worker }) = state else { return };
        if current != lease {
            return;
        }
        match result {
            Ok(response) => self.finish(lease.execution, *response),
            Err(sentence) => self.attempt_failed(worker, lease, sentence),
        }
    }

    /// A lease took longer than its command and all that belongs to it may take.
    pub(super) fn overran(&mut self, worker: WorkerId, lease: Lease) {
        self.kill(worker, lease);
        self.attempt_failed(worker, lease, "the worker did not answer in time".into());
    }

    fn attempt_failed(&mut self, worker: WorkerId, lease: Lease, sentence: String) {
        let name = self.fleet.get(worker).map_or_else(|| Arc::from(""), |worker| Arc::clone(&worker.name));
        if let Some(execution) = self.executions.get_mut(&lease.execution) {
            execution.failed_on.insert(worker);
        }
        self.retry(lease, Fault { worker: name, sentence, is_lost_worker: false });
    }

    /// Queues an execution again after an attempt failed by the farm's fault, unless it has had its chances.
    fn retry(&mut self, lease: Lease, fault: Fault) {
        let id = lease.execution;
        let execution = self.executions.get_mut(&id).expect("an attempt that fails has its execution");
        execution.state = State::Queued;
        execution.losses += u32::from(fault.is_lost_worker);
        let (losses, attempts) = (execution.losses, execution.attempts);
        let sentence = fault.sentence.clone();
        self.effects.push(Effect::AttemptFailed { lease, worker: fault.worker, sentence: fault.sentence });
        if losses >= self.config.quarantine_after {
            return self.finish(id, answers::quarantined(losses));
        }
        if attempts >= self.config.attempts_max {
            return self.finish(id, answers::out_of_attempts(attempts, &sentence));
        }
        self.enter(id, Stage::Queued);
        #[cfg(test)]
        if self.bug == Some(Bug::LostRequeue) {
            return;
        }
        self.place(id);
    }

    /// Has a worker stop a lease. It holds its share until the worker has confirmed.
    pub(super) fn kill(&mut self, worker: WorkerId, lease: Lease) {
        self.timers.clear(Timer::Lease(worker, lease));
        self.timers.set(Timer::Kill(worker, lease), self.now + self.config.kill_timeout);
        self.fleet.mark_dying(worker, lease);
        self.effects.push(Effect::Kill { worker, lease });
        #[cfg(test)]
        if self.bug == Some(Bug::ForgetDyingLease) {
            self.fleet.release(worker, lease);
        }
    }

    /// Gives up a worker that is still connected.
    pub(super) fn drop_worker(&mut self, worker: WorkerId, reason: &'static str) {
        self.effects.push(Effect::Drop { worker, reason });
        self.lose(worker);
    }

    /// A worker is gone, and every attempt that it ran has failed.
    pub(super) fn lose(&mut self, id: WorkerId) {
        let Some((worker, is_last_of_class)) = self.fleet.leave(id) else { return };
        self.timers.clear(Timer::Silence(id));
        for (lease, hold) in worker.leases() {
            match hold {
                Hold::Running => self.timers.clear(Timer::Lease(id, lease)),
                Hold::Dying => self.timers.clear(Timer::Kill(id, lease)),
            }
        }
        if is_last_of_class {
            self.check_all_stranded();
        }
        // The first in line gets the first idle worker.
        let mut leases: Vec<Lease> = worker.running().collect();
        leases.sort_by_key(|lease| self.executions[&lease.execution].position);
        for lease in leases {
            let sentence = "a worker was lost while it ran the action".to_owned();
            self.retry(lease, Fault { worker: Arc::clone(&worker.name), sentence, is_lost_worker: true });
        }
    }

    /// Kills whatever runs: the farm stops.
    pub(super) fn stop(&mut self) {
        let running = |(id, worker): (WorkerId, &Worker)| {
            worker.running().map(move |lease| (id, lease)).collect::<Vec<_>>()
        };
        let leases: Vec<_> = self.fleet.iter().flat_map(running).collect();
        for (worker, lease) in leases {
            self.effects.push(Effect::Kill { worker, lease });
        }
    }
}

/// Where mistakes are planted that take more than leaving a step out.
#[cfg(test)]
impl Core {
    fn misjudged(&self, capacity: Arc<Capacity>) -> Arc<Capacity> {
        if self.bug != Some(Bug::OverCommit) {
            return capacity;
        }
        let mut misjudged = (*capacity).clone();
        misjudged.slots += 1;
        Arc::new(misjudged)
    }

    /// Takes an answer to an earlier attempt for one to the attempt that runs.
    fn misread(&self, worker: WorkerId, lease: Lease) -> (WorkerId, Lease) {
        let state = self.executions.get(&lease.execution).map(|execution| execution.state);
        match (self.bug, state) {
            (Some(Bug::AcceptLateAnswer), Some(State::Running { lease, worker })) => (worker, lease),
            _ => (worker, lease),
        }
    }
}
