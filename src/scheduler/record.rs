//! What the journal keeps of the scheduler, as a value: a set of records, each under its own key.
//!
//! There is no history to replay: the records that are there are the state. The core says which to keep and which to erase, in an
//! order in which any prefix is a state to start from.

use std::sync::Arc;
use std::time::SystemTime;

use super::id::{ExecutionId, Lease, OperationId, WorkerId};
use super::task::{Availability, Task, Update};

/// One thing that survives a restart.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    /// An execution is queued, runs, or is being settled.
    Execution(Box<Pending>),
    /// An operation waits for an execution.
    Live { operation: OperationId, execution: ExecutionId },
    /// An operation is finished and can still be asked for.
    Finished { operation: OperationId, update: Arc<Update> },
    /// A worker was given a lease, and no answer to it is safe.
    Leased { lease: Lease, worker: WorkerId, name: Arc<str>, owner: Arc<str> },
    /// A worker takes no new work. Kept under its name, so that it holds for its next life as well.
    Worker { name: Arc<str>, availability: Availability },
}

/// An execution that has not ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pending {
    pub(super) execution: ExecutionId,
    pub(super) task: Arc<Task>,
    /// Its place in the order of arrival.
    pub(super) arrival: u64,
    /// When it was first queued, by the wall clock.
    pub(super) queued_at: SystemTime,
    /// Lower is sooner: that of the most urgent operation that has joined it.
    pub(super) priority: i32,
    /// The number of the last attempt that was over when this was written.
    pub(super) attempts: u32,
    /// How many attempts count against it, and how many workers were lost in them.
    pub(super) failures: u32,
    pub(super) losses: u32,
}

/// What a record is kept under. An operation is either live or finished, so both have the same key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum RecordKey {
    Execution(ExecutionId),
    Operation(OperationId),
    Lease(Lease),
    Worker(Arc<str>),
}

impl Record {
    pub(super) fn key(&self) -> RecordKey {
        match self {
            Self::Execution(pending) => RecordKey::Execution(pending.execution),
            Self::Live { operation, .. } | Self::Finished { operation, .. } => {
                RecordKey::Operation(*operation)
            }
            Self::Leased { lease, .. } => RecordKey::Lease(*lease),
            Self::Worker { name, .. } => RecordKey::Worker(Arc::clone(name)),
        }
    }
}
