//! A stand-in for the typed face of the CAS, to be replaced by the store's own.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};

use super::{Blob, Chunks, Key, Store};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};

#[derive(Clone)]
pub struct Cas {
    store: Arc<dyn Store>,
}

impl Cas {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    pub async fn open(&self, digest: &Digest, offset: u64) -> Result<Option<Blob>> {
        if digest.is_empty() {
            return Ok(Some(Blob::Whole(Bytes::new())));
        }
        self.store.get(&Key::Blob(*digest), offset..).await
    }

    pub async fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>> {
        match self.open(digest, 0).await? {
            Some(blob) => Ok(Some(blob.into_bytes(limit).await?)),
            None => Ok(None),
        }
    }

    pub async fn message<M: prost::Message + Default>(&self, digest: &Digest) -> Result<Option<M>> {
        let Some(bytes) = self.read(digest, 16 << 20).await? else { return Ok(None) };
        let message = M::decode(bytes)
            .map_err(|error| Error::invalid(format!("blob {digest} is not a message")).with_source(error))?;
        Ok(Some(message))
    }

    pub async fn put(&self, digest: &Digest, blob: Blob) -> Result<()> {
        if digest.is_empty() {
            return Ok(());
        }
        self.store.put(&Key::Blob(*digest), blob).await
    }

    pub async fn put_bytes(&self, function: Function, bytes: Bytes) -> Result<Digest> {
        let digest = function.hash(&bytes);
        self.put(&digest, Blob::Whole(bytes)).await?;
        Ok(digest)
    }

    pub async fn put_all(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<()>> {
        let mut results = Vec::new();
        for (digest, bytes) in blobs {
            results.push(self.put(&digest, Blob::Whole(bytes)).await);
        }
        results
    }

    pub async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let keys: Vec<Key> =
            digests.iter().filter(|digest| !digest.is_empty()).map(|digest| Key::Blob(*digest)).collect();
        let missing = self.store.missing(&keys).await?;
        Ok(missing
            .into_iter()
            .filter_map(|key| match key {
                Key::Blob(digest) => Some(digest),
                Key::Action(_) => None,
            })
            .collect())
    }
}

impl Blob {
    pub fn size(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Stream { size, .. } | Self::File { size, .. } => *size,
        }
    }

    pub fn into_chunks(self) -> Chunks {
        match self {
            Self::Whole(bytes) => futures_util::stream::iter([Ok(bytes)]).boxed(),
            Self::Stream { chunks, .. } => chunks,
            Self::File { file, offset, size } => {
                let read = async move {
                    crate::tasks::blocking(move || {
                        let mut bytes = vec![0; usize::try_from(size).expect("fits")];
                        std::os::unix::fs::FileExt::read_exact_at(&*file, &mut bytes, offset)?;
                        Ok(Bytes::from(bytes))
                    })
                    .await
                };
                futures_util::stream::once(read).boxed()
            }
        }
    }

    pub async fn into_bytes(self, limit: u64) -> Result<Bytes> {
        if self.size() > limit {
            return Err(Error::new(Kind::Exhausted, "too large"));
        }
        let whole: BytesMut = self
            .into_chunks()
            .try_fold(BytesMut::new(), |mut all, chunk| async move {
                all.extend_from_slice(&chunk);
                Ok(all)
            })
            .await?;
        Ok(whole.freeze())
    }
}
