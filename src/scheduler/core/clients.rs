//! What clients do: submit, watch, cancel, delete.

use std::sync::Arc;

use super::*;
use crate::scheduler::event::{Refusal, Submission};
use crate::scheduler::execution::{Execution, State};
use crate::scheduler::history::Kin;
use crate::scheduler::record::{Record, RecordKey};
use crate::scheduler::task::{MergeKey, Task, Update};

/// How many different sets of requirements may be queued: what it costs at most to look through the heads of the lines.
const SHAPES_MAX: usize = 10_000;

impl Core {
    pub(super) fn submit(&mut self, submission: &Submission) {
        let key = submission.task.merge_key();
        let equal = key.as_ref().and_then(|key| self.mergeable.get(key).copied());
        #[cfg(test)]
        let equal = equal.filter(|_| self.bug != Some(Bug::RunEqualsTwice));
        if let Some(refusal) = self.refusal(submission, equal.is_none()) {
            self.effects.push(Effect::Refuse(refusal));
            return;
        }
        match equal {
            Some(id) => self.join_execution(id, submission),
            None => self.begin_execution(submission, key),
        }
    }

    fn refusal(&self, submission: &Submission, is_new: bool) -> Option<Refusal> {
        if self.operations.live_count() >= self.config.operations_max {
            return Some(Refusal::TooManyOperations);
        }
        if let Some(refusal) = self.refusal_of_one(&submission.task) {
            return Some(refusal);
        }
        let is_full = is_new && self.queue.shape_count() >= SHAPES_MAX;
        let is_new_shape =
            || !self.queue.holds(&self.shape_of(Kin::of(&submission.task), &submission.requirements));
        (is_full && is_new_shape()).then_some(Refusal::TooManyShapes)
    }

    /// Whether one client or one build has its share already. Who does not say its name is not counted by it.
    fn refusal_of_one(&self, task: &Task) -> Option<Refusal> {
        let of_identity = self.operations.count_of_identity(&task.identity);
        let of_invocation = self.operations.count_of_invocation(&task.invocation);
        if !task.identity.is_empty() && of_identity >= self.config.operations_per_identity_max {
            return Some(Refusal::TooManyOfIdentity);
        }
        let is_full =
            !task.invocation.is_empty() && of_invocation >= self.config.operations_per_invocation_max;
        is_full.then_some(Refusal::TooManyOfInvocation)
    }

    fn begin_execution(&mut self, submission: &Submission, key: Option<MergeKey>) {
        let (operation, id) = (submission.operation, submission.execution);
        self.arrivals += 1;
        self.operations.insert(operation, (id, 1), &submission.task);
        let kin = Kin::of(&submission.task);
        let shape = self.shape_of(kin, &submission.requirements);
        self.executions.insert(id, Execution::new(submission, (kin, shape), self.arrivals));
        #[cfg(test)]
        self.misplace(id);
        if let Some(key) = key {
            self.mergeable.insert(key, id);
        }
        self.keep_execution(id);
        self.keep(Record::Live { operation, execution: id });
        self.report(id);
        self.place(id);
    }

    #[cfg(test)]
    fn misplace(&mut self, id: ExecutionId) {
        if self.bug == Some(Bug::IgnorePriority) {
            self.executions.get_mut(&id).expect("it was inserted").position.priority = 0;
        }
    }

    /// The operation waits for an equal action that is in flight; the more urgent of both decides its place in line.
    fn join_execution(&mut self, id: ExecutionId, submission: &Submission) {
        let operation = submission.operation;
        self.operations.insert(operation, (id, 1), &submission.task);
        self.keep(Record::Live { operation, execution: id });
        let execution = self.executions.get_mut(&id).expect("a mergeable execution exists");
        execution.operations.insert(operation);
        // The first that is told of an operation says who asked for it, which need not be who asked for its execution.
        let update = Update { task: Arc::clone(&submission.task), ..Update::clone(&execution.told()) };
        self.effects.push(Effect::Report { operation, update: Arc::new(update) });
        if submission.task.priority < execution.position.priority {
            self.reprioritize(id, submission.task.priority);
            self.keep_execution(id);
        }
    }

