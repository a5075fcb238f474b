//! What starts where, and what waits in line.

use std::sync::Arc;

use super::*;
use crate::scheduler::fleet::Preference;
use crate::scheduler::queue::{Entry, LineId, Party};
use crate::scheduler::requirements::Shape;
use crate::scheduler::task::Task;

impl Core {
    /// Starts a queued execution on an idle worker, or puts it in line.
    ///
    /// Where its shape has something in line already, no worker has room for it: the one at the head would run there.
    pub(super) fn place(&mut self, id: ExecutionId) {
        let line = self.line_of(&self.executions[&id].shape.clone());
        while !self.queue.has_entries(line)
            && let Some(worker) = self.best_for(line, id)
        {
            if !self.is_turn_by_age(worker) || !self.reserve_for_oldest(worker) {
                let task = &self.executions[&id].task;
                self.queue.charge_party(self.executions[&id].position.priority, party(task));
                return self.start(id, worker);
            }
        }
        self.enqueue(id);
    }

    fn best_for(&self, line: LineId, id: ExecutionId) -> Option<WorkerId> {
        let execution = &self.executions[&id];
        let preference = Preference { avoided: &execution.failed_on, neighbours: &execution.task.neighbours };
        self.fleet.best_for(line, preference)
    }

    /// The line of a shape, opened if there is none.
    pub(super) fn line_of(&mut self, shape: &Shape) -> LineId {
        if let Some(line) = self.queue.find(shape) {
            return line;
        }
        let line = self.queue.open(shape);
        self.fleet.open_line(line, shape);
        while let Some(closed) = self.queue.close_idle() {
            self.fleet.close_line(closed);
        }
        line
    }

    pub(super) fn enqueue(&mut self, id: ExecutionId) {
        let line = self.line_of(&self.executions[&id].shape.clone());
        let execution = self.executions.get_mut(&id).expect("only an execution that exists is queued");
        let entry = Entry { execution: id, position: execution.position, since: self.now };
        let place = self.queue.insert(line, party(&execution.task), entry);
        execution.place = Some(place);
        self.check_stranded(line);
        let trail = self.queue.trail(place);
        self.warm_line(trail);
    }

    /// Takes an execution out of line.
    pub(super) fn dequeue(&mut self, id: ExecutionId) {
        let Some(execution) = self.executions.get_mut(&id) else { return };
        let Some(place) = execution.place.take() else { return };
        if execution.was_warmed {
            self.warming.end(id);
        }
        self.queue.remove(place, execution.position);
        if !self.queue.has_entries(place.line()) {
            if self.queue.unstrand(place.line()) {
                self.timers.clear(Timer::Stranded(execution.shape.clone()));
            }
            self.unreserve(place.line());
        }
    }

    /// Moves an execution to another priority, in line or not.
    pub(super) fn reprioritize(&mut self, id: ExecutionId, priority: i32) {
        let Some(execution) = self.executions.get_mut(&id) else { return };
        let old = execution.position;
        execution.position.priority = priority;
        if let Some(place) = execution.place {
            let place = self.queue.reposition(place, (old, execution.position), party(&execution.task));
            execution.place = Some(place);
        }
    }

    /// Gives a worker that has room whatever is first in line for it.
    pub(super) fn fill(&mut self, worker: WorkerId) {
        let mut trail = None;
        while let Some(id) = self.choose(worker) {
            trail = self.executions[&id].place.map(|place| self.queue.trail(place));
            self.charge(id);
            self.dequeue(id);
            self.start(id, worker);
        }
        if let Some(trail) = trail {
            self.warm_worker(worker, trail);
        }
    }

    /// Fills the workers whose reservation has ended without a start on them.
    pub(super) fn fill_released(&mut self) {
        while let Some(worker) = self.fleet.next_released() {
            self.fill(worker);
        }
    }

    /// Counts a start to the invocation in whose name the execution waits.
    fn charge(&mut self, id: ExecutionId) {
        #[cfg(test)]
        if self.bug == Some(Bug::UnfairToSecond) {
            return;
        }
        if let Some(place) = self.executions[&id].place {
            self.queue.charge(place);
        }
    }

    /// Counts a start that is about to be. Returns whether what has waited longest is to be taken.
    fn is_turn_by_age(&mut self, worker: WorkerId) -> bool {
        #[cfg(test)]
        if self.bug == Some(Bug::StarveOld) {
            return false;
        }
        self.fleet.count_start(worker)
    }

