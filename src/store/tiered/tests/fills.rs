//! Reads: one fill for all, which nobody's fate decides, and copies that are repaired.

use std::sync::Arc;

use futures_util::TryStreamExt;
use futures_util::future::join_all;

use super::super::super::{Faulty, Rates};
use super::*;

struct Pair {
    fast: Arc<Leaf>,
    slow: Arc<Leaf>,
    tiered: Tiered,
}

fn pair() -> Pair {
    let (fast, slow) = (Arc::<Leaf>::default(), Arc::<Leaf>::default());
    let tiers = vec![tier("fast", fast.clone(), LOCAL), tier("slow", slow.clone(), REMOTE)];
    Pair { fast, slow, tiered: through(tiers) }
}

const SMALL: usize = 10_000;
const LARGE: usize = 9_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_readers_make_one_slow_read() {
    for size in [SMALL, 500_000, LARGE] {
        let Pair { fast, slow, tiered } = pair();
        let (key, bytes) = content(size, 1);
        slow.set(&key, &bytes);
        slow.hold(true);
        // All have been polled, and so have a seat, before the slow tier answers.
        let reads = join_all((0..100).map(|_| tiered.get(&key, 0..)));
        let (blobs, ()) = tokio::join!(reads, async { slow.hold(false) });
        let reads = blobs.into_iter().map(|blob| blob.unwrap().unwrap().into_bytes(SIZE));
        for read in join_all(reads).await {
            assert!(read.unwrap() == bytes, "{size}");
        }
        assert_eq!(slow.gets(), 1, "{size}");
        until("the fast tier is filled", || fast.holds(&key).is_some()).await;
        assert!(read(&tiered, &key).await.unwrap().unwrap() == bytes);
        assert_eq!(slow.gets(), 1, "{size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_leaves_the_fill_to_the_others() {
    let Pair { fast, slow, tiered } = pair();
    let (key, bytes) = content(LARGE, 2);
    slow.set(&key, &bytes);
    let mut first = tiered.get(&key, 0..).await.unwrap().unwrap().into_chunks();
    first.try_next().await.unwrap().unwrap();
    drop(first);
    until("the fast tier is filled", || fast.holds(&key).is_some()).await;
    assert!(fast.holds(&key).unwrap() == bytes);
    assert_eq!(slow.gets(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_fill_dies_another_takes_over() {
    for size in [SMALL, LARGE] {
        let Pair { fast, slow, tiered } = pair();
        let (key, bytes) = content(size, 3);
        slow.set(&key, &bytes);
        slow.hold(true);
        let kill = async {
            until("the fill has begun", || slow.gets() == 1).await;
            tiered.shared.flights.cancel(&key);
            until("another has begun", || slow.gets() == 2).await;
            slow.hold(false);
        };
        let (reads, ()) = tokio::join!(join_all((0..20).map(|_| read(&tiered, &key))), kill);
        assert!(reads.into_iter().all(|read| read.unwrap().unwrap() == bytes));
        assert_eq!(slow.gets(), 2);
        until("the fast tier is filled", || fast.holds(&key).is_some()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_stalls_holds_nobody_up_for_long() {
    let slow = Arc::<Leaf>::default();
    let tiers = vec![tier("fast", Arc::<Leaf>::default(), LOCAL), tier("slow", slow.clone(), REMOTE)];
    let patience = Patience { stall: Duration::from_millis(50), ..PATIENCE };
    let tiered = Tiered::open(tiers, None, Pins::default(), patience).unwrap();
    let (key, bytes) = content(SMALL, 4);
    slow.set(&key, &bytes);
    slow.hold(true);
    let error = read(&tiered, &key).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    slow.hold(false);
    assert!(read(&tiered, &key).await.unwrap().unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_goes_on_from_the_filled_tier() {
    let Pair { fast, slow, tiered } = pair();
    let (key, bytes) = content(LARGE, 5);
    slow.set(&key, &bytes);
    let mut chunks = tiered.get(&key, 0..).await.unwrap().unwrap().into_chunks();
    let mut got = chunks.try_next().await.unwrap().unwrap().to_vec();
    until("the fill did not wait", || fast.holds(&key).is_some()).await;
    while let Some(chunk) = chunks.try_next().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    assert!(got == bytes);
    assert_eq!(slow.gets(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_fast_tier_fails_readers_go_on_from_the_slow_one() {
    for rates in [Rates { before: 1.0, ..Rates::default() }, Rates { midstream: 1.0, ..Rates::default() }] {
        let slow = Arc::<Leaf>::default();
        let broken = Arc::new(Faulty::new(Arc::<Leaf>::default(), 1, rates));
        let tiered = through(vec![tier("fast", broken, LOCAL), tier("slow", slow.clone(), REMOTE)]);
        for size in [SMALL, LARGE] {
            let (key, bytes) = content(size, 6);
            slow.set(&key, &bytes);
            for _ in 0..3 {
                assert!(read(&tiered, &key).await.unwrap().unwrap() == bytes, "{size}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_large_blob_is_read_past_the_fast_tier() {
    let Pair { fast, slow, tiered } = pair();
    for (size, is_filled) in [(SMALL, true), (LARGE, false)] {
        let (key, bytes) = content(size, 7);
        slow.set(&key, &bytes);
        let rest = tiered.get(&key, 7..).await.unwrap().unwrap().into_bytes(SIZE).await.unwrap();
        assert!(rest == bytes.slice(7..));
        if is_filled {
            until("a small one is filled", || fast.holds(&key).is_some()).await;
        }
        assert_eq!(fast.holds(&key).is_some(), is_filled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_repaired_from_the_next_tier() {
    let directory = TempDir::new().unwrap();
    let disk = Arc::new(Disk::open(directory.path(), DiskOptions::new(SIZE)).unwrap());
    let (cache, slow) = (Arc::<Leaf>::default(), Arc::<Leaf>::default());
    let tiers = vec![
        tier("disk", disk.clone(), LOCAL),
        tier("cache", cache.clone(), REMOTE_CACHE),
        tier("slow", slow.clone(), REMOTE),
    ];
    let tiered = through(tiers);
    let (key, bytes) = content(1000, 8);
    slow.set(&key, &bytes);
    let wrong = Bytes::from(vec![0; 1000]);
    cache.set(&key, &wrong);
    disk.put(&key, Blob::Whole(wrong.clone())).await.unwrap();
    assert!(read(&tiered, &key).await.unwrap().unwrap() == bytes);
    until("the cache is repaired", || cache.holds(&key) == Some(bytes.clone())).await;
    let repaired = async {
        while read(&*disk, &key).await.unwrap().as_ref() != Some(&bytes) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT_MAX, repaired).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_that_turns_out_to_be_damaged_never_ends_well() {
    let (fast, bad, good) = (Arc::<Leaf>::default(), Arc::<Leaf>::default(), Arc::<Leaf>::default());
    let tiers = vec![
        tier("fast", fast.clone(), LOCAL),
        tier("bad", bad.clone(), REMOTE),
        tier("good", good.clone(), REMOTE),
    ];
    let tiered = through(tiers);
    let (key, bytes) = content(LARGE, 9);
    good.set(&key, &bytes);
    let mut wrong = bytes.to_vec();
    wrong[LARGE - 1] ^= 1;
    bad.set(&key, &Bytes::from(wrong));
    assert_eq!(read(&tiered, &key).await.unwrap_err().kind(), Kind::Corrupt);
    until("the damaged copy is gone", || bad.holds(&key).is_none()).await;
    assert!(read(&tiered, &key).await.unwrap().unwrap() == bytes);
    until("the fast tier has the right one", || fast.holds(&key) == Some(bytes.clone())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_costs_no_copy() {
    let slow = Arc::<Leaf>::default();
    let rates = Rates { short: 1.0, ..Rates::default() };
    let short = Arc::new(Faulty::new(slow.clone(), 1, rates));
    let tiered = through(vec![tier("fast", Arc::<Leaf>::default(), LOCAL), tier("slow", short, REMOTE)]);
    let (key, bytes) = content(LARGE, 10);
    slow.set(&key, &bytes);
    assert!(read(&tiered, &key).await.is_err());
    assert!(slow.holds(&key).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn absence_is_an_answer_only_when_everybody_was_asked() {
    let Pair { fast, slow, tiered } = pair();
    let (key, bytes) = content(SMALL, 11);
    assert!(read(&tiered, &key).await.unwrap().is_none());
    slow.shut(true);
    assert_eq!(read(&tiered, &key).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(tiered.missing(std::slice::from_ref(&key)).await.unwrap_err().kind(), Kind::Unavailable);
    fast.set(&key, &bytes);
    assert!(read(&tiered, &key).await.unwrap().unwrap() == bytes);
    slow.shut(false);
    fast.shut(true);
    slow.set(&key, &bytes);
    assert!(read(&tiered, &key).await.unwrap().unwrap() == bytes);
    assert!(!is_missing(&tiered, &key).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_never_replaces_a_newer_result() {
    let Pair { fast, slow, tiered } = pair();
    let key = Key::Asset([1; 32]);
    let (old, new) = (Bytes::from_static(b"old"), Bytes::from_static(b"new"));
    for _ in 0..50 {
        slow.set(&key, &old);
        fast.evict(&Pins::default(), |_| true);
        let put = tiered.put(&key, Blob::Whole(new.clone()));
        let (put, _) = tokio::join!(put, read(&tiered, &key));
        put.unwrap();
        assert_eq!(read(&tiered, &key).await.unwrap().unwrap(), new);
        assert_eq!((fast.holds(&key).unwrap(), slow.holds(&key).unwrap()), (new.clone(), new.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_is_what_any_tier_knows_and_unknown_only_when_all_were_asked() {
    let Pair { fast, slow, tiered } = pair();
    let (Key::Blob(digest), bytes) = content(SMALL, 40) else { unreachable!() };
    let ask = async || tiered.size_of(Function::Sha256, digest.hash()).await;
    assert_eq!(ask().await.unwrap(), None);
    slow.set(&Key::Blob(digest), &bytes);
    assert_eq!(ask().await.unwrap(), Some(SMALL as u64));
    fast.shut(true);
    assert_eq!(ask().await.unwrap(), Some(SMALL as u64));
    slow.shut(true);
    assert_eq!(ask().await.unwrap_err().kind(), Kind::Unavailable);
    fast.shut(false);
    assert_eq!(ask().await.unwrap_err().kind(), Kind::Unavailable);
    fast.set(&Key::Blob(digest), &bytes);
    assert_eq!(ask().await.unwrap(), Some(SMALL as u64));
}
