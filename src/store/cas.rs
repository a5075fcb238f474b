//! The face of content-addressed storage that the rest of the program sees.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::{Blob, Key, Pinned, Pins, Store};
use crate::digest::{Digest, Function};
use crate::error::{Error, Result};
use crate::metrics;
use crate::store::blob::past_the_end;

/// The largest blob that is read as a message, in bytes: a directory of half a million files is smaller.
pub const MESSAGE_MAX: u64 = 64 * 1024 * 1024;

/// Blobs by digest. The empty blob is always present and never stored, decided here once for every store.
#[derive(Clone)]
pub struct Cas {
    store: Arc<dyn Store>,
    pins: Pins,
}

impl Cas {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::with_pins(store, Pins::default())
    }

    /// A face of a store that evicts nothing of what `pins` says.
    pub fn with_pins(store: Arc<dyn Store>, pins: Pins) -> Self {
        Self { store, pins }
    }

    /// Keeps blobs from being evicted until the answer is dropped; what is absent is not brought back by it.
    pub fn pin<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Pinned {
        let keys: Vec<Key> = digests.into_iter().map(|digest| Key::Blob(*digest)).collect();
        self.pins.pin(&keys)
    }

    /// The blob from `offset` to its end, or `None` if it is absent.
    ///
    /// # Errors
    /// `OutOfRange` when the offset is past the end, and what the store reports.
    pub async fn open(&self, digest: &Digest, offset: u64) -> Result<Option<Blob>> {
        if offset > digest.size() {
            return Err(past_the_end(offset, digest.size()));
        }
        if is_the_empty_blob(digest) {
            return Ok(Some(Blob::Whole(Bytes::new())));
        }
        let blob = self.store.get(&Key::Blob(*digest), offset..).await;
        // A stored blob of another size is not the one that the digest names.
        let blob = blob.map(|blob| blob.filter(|blob| blob.size() == digest.size() - offset));
        metrics::count_cas_read(blob.as_ref().ok().map(Option::is_some));
        blob
    }

    /// The digest of the blob with this hash, if a store that can tell has it.
    ///
    /// # Errors
    /// `Invalid` when the hash is none of `function`, and what the store reports.
    pub async fn locate(&self, function: Function, hash: &str) -> Result<Option<Digest>> {
        let unsized_digest = Digest::parse(function, hash, 0)?;
        if is_the_empty_blob(&unsized_digest) {
            return Ok(Some(unsized_digest));
        }
        let size = self.store.size_of(function, unsized_digest.hash()).await?;
        // Who asks this wants to read the blob; one that is there is counted when it is read.
        if size.is_none() {
            metrics::count_cas_read(Some(false));
        }
        Ok(size.map(|size| Digest::new(function, unsized_digest.hash(), size)))
    }

    /// Whether [`Cas::locate`] finds this very blob.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn finds(&self, digest: &Digest) -> Result<bool> {
        if is_the_empty_blob(digest) {
            return Ok(true);
        }
        Ok(self.store.size_of(digest.function(), digest.hash()).await? == Some(digest.size()))
    }

    /// Whether [`Cas::locate`] finds what is put here; true as well while that cannot be found out.
    pub async fn finds_by_hash(&self) -> bool {
        self.store.finds_by_hash().await
    }

    /// The whole blob in memory, or `None` if it is absent.
    ///
    /// # Errors
    /// `Exhausted` when the blob has more than `limit` bytes, and what the store reports.
    pub async fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>> {
        match self.open(digest, 0).await? {
            Some(blob) => Ok(Some(blob.into_bytes(limit).await?)),
            None => Ok(None),
        }
    }

    /// The blob read as a message, or `None` if it is absent.
    ///
    /// # Errors
    /// `Invalid` when the blob is not such a message, `Exhausted` when it has more than [`MESSAGE_MAX`] bytes.
    pub async fn message<M: prost::Message + Default>(&self, digest: &Digest) -> Result<Option<M>> {
        let Some(bytes) = self.read(digest, MESSAGE_MAX).await? else { return Ok(None) };
        let message = M::decode(bytes).map_err(|error| {
            Error::invalid(format!("blob {digest} is not the message it should be")).with_source(error)
        })?;
        Ok(Some(message))
    }

    /// Stores a blob. One that is present already is not read.
    ///
    /// # Errors
    /// `Invalid` when the content is not what the digest says, `Exhausted` when there is no room.
    pub async fn put(&self, digest: &Digest, blob: Blob) -> Result<()> {
        if is_the_empty_blob(digest) {
            return refuse_content(digest, blob.size());
        }
        self.store.put(&Key::Blob(*digest), blob).await
    }

    /// Stores bytes under the digest that `function` gives them.
    ///
    /// # Errors
    /// As [`Cas::put`].
    pub async fn put_bytes(&self, function: Function, bytes: Bytes) -> Result<Digest> {
        let digest = function.hash(&bytes);
        self.put(&digest, Blob::Whole(bytes)).await?;
        Ok(digest)
    }

    /// Stores many blobs, each as [`Cas::put`] would; the results are in their order.
    pub async fn put_all(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<()>> {
        let (mut results, mut places, mut stored) = (Vec::with_capacity(blobs.len()), Vec::new(), Vec::new());
        for (digest, bytes) in blobs {
            if is_the_empty_blob(&digest) {
                results.push(refuse_content(&digest, bytes.len() as u64));
                continue;
            }
            places.push(results.len());
            results.push(Ok(()));
            stored.push((Key::Blob(digest), bytes));
        }
        for (place, result) in places.into_iter().zip(self.store.put_all(stored).await) {
            results[place] = result;
        }
        results
    }

    /// The absent ones of `digests`, each once, in their order; marks the present ones as used.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let mut seen = HashSet::with_capacity(digests.len());
        let asked = digests.iter().filter(|digest| !is_the_empty_blob(digest) && seen.insert(**digest));
        let keys: Vec<Key> = asked.map(|digest| Key::Blob(*digest)).collect();
        // Many results have no outputs at all, and a question costs a store a thread's turn.
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let missing = self.store.missing(&keys).await?;
        Ok(missing.into_iter().filter_map(digest_of).collect())
    }
}

