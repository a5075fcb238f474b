//! Tests of what only a disk has: crashes, damage, a bound in bytes, another process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::files::Form;
use super::*;
use crate::digest::{Digest, Function};

pub(super) const SIZE: u64 = 1 << 30;
pub(super) const MIB: usize = 1 << 20;

/// How long a test waits for what happens in the background.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn content(size: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    Bytes::from(bytes)
}

pub(super) fn digest(bytes: &Bytes) -> Digest {
    Function::Sha256.hash(bytes)
}

pub(super) async fn put(disk: &Disk, size: usize, seed: u64) -> Key {
    let bytes = content(size, seed);
    let key = Key::Blob(digest(&bytes));
    disk.put(&key, Blob::Whole(bytes)).await.unwrap();
    key
}

pub(super) async fn is_there(disk: &Disk, key: &Key) -> bool {
    disk.get(key, 0..).await.unwrap().is_some()
}

pub(super) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what} did not come true");
        sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn path_of(disk: &Disk, key: &Key) -> PathBuf {
    disk.shared.files.path(&Name::from(key), Form::Plain)
}

pub(super) fn temporary_files(directory: &TempDir) -> usize {
    fs::read_dir(directory.path().join("tmp")).unwrap().count()
}

/// A store with two blobs in files and one in the index, closed.
pub(super) async fn used() -> (TempDir, [Key; 3]) {
    let directory = TempDir::new().unwrap();
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    let keys = [put(&disk, 10_000, 1).await, put(&disk, 2 * MIB, 2).await, put(&disk, 100, 3).await];
    (directory, keys)
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_the_next_start() {
    let (directory, keys) = used().await;
    fs::write(directory.path().join("tmp/stale"), "left by a crash").unwrap();
    for _ in 0..3 {
        let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
        assert!(disk.missing(&keys).await.unwrap().is_empty());
        assert_eq!(temporary_files(&directory), 0);
        for (key, (size, seed)) in keys.iter().zip([(10_000, 1), (2 * MIB, 2), (100, 3)]) {
            let blob = disk.get(key, 0..).await.unwrap().unwrap();
            assert!(blob.into_bytes(SIZE).await.unwrap() == content(size, seed));
        }
    }
}

#[tokio::test]
async fn files_are_read_only_and_lie_under_their_hash() {
    let (directory, keys) = used().await;
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    let Key::Blob(digest) = keys[0] else { unreachable!("a blob was put") };
    let hex = digest.hex();
    let path = directory.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    assert_eq!(path, path_of(&disk, &keys[0]));
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o444);
    assert!(!path_of(&disk, &keys[2]).exists());
}

#[tokio::test]
async fn a_second_open_says_who_has_the_directory() {
    let directory = TempDir::new().unwrap();
    let first = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    let error = Disk::open(directory.path(), Options::new(SIZE)).err().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    let pid = std::process::id();
    assert_eq!(error.to_string(), format!("the data directory is in use by another croft (pid {pid})"));
    drop(first);
    Disk::open(directory.path(), Options::new(SIZE)).unwrap();
}

#[tokio::test]
async fn a_file_that_was_deleted_or_cut_is_absent_and_can_be_put_again() {
    let (directory, [cut, deleted, _]) = used().await;
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    fs::remove_file(path_of(&disk, &deleted)).unwrap();
    fs::set_permissions(path_of(&disk, &cut), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path_of(&disk, &cut), "short").unwrap();
    for key in [&cut, &deleted] {
        assert!(!is_there(&disk, key).await);
    }
    eventually("the healing", async || {
        disk.missing(&[cut.clone(), deleted.clone()]).await.unwrap().len() == 2
    })
    .await;
    put(&disk, 10_000, 1).await;
    put(&disk, 2 * MIB, 2).await;
    assert!(is_there(&disk, &cut).await && is_there(&disk, &deleted).await);
}

/// A link to itself stands for a medium that fails.
#[tokio::test]
async fn a_blob_that_cannot_be_read_is_not_absent() {
    let (directory, [unreadable, ..]) = used().await;
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    let path = path_of(&disk, &unreadable);
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    disk.get(&unreadable, 0..).await.err().unwrap();
    assert!(is_there_unmarked(&disk, &unreadable));
}

#[tokio::test]
async fn an_inlined_blob_that_is_damaged_is_gone_after_the_read_that_finds_it() {
    let directory = TempDir::new().unwrap();
    let disk = Arc::new(Disk::open(directory.path(), Options::new(SIZE)).unwrap());
    let key = Key::Blob(digest(&content(100, 1)));
    disk.put(&key, Blob::Whole(content(100, 2))).await.unwrap();
    let error = crate::store::Verified::new(disk.clone()).get(&key, 0..).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(disk.missing(std::slice::from_ref(&key)).await.unwrap(), [key]);
}

