//! One suite for every store: what a `Store` promises, whoever it is.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use tempfile::TempDir;

use super::{Blob, Disk, DiskOptions, Faulty, INLINE_MAX, Key, Memory, Metered, Rates, Store, Verified};
use crate::digest::Function;
use crate::error::{Error, Kind};

const SIZE: u64 = 1 << 30;

/// Sizes on both sides of what stores treat differently: inlined or not, one chunk or several, one buffer or several.
const SIZES: [usize; 8] = [
    1,
    100,
    INLINE_MAX as usize,
    INLINE_MAX as usize + 1,
    256 << 10,
    (256 << 10) + 1,
    1 << 20,
    (3 << 20) + 7,
];

/// A store for one case, and what must outlive it.
pub(super) struct Subject {
    pub(super) store: Arc<dyn Store>,
    /// A directory, a server.
    pub(super) kept: Box<dyn Any + Send>,
}

/// All that a store promises. `fresh` gives an empty one for each case.
pub(super) async fn holds(name: &str, fresh: impl AsyncFn() -> Subject) {
    check(name, &fresh, what_was_put_is_read_from_every_offset).await;
    check(name, &fresh, every_form_of_a_blob_can_be_put).await;
    check(name, &fresh, an_absent_key_is_none_and_missing).await;
    check(name, &fresh, a_stream_that_is_not_what_it_says_stores_nothing).await;
    check(name, &fresh, a_later_action_result_replaces_the_earlier).await;
    check(name, &fresh, a_blob_that_is_open_can_be_read_while_its_name_changes_hands).await;
    check(name, &fresh, many_puts_of_the_same_blobs_at_once_are_safe).await;
    check(name, &fresh, a_batch_is_stored_in_its_order).await;
    check(name, &fresh, a_size_that_is_told_is_right).await;
    check(name, &fresh, a_put_that_is_dropped_stores_nothing_wrong).await;
    whatever_fails_what_was_acknowledged_is_right(name, &fresh).await;
}

async fn check<Case: Future<Output = ()>>(
    name: &str,
    fresh: impl AsyncFn() -> Subject,
    case: impl FnOnce(String, Arc<dyn Store>) -> Case,
) {
    let Subject { store, kept } = fresh().await;
    case(name.to_owned(), store).await;
    drop(kept);
}

fn disk(directory: &Path) -> Arc<dyn Store> {
    Arc::new(Disk::open(directory, DiskOptions::new(SIZE)).unwrap())
}

fn memory() -> Arc<dyn Store> {
    Arc::new(Memory::new(SIZE))
}

