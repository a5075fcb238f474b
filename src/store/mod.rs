//! Bytes by key: one narrow trait, leaves that are nouns, decorators that are participles.
//!
//! The rest of the program sees only the typed faces [`Cas`] and [`ActionCache`]. Every leaf and decorator passes `contract`.

mod action_cache;
mod blob;
mod cas;
mod config;
#[cfg(test)]
mod contract;
mod disk;
mod faulty;
mod memory;
mod metered;
pub mod tree;
mod verified;

use std::ops::RangeFrom;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;

pub use self::action_cache::{ActionCache, ActionKey, RESULT_MAX, absent_outputs};
pub use self::blob::{Blob, CHUNK_BYTES, Chunks};
pub use self::cas::{Cas, MESSAGE_MAX};
pub use self::config::Config;
pub use self::disk::{Disk, INLINE_MAX, default_size};
#[doc(hidden)]
pub use self::faulty::{Faulty, Rates};
pub use self::memory::Memory;
pub use self::metered::Metered;
pub use self::verified::Verified;

use crate::digest::{Digest, HASH_BYTES};
use crate::error::Result;

/// The name under which bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A blob of the CAS: its content hashes to the digest and never changes.
    Blob(Digest),
    /// An action result: the hash of instance name and action digest. A later `put` replaces the value.
    Action([u8; HASH_BYTES]),
}

/// Content-addressed and action-cache bytes behind one interface.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Opens a blob from `range.start`, or `None` if it is absent. A start at the end gives an empty blob.
    ///
    /// # Errors
    /// `OutOfRange` when the start is past the end.
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>>;

    /// Stores a blob. Readers see all of it or nothing, even after a crash. A dropped future stores nothing or all.
    ///
    /// # Errors
    /// `Exhausted` when there is no room; what the blob's own stream reports.
    async fn put(&self, key: &Key, blob: Blob) -> Result<()>;

    /// The absent ones of `keys`, in their order; marks the present ones as used.
    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>>;

    /// Stores many small blobs, each as [`Store::put`] would; the results are in their order. A leaf that commits in groups
    /// takes them as one.
    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        join_all(blobs.iter().map(|(key, bytes)| self.put(key, Blob::Whole(bytes.clone())))).await
    }
}