fn digest_of(key: Key) -> Option<Digest> {
    match key {
        Key::Blob(digest) => Some(digest),
        Key::Action(_) | Key::Asset(_) => None,
    }
}

/// A digest of size 0 with another hash names no blob at all.
fn is_the_empty_blob(digest: &Digest) -> bool {
    digest.is_empty() && *digest == Digest::empty(digest.function())
}

fn refuse_content(digest: &Digest, size: u64) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    Err(Error::invalid(format!("blob says {digest}, but its size is {size}")))
}

#[cfg(test)]
mod tests {
    use super::super::{Memory, Verified};
    use super::*;
    use crate::error::Kind;
    use crate::proto::rev2;

    fn cas() -> Cas {
        Cas::new(Arc::new(Verified::new(Arc::new(Memory::new(1 << 20)))))
    }

    #[tokio::test]
    async fn the_empty_blob_is_always_there() {
        for function in Function::ALL {
            let (cas, empty) = (cas(), Digest::empty(function));
            assert_eq!(cas.read(&empty, 0).await.unwrap().unwrap(), "");
            assert!(cas.missing(&[empty]).await.unwrap().is_empty());
            cas.put(&empty, Blob::Whole(Bytes::new())).await.unwrap();
            let error = cas.put(&empty, Blob::Whole(Bytes::from_static(b"x"))).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert_eq!(cas.open(&empty, 1).await.err().unwrap().kind(), Kind::OutOfRange);
        }
    }

    #[tokio::test]
    async fn a_wrong_size_zero_is_not_the_empty_blob() {
        let (cas, digest) = (cas(), Digest::new(Function::Sha256, &[7; 32], 0));
        assert!(cas.read(&digest, 0).await.unwrap().is_none());
        assert_eq!(cas.put(&digest, Blob::Whole(Bytes::new())).await.unwrap_err().kind(), Kind::Invalid);
    }

    #[tokio::test]
    async fn missing_names_each_absent_blob_once_in_order() {
        let cas = cas();
        let here = cas.put_bytes(Function::Sha256, Bytes::from_static(b"here")).await.unwrap();
        let [b, a] = [b"b", b"a"].map(|content| Function::Sha256.hash(content));
        assert_eq!(cas.missing(&[b, here, a, b, a]).await.unwrap(), [b, a]);
    }

    #[tokio::test]
    async fn put_all_keeps_the_order_of_the_results() {
        let cas = cas();
        let [a, b] = [b"a", b"b"].map(|content| Function::Sha256.hash(content));
        let empty = Digest::empty(Function::Sha256);
        let results = cas
            .put_all(vec![
                (empty, Bytes::from_static(b"x")),
                (a, Bytes::from_static(b"a")),
                (empty, Bytes::new()),
                (b, Bytes::from_static(b"x")),
            ])
            .await;
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, true, false]);
        assert_eq!(cas.read(&a, 9).await.unwrap().unwrap(), "a");
    }

    #[tokio::test]
    async fn what_is_not_a_message_is_invalid() {
        let cas = cas();
        let digest = cas.put_bytes(Function::Sha256, Bytes::from_static(b"\xff\xff\xff")).await.unwrap();
        let error = cas.message::<rev2::Directory>(&digest).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(&digest.to_string()));
    }
}
