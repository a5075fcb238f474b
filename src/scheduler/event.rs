//! What can happen to the scheduler and what it answers: the whole interface of the core.

use std::sync::Arc;
use std::time::SystemTime;

use crate::proto::rev2::{ExecuteResponse, ExecutedActionMetadata};

use super::id::{ExecutionId, Lease, OperationId, WorkerId};
use super::record::{Record, RecordKey};
use super::requirements::{Capacity, Requirements};
use super::task::{Availability, Outcome, Task, Update};

/// Something that happened in the world.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// What the journal held when the scheduler started; the first event, if it comes at all.
    Restore(Vec<Record>),
    /// A client wants an action run and watches the operation.
    Submit(Box<Submission>),
    /// One more client watches the operation.
    Watched { operation: OperationId },
    /// One client fewer watches the operation.
    Unwatched { operation: OperationId },
    /// A client wants the operation to end.
    Cancel { operation: OperationId },
    /// No client will ask for the operation again; it still runs to its end.
    Delete { operation: OperationId },
    /// A worker connected, perhaps again. `leases` is what it still runs, or has run and not been thanked for.
    WorkerJoined {
        worker: WorkerId,
        name: Arc<str>,
        owner: Arc<str>,
        capacity: Arc<Capacity>,
        leases: Vec<Lease>,
    },
    /// A worker's connection broke. It may run on and come back.
    WorkerAway { worker: WorkerId },
    /// A worker said goodbye: nothing of it runs any more.
    WorkerLeft { worker: WorkerId },
    /// Whether a worker takes new work is to change. What an operator says holds for all lives of all workers of its name, and
    /// above what the worker says of itself, which holds for this life.
    Mark { worker: WorkerId, availability: Availability, by_operator: bool },
    /// A worker lives.
    Heartbeat { worker: WorkerId },
    /// A running attempt tells how far it is.
    Progress { worker: WorkerId, lease: Lease, metadata: Box<ExecutedActionMetadata> },
    /// A lease ended on its worker.
    Finished { worker: WorkerId, lease: Lease, outcome: Outcome },
    /// The answer to `Effect::Settle`; an error is a sentence for the client.
    Settled { lease: Lease, result: Result<Box<ExecuteResponse>, String> },
    /// Time has passed; what has arrived until then was told.
    Tick,
    /// The farm stops.
    Stop,
}

/// A task on its way in, with the identifiers it will have.
#[derive(Debug, Clone)]
pub(super) struct Submission {
    pub(super) operation: OperationId,
    /// Used only if the task does not join an execution in flight.
    pub(super) execution: ExecutionId,
    pub(super) task: Arc<Task>,
    pub(super) requirements: Arc<Requirements>,
    /// The wall clock, for the client's eyes only: nothing is decided by it.
    pub(super) at: SystemTime,
}

/// Something that must be done in the world.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    /// Have the worker run the task.
    Start { worker: WorkerId, lease: Lease, task: Arc<Task> },
    /// Have the worker make the inputs of a queued execution ready, which may start there soon. A hint: it may be lost.
    Warm { worker: WorkerId, execution: ExecutionId, task: Arc<Task> },
    /// Tell the worker that its answer is safe: it need not say it again.
    Acknowledge { worker: WorkerId, lease: Lease },
    /// Have the journal keep a record, in place of the one with its key.
    Keep(Record),
    /// Have the journal drop a record.
    Erase(RecordKey),
    /// Have the worker stop the lease; it answers with `Finished`.
    Kill { worker: WorkerId, lease: Lease },
    /// Check the outputs and write the action cache, then report `Settled`.
    Settle { lease: Lease, task: Arc<Task>, response: Box<ExecuteResponse> },
    /// Tell the operation's watchers where it stands.
    Report { operation: OperationId, update: Arc<Update> },
    /// The submission in hand is not accepted; nothing is kept of it.
    Refuse(Refusal),
    /// The operation is unknown from here on.
    Forget { operation: OperationId },
    /// End the worker's connection: it is lost already.
    Drop { worker: WorkerId, reason: &'static str },
    /// For the log and the metrics: an attempt ended by the fault of the farm.
    AttemptFailed { lease: Lease, worker: Arc<str>, sentence: String },
    /// For the metrics: what becomes of the second lease of an execution.
    Hedge { lease: Lease, hedging: Hedging },
    /// For the log: the scheduler itself takes a worker out for its failures, or gives it another chance.
    Judged { worker: WorkerId, name: Arc<str>, availability: Availability },
}

/// What becomes of a hedge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hedging {
    /// A second lease was given out beside the first.
    Started,
    /// It brought the answer while the first one was still out.
    Won,
    /// The first one brought the answer while it was still out.
    Lost,
}

/// Why a submission is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "each names what there is too much of")]
pub(super) enum Refusal {
    /// As many operations are queued or running as may be.
    TooManyOperations,
    /// As many operations of one identity are queued or running as may be.
    TooManyOfIdentity,
    /// As many operations of one invocation are queued or running as may be.
    TooManyOfInvocation,
    /// As many different sets of platform properties are queued as may be.
    TooManyShapes,
}

impl Hedging {
    /// A label of the metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Won => "won",
            Self::Lost => "lost",
        }
    }
}
