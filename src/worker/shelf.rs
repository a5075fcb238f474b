//! A store in memory for the worker's tests, which counts what is written.

use std::collections::HashMap;
use std::ops::RangeFrom;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;
use crate::store::{Blob, Cas, Key, Store};

#[derive(Default)]
pub(super) struct Shelf {
    blobs: Mutex<HashMap<Key, Bytes>>,
    pub(super) puts: AtomicUsize,
}

impl Shelf {
    pub(super) fn cas() -> Cas {
        Cas::new(Arc::new(Self::default()))
    }
}

#[async_trait]
impl Store for Shelf {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        let blob = self.blobs.lock().expect("no panic").get(key).cloned();
        Ok(blob.map(|blob| Blob::Whole(blob.slice(usize::try_from(range.start).expect("small")..))))
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        let bytes = blob.into_bytes(u64::MAX).await?;
        self.blobs.lock().expect("no panic").insert(key.clone(), bytes);
        Ok(())
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let blobs = self.blobs.lock().expect("no panic");
        Ok(keys.iter().filter(|key| !blobs.contains_key(key)).cloned().collect())
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.blobs.lock().expect("no panic").remove(key);
        Ok(())
    }
}
