//! Tiers in pairs and lists: the contract of all stores, a simple model, and each promise of its own.

mod fills;
mod model;
mod real;
mod writes;

use std::collections::HashMap;
use std::ops::RangeFrom;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tempfile::TempDir;
use tokio::sync::watch;

use super::super::contract::{self, Subject};
use super::super::name::Name;
use super::super::{Blob, Disk, DiskOptions, Key, Memory, Pins, Store, Verified};
use super::{Patience, Tier, Tiered, Traits, WriteBack};
use crate::digest::Function;
use crate::error::{Error, Kind, Result};

const SIZE: u64 = 1 << 30;

const CACHE: Traits = Traits { blob_max: 16 << 20, is_durable: false, is_local: true };
const REMOTE_CACHE: Traits = Traits { blob_max: 64 << 10, is_durable: false, is_local: false };
const LOCAL: Traits = Traits { blob_max: SIZE, is_durable: true, is_local: true };
const REMOTE: Traits = Traits { blob_max: u64::MAX, is_durable: true, is_local: false };

/// Waits are long, because a test on a busy machine must not meet them, and pauses short.
const PATIENCE: Patience = Patience {
    stall: WAIT_MAX,
    answer: WAIT_MAX,
    behind: WAIT_MAX,
    retry_min: Duration::from_millis(1),
    retry_max: Duration::from_millis(20),
};

/// Longer than anything takes that works.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Yields between two steps of a slow leaf: enough that what another task does in several steps fits in.
const PAUSES_MAX: u8 = 200;

/// A leaf that a test looks into: it counts, it can be shut or held up, and it loses what it is told to lose.
#[derive(Default)]
struct Leaf {
    blobs: Mutex<HashMap<Key, Bytes>>,
    gets: AtomicUsize,
    is_down: AtomicBool,
    /// Calls of `get` wait while it is true.
    held: watch::Sender<bool>,
    /// Calls of `put` wait while it is true, and how many do.
    puts_held: watch::Sender<bool>,
    puts_waiting: AtomicUsize,
    /// How often a call lets other tasks go first, where it does so at random.
    pauses: Mutex<Option<fastrand::Rng>>,
}

impl Leaf {
    fn holds(&self, key: &Key) -> Option<Bytes> {
        self.blobs.lock().unwrap().get(key).cloned()
    }

    fn set(&self, key: &Key, bytes: &Bytes) {
        self.blobs.lock().unwrap().insert(key.clone(), bytes.clone());
    }

    /// Loses what is not pinned and what `goes` says.
    fn evict(&self, pins: &Pins, mut goes: impl FnMut(&Key) -> bool) {
        self.blobs.lock().unwrap().retain(|key, _| pins.contains(&Name::from(key)) || !goes(key));
    }

    fn gets(&self) -> usize {
        self.gets.load(Ordering::SeqCst)
    }

    fn shut(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    fn hold(&self, is_held: bool) {
        self.held.send_replace(is_held);
    }

    fn hold_puts(&self, is_held: bool) {
        self.puts_held.send_replace(is_held);
    }

    fn puts_waiting(&self) -> usize {
        self.puts_waiting.load(Ordering::SeqCst)
    }

    /// From here on each call yields a few times before and after what it does, as one over a network would.
    fn be_slow(&self, seed: u64) {
        *self.pauses.lock().unwrap() = Some(fastrand::Rng::with_seed(seed));
    }

    async fn pause(&self) {
        let times = self.pauses.lock().unwrap().as_mut().map_or(0, |random| match random.u8(..4) {
            0 => random.u8(..PAUSES_MAX),
            _ => random.u8(..4),
        });
        for _ in 0..times {
            tokio::task::yield_now().await;
        }
    }

    fn check(&self) -> Result<()> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Unavailable, "the tier is down"));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Leaf {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.held.subscribe().wait_for(|is_held| !is_held).await.unwrap();
        self.pause().await;
        self.check()?;
        let Some(bytes) = self.holds(key) else { return Ok(None) };
        self.pause().await;
        let blob = Blob::Whole(bytes).starting_at(range.start)?;
        if blob.size() <= 64 << 10 {
            return Ok(Some(blob));
        }
        Ok(Some(Blob::Stream { size: blob.size(), chunks: blob.into_chunks() }))
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        self.check()?;
        let bytes = blob.into_bytes(SIZE).await?;
        self.puts_waiting.fetch_add(1, Ordering::SeqCst);
        self.puts_held.subscribe().wait_for(|is_held| !is_held).await.unwrap();
        self.puts_waiting.fetch_sub(1, Ordering::SeqCst);
        self.pause().await;
        self.set(key, &bytes);
        self.pause().await;
        Ok(())
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        self.check()?;
        self.pause().await;
        let missing = keys.iter().filter(|key| self.holds(key).is_none()).cloned().collect();
        self.pause().await;
        Ok(missing)
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        self.check()?;
        let blobs = self.blobs.lock().unwrap();
        let mut digests = blobs.keys().filter_map(|key| match key {
            Key::Blob(digest) => Some(digest),
            Key::Action(_) | Key::Asset(_) => None,
        });
        let found = digests.find(|digest| digest.function() == function && digest.hash() == hash);
        Ok(found.map(|digest| digest.size()))
    }

    async fn finds_by_hash(&self) -> bool {
        true
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.check()?;
        self.pause().await;
        self.blobs.lock().unwrap().remove(key);
        self.pause().await;
        Ok(())
    }
}

