//! What starts where, and what waits in line.

use std::sync::Arc;

use super::*;
use crate::scheduler::queue::{Entry, Shape};

impl Core {
    /// Starts a queued execution on an idle worker, or puts it in line.
    ///
    /// Where its shape has a line already, no worker has room for it: the one at the head would run there.
    pub(super) fn place(&mut self, id: ExecutionId) {
        let execution = &self.executions[&id];
        if !self.queue.holds(&execution.shape)
            && let Some(worker) = self.fleet.best_for(&execution.shape, &execution.failed_on)
        {
            return self.start(id, worker);
        }
        self.enqueue(id);
    }

    pub(super) fn enqueue(&mut self, id: ExecutionId) {
        let execution = &self.executions[&id];
        let shape = Arc::clone(&execution.shape);
        self.queue.insert(&shape, execution.position, Entry { execution: id, since: self.now });
        self.check_stranded(&shape);
    }

    /// Takes an execution out of line.
    pub(super) fn dequeue(&mut self, id: ExecutionId) {
        let execution = &self.executions[&id];
        self.queue.remove(&execution.shape, execution.position);
        if !self.queue.holds(&execution.shape) {
            self.timers.clear(Timer::Stranded(Arc::clone(&execution.shape)));
        }
    }

    /// Gives a worker that has room whatever is first in line for it.
    pub(super) fn fill(&mut self, worker: WorkerId) {
        while self.fleet.has_free_slot(worker)
            && let Some(id) = self.queue.first(|shape| self.fleet.fits(worker, shape))
        {
            self.dequeue(id);
            self.start(id, worker);
        }
    }

    /// Starts the next attempt of an execution that is in no line.
    pub(super) fn start(&mut self, id: ExecutionId, worker: WorkerId) {
        let execution = &self.executions[&id];
        let lease = Lease { execution: id, attempt: execution.attempts + 1 };
        let task = Arc::clone(&execution.task);
        self.begin_lease(worker, lease);
        self.keep_lease(worker, lease);
        self.effects.push(Effect::Start { worker, lease, task });
        self.enter(id, Stage::Executing);
    }

    /// Notes anew whether a connected worker could run `shape`, and until when one must come.
    pub(super) fn check_stranded(&mut self, shape: &Shape) {
        let timer = Timer::Stranded(Arc::clone(shape));
        if self.fleet.could_run(shape) {
            self.queue.unstrand(shape);
            return self.timers.clear(timer);
        }
        if let Some(at) = self.queue.strand(shape, self.now, self.config.unsatisfiable_after) {
            self.timers.set(timer, at);
        }
    }

    /// Called when a class of workers came or went; a fleet has few classes, so this is rare.
    pub(super) fn check_all_stranded(&mut self) {
        let shapes: Vec<Shape> = self.queue.shapes().cloned().collect();
        for shape in shapes {
            self.check_stranded(&shape);
        }
    }

    pub(super) fn fail_stranded(&mut self, shape: &Shape) {
        let overdue = self.queue.overdue(shape, self.now, self.config.unsatisfiable_after);
        let response = answers::unsatisfiable(&self.fleet.why_stranded(shape));
        for id in overdue {
            self.dequeue(id);
            self.finish(id, response.clone());
        }
        self.check_stranded(shape);
    }
}
