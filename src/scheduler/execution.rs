//! One run of one action, over all its attempts, for all the operations that wait for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use crate::proto::rev2::{ExecuteResponse, ExecutedActionMetadata};

use super::answers;
use super::event::Submission;
use super::id::{Lease, OperationId, WorkerId};
use super::queue::{Position, Shape};
use super::task::{Stage, Task, Update};

#[derive(Debug)]
pub(super) struct Execution {
    pub(super) task: Arc<Task>,
    pub(super) shape: Shape,
    pub(super) position: Position,
    /// Never empty while the execution exists.
    pub(super) operations: BTreeSet<OperationId>,
    pub(super) state: State,
    /// How many attempts were started.
    pub(super) attempts: u32,
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

impl Execution {
    pub(super) fn new(submission: &Submission, arrival: u64) -> Self {
        let task = Arc::clone(&submission.task);
        Self {
            shape: Arc::clone(&submission.requirements),
            position: Position { priority: task.priority, arrival },
            operations: BTreeSet::from([submission.operation]),
            state: State::Queued,
            attempts: 0,
            losses: 0,
            failed_on: BTreeSet::new(),
            queued_at: submission.at,
            update: Arc::new(update(Arc::clone(&task), Stage::Queued, submission.at)),
            task,
        }
    }

    /// The execution is in another stage.
    pub(super) fn enter(&mut self, stage: Stage) {
        self.update = Arc::new(update(Arc::clone(&self.task), stage, self.queued_at));
    }

    /// More is known of the running attempt.
    pub(super) fn advance(&mut self, mut metadata: Box<ExecutedActionMetadata>) {
        answers::stamp(&mut metadata, self.queued_at);
        let mut next = update(Arc::clone(&self.task), Stage::Executing, self.queued_at);
        next.metadata = Some(metadata);
        self.update = Arc::new(next);
    }

    /// What an operation is told when it ends with `response`.
    pub(super) fn last_word(&self, response: Arc<ExecuteResponse>) -> Arc<Update> {
        let mut last = update(Arc::clone(&self.task), Stage::Completed, self.queued_at);
        last.response = Some(response);
        Arc::new(last)
    }
}

fn update(task: Arc<Task>, stage: Stage, queued_at: SystemTime) -> Update {
    Update { stage, task, queued_at, metadata: None, response: None }
}
