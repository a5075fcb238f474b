//! A store that fails by seed, for tests of everything that stands on stores.

use std::ops::RangeFrom;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{Blob, Chunks, Key, Store};
use crate::digest::Function;
use crate::error::{Error, Kind, Result};

/// How often what goes wrong, each from 0 (never) to 1 (always).
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// The call fails and nothing was done.
    pub before: f64,
    /// The call fails although it was done.
    pub after: f64,
    /// A blob's stream breaks off with an error.
    pub midstream: f64,
    /// A blob's stream ends too early without an error.
    pub short: f64,
}

/// Passes calls on and lets some of them fail.
pub struct Faulty {
    inner: Arc<dyn Store>,
    rates: Rates,
    seed: AtomicU64,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Store>, seed: u64, rates: Rates) -> Self {
        Self { inner, rates, seed: AtomicU64::new(seed) }
    }

    /// The next number of the sequence that the seed gives (SplitMix64).
    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut number = self.seed.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    fn happens(&self, rate: f64) -> bool {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64 <= rate && rate > 0.0
    }

    fn fail(&self, rate: f64) -> Result<()> {
        if self.happens(rate) { Err(failure()) } else { Ok(()) }
    }

    /// The blob, or one whose stream goes wrong somewhere.
    fn spoil(&self, blob: Blob) -> Blob {
        let (size, fails, is_short) =
            (blob.size(), self.happens(self.rates.midstream), self.happens(self.rates.short));
        if size == 0 || !(fails || is_short) {
            return blob;
        }
        let kept = self.next() % size;
        let end: Vec<Result<Bytes>> = if fails { vec![Err(failure())] } else { Vec::new() };
        Blob::Stream { size, chunks: first(kept, blob.into_chunks()).chain(stream::iter(end)).boxed() }
    }
}

fn failure() -> Error {
    Error::new(Kind::Unavailable, "the store fails by its seed")
}

/// The first `count` bytes.
fn first(count: u64, chunks: Chunks) -> Chunks {
    let cut = chunks.scan(count, |left, chunk| {
        let ended = *left == 0;
        let cut = chunk.map(|chunk| {
            let kept = usize::try_from(*left).map_or(chunk.len(), |left| left.min(chunk.len()));
            *left -= kept as u64;
            chunk.slice(..kept)
        });
        std::future::ready((!ended).then_some(cut))
    });
    cut.boxed()
}

#[async_trait]
impl Store for Faulty {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        self.fail(self.rates.before)?;
        let blob = self.inner.get(key, range).await?;
        self.fail(self.rates.after)?;
        Ok(blob.map(|blob| self.spoil(blob)))
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        self.fail(self.rates.before)?;
        self.inner.put(key, self.spoil(blob)).await?;
        self.fail(self.rates.after)
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        self.fail(self.rates.before)?;
        let missing = self.inner.missing(keys).await?;
        self.fail(self.rates.after)?;
        Ok(missing)
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.fail(self.rates.before)?;
        self.inner.remove(key).await?;
        self.fail(self.rates.after)
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        self.fail(self.rates.before)?;
        self.inner.size_of(function, hash).await
    }

    async fn finds_by_hash(&self) -> bool {
        self.inner.finds_by_hash().await
    }
}

#[cfg(test)]
mod tests {
    use super::super::Memory;
    use super::*;

    #[tokio::test]
    async fn the_same_seed_fails_the_same_calls() {
        let rates = Rates { before: 0.3, after: 0.3, midstream: 0.3, short: 0.3 };
        let mut runs = Vec::new();
        for _ in 0..2 {
            let store = Faulty::new(Arc::new(Memory::new(1 << 20)), 7, rates);
            let mut outcomes = Vec::new();
            for number in 0..50 {
                let blob = Blob::Whole(Bytes::from(vec![number; 100]));
                outcomes.push(store.put(&Key::Asset([number; 32]), blob).await.is_ok());
            }
            runs.push(outcomes);
        }
        assert_eq!(runs[0], runs[1]);
        assert!(runs[0].contains(&true) && runs[0].contains(&false));
    }
}
