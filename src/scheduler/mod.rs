//! Which worker runs which action, when.
//!
//! `core` decides everything and does nothing. `driver` is one task that feeds it events and performs its effects; it never
//! waits on a client or a worker. The rest of the program holds a [`Handle`] and, through it, [`Watch`]es and [`WorkerSession`]s.
//!
//! A client's `Execute` makes an *operation*. Operations of equal actions wait for one *execution*, which runs as one or more
//! attempts; an attempt on a worker is a *lease*.

mod answers;
#[doc(hidden)]
pub mod bench;
mod config;
mod core;
mod departures;
mod driver;
mod event;
mod execution;
mod executions;
mod fleet;
mod handle;
mod health;
mod history;
mod id;
mod journal;
mod kind;
mod lookup;
mod operations;
mod queue;
mod record;
mod requirements;
mod session;
mod shared;
#[cfg(test)]
mod simulation;
mod standing;
mod task;
#[cfg(test)]
mod tests;
mod timers;
pub(crate) mod view;
mod warming;

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::proto::rev2::ExecuteResponse;

#[cfg(any(test, fuzzing))]
pub(crate) use journal::fuzz;

pub use config::{Config, PropertyKind};
pub use handle::{Handle, Watch};
pub use id::{ExecutionId, Lease, OperationId, WorkerId};
pub use kind::WorkerKind;
pub use session::{Command, WorkerSession};
pub use task::{Availability, NEIGHBOURS_MAX, Offer, Outcome, Platform, Stage, Task, Update};
pub use view::{
    Demand, Load, Overview, QueueView, RunningView, Why, WorkerCounts, WorkerView, whole_workers,
};

/// A lease that a worker was given before the scheduler started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub lease: Lease,
    pub worker: WorkerId,
    /// The worker's name.
    pub name: Arc<str>,
    /// Whose the worker was, as [`Offer::owner`] said.
    pub owner: Arc<str>,
}

/// An operation with where it stands.
pub type Listed = (OperationId, Arc<Update>);

/// What stands between a worker's answer and the client: the outputs are in the CAS, the action cache is written.
#[async_trait]
pub trait Settle: Send + Sync + 'static {
    /// Checks `response` and keeps what is worth keeping. Returns what the client gets.
    ///
    /// # Errors
    /// When the answer cannot be relied on; another attempt is made. The message is shown to the client.
    async fn settle(&self, task: &Task, response: ExecuteResponse) -> Result<ExecuteResponse>;

    /// Hears of every operation whenever it stands elsewhere than before. The driver calls it, so it must not wait.
    fn noted(&self, _operation: OperationId, _update: &Update) {}

    /// The result that an earlier run of `task` has left, if it is kept and still good. Asked at a start of the farm for what ran
    /// when the last one ended: an action that ran to its end then must not run again.
    async fn recall(&self, _task: &Task) -> Option<ExecuteResponse> {
        None
    }
}
