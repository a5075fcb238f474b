//! Bytes by key: one narrow trait, leaves that are nouns, decorators that are participles.
//!
//! The rest of the program sees only the typed faces [`Cas`] and [`ActionCache`]. Every leaf and decorator passes `contract`.

mod action_cache;
mod assets;
mod blob;
mod cas;
pub mod chunking;
mod config;
#[cfg(test)]
mod contract;
mod disk;
pub mod farm;
mod faulty;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod health;
mod memory;
mod metered;
mod name;
pub mod object;
mod pins;
pub mod redis;
#[cfg(test)]
mod servers;
mod stack;
mod tiered;
pub mod tree;
mod verified;
mod weight;
pub mod zstandard;

use std::ops::RangeFrom;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;

pub use self::action_cache::{ActionCache, RESULT_MAX, absent_outputs};
pub use self::assets::{Asset, AssetIndex, AssetKind, AssetName};
pub use self::blob::{Blob, CHUNK_BYTES, Chunks};
pub use self::cas::{Cas, MESSAGE_MAX};
pub use self::config::Config;
pub use self::disk::{Disk, INLINE_MAX, Options as DiskOptions, ScrubReport, default_size};
#[doc(hidden)]
pub use self::faulty::{Faulty, Rates};
pub use self::memory::Memory;
pub use self::metered::Metered;
pub use self::pins::{Pinned, Pins};
pub use self::stack::{Stack, TierSummary, make_private_directory};
pub use self::verified::Verified;

use crate::digest::{Digest, Function};
use crate::error::Result;

/// The name under which bytes are stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A blob of the CAS: its content hashes to the digest and never changes.
    Blob(Digest),
    /// An action result. A later `put` replaces the value.
    Action(ActionKey),
    /// What a URI with its qualifiers stands for: the hash of these. A later `put` replaces the value.
    Asset([u8; 32]),
}

impl Key {
    /// The size in bytes that the key itself tells; a result or an asset may have any.
    fn size(&self) -> Option<u64> {
        match self {
            Self::Blob(digest) => Some(digest.size()),
            Self::Action(_) | Self::Asset(_) => None,
        }
    }

    /// Whether what the key names can have `size` bytes.
    fn fits(&self, size: u64) -> bool {
        self.size().is_none_or(|own| own == size)
    }

    /// Whether the bytes under the key may change.
    fn is_mutable(&self) -> bool {
        match self {
            Self::Blob(_) => false,
            Self::Action(_) | Self::Asset(_) => true,
        }
    }
}

/// Whose result: results of one instance are invisible to the others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActionKey {
    pub instance: Arc<str>,
    pub digest: Digest,
}

impl ActionKey {
    /// SHA-256 of instance and digest. Each part goes in with its length, so that no two keys give the same bytes.
    fn hash(&self) -> [u8; 32] {
        let function = self.digest.function().to_proto().as_str_name();
        let size = self.digest.size().to_le_bytes();
        let mut encoded = Vec::new();
        for part in [self.instance.as_bytes(), function.as_bytes(), self.digest.hash(), &size] {
            encoded.extend_from_slice(&(part.len() as u64).to_le_bytes());
            encoded.extend_from_slice(part);
        }
        *Function::Sha256.hash(&encoded).hash().first_chunk().expect("SHA-256 has 32 bytes")
    }
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

    /// Forgets what is stored under `key`: for a damaged copy, or a result that an operator withdraws. What is absent is no error.
    async fn remove(&self, key: &Key) -> Result<()>;

    /// The size in bytes of the blob with this hash, for protocols whose names lack it. `None` if it is absent, or if this store finds
    /// blobs by their whole digest only.
    async fn size_of(&self, _function: Function, _hash: &[u8]) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Whether [`Store::size_of`] tells the size of what is stored here; true as well while that cannot be found out.
    async fn finds_by_hash(&self) -> bool {
        false
    }

    /// Stores many small blobs, each as [`Store::put`] would; the results are in their order. A leaf that commits in groups
    /// takes them as one.
    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        join_all(blobs.iter().map(|(key, bytes)| self.put(key, Blob::Whole(bytes.clone())))).await
    }
}
