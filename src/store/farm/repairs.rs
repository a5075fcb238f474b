//! Copies to replicas that lack what others have, made in the background.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::error::{Error, Kind, Result};
use crate::store::{Key, Store};
use crate::{metrics, tasks};

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
        if self.enter(&repair) {
            let repairs = Arc::clone(self);
            tasks::spawn("repair a replica", async move { repairs.make(repair).await });
        }
    }

    fn enter(&self, repair: &Repair) -> bool {
        let mut pending = self.lock();
        if pending.len() >= PENDING_MAX {
            count("dropped");
            return false;
        }
        pending.insert((repair.key.clone(), repair.place))
    }

    async fn make(&self, repair: Repair) {
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        match copy(&repair.key, &*repair.from, &*repair.to).await {
            Ok(()) => count("ok"),
            Err(error) => {
                count("error");
                tracing::debug!(key = ?repair.key, error = error.chain(), "a replica stays without a blob");
            }
        }
        drop(permit);
        self.lock().remove(&(repair.key, repair.place));
    }

    /// A set is consistent between any two of its steps, so a poisoned lock is as good as a clean one.
    fn lock(&self) -> MutexGuard<'_, HashSet<(Key, usize)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(outcome: &str) {
    metrics::REPLICA_REPAIRS.with_label_values(&[outcome]).inc();
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

#[cfg(test)]
mod tests {
    use std::ops::RangeFrom;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use bytes::Bytes;
    use tokio::sync::Notify;

    use super::*;
    use crate::store::{Blob, Memory};

    /// Counts its readers and lets them wait.
    #[derive(Default)]
    struct Slow {
        reads: AtomicUsize,
        go: Notify,
    }

    #[async_trait]
    impl Store for Slow {
        async fn get(&self, _: &Key, _: RangeFrom<u64>) -> Result<Option<Blob>> {
            self.reads.fetch_add(1, Ordering::SeqCst);
            self.go.notified().await;
            Ok(Some(Blob::Whole(Bytes::from_static(b"x"))))
        }

        async fn put(&self, _: &Key, _: Blob) -> Result<()> {
            Ok(())
        }

        async fn missing(&self, _: &[Key]) -> Result<Vec<Key>> {
            Ok(Vec::new())
        }

        async fn remove(&self, _: &Key) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_many_readers_miss_is_copied_once_and_few_at_a_time() {
        let (slow, to, repairs) = (Arc::new(Slow::default()), Arc::new(Memory::new(1 << 20)), Repairs::new());
        for number in (0..20).chain(0..20) {
            let (from, to) = (Arc::clone(&slow) as Arc<dyn Store>, Arc::clone(&to) as Arc<dyn Store>);
            repairs.begin(Repair { key: Key::Asset([number; 32]), from, to, place: 0 });
        }
        assert_eq!(repairs.lock().len(), 20);
        while slow.reads.load(Ordering::SeqCst) < COPIES_MAX {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(slow.reads.load(Ordering::SeqCst), COPIES_MAX);
        while !repairs.lock().is_empty() {
            slow.go.notify_one();
            tokio::task::yield_now().await;
        }
        assert_eq!(slow.reads.load(Ordering::SeqCst), 20);
        let keys: Vec<Key> = (0..20).map(|number| Key::Asset([number; 32])).collect();
        assert!(to.missing(&keys).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_does_not_fit_into_the_queue_is_left_to_the_next_reader() {
        let (slow, repairs) = (Arc::new(Slow::default()), Repairs::new());
        for number in 0..=PENDING_MAX as u32 {
            let key = Key::Blob(crate::digest::Function::Sha256.hash(&number.to_le_bytes()));
            let store = || Arc::clone(&slow) as Arc<dyn Store>;
            repairs.begin(Repair { key, from: store(), to: store(), place: 0 });
        }
        assert_eq!(repairs.lock().len(), PENDING_MAX);
    }
}
