//! Refuses bytes that are not what their digest says.

use std::ops::RangeFrom;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Blob, CHUNK_BYTES, Chunks, Key, Store};
use crate::digest::{Digest, Function, Hasher};
use crate::error::{Error, Kind, Result};
use crate::tasks::{self, Blocking};

/// Hashing more than this at once would hold up the other tasks of a runtime thread; at about 1.5 GB/s this is 0.2 ms.
const HASH_IN_PLACE_MAX: usize = CHUNK_BYTES;

/// Bytes that are worth a thread of their own to hash, beside the stream.
const HASH_BATCH_BYTES: usize = 512 * 1024;

/// Bytes by which the hash may be behind the stream; they are held in memory. On a busy machine a thread may get its turn only
/// after a few milliseconds, in which a stream brings this much.
const HASH_BEHIND_BYTES: usize = 4 * 1024 * 1024;

/// Hashes what is put, while it streams by, and what is read whole. Action results have no digest and pass.
pub struct Verified {
    inner: Arc<dyn Store>,
    /// Whether the store below looks at what it reads itself.
    is_inner_reading_verified: bool,
}

impl Verified {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, is_inner_reading_verified: false }
    }

    /// For a store that verifies what it reads itself: only what is put is hashed.
    pub fn on_the_way_in(inner: Arc<dyn Store>) -> Self {
        Self { inner, is_inner_reading_verified: true }
    }

    /// Removes a damaged blob, so that the next reader looks elsewhere and the next writer can put it again. Another reader may
    /// have done so already, and the blob may be there again: it is removed only while it is still the damaged one.
    async fn withdraw(&self, key: &Key, damaged: &Bytes) {
        let removed = match self.inner.get(key, 0..).await {
            Ok(Some(Blob::Whole(bytes))) if bytes == *damaged => self.inner.remove(key).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => tracing::error!("{key:?} is damaged and is removed"),
            Err(error) => tracing::error!("{key:?} is damaged and cannot be removed: {}", error.chain()),
        }
    }
}

#[async_trait]
impl Store for Verified {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        let is_from_start = range.start == 0;
        let blob = self.inner.get(key, range).await?;
        if let (Key::Blob(digest), Some(Blob::Whole(bytes))) = (key, &blob)
            && is_from_start
            && !self.is_inner_reading_verified
        {
            let actual = hash(*digest, bytes.clone()).await?;
            if actual != *digest {
                self.withdraw(key, bytes).await;
                let message = format!("blob {digest} is damaged: its stored content is {actual}");
                return Err(Error::new(Kind::Corrupt, message));
            }
        }
        // A file is not read here: it was hashed before it got its name, got it in one step, is read-only, and its size is
        // checked when it is opened. Hashing it again would cost more than sending it.
        Ok(blob)
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        let Key::Blob(digest) = key else { return self.inner.put(key, blob).await };
        let digest = *digest;
        if blob.size() != digest.size() {
            return Err(Error::invalid(format!("blob says {digest}, but its size is {}", blob.size())));
        }
        let blob = match blob {
            Blob::Whole(bytes) => {
                refuse_other(digest, hash(digest, bytes.clone()).await?)?;
                Blob::Whole(bytes)
            }
            Blob::Stream { .. } | Blob::File { .. } => {
                Blob::Stream { size: digest.size(), chunks: verified_chunks(digest, blob.into_chunks()) }
            }
        };
        self.inner.put(key, blob).await
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        self.inner.missing(keys).await
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.inner.remove(key).await
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        self.inner.size_of(function, hash).await
    }

    async fn finds_by_hash(&self) -> bool {
        self.inner.finds_by_hash().await
    }

    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(blobs.len());
        for (key, bytes) in &blobs {
            results.push(check(key, bytes).await);
        }
        let right =
            blobs.into_iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(blob, _)| blob);
        let mut stored = self.inner.put_all(right.collect()).await.into_iter();
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            *result =
                stored.next().unwrap_or_else(|| Err(Error::bug("a store gave fewer results than blobs")));
        }
        results
    }
}

async fn check(key: &Key, bytes: &Bytes) -> Result<()> {
    match key {
        Key::Blob(digest) => refuse_other(*digest, hash(*digest, bytes.clone()).await?),
        Key::Action(_) | Key::Asset(_) => Ok(()),
    }
}

fn refuse_other(expected: Digest, actual: Digest) -> Result<()> {
    if actual == expected {
        return Ok(());
    }
    Err(Error::invalid(format!("blob says {expected}, but its content is {actual}")))
}

async fn hash(digest: Digest, bytes: Bytes) -> Result<Digest> {
    let function = digest.function();
    if bytes.len() <= HASH_IN_PLACE_MAX {
        return Ok(function.hash(&bytes));
    }
    tasks::blocking(move || Ok(function.hash(&bytes))).await
}

struct Progress {
    chunks: Chunks,
    hashing: Hashing,
    left: u64,
}

