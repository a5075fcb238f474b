//! Tests of leases and pins: what must stay, and what happens when everything must.

use tempfile::TempDir;

use super::tests::{MIB, content, digest, eventually, is_there, is_there_unmarked, put, temporary_files};
use super::*;
use crate::metrics;
use std::fs;

/// Room for about thirty blobs of a MiB.
const SIZE: u64 = 32 * MIB as u64;

fn open(directory: &TempDir, tier: &str, lease: Duration, pins: &Pins) -> Disk {
    let options = Options { name: tier.to_owned(), lease, pins: pins.clone(), ..Options::new(SIZE) };
    Disk::open(directory.path(), options).unwrap()
}

fn pass(disk: &Disk, minutes: u32) {
    disk.shared.clock.ahead.fetch_add(minutes, Ordering::Relaxed);
}

#[tokio::test]
async fn what_was_reported_present_outlives_its_elders_and_a_broken_lease_is_counted() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "leases", Duration::from_secs(3600), &Pins::default());
    let breaks = || metrics::LEASE_BREAKS.with_label_values(&["leases"]).get();
    let mut keys = Vec::new();
    for seed in 0..20 {
        keys.push(put(&disk, MIB, seed).await);
    }
    pass(&disk, 50);
    assert!(disk.missing(&keys[..5]).await.unwrap().is_empty());
    pass(&disk, 30);
    for seed in 20..40 {
        put(&disk, MIB, seed).await;
    }
    assert_eq!(breaks(), 0);
    assert!(keys[..5].iter().all(|key| is_there_unmarked(&disk, key)));
    assert!(!is_there_unmarked(&disk, &keys[5]));
    let evicted = metrics::EVICTIONS.with_label_values(&["leases"]).get();
    let bytes = metrics::EVICTED_BYTES.with_label_values(&["leases"]).get();
    assert!(evicted >= 8 && bytes >= evicted * MIB as u64, "{evicted} blobs, {bytes} bytes");
    for seed in 40..60 {
        put(&disk, MIB, seed).await;
    }
    assert!(breaks() > 0, "all that is left has a lease");
}

#[tokio::test]
async fn when_leases_must_be_broken_what_was_just_used_goes_last() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "breaks", Duration::from_secs(3600), &Pins::default());
    let first = put(&disk, MIB, 0).await;
    for seed in 1..28 {
        put(&disk, MIB, seed).await;
    }
    pass(&disk, 20);
    assert!(is_there(&disk, &first).await);
    for seed in 28..50 {
        put(&disk, MIB, seed).await;
        assert!(is_there_unmarked(&disk, &first), "after {seed}");
    }
}

#[tokio::test]
async fn a_lease_outlives_an_orderly_restart() {
    let directory = TempDir::new().unwrap();
    let lease = Duration::from_secs(2 * 3600);
    let disk = open(&directory, "restart", lease, &Pins::default());
    let used = put(&disk, MIB, 0).await;
    let unused = put(&disk, MIB, 1).await;
    pass(&disk, 90);
    assert!(disk.missing(std::slice::from_ref(&used)).await.unwrap().is_empty());
    drop(disk);
    let disk = open(&directory, "restart", lease, &Pins::default());
    pass(&disk, 90 + 60);
    for seed in 2..50 {
        put(&disk, MIB, seed).await;
        if !is_there_unmarked(&disk, &unused) {
            break;
        }
    }
    assert!(!is_there_unmarked(&disk, &unused));
    assert!(is_there_unmarked(&disk, &used));
    assert_eq!(metrics::LEASE_BREAKS.with_label_values(&["restart"]).get(), 0);
}

#[tokio::test]
async fn what_is_pinned_stays_however_much_comes() {
    let directory = TempDir::new().unwrap();
    let pins = Pins::default();
    let disk = open(&directory, "pins", Duration::ZERO, &pins);
    let mut keys = Vec::new();
    for seed in 0..10 {
        keys.push(put(&disk, if seed % 2 == 0 { MIB } else { 100 }, seed).await);
    }
    let pinned = pins.pin(&keys);
    for seed in 10..80 {
        put(&disk, MIB, seed).await;
        pass(&disk, if seed % 3 == 0 { 20 } else { 0 });
    }
    assert!(keys.iter().all(|key| is_there_unmarked(&disk, key)));
    drop(pinned);
    pass(&disk, 60);
    for seed in 100..160 {
        put(&disk, MIB, seed).await;
    }
    assert!(!keys.iter().any(|key| is_there_unmarked(&disk, key)));
}

