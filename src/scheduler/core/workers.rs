//! What workers say of their leases, and what the settling of an answer brings.

use std::sync::Arc;

use super::*;
use crate::scheduler::execution::State;
use crate::scheduler::fleet::{Hold, Worker};
use crate::scheduler::record::Record;
#[cfg(test)]
use crate::scheduler::requirements::Capacity;
use crate::scheduler::task::Outcome;

impl Core {
    pub(super) fn progress(&mut self, worker: WorkerId, lease: Lease, metadata: Box<ExecutedActionMetadata>) {
        self.heard(worker);
        if self.fleet.holding(worker, lease) != Some(Hold::Running) {
            return;
        }
        // Clients are told of one attempt at a time.
        if let Some(execution) = self.executions.get_mut(&lease.execution)
            && execution.state == (State::Running { lease, worker })
        {
            execution.advance(metadata);
            self.report(lease.execution);
        }
    }

    /// Puts an attempt that is in no line on a worker. Whether the worker must be told of it is the caller's to know.
    pub(super) fn begin_lease(&mut self, worker: WorkerId, lease: Lease) {
        let execution =
            self.executions.get_mut(&lease.execution).expect("only an execution that exists is started");
        execution.begin(worker, lease);
        if execution.hedge.is_some() {
            self.hedged.insert(lease.execution);
        }
        let deadline = self.now + execution.task.timeout.saturating_add(self.config.lease_slack);
        match self.queue.find(&execution.shape) {
            Some(line) => self.fleet.hold_of_line(worker, (lease, deadline), (line, &execution.shape)),
            None => self.fleet.hold(worker, (lease, deadline), Some(&execution.shape)),
        }
        self.timers.bring_forward(Timer::Leases(worker), deadline);
    }

    pub(super) fn keep_lease(&mut self, worker: WorkerId, lease: Lease) {
        if self.config.journal {
            let (name, owner) = (self.standings.name(worker), self.standings.owner(worker));
            self.keep(Record::Leased { lease, worker, name, owner });
        }
    }

    /// A lease ended on its worker. The worker says so until it is acknowledged, so most of what comes for a lease that it
    /// does not hold was said before, or is late; it means nothing, but the worker may forget it.
    pub(super) fn finished(&mut self, worker: WorkerId, lease: Lease, outcome: Outcome) {
        self.heard(worker);
        #[cfg(test)]
        let (worker, lease) = self.misread(worker, lease);
        match self.fleet.holding(worker, lease) {
            Some(Hold::Running) => self.answered(worker, lease, outcome),
            Some(Hold::Dying) => {
                self.timers.clear(Timer::Kill(worker, lease));
                self.acknowledge(worker, lease);
            }
            None if self.is_settling(worker, lease) => return,
            None => return self.acknowledge(worker, lease),
        }
        // The share is freed after a retry has been placed: a retry takes room that others have first, and
        // competes by its position for the room that it leaves.
        self.fleet.vacate(worker, lease);
        self.fill(worker);
        self.fleet.offer(worker);
    }

    pub(super) fn is_settling(&self, worker: WorkerId, lease: Lease) -> bool {
        let execution = self.executions.get(&lease.execution);
        execution.is_some_and(|execution| {
            execution.states().any(|state| state == State::Settling { lease, worker })
        })
    }

    /// The worker's answer is safe, or counts for nothing: it need not be kept. One that is away asks again.
    pub(super) fn acknowledge(&mut self, worker: WorkerId, lease: Lease) {
        if self.standings.is_connected(worker) {
            self.effects.push(Effect::Acknowledge { worker, lease });
        }
    }

    fn answered(&mut self, worker: WorkerId, lease: Lease, outcome: Outcome) {
        self.timers.clear(Timer::Hedge(lease));
        match outcome {
            Outcome::Response(response) => {
                self.is_well(worker);
                self.settle(worker, lease, response);
            }
            Outcome::Fault(sentence) => {
                self.is_unwell(worker, lease.execution, &sentence);
                self.refuse_answer(worker, lease, sentence);
            }
            Outcome::Killed => self.refuse_answer(worker, lease, "the worker stopped the action".into()),
        }
    }

    fn refuse_answer(&mut self, worker: WorkerId, lease: Lease, sentence: String) {
        self.attempt_failed(worker, lease, sentence);
        self.acknowledge(worker, lease);
    }

    fn settle(&mut self, worker: WorkerId, lease: Lease, mut response: Box<ExecuteResponse>) {
        let execution = self.executions.get_mut(&lease.execution).expect("a running lease has its execution");
        execution.settle(worker, lease);
        answers::stamp_response(&mut response, execution.queued_at);
        let task = Arc::clone(&execution.task);
        self.effects.push(Effect::Settle { lease, task, response });
    }

    pub(super) fn settled(&mut self, lease: Lease, result: Result<Box<ExecuteResponse>, String>) {
        let Some(worker) = self.settles(lease) else { return };
        match result {
            Ok(response) => {
                self.learn(lease.execution, &response);
                let other = self.other_than(lease);
                if let Some(execution) = self.executions.get_mut(&lease.execution) {
                    execution.won_by(lease);
                }
                #[cfg(test)]
                if self.bug == Some(Bug::AckBeforeDurable) {
                    self.acknowledge(worker, lease);
                }
                self.finish(lease.execution, *response);
                self.acknowledge(worker, lease);
                self.lose_hedge(lease, other);
            }
            Err(sentence) => self.refuse_answer(worker, lease, sentence),
        }
    }

    /// Whose answer to the lease is being settled.
    fn settles(&self, lease: Lease) -> Option<WorkerId> {
        let execution = self.executions.get(&lease.execution)?;
        let (_, worker) = execution.leases().find(|(one, _)| *one == lease)?;
        self.is_settling(worker, lease).then_some(worker)
    }

    /// The farm stops. With a journal it takes over what runs when it starts again; without one, nobody would ask for the answers.
    pub(super) fn stop(&mut self) {
        if self.config.journal {
            return;
        }
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
    pub(super) fn misjudged(&self, capacity: Arc<Capacity>) -> Arc<Capacity> {
        if self.bug != Some(Bug::OverCommit) {
            return capacity;
        }
        let mut misjudged = (*capacity).clone();
        misjudged.slots += 1;
        Arc::new(misjudged)
    }

    /// Has a lease end in its own time, in vain.
    pub(super) fn leave_running(&mut self, worker: WorkerId, lease: Lease) {
        self.timers.clear(Timer::Hedge(lease));
        self.fleet.mark_dying(worker, lease);
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
