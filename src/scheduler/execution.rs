//! One run of one action, over all its attempts, for all the operations that wait for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use crate::proto::rev2::{ExecuteResponse, ExecutedActionMetadata};

use super::answers;
use super::event::Submission;
use super::id::{ExecutionId, Lease, OperationId, WorkerId};
use super::operations::Waiters;
use super::queue::{Place, Position};
use super::record::Pending;
use super::requirements::Shape;
use super::task::{Stage, Task, Update};

#[derive(Debug)]
pub(super) struct Execution {
    pub(super) task: Arc<Task>,
    pub(super) shape: Shape,
    pub(super) position: Position,
    /// Set while it is in line.
    pub(super) place: Option<Place>,
    /// Never empty while the execution exists.
    pub(super) operations: Waiters,
    pub(super) state: State,
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
    /// Workers that failed an attempt; another one is preferred.
    pub(super) failed_on: BTreeSet<WorkerId>,
    /// When it was first queued, by the wall clock.
    pub(super) queued_at: SystemTime,
    /// What its operations are told.
    pub(super) update: Arc<Update>,
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
    pub(super) fn new(submission: &Submission, arrival: u64) -> Self {
        let task = Arc::clone(&submission.task);
        Self {
            shape: submission.shape(),
            position: Position { priority: task.priority, arrival },
            place: None,
            operations: Waiters::One(submission.operation),
            state: State::Queued,
            attempts: 0,
            unrecorded: None,
            failures: 0,
            failed: Vec::new(),
            losses: 0,
            failed_on: BTreeSet::new(),
            queued_at: submission.at,
            update: Arc::new(update(&task, Stage::Queued, submission.at, 0)),
            task,
        }
    }

    /// An execution that an earlier scheduler had. Its `operations` are not empty.
    pub(super) fn restored(pending: Pending, shape: Shape, operations: Vec<OperationId>) -> Self {
        let task = pending.task;
        let first = pending.attempts.saturating_add(1);
        Self {
            shape,
            position: Position { priority: pending.priority, arrival: pending.arrival },
            place: None,
            operations: Waiters::from_iter(operations),
            state: State::Queued,
            attempts: first,
            unrecorded: Some(first),
            failures: pending.failures,
            failed: Vec::new(),
            losses: pending.losses,
            failed_on: BTreeSet::new(),
            queued_at: pending.queued_at,
            update: Arc::new(update(&task, Stage::Queued, pending.queued_at, pending.attempts)),
            task,
        }
    }

    /// What the journal keeps of it.
    pub(super) fn pending(&self, id: ExecutionId) -> Pending {
        let attempts = match (self.state.lease(), self.unrecorded) {
            (Some((lease, _)), _) => lease.attempt - 1,
            (None, Some(first)) => first - 1,
            (None, None) => self.attempts,
        };
        Pending {
            execution: id,
            task: Arc::clone(&self.task),
            arrival: self.position.arrival,
            queued_at: self.queued_at,
            priority: self.position.priority,
            attempts,
            failures: self.failures,
            losses: self.losses,
        }
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
        self.update = Arc::new(update(&self.task, stage, self.queued_at, self.attempts));
    }

    /// More is known of the running attempt.
    pub(super) fn advance(&mut self, mut metadata: Box<ExecutedActionMetadata>) {
        answers::stamp(&mut metadata, self.queued_at);
        let mut next = update(&self.task, Stage::Executing, self.queued_at, self.attempts);
        next.metadata = Some(metadata);
        self.update = Arc::new(next);
    }

    /// What an operation is told when it ends with `response`.
    pub(super) fn last_word(&self, response: Arc<ExecuteResponse>) -> Arc<Update> {
        let mut last = update(&self.task, Stage::Completed, self.queued_at, self.attempts);
        last.response = Some(response);
        Arc::new(last)
    }
}

fn update(task: &Arc<Task>, stage: Stage, queued_at: SystemTime, attempt: u32) -> Update {
    Update { stage, task: Arc::clone(task), queued_at, attempt, metadata: None, response: None }
}
