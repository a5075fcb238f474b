//! A leaf in memory: bounded by bytes, least recently used goes first.
//!
//! Locks are per shard and held for a lookup only; the bound and the order of use hold for all shards together, so that one
//! large blob may take as much as the whole store.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeFrom;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::name::{Family, Name};
use super::{Blob, Key, Store};
use crate::digest::Function;
use crate::error::{Error, Kind, Result};
use crate::metrics::{self, Counter, Gauge};

/// Enough that threads seldom meet, few enough that a search over all of them for the oldest entry is cheap.
const SHARDS: usize = 16;

/// What an entry costs beside its bytes: key and bookkeeping in two maps, and the allocator's rounding.
const ENTRY_OVERHEAD: u64 = 256;

/// Blobs of up to this many bytes are copied when they come; larger ones come in messages of their own.
const COPIED_MAX: usize = 1024 * 1024;

/// Keeps blobs in memory, at most `size_bytes` of them.
pub struct Memory {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    /// Counts uses; an entry's tick says when it was used last.
    clock: AtomicU64,
    used_bytes: AtomicU64,
    size_bytes: u64,
    used_gauge: Gauge,
    evictions: Evictions,
}

/// What evictions have done, for metrics.
struct Evictions {
    count: Counter,
    bytes: Counter,
    /// How long what was put, read or reported present is to stay, and how often it did not; none where nobody relies on it.
    lease: Option<(Duration, Counter)>,
}

#[derive(Default)]
struct Shard {
    /// By name, which lacks a blob's size: there is but one of each, and it is found by its hash alone.
    entries: HashMap<Name, Entry>,
    /// What was used at which tick: the first is the one to go.
    order: BTreeMap<u64, Name>,
}

struct Entry {
    bytes: Bytes,
    tick: u64,
    used: Instant,
}

impl Memory {
    /// A store of at most `size_bytes`, counting each blob with what it costs to keep it.
    pub fn new(size_bytes: u64) -> Self {
        Self::named("memory", size_bytes)
    }

    /// As [`Memory::new`]; `name` is its label in metrics.
    pub fn named(name: &str, size_bytes: u64) -> Self {
        metrics::STORE_MAX.with_label_values(&[name]).set(gauge(size_bytes));
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            clock: AtomicU64::new(0),
            used_bytes: AtomicU64::new(0),
            size_bytes,
            used_gauge: metrics::STORE_SIZE.with_label_values(&[name]),
            evictions: Evictions {
                count: metrics::EVICTIONS.with_label_values(&[name]),
                bytes: metrics::EVICTED_BYTES.with_label_values(&[name]),
                lease: None,
            },
        }
    }

    /// The same for one that clients are told to rely on: what it evicts sooner than `lease` after its last use is counted as a broken
    /// promise under `name`. It keeps nothing longer for that.
    #[must_use]
    pub fn with_lease(mut self, name: &str, lease: Duration) -> Self {
        self.evictions.lease = Some((lease, metrics::LEASE_BREAKS.with_label_values(&[name])));
        self
    }

    fn shard(&self, name: &Name) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(self.hasher.hash_one(name) as usize) % SHARDS])
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// The bytes of `key`, marked as used. A blob of another size is not the one that the key names.
    fn bytes(&self, key: &Key) -> Option<Bytes> {
        let (name, tick) = (Name::from(key), self.tick());
        let found = self.shard(&name).touch(&name, tick);
        found.filter(|bytes| key.fits(bytes.len() as u64))
    }

    fn insert(&self, name: Name, bytes: Bytes) {
        self.used_bytes.fetch_add(charge(bytes.len() as u64), Ordering::Relaxed);
        let tick = self.tick();
        let replaced = self.shard(&name).insert(name, Entry { bytes, tick, used: Instant::now() });
        self.release(replaced);
        while self.used_bytes.load(Ordering::Relaxed) > self.size_bytes && self.evict_oldest() {}
        self.used_gauge.set(gauge(self.used_bytes.load(Ordering::Relaxed)));
    }

    fn release(&self, entry: Option<Entry>) {
        if let Some(entry) = entry {
            self.used_bytes.fetch_sub(charge(entry.bytes.len() as u64), Ordering::Relaxed);
        }
    }

    /// Drops the least recently used entry; false when there is none.
    fn evict_oldest(&self) -> bool {
        let oldest = self
            .shards
            .iter()
            .filter_map(|shard| lock(shard).order.first_key_value().map(|(tick, _)| (*tick, shard)))
            .min_by_key(|(tick, _)| *tick);
        let Some((_, shard)) = oldest else { return false };
        let entry = lock(shard).pop_oldest();
        if let Some(entry) = &entry {
            self.evictions.count(entry);
        }
        self.release(entry);
        true
    }
}

impl Evictions {
    fn count(&self, entry: &Entry) {
        self.count.inc();
        self.bytes.inc_by(charge(entry.bytes.len() as u64));
        if let Some((lease, breaks)) = &self.lease
            && entry.used.elapsed() < *lease
        {
            breaks.inc();
        }
    }
}

impl Shard {
    fn touch(&mut self, name: &Name, tick: u64) -> Option<Bytes> {
        let entry = self.entries.get_mut(name)?;
        self.order.remove(&entry.tick);
        self.order.insert(tick, *name);
        entry.tick = tick;
        entry.used = Instant::now();
        Some(entry.bytes.clone())
    }

    fn insert(&mut self, name: Name, entry: Entry) -> Option<Entry> {
        self.order.insert(entry.tick, name);
        let replaced = self.entries.insert(name, entry);
        if let Some(replaced) = &replaced {
            self.order.remove(&replaced.tick);
        }
        replaced
    }

