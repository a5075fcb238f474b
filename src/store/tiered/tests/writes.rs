//! Writes: where a blob is when it is acknowledged, and what a journal is worth.

use super::*;

struct Farm {
    cache: Arc<Leaf>,
    disk: Arc<Leaf>,
    slow: Arc<Leaf>,
    pins: Pins,
    directory: TempDir,
}

impl Farm {
    fn new() -> Self {
        let (cache, disk, slow) = Default::default();
        Self { cache, disk, slow, pins: Pins::default(), directory: TempDir::new().unwrap() }
    }

    fn tiers(&self) -> Vec<Tier> {
        vec![
            tier("cache", self.cache.clone(), CACHE),
            tier("disk", self.disk.clone(), LOCAL),
            tier("slow", self.slow.clone(), REMOTE),
        ]
    }

    fn through(&self) -> Tiered {
        through(self.tiers())
    }

    fn back(&self) -> Tiered {
        back(self.tiers(), &self.directory.path().join("journal"), &self.pins)
    }
}

fn pending(tiered: &Tiered) -> usize {
    tiered.shared.journal.as_ref().unwrap().pending().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn written_through_means_in_every_durable_tier() {
    let farm = Farm::new();
    let tiered = farm.through();
    for size in [100, 500_000, 3_000_000] {
        let (key, bytes) = content(size, size as u64);
        tiered.put(&key, streamed(&bytes)).await.unwrap();
        assert!(
            [&farm.disk, &farm.slow].iter().all(|leaf| leaf.holds(&key) == Some(bytes.clone())),
            "{size}"
        );
        farm.slow.shut(true);
        let (key, bytes) = content(size, size as u64 + 1);
        assert_eq!(tiered.put(&key, streamed(&bytes)).await.unwrap_err().kind(), Kind::Unavailable, "{size}");
        farm.slow.shut(false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_down_fails_no_write() {
    let farm = Farm::new();
    let tiered = farm.through();
    farm.cache.shut(true);
    let (key, bytes) = content(1000, 1);
    tiered.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
    tiered.put(&Key::Asset([1; 32]), Blob::Whole(bytes.clone())).await.unwrap();
    assert!(read(&tiered, &key).await.unwrap().unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_fails_blob_by_blob() {
    let farm = Farm::new();
    let small = Traits { blob_max: 1000, ..REMOTE };
    let tiered = through(vec![tier("small", farm.slow.clone(), small)]);
    let batch: Vec<_> = [(500, 1), (2000, 2), (800, 3)].map(|(size, seed)| content(size, seed)).to_vec();
    let results = tiered.put_all(batch).await;
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(results[1].as_ref().unwrap_err().kind(), Kind::Exhausted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_the_disk_cannot_hold_goes_past_it() {
    let farm = Farm::new();
    let small = Traits { blob_max: 1000, ..LOCAL };
    let tiers = vec![tier("disk", farm.disk.clone(), small), tier("slow", farm.slow.clone(), REMOTE)];
    let tiered = through(tiers);
    for size in [2000, 3_000_000] {
        let (key, bytes) = content(size, 1);
        tiered.put(&key, streamed(&bytes)).await.unwrap();
        assert!(farm.disk.holds(&key).is_none() && farm.slow.holds(&key).is_some());
        assert!(!is_missing(&tiered, &key).await.unwrap());
        assert!(read(&tiered, &key).await.unwrap().unwrap() == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_fast_tier_has_is_brought_down_before_it_is_present() {
    let farm = Farm::new();
    let tiered = farm.through();
    for size in [100, 3_000_000] {
        let (key, bytes) = content(size, 1);
        farm.disk.set(&key, &bytes);
        assert!(!is_missing(&tiered, &key).await.unwrap());
        assert!(farm.slow.holds(&key).unwrap() == bytes);
    }
    let (key, bytes) = content(100, 2);
    farm.cache.set(&key, &bytes);
    assert!(is_missing(&tiered, &key).await.unwrap(), "a cache promises nothing");
    let (key, bytes) = content(100, 3);
    farm.slow.set(&key, &bytes);
    assert!(!is_missing(&tiered, &key).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn written_back_arrives_later_and_stays_pinned_until_then() {
    let farm = Farm::new();
    let tiered = farm.back();
    farm.slow.shut(true);
    let blobs = [100, 500_000, 3_000_000].map(|size| content(size, size as u64));
    for (key, bytes) in &blobs {
        tiered.put(key, streamed(bytes)).await.unwrap();
        assert!(!is_missing(&tiered, key).await.unwrap(), "pending is present");
    }
    tiered.put(&Key::Asset([1; 32]), Blob::Whole(Bytes::from_static(b"result"))).await.unwrap();
    assert_eq!(pending(&tiered), 4);
    farm.disk.evict(&farm.pins, |_| true);
    assert!(blobs.iter().all(|(key, _)| farm.disk.holds(key).is_some()));
    farm.slow.shut(false);
    tiered.drain(WAIT_MAX).await;
    assert_eq!(pending(&tiered), 0);
    assert!(blobs.iter().all(|(key, bytes)| farm.slow.holds(key) == Some(bytes.clone())));
    assert_eq!(farm.slow.holds(&Key::Asset([1; 32])).unwrap(), "result");
    farm.disk.evict(&farm.pins, |_| true);
    assert!(blobs.iter().all(|(key, _)| farm.disk.holds(key).is_none()), "nothing is pinned any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pending_survives_a_crash() {
    let farm = Farm::new();
    farm.slow.shut(true);
    let tiered = farm.back();
    let blobs: Vec<_> = (0..300).map(|seed| content(700, seed)).collect();
    assert!(tiered.put_all(blobs.clone()).await.iter().all(Result::is_ok));
    crash(tiered).await;
    let tiered = farm.back();
    assert_eq!(pending(&tiered), 300);
    farm.disk.evict(&farm.pins, |_| true);
    farm.slow.shut(false);
    tiered.drain(WAIT_MAX).await;
    assert!(blobs.iter().all(|(key, bytes)| farm.slow.holds(key) == Some(bytes.clone())));
    crash(tiered).await;
    assert_eq!(pending(&farm.back()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_at_its_deadline() {
    let farm = Farm::new();
    farm.slow.shut(true);
    let tiered = farm.back();
    let (key, bytes) = content(100, 1);
    tiered.put(&key, Blob::Whole(bytes)).await.unwrap();
    tiered.drain(Duration::from_millis(50)).await;
    assert_eq!(pending(&tiered), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_queue_s_bound_writes_go_through() {
    let farm = Farm::new();
    let journal = farm.directory.path().join("journal");
    let write_back = WriteBack { journal: &journal, bytes_max: 1000 };
    let tiered = Tiered::open(farm.tiers(), Some(write_back), farm.pins.clone(), PATIENCE).unwrap();
    for size in [2000, 3_000_000] {
        let (key, bytes) = content(size, 1);
        tiered.put(&key, streamed(&bytes)).await.unwrap();
        assert!(farm.slow.holds(&key).is_some(), "{size}");
    }
    assert_eq!(pending(&tiered), 0);
    farm.slow.shut(true);
    let (key, bytes) = content(2000, 2);
    assert_eq!(tiered.put(&key, Blob::Whole(bytes)).await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_write_whose_blob_is_gone_is_given_up() {
    let farm = Farm::new();
    farm.slow.shut(true);
    let tiered = farm.back();
    let (key, bytes) = content(2000, 1);
    tiered.put(&key, Blob::Whole(bytes)).await.unwrap();
    for leaf in [&farm.cache, &farm.disk] {
        leaf.evict(&Pins::default(), |_| true);
    }
    farm.slow.shut(false);
    until("it is given up", || pending(&tiered) == 0).await;
    assert!(is_missing(&tiered, &key).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_result_is_what_arrives() {
    let farm = Farm::new();
    let tiered = farm.back();
    let key = Key::Asset([1; 32]);
    for number in 0..200_u32 {
        tiered.put(&key, Blob::Whole(Bytes::from(number.to_string()))).await.unwrap();
    }
    tiered.drain(WAIT_MAX).await;
    assert_eq!(farm.slow.holds(&key).unwrap(), "199");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_is_gone_everywhere() {
    let farm = Farm::new();
    for tiered in [farm.through(), farm.back()] {
        farm.slow.shut(true);
        let (blob, result) = (content(2000, 1), (Key::Asset([1; 32]), Bytes::from_static(b"result")));
        for (key, bytes) in [&blob, &result] {
            let _ = tiered.put(key, Blob::Whole(bytes.clone())).await;
        }
        farm.slow.shut(false);
        for (key, _) in [&blob, &result] {
            tiered.remove(key).await.unwrap();
            assert!(read(&tiered, key).await.unwrap().is_none());
        }
        tiered.drain(WAIT_MAX).await;
        assert!(
            [&farm.cache, &farm.disk, &farm.slow].iter().all(|leaf| leaf.blobs.lock().unwrap().is_empty())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_during_its_upload_does_not_come_back_for_a_moment() {
    for (key, bytes) in [content(2000, 1), (Key::Asset([1; 32]), Bytes::from_static(b"result"))] {
        let farm = Farm::new();
        let tiered = farm.back();
        farm.slow.hold_puts(true);
        tiered.put(&key, Blob::Whole(bytes)).await.unwrap();
        until("its upload is under way", || farm.slow.puts_waiting() == 1).await;
        let mut removed = std::pin::pin!(tiered.remove(&key));
        // An upload that arrived after the removal would be found, and promised, until it is removed in its turn.
        assert!(futures_util::poll!(&mut removed).is_pending());
        farm.slow.hold_puts(false);
        removed.await.unwrap();
        assert_eq!((pending(&tiered), farm.slow.holds(&key)), (0, None));
        assert!(read(&tiered, &key).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pending_is_not_present_when_the_tier_that_should_have_it_cannot_tell() {
    let farm = Farm::new();
    farm.slow.shut(true);
    let tiered = farm.back();
    let (key, bytes) = content(2000, 1);
    tiered.put(&key, Blob::Whole(bytes)).await.unwrap();
    crash(tiered).await;
    // A crash before the journal forgot a write leaves its record behind, of a blob that was removed.
    for leaf in [&farm.cache, &farm.disk] {
        leaf.evict(&Pins::default(), |_| true);
    }
    let tiered = farm.back();
    farm.disk.shut(true);
    for is_slow_shut in [true, false] {
        farm.slow.shut(is_slow_shut);
        assert_eq!(is_missing(&tiered, &key).await.unwrap_err().kind(), Kind::Unavailable);
    }
    farm.disk.shut(false);
    assert!(is_missing(&tiered, &key).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_below_is_not_uncovered_above() {
    let farm = Farm::new();
    let tiered = farm.back();
    let key = Key::Asset([1; 32]);
    let arrives = async |value: &str| {
        until("a value arrives", || farm.slow.holds(&key).is_some_and(|held| held == value)).await;
    };
    tiered.put(&key, Blob::Whole(Bytes::from_static(b"old"))).await.unwrap();
    arrives("old").await;
    farm.slow.shut(true);
    tiered.put(&key, Blob::Whole(Bytes::from_static(b"new"))).await.unwrap();
    assert!(tiered.remove(&key).await.is_err());
    farm.slow.shut(false);
    assert_eq!(read(&tiered, &key).await.unwrap().unwrap(), "new");
    arrives("new").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_tier_of_record_is_down_only_what_is_pending_is_present() {
    let farm = Farm::new();
    let tiered = farm.back();
    farm.slow.shut(true);
    let (key, bytes) = content(2000, 1);
    tiered.put(&key, Blob::Whole(bytes)).await.unwrap();
    assert!(!is_missing(&tiered, &key).await.unwrap());
    let (other, bytes) = content(2000, 2);
    farm.disk.set(&other, &bytes);
    assert_eq!(is_missing(&tiered, &other).await.unwrap_err().kind(), Kind::Unavailable);
}
