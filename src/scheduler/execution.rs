//! One run of one action, over all its attempts, for all the operations that wait for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use crate::proto::rev2::{ExecuteResponse, ExecutedActionMetadata};

use super::answers;
use super::event::Submission;
use super::history::Kin;
use super::id::{ExecutionId, Lease, OperationId, WorkerId};
use super::operations::Waiters;
use super::queue::{Place, Position};
use super::record::Pending;
use super::requirements::Shape;
use super::task::{Stage, Task, Update};

#[derive(Debug)]
pub(super) struct Execution {
    id: ExecutionId,
    pub(super) task: Arc<Task>,
    pub(super) shape: Shape,
    pub(super) position: Position,
    /// Set while it is in line.
    pub(super) place: Option<Place>,
    /// Never empty while the execution exists.
    pub(super) operations: Waiters,
    pub(super) state: State,
    /// The lease beside that of `state` while a run that takes too long is made twice; never `Queued`.
    pub(super) hedge: Option<State>,
    /// Which earlier runs were of the same kind.
    pub(super) kin: Kin,
    /// The number of the last attempt that was given out, or may have been.
    pub(super) attempts: u32,
    /// The first attempt that an earlier scheduler may have started without a record of it.
    pub(super) unrecorded: Option<u32>,
    /// How many attempts count against it.
    pub(super) failures: u32,
    /// The last attempts that ended without an answer, for the client's eyes.
    pub(super) failed: Vec<FailedAttempt>,
    /// How many workers were lost while they ran it.
    pub(super) losses: u32,
    /// Some worker was told to make its inputs ready; none is told again.
    pub(super) was_warmed: bool,
    /// Workers that failed an attempt; another one is preferred.
    pub(super) failed_on: BTreeSet<WorkerId>,
    /// When it was first queued, by the wall clock.
    pub(super) queued_at: SystemTime,
    /// What its operations are told; `None` while nothing has happened but that it was queued, because of those there may be a million.
    update: Option<Arc<Update>>,
}

/// Queued → running → settling, and back to queued when an attempt fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Queued,
    Running {
        lease: Lease,
        worker: WorkerId,
    },
    /// The worker has answered; its outputs are being checked and the action cache written.
    Settling {
        lease: Lease,
        worker: WorkerId,
    },
}

/// An attempt that ended without an answer.
#[derive(Debug)]
pub(super) struct FailedAttempt {
    pub(super) attempt: u32,
    pub(super) sentence: String,
}

/// What is held against the action when an attempt ends without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// Nothing.
    Nobody,
    /// One of its attempts.
    Attempt,
    /// One of its attempts, and that a worker was lost: the action may be what takes workers down.
    LostWorker,
}

/// How many failed attempts are kept for the client to read.
const FAILED_TOLD_MAX: usize = 5;

/// How far beyond what is known a worker's word for an attempt's number is taken: far more than are started between two writes of the
/// journal.
const NUMBERS_AHEAD_MAX: u32 = 100;

impl State {
    /// The attempt that runs or is being settled.
    pub(super) fn lease(self) -> Option<(Lease, WorkerId)> {
        match self {
            Self::Queued => None,
            Self::Running { lease, worker } | Self::Settling { lease, worker } => Some((lease, worker)),
        }
    }
}

impl Execution {
    pub(super) fn new(submission: &Submission, (kin, shape): (Kin, Shape), arrival: u64) -> Self {
        let task = Arc::clone(&submission.task);
        Self {
            shape,
            position: Position { priority: task.priority, arrival },
            place: None,
            operations: Waiters::One(submission.operation),
            state: State::Queued,
            hedge: None,
            kin,
            attempts: 0,
            unrecorded: None,
            failures: 0,
            failed: Vec::new(),
            losses: 0,
            was_warmed: false,
            failed_on: BTreeSet::new(),
            queued_at: submission.at,
            update: None,
            id: submission.execution,
            task,
        }
    }

    /// An execution that an earlier scheduler had. Its `operations` are not empty.
    pub(super) fn restored(
        pending: Pending,
        (kin, shape): (Kin, Shape),
        operations: Vec<OperationId>,
    ) -> Self {
        let task = pending.task;
        let first = pending.attempts.saturating_add(1);
        Self {
            shape,
            position: Position { priority: pending.priority, arrival: pending.arrival },
            place: None,
            operations: Waiters::from_iter(operations),
            state: State::Queued,
            hedge: None,
            kin,
            attempts: first,
            unrecorded: Some(first),
            failures: pending.failures,
            failed: Vec::new(),
            losses: pending.losses,
            was_warmed: false,
            failed_on: BTreeSet::new(),
            queued_at: pending.queued_at,
            update: Some(Arc::new(queued(pending.execution, &task, pending.queued_at, pending.attempts))),
            id: pending.execution,
            task,
        }
    }

    /// What its operations are told of it.
    pub(super) fn told(&self) -> Arc<Update> {
        self.update.clone().unwrap_or_else(|| Arc::new(self.update(Stage::Queued)))
    }

    /// What the journal keeps of it.
    pub(super) fn pending(&self, id: ExecutionId) -> Pending {
        Pending {
            execution: id,
            task: Arc::clone(&self.task),
            arrival: self.position.arrival,
            queued_at: self.queued_at,
            priority: self.position.priority,
            attempts: self.attempts_over(),
            failures: self.failures,
            losses: self.losses,
        }
    }

