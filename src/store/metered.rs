//! Counts the calls and bytes of the store below, and has a span for each of them in a trace.

use std::ops::RangeFrom;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tracing::Instrument;

use super::{Blob, Key, Store};
use crate::digest::Function;
use crate::error::Result;
use crate::metrics::{Counter, STORE_BYTES, STORE_CALLS};
use crate::trace;

/// Reports under the store's name. Bytes are those of the blobs handed over, read to their end or not: a blob that is a file
/// must stay one.
pub struct Metered {
    inner: Arc<dyn Store>,
    get: Outcomes,
    put: Outcomes,
    missing: Outcomes,
    read_bytes: Counter,
    written_bytes: Counter,
}

/// The counters of one operation, looked up once.
struct Outcomes {
    /// What a trace calls it.
    name: String,
    hit: Counter,
    miss: Counter,
    ok: Counter,
    error: Counter,
}

impl Outcomes {
    fn new(store: &str, operation: &str) -> Self {
        let counter = |outcome| STORE_CALLS.with_label_values(&[store, operation, outcome]);
        let name = format!("{store} {operation}");
        Self { name, hit: counter("hit"), miss: counter("miss"), ok: counter("ok"), error: counter("error") }
    }

    fn count<T>(&self, result: &Result<T>) {
        if result.is_ok() { self.ok.inc() } else { self.error.inc() }
    }
}

impl Metered {
    /// `name` is the store's label, such as `disk`.
    pub fn new(name: &str, inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            get: Outcomes::new(name, "get"),
            put: Outcomes::new(name, "put"),
            missing: Outcomes::new(name, "missing"),
            read_bytes: STORE_BYTES.with_label_values(&[name, "read"]),
            written_bytes: STORE_BYTES.with_label_values(&[name, "written"]),
        }
    }

    fn count_put(&self, size: u64, result: &Result<()>) {
        self.put.count(result);
        if result.is_ok() {
            self.written_bytes.inc_by(size);
        }
    }
}

#[async_trait]
impl Store for Metered {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        let result = self.inner.get(key, range).instrument(trace::part(&self.get.name)).await;
        match &result {
            Ok(Some(blob)) => {
                self.get.hit.inc();
                self.read_bytes.inc_by(blob.size());
            }
            Ok(None) => self.get.miss.inc(),
            Err(_) => self.get.error.inc(),
        }
        result
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        let size = blob.size();
        let result = self.inner.put(key, blob).instrument(trace::part(&self.put.name)).await;
        self.count_put(size, &result);
        result
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let result = self.inner.missing(keys).instrument(trace::part(&self.missing.name)).await;
        self.missing.count(&result);
        result
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
        let sizes: Vec<u64> = blobs.iter().map(|(_, bytes)| bytes.len() as u64).collect();
        let results = self.inner.put_all(blobs).instrument(trace::part(&self.put.name)).await;
        for (size, result) in sizes.into_iter().zip(&results) {
            self.count_put(size, result);
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::super::Memory;
    use super::*;

    #[tokio::test]
    async fn calls_and_bytes_are_counted() {
        let store = Metered::new("metered-test", Arc::new(Memory::new(1 << 20)));
        let key = Key::Asset([1; 32]);
        store.get(&key, 0..).await.unwrap();
        store.put(&key, Blob::Whole(Bytes::from_static(b"12345"))).await.unwrap();
        store.get(&key, 1..).await.unwrap();
        store.missing(&[key]).await.unwrap();
        assert_eq!((store.get.hit.get(), store.get.miss.get(), store.get.error.get()), (1, 1, 0));
        assert_eq!((store.put.ok.get(), store.missing.ok.get()), (1, 1));
        assert_eq!((store.read_bytes.get(), store.written_bytes.get()), (4, 5));
    }
}
