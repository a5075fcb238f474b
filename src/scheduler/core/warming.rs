//! What a worker that is busy makes ready: the inputs of what will most likely start on it next.
//!
//! It begins with what a worker has just started: what comes next in that line from the same invocation is warmed there, and rather started
//! there. What is put in line while some worker has nothing ready goes to one that had its trees, or to any that could run it.

use std::sync::Arc;

use super::*;
use crate::scheduler::queue::Trail;

/// Executions that are passed over in one search because their inputs were made ready already, or because they were tried before.
const SKIPPED_MAX: usize = 8;

impl Core {
    /// Has a worker make ready what comes next where it has just started something.
    pub(super) fn warm_worker(&mut self, worker: WorkerId, trail: Trail) {
        while self.may_warm(worker, trail)
            && let Some(id) = self.next_cold(trail)
        {
            self.warm(worker, id);
        }
    }

    /// Something was put in line: has some worker make ready what comes next there.
    pub(super) fn warm_line(&mut self, trail: Trail) {
        if self.warming.is_full() {
            return;
        }
        let Some(id) = self.next_cold(trail) else { return };
        let familiar = self.fleet.familiar(&self.executions[&id].task.neighbours);
        let mut workers = familiar.chain(self.warming.candidates());
        if let Some(worker) = workers.find(|worker| self.may_warm(*worker, trail)) {
            self.warm(worker, id);
        }
    }

    fn may_warm(&self, worker: WorkerId, trail: Trail) -> bool {
        #[cfg(test)]
        match self.bug {
            Some(Bug::WarmOnAway) if !self.standings.is_connected(worker) => {
                return self.warming.has_room(worker);
            }
            Some(Bug::WarmWithoutBound) => return self.fleet.expects(worker, trail.line()),
            Some(_) | None => {}
        }
        self.warming.has_room(worker) && self.fleet.expects(worker, trail.line())
    }

    /// What comes next on a trail and has been made ready nowhere.
    fn next_cold(&mut self, trail: Trail) -> Option<ExecutionId> {
        for _ in 0..SKIPPED_MAX {
            let id = self.queue.next_on(trail)?;
            let execution = &self.executions[&id];
            if !execution.was_warmed && execution.failures == 0 {
                return Some(id);
            }
            self.queue.advance(trail, execution.position);
        }
        None
    }

    fn warm(&mut self, worker: WorkerId, id: ExecutionId) {
        let execution = self.executions.get_mut(&id).expect("what is in line exists");
        execution.was_warmed = true;
        let task = Arc::clone(&execution.task);
        self.warming.begin(worker, id);
        self.fleet.familiarize(worker, &task.neighbours);
        self.effects.push(Effect::Warm { worker, execution: id, task });
    }

    /// What to start instead of `first` on a worker that has room: something of the same line and invocation whose inputs it has ready, if
    /// another worker has those of `first`.
    pub(super) fn rather_warm(&mut self, worker: WorkerId, first: ExecutionId) -> ExecutionId {
        let claimant = self.warming.claimant(first).filter(|claimant| *claimant != worker);
        if !claimant.is_some_and(|claimant| self.standings.takes_work(claimant)) {
            return first;
        }
        let place = self.executions[&first].place;
        let mut ready = self.warming.of(worker).iter().copied();
        let Some(own) = ready.find(|id| self.executions[id].place == place) else { return first };
        self.warming.pass(first);
        own
    }
}
