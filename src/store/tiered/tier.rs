//! One tier: a store, what it is good for, and how its failures are told.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};

use super::super::verified::verified_chunks;
use super::super::{Blob, Chunks, Key, Store, Verified};
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::metrics::{Counter, STORE_PASSED_OVER};

/// A tier that fails says so once in this time: every read fails then.
const LOG_EVERY: Duration = Duration::from_secs(10);

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
    /// The same store, with a look at all that is put there and at what is read whole.
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
        let store: &dyn Store = if is_memory { self.store.deref() } else { &self.verified };
        let get = store.get(key, start..);
        let found = if self.is_local() {
            get.await?
        } else {
            let late = |_| Error::new(Kind::Timeout, "a tier does not answer");
            tokio::time::timeout(stall, get).await.map_err(late)??
        };
        let (Some(blob), Key::Blob(digest)) = (&found, key) else { return Ok(found) };
        if blob.size() != digest.size() - start {
            return Err(Error::new(Kind::Corrupt, format!("blob {digest} is stored with another size")));
        }
        let digest = *digest;
        Ok(match found {
            Some(Blob::Stream { size, chunks }) if start == 0 && !self.is_local() => {
                Some(Blob::Stream { size, chunks: verified(digest, Blob::Stream { size, chunks }) })
            }
            found => found,
        })
    }

    /// Stores what another tier gave, after a look at it.
    pub(super) async fn fill(&self, key: &Key, blob: Blob) -> Result<()> {
        self.verified.put(key, blob).await
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

/// The blob's chunks, the last of them only when all are right.
fn verified(digest: Digest, blob: Blob) -> Chunks {
    let blame = move |error: Error| {
        if error.kind() != Kind::Invalid {
            return error;
        }
        // What a store gives cannot be the fault of who asks.
        Error::new(Kind::Corrupt, format!("blob {digest} is damaged")).with_source(error)
    };
    verified_chunks(digest, blob.into_chunks()).map_err(blame).boxed()
}

impl Deref for Tier {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}
