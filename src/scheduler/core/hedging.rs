//! Hedging: a run that takes far longer than earlier ones gets a second lease, on another worker.
//!
//! The first answer that can be settled wins, and the other lease is killed. While both are out, one that fails is no attempt that
//! must be made again: the other goes on alone.

use std::time::Duration;

use super::*;
use crate::scheduler::event::Hedging;
use crate::scheduler::execution::State;
use crate::scheduler::fleet::Preference;
use crate::scheduler::history::Lesson;

/// A history of fewer runs says too little of what is long.
const HISTORY_RUNS_MIN: u32 = 3;
/// When a hedge for which there was no room is tried again: often enough for runs of minutes, and rare for the scheduler.
const HEDGE_AGAIN: Duration = Duration::from_secs(10);

impl Core {
    /// Notes when a first lease is long beyond what its history says. Without a history it never is.
    pub(super) fn plan_hedge(&mut self, lease: Lease) {
        let kin = self.executions[&lease.execution].kin;
        let expectation = self.history.expectation(kin).filter(|past| past.runs >= HISTORY_RUNS_MIN);
        let Some(past) = expectation.filter(|_| self.config.hedge) else { return };
        let far_longer = past.long.saturating_mul(self.config.hedge_factor);
        self.timers.set(Timer::Hedge(lease), self.now + far_longer.max(self.config.hedge_after_min));
    }

    /// Starts a run that is long overdue a second time, if that takes nothing from anyone.
    pub(super) fn hedge(&mut self, lease: Lease) {
        let id = lease.execution;
        if self.executions.get(&id).is_none_or(|execution| execution.hedge.is_some()) {
            return;
        }
        let Some(worker) = self.hedge_worker(id) else {
            return self.timers.set(Timer::Hedge(lease), self.now + HEDGE_AGAIN);
        };
        let execution = &self.executions[&id];
        let second = Lease { execution: id, attempt: execution.attempts + 1 };
        let task = Arc::clone(&execution.task);
        self.begin_lease(worker, second);
        self.keep_lease(worker, second);
        self.effects.push(Effect::Start { worker, lease: second, task });
        self.effects.push(Effect::Hedge { lease: second, hedging: Hedging::Started });
    }

    /// A worker that has room and does not have the execution. Nothing that is queued fits it, or it would not have the room.
    fn hedge_worker(&mut self, id: ExecutionId) -> Option<WorkerId> {
        let running = self.executions.len() - self.queue.len();
        let share = running * self.config.hedges_max_percent as usize;
        if self.hedged.len() >= share.div_ceil(100) {
            return None;
        }
        let line = self.line_of(&self.executions[&id].shape.clone());
        let execution = &self.executions[&id];
        let mut avoided = execution.failed_on.clone();
        avoided.extend(execution.leases().map(|(_, worker)| worker));
        let preference = Preference { avoided: &avoided, neighbours: &execution.task.neighbours };
        self.fleet.best_for(line, preference).filter(|worker| !avoided.contains(worker))
    }

    /// A lease has brought no answer. Returns whether the execution goes on with another one.
    pub(super) fn goes_on_without(&mut self, lease: Lease) -> bool {
        let id = lease.execution;
        self.hedged.remove(&id);
        let execution = self.executions.get_mut(&id).expect("an attempt that fails has its execution");
        let goes_on = execution.drop_lease(lease);
        if goes_on {
            self.keep_execution(id);
            self.enter(id, Stage::Executing);
        }
        goes_on
    }

    /// The state of the lease beside this one.
    pub(super) fn other_than(&self, lease: Lease) -> Option<State> {
        let execution = self.executions.get(&lease.execution)?;
        execution.states().find(|state| state.lease().is_some_and(|(other, _)| other != lease))
    }

    /// The answer to one lease is good, so whatever the other one does is in vain.
    pub(super) fn lose_hedge(&mut self, winner: Lease, other: Option<State>) {
        let Some((state, (loser, _))) = other.and_then(|state| Some((state, state.lease()?))) else { return };
        let hedging = if loser < winner { Hedging::Won } else { Hedging::Lost };
        self.effects.push(Effect::Hedge { lease: winner.max(loser), hedging });
        match state {
            State::Queued => {}
            #[cfg(test)]
            State::Running { lease, worker } if self.bug == Some(Bug::HedgeNeverKilled) => {
                self.leave_running(worker, lease);
            }
            State::Running { lease, worker } => self.kill(worker, lease),
            State::Settling { lease, worker } => self.acknowledge(worker, lease),
        }
    }

    /// Remembers what an execution has taken.
    pub(super) fn learn(&mut self, id: ExecutionId, response: &ExecuteResponse) {
        if let (Some(execution), Some(lesson)) = (self.executions.get(&id), Lesson::of(response)) {
            self.history.learn(execution.kin, lesson);
        }
    }
}
