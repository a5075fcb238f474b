//! Fills and opens a store through the library, as the farm does.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use croft::digest::Function;
use croft::store::{Blob, Disk, DiskOptions, Key, Store, Verified};
use futures_util::stream::{self, StreamExt};

use crate::process::Usage;

const SMALL: usize = 1 << 10;
const LARGE: usize = 8 << 20;

/// The store's limit: nothing is evicted.
const LIMIT: u64 = 100 << 30;

/// Small blobs go in batches, large ones as streams; so many of each at the same time.
const BATCH: u64 = 1_000;
const BATCHES_AT_ONCE: usize = 8;
const LARGE_AT_ONCE: usize = 4;

/// Bytes of a stream's piece.
const PIECE: usize = 256 << 10;

/// How many blobs of each size.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    small: u64,
    large: u64,
}

impl Load {
    pub(crate) const NONE: Self = Self { small: 0, large: 0 };
    pub(crate) const START: Self = Self { small: 1_000_000, large: 0 };
    pub(crate) const START_QUICK: Self = Self { small: 25_000, large: 0 };
    pub(crate) const FOOTPRINT: Self = Self { small: 2_000_000, large: 2_000 };
    pub(crate) const FOOTPRINT_QUICK: Self = Self { small: 50_000, large: 20 };

    pub(crate) fn blobs(self) -> u64 {
        self.small + self.large
    }

    pub(crate) fn bytes(self) -> u64 {
        self.small * SMALL as u64 + self.large * LARGE as u64
    }

    pub(crate) fn arguments(self) -> [String; 2] {
        [self.small.to_string(), self.large.to_string()]
    }

    pub(crate) fn parse(arguments: &[String]) -> Self {
        let number = |place: usize| arguments[place].parse().unwrap();
        Self { small: number(0), large: number(1) }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blobs of 1 KiB and {} of 8 MiB", self.small, self.large)
    }
}

fn content(size: usize, seed: u64) -> Bytes {
    let mut content = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut content);
    content.into()
}

fn key_of(content: &Bytes) -> Key {
    Key::Blob(Function::Sha256.hash(content))
}

fn store(directory: &Path) -> Arc<dyn Store> {
    let disk = Disk::open(directory, DiskOptions::new(LIMIT)).unwrap();
    Arc::new(Verified::new(Arc::new(disk)))
}

/// Opens the store and asks it for one blob, which an empty one has not.
#[tokio::main]
pub(crate) async fn open(directory: &Path, load: Load) {
    let start = Instant::now();
    let store = store(directory);
    let key = key_of(&content(SMALL, 0));
    assert_eq!(store.missing(&[key]).await.unwrap().is_empty(), load.small > 0);
    Usage::now(start.elapsed()).tell();
}

#[tokio::main]
pub(crate) async fn fill(directory: &Path, load: Load) {
    let start = Instant::now();
    let store = store(directory);
    let batches = (0..load.small).step_by(BATCH as usize).map(|first| first..(first + BATCH).min(load.small));
    let small = stream::iter(batches).map(|numbers| put_batch(&*store, numbers));
    small.buffer_unordered(BATCHES_AT_ONCE).for_each(|()| std::future::ready(())).await;
    let large = stream::iter(0..load.large).map(|number| put_large(&*store, number));
    large.buffer_unordered(LARGE_AT_ONCE).for_each(|()| std::future::ready(())).await;
    let last = key_of(&content(SMALL, load.small - 1));
    assert!(store.missing(&[last]).await.unwrap().is_empty());
    Usage::now(start.elapsed()).tell();
}

async fn put_batch(store: &dyn Store, numbers: std::ops::Range<u64>) {
    let blobs = numbers.map(|number| content(SMALL, number));
    let blobs = blobs.map(|content| (key_of(&content), content)).collect();
    store.put_all(blobs).await.into_iter().for_each(|result| result.unwrap());
}

async fn put_large(store: &dyn Store, number: u64) {
    let content = content(LARGE, u64::MAX - number);
    let key = key_of(&content);
    let pieces = (0..LARGE).step_by(PIECE).map(move |start| Ok(content.slice(start..start + PIECE)));
    let chunks = stream::iter(pieces).boxed();
    store.put(&key, Blob::Stream { size: LARGE as u64, chunks }).await.unwrap();
}