/// A subject in a directory of its own.
pub(super) fn in_directory(open: impl FnOnce(&Path) -> Arc<dyn Store>) -> Subject {
    let directory = TempDir::new().unwrap();
    Subject { store: open(directory.path()), kept: Box::new(directory) }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    holds("memory", async || Subject { store: memory(), kept: Box::new(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_keeps_the_contract() {
    holds("disk", async || in_directory(disk)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_disk_keeps_the_contract() {
    let options = DiskOptions { compression: true, ..DiskOptions::new(SIZE) };
    let open = |path: &Path| -> Arc<dyn Store> { Arc::new(Disk::open(path, options.clone()).unwrap()) };
    holds("disk with compression", async || in_directory(open)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verified_keeps_the_contract() {
    holds("verified", async || in_directory(|path| Arc::new(Verified::new(disk(path))))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metered_keeps_the_contract() {
    holds("metered", async || in_directory(|path| Arc::new(Metered::new("contract", disk(path))))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faulty_without_faults_keeps_the_contract() {
    let fresh =
        async || Subject { store: Arc::new(Faulty::new(memory(), 1, Rates::default())), kept: Box::new(()) };
    holds("faulty", fresh).await;
}

/// Noise for an even seed, for an odd one what compresses to less than half.
fn content(size: usize, seed: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; size];
    random.fill(&mut bytes);
    if seed % 2 == 1 {
        bytes.iter_mut().for_each(|byte| *byte = b'a' + *byte % 4);
    }
    Bytes::from(bytes)
}

fn key_of(bytes: &Bytes) -> Key {
    Key::Blob(Function::Sha256.hash(bytes))
}

fn streamed(bytes: &Bytes, size: u64) -> Blob {
    let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Blob::Stream { size, chunks: stream::iter(pieces).boxed() }
}

async fn read(store: &dyn Store, key: &Key, start: u64) -> Option<Bytes> {
    let blob = store.get(key, start..).await.unwrap()?;
    Some(blob.into_bytes(SIZE).await.unwrap())
}

async fn what_was_put_is_read_from_every_offset(name: String, store: Arc<dyn Store>) {
    for (seed, size) in SIZES.into_iter().flat_map(|size| [size, size]).enumerate() {
        let bytes = content(size, seed as u64);
        let key = key_of(&bytes);
        store.put(&key, streamed(&bytes, size as u64)).await.unwrap();
        for start in [0, 1, size / 2, size] {
            let rest = read(&*store, &key, start as u64).await.unwrap();
            assert!(rest == bytes.slice(start..), "{name}: {size} bytes from {start}");
        }
        let error = store.get(&key, size as u64 + 1..).await.err().unwrap();
        assert_eq!(error.kind(), Kind::OutOfRange, "{name}");
    }
}

async fn every_form_of_a_blob_can_be_put(name: String, store: Arc<dyn Store>) {
    for size in SIZES {
        let bytes = content(size, 51 + size as u64 / 2 * 2);
        store.put(&key_of(&bytes), Blob::Whole(bytes.clone())).await.unwrap();
        let copy = Key::Asset(*Function::Sha256.hash(&bytes).hash().first_chunk().unwrap());
        let blob = store.get(&key_of(&bytes), 0..).await.unwrap().unwrap();
        store.put(&copy, blob).await.unwrap();
        assert!(read(&*store, &copy, 0).await.unwrap() == bytes, "{name}: {size}");
    }
}

async fn an_absent_key_is_none_and_missing(name: String, store: Arc<dyn Store>) {
    let present: Vec<Bytes> = (0..40).map(|seed| content(500 * (seed as usize + 1), seed)).collect();
    let keys: Vec<Key> = present.iter().map(key_of).collect();
    let absent: Vec<Key> = (100..140).map(|seed| key_of(&content(9, seed))).collect();
    for (key, bytes) in keys.iter().zip(present) {
        store.put(key, Blob::Whole(bytes)).await.unwrap();
    }
    let mixed: Vec<Key> = keys.iter().zip(&absent).flat_map(|(a, b)| [b.clone(), a.clone()]).collect();
    assert_eq!(store.missing(&mixed).await.unwrap(), absent, "{name}");
    assert!(read(&*store, &absent[0], 0).await.is_none(), "{name}");
    assert!(store.missing(&[]).await.unwrap().is_empty());
}

async fn a_stream_that_is_not_what_it_says_stores_nothing(name: String, store: Arc<dyn Store>) {
    for size in SIZES {
        let bytes = content(size, 7);
        let key = key_of(&bytes);
        for wrong in [size as u64 - 1, size as u64 + 1] {
            let error = store.put(&key, streamed(&bytes, wrong)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{name}: {size} as {wrong}");
        }
        let chunks = streamed(&bytes.slice(..size / 2), size as u64).into_chunks();
        let failing =
            chunks.map(|chunk| chunk.map_err(|_| Error::new(Kind::Cancelled, "the client is gone")));
        let error =
            store.put(&key, Blob::Stream { size: size as u64, chunks: failing.boxed() }).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{name}: {error}");
        assert!(read(&*store, &key, 0).await.is_none(), "{name}: {size}");
        assert_eq!(
            store.missing(std::slice::from_ref(&key)).await.unwrap(),
            std::slice::from_ref(&key),
            "{name}"
        );
        store.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
        assert!(read(&*store, &key, 0).await.unwrap() == bytes, "{name}: {size}");
    }
}

async fn a_later_action_result_replaces_the_earlier(name: String, store: Arc<dyn Store>) {
    let key = Key::Asset([9; 32]);
    for (seed, size) in [10, 20, 9_000, 9_000, 30, 100_000, 10].into_iter().enumerate() {
        let bytes = content(size, seed as u64);
        store.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
        assert!(read(&*store, &key, 0).await.unwrap() == bytes, "{name}: {size}");
    }
}

async fn a_blob_that_is_open_can_be_read_while_its_name_changes_hands(name: String, store: Arc<dyn Store>) {
    let key = Key::Asset([8; 32]);
    let (old, new) = (content(2_000_000, 1), content(2_000_000, 2));
    store.put(&key, Blob::Whole(old.clone())).await.unwrap();
    let mut chunks = store.get(&key, 0..).await.unwrap().unwrap().into_chunks();
    let first = chunks.try_next().await.unwrap().unwrap();
    store.put(&key, Blob::Whole(new.clone())).await.unwrap();
    let rest: Vec<Bytes> = chunks.try_collect().await.unwrap();
    assert!([first.to_vec(), rest.concat()].concat() == old, "{name}");
    assert!(read(&*store, &key, 0).await.unwrap() == new, "{name}");
}

async fn many_puts_of_the_same_blobs_at_once_are_safe(name: String, store: Arc<dyn Store>) {
    for size in [100, 10_000, 2_000_000] {
        let blobs: Vec<Bytes> = (0..4).map(|seed| content(size, seed)).collect();
        let puts = (0..24).map(|number| {
            let (store, bytes) = (Arc::clone(&store), blobs[number % blobs.len()].clone());
            async move { store.put(&key_of(&bytes), streamed(&bytes, bytes.len() as u64)).await }
        });
        for result in join_all(puts).await {
            result.unwrap();
        }
        for bytes in &blobs {
            assert!(read(&*store, &key_of(bytes), 0).await.unwrap() == *bytes, "{name}: {size}");
        }
    }
}

async fn a_batch_is_stored_in_its_order(name: String, store: Arc<dyn Store>) {
    let blobs: Vec<Bytes> =
        (0..700).map(|seed| content(if seed % 50 == 7 { 9_000 } else { 700 }, seed)).collect();
    let batch: Vec<(Key, Bytes)> = blobs.iter().map(|bytes| (key_of(bytes), bytes.clone())).collect();
    let results = store.put_all(batch.clone()).await;
    assert_eq!(results.len(), batch.len(), "{name}");
    assert!(results.iter().all(Result::is_ok), "{name}");
    for (key, bytes) in batch {
        assert_eq!(read(&*store, &key, 0).await.unwrap(), bytes, "{name}");
    }
    assert!(store.put_all(Vec::new()).await.is_empty(), "{name}");
}

/// A store need not find a blob by its hash alone; one that does tells its size.
async fn a_size_that_is_told_is_right(name: String, store: Arc<dyn Store>) {
    for (seed, size) in SIZES.into_iter().enumerate() {
        let (bytes, absent) = (content(size, seed as u64), content(size, 100 + seed as u64));
        let (hash, absent) = (Function::Sha256.hash(&bytes), Function::Sha256.hash(&absent));
        store.put(&Key::Blob(hash), Blob::Whole(bytes)).await.unwrap();
        let told = store.size_of(Function::Sha256, hash.hash()).await.unwrap();
        assert!(told.is_none_or(|told| told == size as u64), "{name}: {told:?} of {size}");
        for (function, hash) in [(Function::Sha256, absent.hash()), (Function::Blake3, hash.hash())] {
            assert_eq!(store.size_of(function, hash).await.unwrap(), None, "{name}");
        }
        assert_eq!(store.size_of(Function::Sha1, hash.hash()).await.unwrap(), None, "{name}");
    }
}

async fn a_put_that_is_dropped_stores_nothing_wrong(name: String, store: Arc<dyn Store>) {
    let bytes = content(3_000_000, 3);
    let key = key_of(&bytes);
    let (begin, end) = (bytes.slice(..2_000_000), stream::pending());
    let chunks = stream::iter([Ok(begin)]).chain(end).boxed();
    let mut put = store.put(&key, Blob::Stream { size: 3_000_000, chunks });
    // The stream never ends; some polls later the put is in the middle of it.
    for _ in 0..20 {
        assert!(futures_util::poll!(&mut put).is_pending(), "{name}");
        tokio::task::yield_now().await;
    }
    drop(put);
    assert!(read(&*store, &key, 0).await.is_none(), "{name}");
    store.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
    assert!(read(&*store, &key, 0).await.unwrap() == bytes, "{name}");
}

/// Calls that fail by seed below the verification: what was acknowledged stays, and nothing wrong is served.
async fn whatever_fails_what_was_acknowledged_is_right(name: &str, fresh: &impl AsyncFn() -> Subject) {
    for seed in 0..3 {
        let Subject { store: leaf, kept } = fresh().await;
        let mut random = fastrand::Rng::with_seed(seed);
        let blobs: Vec<Bytes> = (0..12)
            .map(|number| content(*random.choice(&SIZES[..7]).unwrap(), 1000 * seed + number))
            .collect();
        let mut acknowledged = vec![false; blobs.len()];
        let rates = Rates { before: 0.1, after: 0.1, midstream: 0.2, short: 0.2 };
        let store = Verified::new(Arc::new(Faulty::new(Arc::clone(&leaf), seed, rates)));
        for _ in 0..60 {
            step(&store, &blobs, &mut acknowledged, &mut random).await;
        }
        for (bytes, acknowledged) in blobs.iter().zip(acknowledged) {
            let read = read(&*leaf, &key_of(bytes), 0).await;
            assert!(read.is_some() || !acknowledged, "{name}, seed {seed}: a blob is lost");
            assert!(read.is_none_or(|read| read == *bytes), "{name}, seed {seed}: wrong bytes");
        }
        drop(kept);
    }
}

/// One put or get of one of `blobs`.
async fn step(store: &dyn Store, blobs: &[Bytes], acknowledged: &mut [bool], random: &mut fastrand::Rng) {
    let number = random.usize(..blobs.len());
    let (bytes, key) = (&blobs[number], key_of(&blobs[number]));
    if random.bool() {
        acknowledged[number] |= store.put(&key, streamed(bytes, bytes.len() as u64)).await.is_ok();
        return;
    }
    let Ok(blob) = store.get(&key, 0..).await else { return };
    let Some(blob) = blob else {
        assert!(!acknowledged[number], "a blob is lost");
        return;
    };
    if let Ok(read) = blob.into_bytes(SIZE).await {
        assert!(read == *bytes, "wrong bytes");
    }
}

/// Calls that fail by seed, on a disk that is opened again in between: what was acknowledged stays, and nothing wrong is served.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_on_a_disk_that_is_opened_again_what_was_acknowledged_is_right() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let directory = TempDir::new().unwrap();
        let blobs: Vec<Bytes> = (0..12)
            .map(|number| content(*random.choice(&SIZES[..7]).unwrap(), 1000 * seed + number))
            .collect();
        let mut acknowledged = vec![false; blobs.len()];
        for round in 0..3 {
            let rates = Rates { before: 0.1, after: 0.1, midstream: 0.2, short: 0.2 };
            let disk: Arc<dyn Store> = disk(directory.path());
            let store = Verified::new(Arc::new(Faulty::new(disk, seed * 3 + round, rates)));
            for _ in 0..40 {
                step(&store, &blobs, &mut acknowledged, &mut random).await;
            }
        }
        let disk = disk(directory.path());
        for (bytes, acknowledged) in blobs.iter().zip(acknowledged) {
            let read = read(&*disk, &key_of(bytes), 0).await;
            assert!(read.is_some() || !acknowledged, "seed {seed}: a blob is lost");
            assert!(read.is_none_or(|read| read == *bytes), "seed {seed}: wrong bytes");
        }
        let left = std::fs::read_dir(directory.path().join("tmp")).unwrap().count();
        assert_eq!(left, 0, "seed {seed}: temporary files are left");
    }
}