    fn unreserve(&mut self, line: LineId) {
        #[cfg(test)]
        if self.bug == Some(Bug::LeakReservation) {
            return;
        }
        self.fleet.unreserve(line);
    }

    fn choose(&mut self, worker: WorkerId) -> Option<ExecutionId> {
        let room = self.fleet.room(worker)?;
        if let Some(line) = self.fleet.reserved_line(worker) {
            let chosen = room.fits_line(line).then(|| self.queue.oldest_in(line)).flatten()?;
            self.unreserve(line);
            return Some(chosen);
        }
        let first = self.queue.first(room.lines(), |needs| room.fits(needs))?;
        if !self.is_turn_by_age(worker) {
            return Some(self.rather_warm(worker, first));
        }
        if self.reserve_for_oldest(worker) {
            return None;
        }
        let room = self.fleet.room(worker)?;
        let fitting = room.lines().filter(|(_, needs)| room.fits(needs)).map(|(line, _)| line);
        let (_, line) = self.queue.oldest_line(fitting)?;
        self.queue.oldest_in(line)
    }

    /// Reserves a worker if what has waited longest, of all that it could run, has no room on it and is reserved no worker yet. Returns whether
    /// it is reserved.
    fn reserve_for_oldest(&mut self, worker: WorkerId) -> bool {
        let Some(room) = self.fleet.room(worker) else { return false };
        let lines = room.lines().filter(|(_, needs)| room.could_fit(needs));
        let (fitting, unfitting): (Vec<_>, Vec<_>) = lines.partition(|(_, needs)| room.fits(needs));
        let unfitting = unfitting.into_iter().map(|(line, _)| line);
        let unreserved = unfitting.filter(|line| !self.fleet.is_reserved(*line));
        let Some((arrival, line)) = self.queue.oldest_line(unreserved) else { return false };
        let fitting = fitting.into_iter().map(|(line, _)| line);
        if self.queue.oldest_line(fitting).is_some_and(|(other, _)| other < arrival) {
            return false;
        }
        self.fleet.reserve(worker, line);
        true
    }

    /// Starts the next attempt of an execution that is in no line.
    pub(super) fn start(&mut self, id: ExecutionId, worker: WorkerId) {
        let execution = &self.executions[&id];
        let lease = Lease { execution: id, attempt: execution.attempts + 1 };
        let task = Arc::clone(&execution.task);
        self.fleet.familiarize(worker, &task.neighbours);
        self.begin_lease(worker, lease);
        self.keep_lease(worker, lease);
        self.plan_hedge(lease);
        self.effects.push(Effect::Start { worker, lease, task });
        self.enter(id, Stage::Executing);
    }

    /// Notes anew whether a connected worker could run what is in `line`, and until when one must come.
    fn check_stranded(&mut self, line: LineId) {
        if self.fleet.could_run(line) {
            if self.queue.unstrand(line) {
                self.timers.clear(Timer::Stranded(self.queue.shape(line).clone()));
            }
            return;
        }
        if let Some(at) = self.queue.strand(line, self.now, self.config.unsatisfiable_after) {
            self.timers.set(Timer::Stranded(self.queue.shape(line).clone()), at);
        }
    }

    /// Called when a class of workers came or went; a fleet has few classes, so this is rare.
    pub(super) fn check_all_stranded(&mut self) {
        self.fleet.introduce(self.queue.open_lines());
        let lines: Vec<LineId> = self.queue.lines().map(|line| line.id).collect();
        for line in lines {
            self.check_stranded(line);
        }
    }

    pub(super) fn fail_stranded(&mut self, shape: &Shape) {
        let Some(line) = self.queue.find(shape).filter(|line| self.queue.has_entries(*line)) else { return };
        let response = answers::unsatisfiable(&self.fleet.why_stranded(&shape.requirements));
        while self.queue.has_entries(line)
            && let Some(id) = self.queue.overdue(line, self.now, self.config.unsatisfiable_after)
        {
            self.dequeue(id);
            self.finish(id, response.clone());
        }
        if self.queue.has_entries(line) {
            self.check_stranded(line);
        }
    }
}

fn party(task: &Task) -> Party<'_> {
    Party { invocation: &task.invocation, identity: &task.identity }
}