    pub(super) fn watched(&mut self, operation: OperationId) {
        let Some(live) = self.operations.live_mut(operation) else { return };
        live.watchers += 1;
        if live.watchers == 1 {
            self.timers.clear(Timer::Abandon(operation));
        }
    }

    pub(super) fn unwatched(&mut self, operation: OperationId) {
        let Some(live) = self.operations.live_mut(operation) else { return };
        live.watchers = live.watchers.saturating_sub(1);
        if live.watchers == 0 {
            self.timers.set(Timer::Abandon(operation), self.now + self.config.abandon_after);
        }
    }

    /// Ends one operation. Its execution goes on if another operation waits for it.
    pub(super) fn cancel(&mut self, operation: OperationId, sentence: &str) {
        let Some(live) = self.operations.live(operation) else { return };
        let id = live.execution;
        let execution = self.executions.get_mut(&id).expect("a live operation has an execution");
        execution.operations.remove(&operation);
        let is_last = execution.operations.is_empty();
        let update = execution.last_word(Arc::new(answers::cancelled(sentence)));
        self.keep_end(operation, &update);
        self.finish_operation(operation, &update);
        if is_last {
            self.abort(id);
        }
    }

    /// Ends an execution that nobody waits for.
    fn abort(&mut self, id: ExecutionId) {
        let states: Vec<State> = self.executions[&id].states().collect();
        for state in &states {
            match *state {
                State::Queued => self.dequeue(id),
                #[cfg(test)]
                State::Running { lease, worker } if self.bug == Some(Bug::CancelForgetsKill) => {
                    self.leave_running(worker, lease);
                }
                State::Running { lease, worker } => self.kill(worker, lease),
                State::Settling { .. } => {}
            }
        }
        let Some(execution) = self.remove_execution(id) else { return };
        self.erase_execution(id, &execution);
        for state in states {
            if let State::Settling { lease, worker } = state {
                self.acknowledge(worker, lease);
            }
        }
    }

    pub(super) fn delete(&mut self, operation: OperationId) {
        match self.operations.live_mut(operation) {
            Some(live) => live.is_deleted = true,
            None => self.forget(operation),
        }
    }

    /// Has the journal keep how an operation ends, or erase an operation that nobody will ask for, before anybody is told.
    pub(super) fn keep_end(&mut self, operation: OperationId, update: &Arc<Update>) {
        if !self.config.journal {
            return;
        }
        match self.operations.live(operation) {
            Some(live) if live.is_deleted => self.erase(RecordKey::Operation(operation)),
            Some(_) => self.keep(Record::Finished { operation, update: Arc::clone(update) }),
            None => {}
        }
    }

    /// Moves an operation, whose execution is over for it, to the finished ones, and tells its watchers the last word.
    pub(super) fn finish_operation(&mut self, operation: OperationId, update: &Arc<Update>) {
        let until = self.now + self.config.retention;
        let Some(live) = self.operations.finish(operation, until) else { return };
        if live.watchers == 0 {
            self.timers.clear(Timer::Abandon(operation));
        }
        self.effects.push(Effect::Report { operation, update: Arc::clone(update) });
        if live.is_deleted {
            self.operations.forget(operation);
            self.effects.push(Effect::Forget { operation });
            return;
        }
        self.bound_finished();
    }

    /// A finished operation can be asked for for a while; the oldest makes room if there are too many.
    pub(super) fn bound_finished(&mut self) {
        let Some((oldest, until)) = self.operations.oldest_finished() else { return };
        let count = self.operations.finished_count();
        if count == 1 {
            self.timers.bring_forward(Timer::Forget, until);
        }
        if count > self.config.finished_max {
            self.forget(oldest);
        }
    }

    /// Forgets what has been kept for long enough. Operations are kept for one time, so the oldest is the first to go.
    pub(super) fn forget_old(&mut self) {
        while let Some((oldest, until)) = self.operations.oldest_finished() {
            if until > self.now {
                return self.timers.set(Timer::Forget, until);
            }
            self.forget(oldest);
        }
    }

    pub(super) fn forget(&mut self, operation: OperationId) {
        if self.operations.forget(operation) {
            if self.operations.finished_count() == 0 {
                self.timers.clear(Timer::Forget);
            }
            self.erase(RecordKey::Operation(operation));
            self.effects.push(Effect::Forget { operation });
        }
    }
}
