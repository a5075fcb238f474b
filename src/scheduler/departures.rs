//! Handles that were dropped, told to the driver without waiting and without loss.
//!
//! `Drop` cannot wait for room in a bounded queue, and a departure that is lost would leak an operation or a worker. So each
//! handle leaves a note here when it goes. There is one note per handle, and handles are made only by the driver, which takes all
//! notes each time it wakes: the list is bounded by the handles that were alive.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::id::{OperationId, WorkerId};

/// Which handle was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    Watch(OperationId),
    /// The connection of that number of a worker; it may have a newer one.
    Worker(WorkerId, u64),
}

#[derive(Debug, Default)]
pub(super) struct Departures {
    gone: Mutex<Vec<Gone>>,
    wake: Notify,
}

/// Leaves a note when it is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    gone: Gone,
    departures: Arc<Departures>,
}

impl Departures {
    pub(super) fn guard(self: &Arc<Self>, gone: Gone) -> Guard {
        Guard { gone, departures: Arc::clone(self) }
    }

    /// Returns once something was dropped since the last `take`.
    pub(super) async fn any(&self) {
        self.wake.notified().await;
    }

    pub(super) fn take(&self) -> Vec<Gone> {
        mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.departures.gone.lock().unwrap_or_else(PoisonError::into_inner).push(self.gone);
        self.departures.wake.notify_one();
    }
}
