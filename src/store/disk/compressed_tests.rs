//! A disk that compresses, as a whole.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::files::Form;
use super::tests::*;
use super::*;

fn compressing() -> Options {
    Options { compression: true, ..Options::new(SIZE) }
}

/// Puts 2 MiB that compress well.
async fn put_text(disk: &Disk, seed: u8) -> (Key, Bytes) {
    let bytes = Bytes::from(format!("{seed} and so on, ").repeat(2 * MIB / 14));
    let key = Key::Blob(digest(&bytes));
    disk.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
    (key, bytes)
}

#[tokio::test]
async fn what_compresses_takes_less_and_is_accounted_as_what_it_takes() {
    let directory = TempDir::new().unwrap();
    let disk = Disk::open(directory.path(), compressing()).unwrap();
    put_text(&disk, 1).await;
    let compressed = disk.shared.ledger.totals().unwrap().files;
    assert!(compressed < 64 * 1024, "{compressed}");
    put(&disk, 2 * MIB, 2).await;
    let noise = disk.shared.ledger.totals().unwrap().files - compressed;
    assert!(noise >= 2 * MIB as u64 && noise < 2 * MIB as u64 + 1024, "{noise}");
    assert!(disk.shared.ledger.totals().unwrap().files.abs_diff(bytes_on_disk(&directory)) < 16 * 1024);
}

#[tokio::test]
async fn both_forms_are_read_whatever_is_configured() {
    let directory = TempDir::new().unwrap();
    let mut blobs = Vec::new();
    for (seed, options) in (1..).zip([compressing(), Options::new(SIZE), compressing(), Options::new(SIZE)]) {
        let disk = Disk::open(directory.path(), options).unwrap();
        blobs.push(put_text(&disk, seed).await);
        for (key, bytes) in &blobs {
            let read = disk.get(key, 1_500_000..).await.unwrap().unwrap().into_bytes(SIZE).await.unwrap();
            assert!(read == bytes.slice(1_500_000..));
        }
    }
}

#[tokio::test]
async fn a_rebuilt_index_knows_the_size_of_compressed_content() {
    let directory = TempDir::new().unwrap();
    let disk = Disk::open(directory.path(), compressing()).unwrap();
    let (key, bytes) = put_text(&disk, 1).await;
    let before = disk.shared.ledger.entry(&Name::from(&key)).unwrap().unwrap().location;
    drop(disk);
    fs::remove_dir_all(directory.path().join("index")).unwrap();
    let disk = Disk::open(directory.path(), Options::new(SIZE)).unwrap();
    let keys = std::slice::from_ref(&key);
    eventually("the rebuilding", async || disk.missing(keys).await.unwrap().is_empty()).await;
    assert_eq!(disk.shared.ledger.entry(&Name::from(&key)).unwrap().unwrap().location, before);
    let read = disk.get(&key, 0..).await.unwrap().unwrap().into_bytes(SIZE).await.unwrap();
    assert!(read == bytes);
}

#[tokio::test]
async fn a_result_that_changes_its_form_leaves_no_file_behind() {
    let directory = TempDir::new().unwrap();
    let key = Key::Asset([1; 32]);
    for round in 0..6 {
        let disk = Disk::open(directory.path(), compressing()).unwrap();
        let bytes = if round % 2 == 0 { content(100_000, round) } else { Bytes::from(vec![7; 100_000]) };
        disk.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
        let read = disk.get(&key, 0..).await.unwrap().unwrap().into_bytes(SIZE).await.unwrap();
        assert!(read == bytes);
        let folder = directory.path().join("assets/01");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "round {round}");
    }
}

#[tokio::test]
async fn a_damaged_frame_is_told_and_never_served() {
    let directory = TempDir::new().unwrap();
    let disk = Disk::open(directory.path(), compressing()).unwrap();
    let (key, bytes) = put_text(&disk, 1).await;
    let path = disk.shared.files.path(&Name::from(&key), Form::Compressed);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut damaged = fs::read(&path).unwrap();
    damaged[20] ^= 1;
    fs::write(&path, damaged).unwrap();
    let blob = disk.get(&key, 0..).await.unwrap().unwrap();
    assert_eq!(blob.into_bytes(SIZE).await.unwrap_err().kind(), Kind::Corrupt);
    let read = disk.get(&key, MIB as u64..).await.unwrap().unwrap().into_bytes(SIZE).await.unwrap();
    assert!(read == bytes.slice(MIB..), "the other frames are whole");
}
