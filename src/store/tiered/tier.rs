//! One tier: a store, what it is good for, and how its failures are told.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};

use super::super::verified::verified_chunks;
use super::super::{Blob, Key, Store, Verified};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::metrics::{Counter, STORE_PASSED_OVER};

/// A tier that fails says so once in this time: every read fails then.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What every write to a remote tier may take beside its bytes, and the slowest that bytes may be; slower ones hang.
const PUT_TIME_MIN: Duration = Duration::from_secs(60);
const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;

/// What a tier is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Traits {
    /// The largest blob that it takes, in bytes.
    pub(in crate::store) blob_max: u64,
    /// Whether what it acknowledged stays: a write is done when the durable tiers have it.
    pub(in crate::store) is_durable: bool,
    /// Whether it is on this machine: such a tier is asked by each reader, and what it says is verified by itself where it matters.
    pub(in crate::store) is_local: bool,
}

/// A store in a list of stores.
pub(in crate::store) struct Tier {
    name: String,
    traits: Traits,
    store: Arc<dyn Store>,
    /// The same store, with a look at what is read whole.
    verified: Verified,
    passed_over: Counter,
    opened: Instant,
    /// Milliseconds since `opened` until which failures are not logged.
    quiet_until: AtomicU64,
}

impl Tier {
    pub(in crate::store) fn new(name: &str, store: Arc<dyn Store>, traits: Traits) -> Self {
        Self {
            name: name.to_owned(),
            traits,
            verified: Verified::new(store.clone()),
            store,
            passed_over: STORE_PASSED_OVER.with_label_values(&[name]),
            opened: Instant::now(),
            quiet_until: AtomicU64::new(0),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_durable(&self) -> bool {
        self.traits.is_durable
    }

    pub(super) fn is_local(&self) -> bool {
        self.traits.is_local
    }

    pub(super) fn admits(&self, size: u64) -> bool {
        size <= self.traits.blob_max
    }

    pub(super) fn count_as_durable(&mut self) {
        self.traits.is_durable = true;
    }

    /// Opens a blob that is of the right size, and of the right content when it is read from its start: a remote one is
    /// verified while it streams by. `stall` bounds the wait for a remote tier.
    ///
    /// # Errors
    /// `Corrupt` for a blob that is not what its key says, `Timeout`, and what the store reports.
    pub(super) async fn open(&self, key: &Key, start: u64, stall: Duration) -> Result<Option<Blob>> {
        let is_memory = self.is_local() && !self.is_durable();
        let store: &dyn Store = if is_memory { &*self.store } else { &self.verified };
        let found = self.within(stall, store.get(key, start..)).await;
        let Key::Blob(digest) = key else { return found };
        let wanted = digest.size().checked_sub(start);
        let found = match found {
            // The key says that there is more.
            Err(error) if error.kind() == Kind::OutOfRange && wanted.is_some() => return Err(cut(digest)),
            found => found?,
        };
        match found {
            Some(blob) if Some(blob.size()) != wanted => Err(cut(digest)),
            Some(blob @ Blob::Stream { .. }) if start == 0 && !self.is_local() => {
                Ok(Some(verified(*digest, blob)))
            }
            found => Ok(found),
        }
    }

    /// What [`Tier::open`] gave, so that it can be copied: what a local tier does not verify for its readers is verified here.
    pub(super) fn source(&self, key: &Key, blob: Blob) -> Blob {
        match (key, blob) {
            (Key::Blob(digest), blob @ (Blob::File { .. } | Blob::Stream { .. })) if self.is_local() => {
                verified(*digest, blob)
            }
            (_, blob) => blob,
        }
    }

    /// Stores what is at hand, within a time that depends on its size when the tier is remote.
    ///
    /// # Errors
    /// `Timeout`, and what the store reports.
    pub(super) async fn put_in_time(&self, key: &Key, blob: Blob) -> Result<()> {
        let limit = time_for(blob.size());
        self.within(limit, self.store.put(key, blob)).await
    }

    /// As [`Store::put_all`], within a time as in [`Tier::put_in_time`].
    pub(super) async fn put_all_in_time(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        let (count, size) = (blobs.len(), blobs.iter().map(|(_, bytes)| bytes.len() as u64).sum());
        let put = self.within(time_for(size), async { Ok(self.store.put_all(blobs).await) }).await;
        put.unwrap_or_else(|error| (0..count).map(|_| Err(error.repeated())).collect())
    }

    /// As [`Store::missing`], within `limit` when the tier is remote.
    ///
    /// # Errors
    /// `Timeout`, and what the store reports.
    pub(super) async fn missing_in_time(&self, keys: &[Key], limit: Duration) -> Result<Vec<Key>> {
        self.within(limit, self.store.missing(keys)).await
    }

    /// As [`Store::size_of`], within `limit` when the tier is remote.
    ///
    /// # Errors
    /// `Timeout`, and what the store reports.
    pub(super) async fn size_in_time(
        &self,
        function: Function,
        hash: &[u8],
        limit: Duration,
    ) -> Result<Option<u64>> {
        self.within(limit, self.store.size_of(function, hash)).await
    }

    /// As [`Store::finds_by_hash`], and true when a remote tier does not tell within `limit`.
    pub(super) async fn finds_by_hash_in_time(&self, limit: Duration) -> bool {
        self.within(limit, async { Ok(self.store.finds_by_hash().await) }).await.unwrap_or(true)
    }

    /// A local tier has its own limits.
    async fn within<T>(&self, limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        if self.is_local() {
            return work.await;
        }
        let late = |_| Error::new(Kind::Timeout, "a tier does not answer");
        tokio::time::timeout(limit, work).await.map_err(late)?
    }

    /// A failure that somebody else makes good: counted, and logged now and then.
    pub(super) fn report(&self, what: &str, error: &Error) {
        self.passed_over.inc();
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        let quiet_until = self.quiet_until.load(Ordering::Relaxed);
        let next = now.saturating_add(LOG_EVERY.as_millis() as u64);
        let is_mine = now >= quiet_until
            && self
                .quiet_until
                .compare_exchange(quiet_until, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            let failures = self.passed_over.get();
            tracing::warn!(tier = self.name, failures, "{what}: {}", error.chain());
        }
    }
}

/// The blob with a look at its content: the last chunk comes only when all are right.
fn verified(digest: Digest, blob: Blob) -> Blob {
    let size = blob.size();
    // A stream that breaks off is the fault of the way, which must not cost the blob.
    let broke_off =
        |error| blame(error, Kind::Unavailable, || "a tier broke off in the middle of a blob".to_owned());
    let damaged = move |error| blame(error, Kind::Corrupt, || format!("blob {digest} is damaged"));
    let chunks = verified_chunks(digest, blob.into_chunks().map_err(broke_off).boxed());
    Blob::Stream { size, chunks: chunks.map_err(damaged).boxed() }
}

/// What a store gives cannot be the fault of who asks.
fn blame(error: Error, kind: Kind, message: impl FnOnce() -> String) -> Error {
    if error.kind() == Kind::Invalid { Error::new(kind, message()).with_source(error) } else { error }
}

fn cut(digest: &Digest) -> Error {
    Error::new(Kind::Corrupt, format!("blob {digest} is stored with another size"))
}

fn time_for(size: u64) -> Duration {
    PUT_TIME_MIN + Duration::from_secs(size / BYTES_PER_SECOND_MIN)
}

impl Deref for Tier {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}
