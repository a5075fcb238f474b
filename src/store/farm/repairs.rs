//! Copies to replicas that lack what others have, made in the background.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::error::{Error, Kind, Result};
use crate::store::{Key, Store};
use crate::tasks;

/// Copies that wait or are under way; one more is left to the next reader that finds the lack.
const PENDING_MAX: usize = 4096;

/// Copies that are under way at once: a replica that comes back empty must not be drowned, nor its readers.
const COPIES_MAX: usize = 4;

/// The copies that are to be made. Each is made once, however many readers find the lack.
pub(super) struct Repairs {
    pending: Mutex<HashSet<(Key, usize)>>,
    permits: Semaphore,
}

/// One copy: what, from where, and to which of the replicas.
pub(super) struct Repair {
    pub(super) key: Key,
    pub(super) from: Arc<dyn Store>,
    pub(super) to: Arc<dyn Store>,
    pub(super) place: usize,
}

impl Repairs {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { pending: Mutex::default(), permits: Semaphore::new(COPIES_MAX) })
    }

    /// Begins a copy, unless the same is under way or too many are.
    pub(super) fn begin(self: &Arc<Self>, repair: Repair) {
        let entry = (repair.key.clone(), repair.place);
        let mut pending = self.lock();
        if pending.len() >= PENDING_MAX || !pending.insert(entry.clone()) {
            return;
        }
        drop(pending);
        let repairs = Arc::clone(self);
        tasks::spawn("repair a replica", async move {
            if let Ok(_permit) = repairs.permits.acquire().await {
                let copied = copy(&repair.key, &*repair.from, &*repair.to).await;
                match copied {
                    Ok(()) => tracing::debug!(key = ?repair.key, "a replica got what it lacked"),
                    Err(error) => {
                        tracing::debug!(key = ?repair.key, error = error.chain(), "a replica stays without")
                    }
                }
            }
            repairs.lock().remove(&entry);
        });
    }

    /// A set is consistent between any two of its steps, so a poisoned lock is as good as a clean one.
    fn lock(&self) -> MutexGuard<'_, HashSet<(Key, usize)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies what is under `key`, streaming.
///
/// # Errors
/// `Unavailable` when it is gone from where it was, and what both stores report.
pub(super) async fn copy(key: &Key, from: &dyn Store, to: &dyn Store) -> Result<()> {
    let Some(blob) = from.get(key, 0..).await? else {
        return Err(Error::new(Kind::Unavailable, "what is to be copied is gone from its replica"));
    };
    to.put(key, blob).await
}