/// Passes the chunks on. The last one is held back until the hash is known to be right, so that whoever stores the stream
/// never holds a whole blob of wrong content.
pub(super) fn verified_chunks(digest: Digest, chunks: Chunks) -> Chunks {
    let progress = Progress {
        chunks,
        hashing: Hashing::new(digest.function().hasher(digest.size())),
        left: digest.size(),
    };
    stream::try_unfold(progress, move |mut progress| async move {
        let Some(chunk) = progress.chunks.try_next().await? else { return Ok(None) };
        // `into_chunks` has refused a stream that is longer than the size.
        progress.left -= chunk.len() as u64;
        progress.hashing.feed(chunk.clone()).await?;
        if progress.left == 0 {
            refuse_other(digest, progress.hashing.finish().await?)?;
        }
        Ok(Some((chunk, progress)))
    })
    .boxed()
}

/// A hash that is computed beside the stream: chunks go on to the store while a thread hashes those before them. On the
/// stream's own task it would share a core with the connection that the chunks come from.
struct Hashing {
    /// `None` only while it is handed over.
    state: Option<State>,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
}

enum State {
    Idle(Hasher),
    Busy(Blocking<Hasher>),
}

impl Hashing {
    fn new(hasher: Hasher) -> Self {
        Self { state: Some(State::Idle(hasher)), waiting: Vec::new(), waiting_bytes: 0 }
    }

    /// Takes the next chunk. Waits only when the thread is too far behind.
    async fn feed(&mut self, chunk: Bytes) -> Result<()> {
        self.waiting_bytes += chunk.len();
        self.waiting.push(chunk);
        if self.waiting_bytes < HASH_BATCH_BYTES {
            return Ok(());
        }
        if self.waiting_bytes < HASH_BEHIND_BYTES && self.is_busy() {
            return Ok(());
        }
        let mut hasher = self.idle().await?;
        let batch = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let work = tasks::blocking(move || {
            batch.iter().for_each(|chunk| hasher.update(chunk));
            Ok(hasher)
        });
        self.state = Some(State::Busy(work));
        Ok(())
    }

    async fn finish(&mut self) -> Result<Digest> {
        let mut hasher = self.idle().await?;
        let rest = std::mem::take(&mut self.waiting);
        if self.waiting_bytes <= HASH_IN_PLACE_MAX {
            rest.iter().for_each(|chunk| hasher.update(chunk));
            return Ok(hasher.finish());
        }
        let work = move || {
            rest.iter().for_each(|chunk| hasher.update(chunk));
            Ok(hasher.finish())
        };
        tasks::blocking(work).await
    }

    fn is_busy(&self) -> bool {
        matches!(&self.state, Some(State::Busy(work)) if !work.is_finished())
    }

    async fn idle(&mut self) -> Result<Hasher> {
        match self.state.take().expect("a stream that failed is not polled again") {
            State::Idle(hasher) => Ok(hasher),
            State::Busy(work) => work.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Memory;
    use super::*;

    fn forms(content: &[u8]) -> [Blob; 2] {
        let pieces: Vec<_> = content.chunks(3).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let streamed = Blob::Stream { size: content.len() as u64, chunks: stream::iter(pieces).boxed() };
        [Blob::Whole(Bytes::copy_from_slice(content)), streamed]
    }

    #[tokio::test]
    async fn wrong_content_is_refused_by_name_and_not_stored() {
        let store = Verified::new(Arc::new(Memory::new(1 << 20)));
        for function in Function::ALL {
            let right = function.hash(b"right content");
            let key = Key::Blob(right);
            for blob in forms(b"wrong content") {
                let error = store.put(&key, blob).await.unwrap_err();
                assert_eq!(error.kind(), Kind::Invalid);
                let actual = function.hash(b"wrong content");
                assert_eq!(error.to_string(), format!("blob says {right}, but its content is {actual}"));
            }
            for blob in forms(b"short") {
                assert_eq!(store.put(&key, blob).await.unwrap_err().kind(), Kind::Invalid);
            }
            assert_eq!(store.missing(std::slice::from_ref(&key)).await.unwrap(), std::slice::from_ref(&key));
            for blob in forms(b"right content") {
                store.put(&key, blob).await.unwrap();
            }
            assert!(store.missing(std::slice::from_ref(&key)).await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn the_wrong_ones_of_a_batch_are_refused_and_the_others_stored() {
        let store = Verified::new(Arc::new(Memory::new(1 << 20)));
        let key = |text: &str| Key::Blob(Function::Sha256.hash(text.as_bytes()));
        let batch =
            vec![(key("a"), Bytes::from("a")), (key("b"), Bytes::from("x")), (key("c"), Bytes::from("c"))];
        let results = store.put_all(batch).await;
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(store.missing(&[key("a"), key("b"), key("c")]).await.unwrap(), [key("b")]);
    }

    #[tokio::test]
    async fn damaged_bytes_are_not_served_and_are_removed() {
        let memory = Arc::new(Memory::new(1 << 20));
        let key = Key::Blob(Function::Sha256.hash(b"right"));
        memory.put(&key, Blob::Whole(Bytes::from_static(b"wrong"))).await.unwrap();
        let store = Verified::new(memory);
        let error = store.get(&key, 0..).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Corrupt);
        // They are gone, so that they can be fetched or put again.
        assert!(store.get(&key, 0..).await.unwrap().is_none());
        store.put(&key, Blob::Whole(Bytes::from_static(b"right"))).await.unwrap();
        assert!(store.get(&key, 0..).await.unwrap().is_some());
    }
}
