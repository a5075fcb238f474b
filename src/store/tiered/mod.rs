//! Several stores as one, fast to slow: reads go down and fill on the way up, writes go to every durable tier.
//!
//! `tier` is one store and what it is good for, `read` the way down, `flight` the one fill of a key, `write` the way in,
//! `presence` what a client may be told, `turns` the order of what changes. With `write = "back"`, `pending` remembers what slower
//! tiers lack, in a `journal` that survives a crash, and `upload` brings it there. docs/decisions/0010-tiers.md says why.

mod flight;
mod journal;
mod pending;
mod presence;
mod read;
#[cfg(test)]
mod tests;
mod tier;
mod turns;
mod upload;
mod write;

use std::ops::RangeFrom;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use self::flight::Flights;
use self::journal::Journal;
use self::pending::Pending;
pub(super) use self::tier::{Tier, Traits};
use self::turns::Turns;
use super::{Blob, Key, Pins, Store};
use crate::digest::Function;
use crate::error::Result;
use crate::tasks::Shutdown;

/// Blobs of up to this many bytes go through memory as a whole, so that all tiers can take them at once.
const WHOLE_MAX: u64 = 1024 * 1024;

/// The largest action result or asset, in bytes. Those are always taken whole, because they change.
const MUTABLE_MAX: u64 = 64 * 1024 * 1024;

/// Writes into remote caches that are under way beside the answers; more are left out.
const BESIDE_MAX: usize = 64;

/// Several stores as one. Dropping it stops the uploads; what is pending goes on when the journal is opened again.
pub(super) struct Tiered {
    shared: Arc<Shared>,
}

struct Shared {
    tiers: Vec<Arc<Tier>>,
    /// How many tiers at the beginning are local: each reader asks those itself.
    near: usize,
    flights: Flights,
    turns: Turns,
    pins: Pins,
    /// What slower tiers lack; `None` when writes go through.
    journal: Option<Journal>,
    beside: Arc<Semaphore>,
    patience: Patience,
    stop: Shutdown,
}

/// How long things may take, in one place so that tests need not wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Without a sign of life from a remote tier or a fill for this long, a reader goes on alone.
    pub(super) stall: Duration,
    /// How long a remote tier may take to tell what it lacks.
    pub(super) answer: Duration,
    /// How long a reader that fell behind a fill waits for its end before it asks the slow tier itself.
    pub(super) behind: Duration,
    /// The pause after an upload's first failure; it doubles up to the longest.
    pub(super) retry_min: Duration,
    pub(super) retry_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(20),
            answer: Duration::from_secs(60),
            behind: Duration::from_secs(10),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(300),
        }
    }
}

/// The queue of writes that slower tiers lack.
#[derive(Clone, Copy)]
pub(super) struct WriteBack<'a> {
    /// A directory of its own.
    pub(super) journal: &'a Path,
    /// The bytes that may be pending: they are pinned, so they must fit into the first durable tier.
    pub(super) bytes_max: u64,
}

impl Tiered {
    /// Puts `tiers` together, fast to slow; at least one. Without a durable one among them the last counts as durable. Blocks while
    /// the journal is opened, and must be called on a runtime.
    ///
    /// # Errors
    /// When the journal cannot be opened.
    pub(super) fn open(
        mut tiers: Vec<Tier>,
        write_back: Option<WriteBack<'_>>,
        pins: Pins,
        patience: Patience,
    ) -> Result<Self> {
        if tiers.iter().all(|tier| !tier.is_durable())
            && let Some(last) = tiers.last_mut()
        {
            last.count_as_durable();
        }
        let near = tiers.iter().take_while(|tier| tier.is_local()).count();
        let journal = match write_back {
            Some(settings) => {
                let pending = Pending::new(settings.bytes_max, pins.clone(), patience);
                Some(Journal::open(settings, &tiers, pending)?)
            }
            None => None,
        };
        let beside = Arc::new(Semaphore::new(BESIDE_MAX));
        let (flights, turns, stop) = (Flights::default(), Turns::default(), Shutdown::new());
        let tiers = tiers.into_iter().map(Arc::new).collect();
        let shared = Arc::new(Shared { tiers, near, flights, turns, pins, journal, beside, patience, stop });
        upload::start(&shared);
        Ok(Self { shared })
    }

    /// Brings what is pending to the slower tiers until there is no more or `deadline` is over. What is left goes on at the next start.
    pub(super) async fn drain(&self, deadline: Duration) {
        let Some(journal) = &self.shared.journal else { return };
        if tokio::time::timeout(deadline, journal.drained()).await.is_err() {
            tracing::warn!(writes = journal.pending().len(), "some writes are pending until the next start");
        }
        self.shared.stop.cancel();
    }
}

impl Drop for Tiered {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

#[async_trait]
impl Store for Tiered {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        self.shared.get(key, range.start).await
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        self.shared.put(key, blob).await
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        self.shared.missing(keys).await
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.shared.remove(key).await
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        self.shared.size_of(function, hash).await
    }

    async fn finds_by_hash(&self) -> bool {
        self.shared.finds_by_hash().await
    }

    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        self.shared.put_all(blobs).await
    }
}