#[tokio::test]
async fn a_store_full_of_what_is_pinned_refuses_and_recovers() {
    let directory = TempDir::new().unwrap();
    let pins = Pins::default();
    let disk = open(&directory, "full", Duration::ZERO, &pins);
    let (mut pinned, mut keys) = (Vec::new(), Vec::new());
    let try_put = async |size: usize, seed: u64| {
        let bytes = content(size, seed);
        disk.put(&Key::Blob(digest(&bytes)), Blob::Whole(bytes)).await
    };
    let refusal = loop {
        let seed = keys.len() as u64;
        let key = Key::Blob(digest(&content(MIB, seed)));
        pinned.push(pins.pin([&key]));
        match try_put(MIB, seed).await {
            Ok(()) => keys.push(key),
            Err(error) => break error,
        }
        assert!(keys.len() < 40, "the bound does not hold");
    };
    assert_eq!(refusal.kind(), Kind::Exhausted);
    assert_eq!(refusal.to_string(), "the store is full of what is pinned");
    for seed in 100..120 {
        assert_eq!(try_put(MIB, seed).await.unwrap_err().kind(), Kind::Exhausted);
    }
    assert!(disk.missing(&keys).await.unwrap().is_empty());
    pinned.clear();
    eventually("room", async || try_put(MIB, 200).await.is_ok()).await;
}

/// What the metric says is what the directory takes, within a tenth: small blobs, files, and half of all evicted.
#[tokio::test(flavor = "multi_thread")]
async fn the_accounted_bytes_are_those_on_the_disk() {
    let directory = TempDir::new().unwrap();
    let options = Options { name: "accounted".to_owned(), ..Options::new(128 * MIB as u64) };
    let disk = Disk::open(directory.path(), options).unwrap();
    let compare = |when: &str| {
        let accounted = crate::metrics::STORE_SIZE.with_label_values(&["accounted"]).get();
        let taken = taken_from_disk(directory.path());
        println!("{when}: {accounted} bytes accounted, {taken} on the disk");
        let difference = taken.abs_diff(accounted.unsigned_abs());
        assert!(difference * 10 <= taken, "{when}: {accounted} accounted, {taken} on the disk");
    };
    for batch in 0..20 {
        let blobs = (0..1000).map(|seed| content(1024, batch * 1000 + seed));
        let blobs = blobs.map(|bytes| (Key::Blob(digest(&bytes)), bytes)).collect();
        disk.put_all(blobs).await.into_iter().for_each(Result::unwrap);
    }
    compare("inlined");
    for seed in 0..50 {
        put(&disk, MIB + 100 * seed as usize, 100_000 + seed).await;
    }
    compare("with files");
    disk.shared.clock.ahead.store(60, Ordering::Relaxed);
    for seed in 0..100 {
        put(&disk, MIB + 100 * seed as usize, 200_000 + seed).await;
    }
    eventually("the end of the deletions", async || temporary_files(&directory) == 0).await;
    assert!(disk.shared.ledger.totals().unwrap().bytes() < 128 * MIB as u64);
    compare("after evictions");
}

/// As `du` counts, without the reserve, which is free space that is kept.
fn taken_from_disk(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut folders = vec![directory.to_owned()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.file_name() != "reserve") {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += 512 * metadata.blocks();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}

#[tokio::test]
async fn what_is_kept_to_be_looked_at_counts() {
    let directory = TempDir::new().unwrap();
    for folder in ["quarantine", "index.bad-1"] {
        fs::create_dir_all(directory.path().join(folder)).unwrap();
        fs::write(directory.path().join(folder).join("kept"), content(MIB, 1)).unwrap();
    }
    let disk = open(&directory, "kept", Duration::ZERO, &Pins::default());
    put(&disk, 100, 1).await;
    eventually("the account", async || {
        crate::metrics::STORE_SIZE.with_label_values(&["kept"]).get() >= 2 * MIB as i64
    })
    .await;
    drop(disk);
}