    fn remove(&mut self, name: &Name) -> Option<Entry> {
        let entry = self.entries.remove(name)?;
        self.order.remove(&entry.tick);
        Some(entry)
    }

    fn pop_oldest(&mut self) -> Option<Entry> {
        let (_, name) = self.order.pop_first()?;
        self.entries.remove(&name)
    }
}

/// A shard is consistent between any two of its steps that can panic, so a poisoned lock is as good as a clean one.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A small blob is often a slice of the message that brought it, which must not stay in memory for its sake.
fn own(bytes: Bytes) -> Bytes {
    if bytes.len() <= COPIED_MAX { Bytes::copy_from_slice(&bytes) } else { bytes }
}

fn charge(size: u64) -> u64 {
    size.saturating_add(ENTRY_OVERHEAD)
}

fn gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        self.bytes(key).map(|bytes| Blob::Whole(bytes).starting_at(range.start)).transpose()
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        let size = blob.size();
        if charge(size) > self.size_bytes {
            let message =
                format!("a blob of {size} bytes does not fit into a memory of {} bytes", self.size_bytes);
            return Err(Error::new(Kind::Exhausted, message));
        }
        if matches!(key, Key::Blob(_)) && self.bytes(key).is_some() {
            return Ok(());
        }
        let bytes = own(blob.into_bytes(size).await?);
        self.insert(Name::from(key), bytes);
        Ok(())
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        Ok(keys.iter().filter(|key| self.bytes(key).is_none()).cloned().collect())
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        let name = Name::from(key);
        let removed = self.shard(&name).remove(&name);
        self.release(removed);
        self.used_gauge.set(gauge(self.used_bytes.load(Ordering::Relaxed)));
        Ok(())
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        let Some(name) = Name::new(Family::Blob(function), hash) else { return Ok(None) };
        Ok(self.shard(&name).entries.get(&name).map(|entry| entry.bytes.len() as u64))
    }

    async fn finds_by_hash(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        Key::Asset([number; 32])
    }

    async fn put(memory: &Memory, number: u8, size: usize) {
        memory.put(&key(number), Blob::Whole(Bytes::from(vec![number; size]))).await.unwrap();
    }

    async fn absent(memory: &Memory, numbers: &[u8]) -> Vec<Key> {
        memory.missing(&numbers.iter().map(|number| key(*number)).collect::<Vec<_>>()).await.unwrap()
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_first() {
        let memory = Memory::new(3 * charge(1000));
        for number in 1..=3 {
            put(&memory, number, 1000).await;
        }
        memory.get(&key(1), 0..).await.unwrap().unwrap();
        put(&memory, 4, 1000).await;
        assert_eq!(absent(&memory, &[1, 2, 3, 4]).await, [key(2)]);
    }

    #[tokio::test]
    async fn evictions_are_counted_and_broken_leases_where_clients_rely_on_it() {
        const LEASE: Duration = Duration::from_secs(3600);
        let memory = |name| Memory::named(name, 2 * charge(1000));
        for (memory, name, breaks) in [
            (memory("in front"), "in front", None),
            (memory("short lease").with_lease("short lease", Duration::ZERO), "short lease", Some(0)),
            (memory("long lease").with_lease("long lease", LEASE), "long lease", Some(3)),
        ] {
            let counted = |metric: &str| metrics::value(metric, &[("tier", name)]);
            assert_eq!(counted("croft_store_evictions_total"), Some(0));
            for number in 1..=5 {
                put(&memory, number, 1000).await;
            }
            assert_eq!(counted("croft_store_evictions_total"), Some(3));
            assert_eq!(counted("croft_store_evicted_bytes_total"), Some(3 * charge(1000)));
            assert_eq!(counted("croft_store_lease_breaks_total"), breaks);
        }
    }

    #[tokio::test]
    async fn one_blob_may_take_the_whole_store_but_no_more() {
        let memory = Memory::new(charge(100_000));
        put(&memory, 1, 10).await;
        put(&memory, 2, 100_000).await;
        assert_eq!(absent(&memory, &[1, 2]).await, [key(1)]);
        let error = memory.put(&key(3), Blob::Whole(Bytes::from(vec![0; 100_001]))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted);
        assert_eq!(absent(&memory, &[2]).await, []);
    }

    #[tokio::test]
    async fn a_blob_is_found_by_its_hash_and_is_none_of_another_size() {
        let memory = Memory::new(1 << 20);
        let digest = Function::Sha256.hash(b"content");
        memory.put(&Key::Blob(digest), Blob::Whole(Bytes::from_static(b"content"))).await.unwrap();
        assert_eq!(memory.size_of(Function::Sha256, digest.hash()).await.unwrap(), Some(7));
        let other = Key::Blob(crate::digest::Digest::new(Function::Sha256, digest.hash(), 8));
        assert!(memory.get(&other, 0..).await.unwrap().is_none());
        assert_eq!(memory.missing(std::slice::from_ref(&other)).await.unwrap(), [other]);
    }

    #[tokio::test]
    async fn replacing_a_value_counts_it_once() {
        let memory = Memory::new(2 * charge(100));
        for _ in 0..50 {
            put(&memory, 1, 100).await;
            put(&memory, 2, 100).await;
        }
        assert_eq!(absent(&memory, &[1, 2]).await, []);
        assert_eq!(memory.used_bytes.load(Ordering::Relaxed), 2 * charge(100));
    }
}