/// A commit is held between visible and durable.
#[tokio::test(flavor = "multi_thread")]
async fn presence_is_told_only_when_a_crash_cannot_undo_it() {
    let directory = TempDir::new().unwrap();
    let disk = Arc::new(Disk::open(directory.path(), Options::new(SIZE)).unwrap());
    eventually("the end of the rebuilding", async || !disk.shared.is_rebuilding.load(Ordering::Acquire))
        .await;
    for size in [100, 10_000] {
        let (release, held) = blocking::channel::<()>();
        disk.shared.ledger.before_sync(Some(Box::new(move || {
            let _ = held.recv_timeout(PATIENCE);
            Ok(())
        })));
        let bytes = content(size as usize, 1);
        let key = Key::Blob(digest(&bytes));
        let (putting, wanted) = (Arc::clone(&disk), key.clone());
        let put = tasks::spawn("put", async move { putting.put(&wanted, Blob::Whole(bytes)).await });
        eventually("the entry", async || is_there(&disk, &key).await).await;
        assert_eq!(disk.missing(std::slice::from_ref(&key)).await.unwrap(), std::slice::from_ref(&key));
        assert!(!disk.shared.is_present(&Name::from(&key), size).unwrap());
        assert!(!put.is_finished());
        let (asking, wanted) = (Arc::clone(&disk), key.clone());
        let asked = tasks::spawn("ask", async move { asking.missing(&[wanted]).await });
        drop(release);
        put.await.unwrap().unwrap();
        assert!(asked.await.unwrap().unwrap().is_empty());
        assert_eq!(disk.shared.is_present(&Name::from(&key), size).unwrap(), size > INLINE_MAX);
    }
}

