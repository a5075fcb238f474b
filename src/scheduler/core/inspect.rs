//! The core's invariants, checked from the inside. For tests: it walks everything.

use std::collections::BTreeSet;

use super::*;
use crate::scheduler::execution::State;
use crate::scheduler::fleet::Hold;

/// Fails with the given sentence unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)*) => {
        if !$condition {
            return Err(format!($($sentence)*));
        }
    };
}
pub(in crate::scheduler) use ensure;

impl Core {
    /// The first thing that is wrong.
    pub(in crate::scheduler) fn check(&self) -> Result<(), String> {
        self.check_operations()?;
        for (id, execution) in &self.executions {
            self.check_execution(*id, execution)?;
        }
        self.check_fleet()?;
        let queued = self.executions.values().filter(|execution| execution.state == State::Queued).count();
        ensure!(
            queued == self.queue.len(),
            "{queued} executions are queued, but {} are in line",
            self.queue.len()
        );
        self.check_idle()
    }

    fn check_operations(&self) -> Result<(), String> {
        let held: usize = self.executions.values().map(|execution| execution.operations.len()).sum();
        ensure!(
            held == self.operations.live_count(),
            "{held} operations wait, {} live",
            self.operations.live_count()
        );
        Ok(())
    }

    fn check_execution(&self, id: ExecutionId, execution: &Execution) -> Result<(), String> {
        ensure!(!execution.operations.is_empty(), "nobody waits for {id:?}");
        for operation in &execution.operations {
            let waits = self.operations.live(*operation).is_some_and(|live| live.execution == id);
            ensure!(waits, "{operation:?} does not wait for {id:?}");
        }
        if let Some(key) = execution.task.merge_key() {
            ensure!(self.mergeable.get(&key) == Some(&id), "{id:?} cannot be joined");
        }
        if let State::Running { lease, worker } = execution.state {
            let is_held = self.fleet.holding(worker, lease) == Some(Hold::Running);
            ensure!(is_held, "{lease:?} runs, but {worker:?} does not hold it");
            ensure!(lease.attempt == execution.attempts, "{lease:?} is not the last attempt");
        }
        Ok(())
    }

    fn check_fleet(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (id, worker) in self.fleet.iter() {
            for (lease, hold) in worker.leases() {
                ensure!(seen.insert(lease), "{lease:?} is on two workers");
                let state = self.executions.get(&lease.execution).map(|execution| execution.state);
                let is_running = state == Some(State::Running { lease, worker: id });
                ensure!(
                    is_running == (hold == Hold::Running),
                    "{id:?} holds {lease:?}: {hold:?}, but it is {state:?}"
                );
            }
        }
        Ok(())
    }

    fn check_idle(&self) -> Result<(), String> {
        for shape in self.queue.shapes() {
            let worker = self.fleet.best_for(shape, &BTreeSet::new());
            ensure!(worker.is_none(), "{shape:?} is queued beside idle {worker:?}");
        }
        Ok(())
    }

    /// Whether nothing is left: no operation, no worker, no deadline.
    pub(in crate::scheduler) fn is_empty(&self) -> bool {
        self.executions.is_empty()
            && self.mergeable.is_empty()
            && self.queue.len() == 0
            && self.queue.shapes().len() == 0
            && self.fleet.len() == 0
            && self.operations.live_count() + self.operations.finished_count() == 0
            && self.timers.next().is_none()
    }
}