fn content(size: usize, seed: u64) -> (Key, Bytes) {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    (Key::Blob(Function::Sha256.hash(&bytes)), Bytes::from(bytes))
}

fn streamed(bytes: &Bytes) -> Blob {
    let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Blob::Stream { size: bytes.len() as u64, chunks: stream::iter(pieces).boxed() }
}

async fn read(store: &dyn Store, key: &Key) -> Result<Option<Bytes>> {
    match store.get(key, 0..).await? {
        Some(blob) => Ok(Some(blob.into_bytes(SIZE).await?)),
        None => Ok(None),
    }
}

async fn is_missing(store: &dyn Store, key: &Key) -> Result<bool> {
    Ok(!store.missing(std::slice::from_ref(key)).await?.is_empty())
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(WAIT_MAX, wait).await.is_ok(), "waited in vain: {what}");
}

fn tier(name: &str, store: Arc<dyn Store>, traits: Traits) -> Tier {
    Tier::new(name, store, traits)
}

fn through(tiers: Vec<Tier>) -> Tiered {
    Tiered::open(tiers, None, Pins::default(), PATIENCE).unwrap()
}

fn back(tiers: Vec<Tier>, journal: &Path, pins: &Pins) -> Tiered {
    let write_back = WriteBack { journal, bytes_max: SIZE };
    Tiered::open(tiers, Some(write_back), pins.clone(), PATIENCE).unwrap()
}

/// Drops the store without a drain, as a crash would, and waits until nothing of it is left.
async fn crash(tiered: Tiered) {
    let left = Arc::downgrade(&tiered.shared);
    drop(tiered);
    until("the tasks of a store end", || left.strong_count() == 0).await;
}

fn disk(name: &str, directory: &Path, traits: Traits) -> Tier {
    let disk = Disk::open(&directory.join(name), DiskOptions::new(SIZE)).unwrap();
    tier(name, Arc::new(disk), traits)
}

fn memory_and_disk(directory: &Path) -> Vec<Tier> {
    vec![tier("memory", Arc::new(Memory::new(SIZE)), CACHE), disk("disk", directory, LOCAL)]
}

fn memory_disk_and_shared(directory: &Path) -> Vec<Tier> {
    let mut tiers = memory_and_disk(directory);
    tiers.push(disk("shared", directory, REMOTE));
    tiers
}

fn small_memory_cache_and_shared(directory: &Path) -> Vec<Tier> {
    let memory = Traits { blob_max: 2 << 20, ..CACHE };
    vec![
        tier("memory", Arc::new(Memory::new(32 << 20)), memory),
        tier("cache", Arc::new(Memory::new(SIZE)), REMOTE_CACHE),
        disk("shared", directory, REMOTE),
    ]
}

fn memory_alone(_: &Path) -> Vec<Tier> {
    let memory = || Arc::new(Memory::new(SIZE));
    vec![tier("memory", memory(), CACHE), tier("memory-2", memory(), Traits { blob_max: SIZE, ..CACHE })]
}

/// The contract on a list of tiers, which `list` makes anew in a directory for each case.
async fn holds(name: &str, list: impl Fn(&Path) -> Vec<Tier>, is_back: bool) {
    let fresh = async || {
        let directory = TempDir::new().unwrap();
        let tiers = list(directory.path());
        let tiered = match is_back {
            true => back(tiers, &directory.path().join("journal"), &Pins::default()),
            false => through(tiers),
        };
        let store = Arc::new(Verified::on_the_way_in(Arc::new(tiered)));
        Subject { store, kept: Box::new(directory) }
    };
    contract::holds(name, fresh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_a_disk_keep_the_contract() {
    holds("memory, disk", memory_and_disk, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_writes_through_keeps_the_contract() {
    holds("memory, disk, shared", memory_disk_and_shared, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_writes_back_keeps_the_contract() {
    holds("memory, disk, shared", memory_disk_and_shared, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_a_disk_of_its_own_keeps_the_contract() {
    holds("memory, cache, shared", small_memory_cache_and_shared, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_caches_keeps_the_contract() {
    holds("memory, memory", memory_alone, false).await;
}