/// A sync fails once. What comes after it must not make its names look durable.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_commit_brought_stays_absent_until_the_index_is_open_again() {
    let directory = TempDir::new().unwrap();
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    eventually("the end of the rebuilding", async || !disk.shared.is_rebuilding.load(Ordering::Acquire))
        .await;
    let mut is_first = true;
    disk.shared.ledger.before_sync(Some(Box::new(move || match std::mem::take(&mut is_first) {
        true => Err(Error::new(Kind::Unavailable, "the disk failed")),
        false => Ok(()),
    })));
    let failed = [content(100, 1), content(10_000, 2)];
    let keys = failed.each_ref().map(|bytes| Key::Blob(digest(bytes)));
    let error = disk.put(&keys[0], Blob::Whole(failed[0].clone())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    for _ in 0..3 {
        let error = disk.put(&keys[1], Blob::Whole(failed[1].clone())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert_eq!(disk.missing(&keys).await.unwrap(), keys);
    }
    eventually("the repair", async || disk.put(&keys[1], Blob::Whole(failed[1].clone())).await.is_ok()).await;
    disk.put(&keys[0], Blob::Whole(failed[0].clone())).await.unwrap();
    assert!(disk.missing(&keys).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_put_heals_what_nobody_has_read_since() {
    let (directory, [_, deleted, _]) = used().await;
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    fs::remove_file(path_of(&disk, &deleted)).unwrap();
    put(&disk, 2 * MIB, 2).await;
    assert!(is_there(&disk, &deleted).await);
}

/// Damages the index, opens the store, and expects the files to be found again.
async fn rebuilds_after(damage: impl FnOnce(&Path)) {
    let (directory, keys) = used().await;
    damage(&directory.path().join("index"));
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    eventually("the rebuilding", async || disk.missing(&keys).await.unwrap() == keys[2..]).await;
    let totals = disk.shared.ledger.totals().unwrap();
    assert!(totals.files >= (2 * MIB + 10_000) as u64 && totals.inline == 0, "{totals:?}");
    put(&disk, 100, 3).await;
    drop(disk);
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    assert!(disk.missing(&keys).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_index_of_noise_is_moved_aside_and_rebuilt() {
    rebuilds_after(|index| fs::write(index.join("db"), content(3 * MIB, 9)).unwrap()).await;
}

#[tokio::test]
async fn an_index_of_another_schema_is_moved_aside_and_rebuilt() {
    rebuilds_after(outdate).await;
}

/// Gives the index at `path` the schema of another version.
fn outdate(path: &Path) {
    let sled = sled::open(path).unwrap();
    sled.insert("mschema", "croft disk 0").unwrap();
    sled.flush().unwrap();
}

#[tokio::test]
async fn an_index_that_is_gone_is_rebuilt() {
    rebuilds_after(|index| fs::remove_dir_all(index).unwrap()).await;
}

#[tokio::test]
async fn an_index_that_is_no_directory_is_moved_aside() {
    rebuilds_after(|index| {
        fs::remove_dir_all(index).unwrap();
        fs::write(index, "not a directory").unwrap();
    })
    .await;
}

/// Files lie there and no index; the store is closed before they are all taken up.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilding_that_was_interrupted_goes_on_and_meanwhile_nothing_is_missing() {
    let directory = TempDir::new().unwrap();
    let mut keys = Vec::new();
    for seed in 0..1500 {
        let bytes = content(5000, seed);
        let name = Name::from(&Key::Blob(digest(&bytes)));
        let path = directory.path().join(name.path());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &bytes).unwrap();
        keys.push(Key::Blob(digest(&bytes)));
    }
    drop(Disk::open(directory.path(), Options::new(SIZE)).unwrap());
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    assert!(disk.shared.is_rebuilding.load(Ordering::Acquire), "it was not interrupted");
    assert!(is_there(&disk, &keys[1400]).await);
    let Key::Blob(last) = keys[1499] else { unreachable!("blobs were put") };
    assert_eq!(disk.size_of(last.function(), last.hash()).await.unwrap(), Some(5000));
    assert!(disk.missing(&keys).await.unwrap().is_empty());
    eventually("the end of the rebuilding", async || !disk.shared.is_rebuilding.load(Ordering::Acquire))
        .await;
    assert!(keys.iter().all(|key| is_there_unmarked(&disk, key)));
    drop(disk);
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    assert!(!disk.shared.is_rebuilding.load(Ordering::Acquire));
    assert!(disk.missing(&keys).await.unwrap().is_empty());
}

#[tokio::test]
async fn few_damaged_indexes_are_kept() {
    let directory = TempDir::new().unwrap();
    for _ in 0..4 {
        drop(Disk::open(directory.path(), Options::new(SIZE)).unwrap());
        outdate(&directory.path().join("index"));
    }
    drop(Disk::open(directory.path(), Options::new(SIZE)).unwrap());
    let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut bad: Vec<_> = names.filter(|name| name.to_string_lossy().contains(".bad-")).collect();
    bad.sort();
    assert_eq!(bad, ["index.bad-3", "index.bad-4"]);
}

/// The bytes that files really take.
pub(super) fn bytes_on_disk(directory: &TempDir) -> u64 {
    let mut folders = vec![directory.path().join("blobs"), directory.path().join("tmp")];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => bytes += metadata.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

#[tokio::test]
async fn the_least_recently_used_is_evicted_and_the_bound_holds() {
    let directory = TempDir::new().unwrap();
    let size = 32 * MIB as u64;
    let disk = Disk::open(directory.path(), Options::new(size)).unwrap();
    let first = put(&disk, MIB, 0).await;
    let second = put(&disk, MIB, 1).await;
    disk.shared.clock.ahead.fetch_add(20, Ordering::Relaxed);
    assert!(disk.missing(std::slice::from_ref(&first)).await.unwrap().is_empty());
    for seed in 2..100 {
        put(&disk, MIB, seed).await;
        disk.shared.clock.ahead.fetch_add(if seed < 35 { 0 } else { 6 }, Ordering::Relaxed);
        if seed < 40 {
            // What is used all the time stays, however old.
            assert!(is_there(&disk, &first).await, "after {seed}");
        }
    }
    assert!(!is_there(&disk, &second).await);
    eventually("the bound", async || bytes_on_disk(&directory) <= size).await;
    let account = || disk.shared.ledger.totals().unwrap().files;
    eventually("the account", async || account().abs_diff(bytes_on_disk(&directory)) < MIB as u64).await;
}

#[tokio::test]
async fn what_was_just_used_is_evicted_only_when_a_put_needs_it() {
    let directory = TempDir::new().unwrap();
    let disk = Disk::open(directory.path(), Options::new(32 * MIB as u64)).unwrap();
    for seed in 0..100 {
        put(&disk, MIB, seed).await;
    }
    let absent = disk.shared.missing(&[]).unwrap();
    assert!(absent.is_empty());
    assert!(bytes_on_disk(&directory) <= 32 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_takes_many_puts_at_the_same_time() {
    let directory = TempDir::new().unwrap();
    let disk = Disk::open(directory.path(), Options::new(32 * MIB as u64)).unwrap();
    let puts = stream::iter(0..240).map(|seed| put(&disk, if seed % 3 == 0 { MIB } else { 3_000 }, seed));
    let keys: Vec<Key> = puts.buffer_unordered(8).collect().await;
    assert!(is_there(&disk, keys.last().unwrap()).await);
    let account = || disk.shared.ledger.totals().unwrap().files;
    eventually("the account", async || account().abs_diff(bytes_on_disk(&directory)) < MIB as u64).await;
}

#[tokio::test]
async fn a_blob_larger_than_the_store_is_refused_before_it_is_read() {
    let directory = TempDir::new().unwrap();
    let disk = Disk::open(directory.path(), Options::new(32 * MIB as u64)).unwrap();
    let chunks = stream::once(async { panic!("a chunk was asked for") }).boxed();
    let blob = Blob::Stream { size: 5 << 30, chunks };
    let error =
        disk.put(&Key::Blob(Digest::new(Function::Sha256, &[1; 32], 5 << 30)), blob).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_read_again() {
    let (directory, keys) = used().await;
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    let chunks = stream::once(async { panic!("a chunk was asked for") }).boxed();
    disk.put(&keys[1], Blob::Stream { size: 2 * MIB as u64, chunks }).await.unwrap();
}

#[tokio::test]
async fn a_dropped_put_leaves_no_file() {
    let directory = TempDir::new().unwrap();
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    let bytes = content(3 * MIB, 1);
    let chunks = stream::iter([Ok(bytes.slice(..2 * MIB))]).chain(stream::pending()).boxed();
    let key = Key::Blob(digest(&bytes));
    let put = disk.put(&key, Blob::Stream { size: 3 * MIB as u64, chunks });
    tokio::select! {
        _ = put => unreachable!("the stream never ends"),
        () = eventually("the first write", async || temporary_files(&directory) > 0) => {}
    }
    eventually("the sweeping", async || temporary_files(&directory) == 0).await;
    assert_eq!(disk.shared.space.shortage(0).unwrap(), 0);
}

/// Uses are written down, so that they count after a restart.
#[tokio::test]
async fn the_order_of_use_survives_a_restart() {
    let directory = TempDir::new().unwrap();
    let size = 32 * MIB as u64;
    let disk = Disk::open(directory.path(), Options::new(size)).unwrap();
    let used = put(&disk, MIB, 0).await;
    let unused = put(&disk, MIB, 1).await;
    for seed in 2..8 {
        put(&disk, MIB, seed).await;
    }
    disk.shared.clock.ahead.fetch_add(60, Ordering::Relaxed);
    assert!(is_there(&disk, &used).await);
    drop(disk);
    let disk = Disk::open(directory.path(), Options::new(size)).unwrap();
    disk.shared.clock.ahead.fetch_add(120, Ordering::Relaxed);
    let mut seed = 8;
    while is_there_unmarked(&disk, &unused) {
        put(&disk, MIB, seed).await;
        seed += 1;
        assert!(seed < 200, "nothing is evicted");
    }
    assert!(is_there_unmarked(&disk, &used));
}

pub(super) fn is_there_unmarked(disk: &Disk, key: &Key) -> bool {
    disk.shared.ledger.entry(&Name::from(key)).unwrap().is_some()
}

/// Needs a small file system of its own: `mount -t tmpfs -o size=48m none DIRECTORY`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a small file system, named by CROFT_SMALL_DIRECTORY"]
async fn a_full_disk_refuses_new_blobs_and_keeps_serving() {
    let small = PathBuf::from(std::env::var("CROFT_SMALL_DIRECTORY").unwrap());
    let disk = Disk::open(&small.join("cas"), Options::new(SIZE)).unwrap();
    let kept = [put(&disk, 100, 1).await, put(&disk, MIB, 2).await];
    let hog = small.join("hog");
    let fill = || {
        let mut file = fs::File::options().create(true).append(true).open(&hog).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    };
    fill();
    for seed in 10..200 {
        let bytes = content(if seed % 2 == 0 { 1000 } else { 3 * MIB }, seed);
        if let Err(error) = disk.put(&Key::Blob(digest(&bytes)), Blob::Whole(bytes)).await {
            let kind = error.kind();
            assert!(matches!(kind, Kind::Exhausted | Kind::Unavailable), "{}", error.chain());
        }
        fill();
        disk.missing(&kept).await.unwrap();
    }
    fs::remove_file(hog).unwrap();
    for seed in 1000..1100 {
        put(&disk, if seed % 2 == 0 { 1000 } else { 3 * MIB }, seed).await;
    }
    drop(disk);
    let disk = Disk::open(&small.join("cas"), Options::new(SIZE)).unwrap();
    put(&disk, MIB, 5000).await;
    assert!(!small.join("cas/index.bad-1").exists());
}