    /// The number of the last attempt that is over.
    fn attempts_over(&self) -> u32 {
        let first = self.leases().map(|(lease, _)| lease.attempt).min().or(self.unrecorded);
        let is_last_out = self.leases().any(|(lease, _)| lease.attempt == self.attempts);
        match first {
            Some(first) if is_last_out || self.state == State::Queued => first.saturating_sub(1),
            Some(_) | None => self.attempts,
        }
    }

    /// Its states, one for each lease or for none.
    pub(super) fn states(&self) -> impl Iterator<Item = State> {
        [Some(self.state), self.hedge].into_iter().flatten()
    }

    /// Its leases, the older one first.
    pub(super) fn leases(&self) -> impl Iterator<Item = (Lease, WorkerId)> {
        self.states().filter_map(State::lease)
    }

    /// A lease begins, beside the one that is out if there is one.
    pub(super) fn begin(&mut self, worker: WorkerId, lease: Lease) {
        self.attempts = self.attempts.max(lease.attempt);
        self.unrecorded = None;
        let running = State::Running { lease, worker };
        match self.state {
            State::Queued => self.state = running,
            State::Running { .. } | State::Settling { .. } => self.hedge = Some(running),
        }
    }

    /// The answer to a lease that runs is being settled.
    pub(super) fn settle(&mut self, worker: WorkerId, lease: Lease) {
        let running = State::Running { lease, worker };
        let settling = State::Settling { lease, worker };
        if self.state == running {
            self.state = settling;
        } else if self.hedge == Some(running) {
            self.hedge = Some(settling);
        }
    }

    /// The answer to a lease counts: clients are told of that attempt, even if it is the second one.
    pub(super) fn won_by(&mut self, lease: Lease) {
        if let Some(hedge) =
            self.hedge.filter(|hedge| hedge.lease().is_some_and(|(second, _)| second == lease))
        {
            self.hedge = Some(std::mem::replace(&mut self.state, hedge));
        }
    }

    /// A lease is over without an answer. Returns whether there is another one; if not, the execution is in no state but to be queued.
    pub(super) fn drop_lease(&mut self, lease: Lease) -> bool {
        let other = self.states().find(|state| state.lease().is_some_and(|(other, _)| other != lease));
        self.state = other.unwrap_or(State::Queued);
        self.hedge = None;
        other.is_some()
    }

    /// The attempt that clients are told of.
    fn shown(&self) -> u32 {
        self.state.lease().map_or(self.attempts, |(lease, _)| lease.attempt)
    }

    /// Whether a worker that says that it has this attempt may have been given it by an earlier scheduler.
    pub(super) fn may_have_started(&self, attempt: u32) -> bool {
        self.unrecorded.is_some_and(|first| attempt >= first)
            && attempt <= self.attempts.saturating_add(NUMBERS_AHEAD_MAX)
    }

    /// The number of an attempt that is in use somewhere is not given out again.
    pub(super) fn reserve(&mut self, attempt: u32) {
        if attempt <= self.attempts.saturating_add(NUMBERS_AHEAD_MAX) {
            self.attempts = self.attempts.max(attempt);
        }
    }

    /// An attempt ended without an answer.
    pub(super) fn note_failure(&mut self, lease: Lease, sentence: &str, blame: Blame) {
        self.failures += u32::from(blame != Blame::Nobody);
        self.losses += u32::from(blame == Blame::LostWorker);
        if self.failed.len() == FAILED_TOLD_MAX {
            self.failed.remove(0);
        }
        self.failed.push(FailedAttempt { attempt: lease.attempt, sentence: answers::shortened(sentence) });
    }

    /// The execution is in another stage.
    pub(super) fn enter(&mut self, stage: Stage) {
        self.update = Some(Arc::new(self.update(stage)));
    }

    /// More is known of the running attempt.
    pub(super) fn advance(&mut self, mut metadata: Box<ExecutedActionMetadata>) {
        answers::stamp(&mut metadata, self.queued_at);
        let mut next = self.update(Stage::Executing);
        next.metadata = Some(metadata);
        self.update = Some(Arc::new(next));
    }

    /// What an operation is told when it ends with `response`.
    pub(super) fn last_word(&self, response: Arc<ExecuteResponse>) -> Arc<Update> {
        let mut last = self.update(Stage::Completed);
        last.response = Some(response);
        Arc::new(last)
    }

    fn update(&self, stage: Stage) -> Update {
        let blank = queued(self.id, &self.task, self.queued_at, self.shown());
        Update { stage, ..blank }
    }
}

fn queued(execution: ExecutionId, task: &Arc<Task>, queued_at: SystemTime, attempt: u32) -> Update {
    let (stage, task) = (Stage::Queued, Arc::clone(task));
    Update { execution, stage, task, queued_at, attempt, metadata: None, response: None }
}

#[cfg(test)]
mod tests {
    use super::super::journal;
    use super::super::record::Record;
    use super::*;

    #[test]
    fn clients_are_told_of_the_attempt_that_wins() {
        let Record::Execution(pending) = journal::tests::execution(1) else { panic!("another record") };
        let lease = |attempt| Lease { execution: ExecutionId::new(1), attempt };
        let kin = Kin::of(&pending.task);
        let mut execution = Execution::restored(*pending, (kin, Shape::default()), Vec::new());
        for attempt in [1, 2] {
            execution.begin(WorkerId::new(attempt.into()), lease(attempt));
        }
        let told = |execution: &Execution| execution.last_word(Arc::default()).attempt;
        execution.won_by(lease(1));
        assert_eq!(told(&execution), 1);
        execution.won_by(lease(2));
        assert_eq!((told(&execution), execution.leases().count()), (2, 2));
    }
}
