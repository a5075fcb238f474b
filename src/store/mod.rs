//! Bytes by key: one narrow trait, leaves that are nouns, decorators that are participles.
//!
//! The rest of the program sees only the typed faces [`Cas`] and [`ActionCache`]. Every leaf and decorator passes `contract`.

mod cas;

pub use cas::Cas;

use std::fs::File;
use std::ops::RangeFrom;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

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
}

/// Pieces of a blob, in order.
pub type Chunks = BoxStream<'static, Result<Bytes>>;

/// A blob on its way, in the form that its holder can give most cheaply.
pub enum Blob {
    Whole(Bytes),
    /// `size` bytes in all; a stream that ends early or late is refused by whoever stores it.
    Stream {
        size: u64,
        chunks: Chunks,
    },
    /// `size` bytes of `file` from `offset`. The file is never written again, so it can be spliced, linked or mounted.
    File {
        file: Arc<File>,
        offset: u64,
        size: u64,
    },
}
