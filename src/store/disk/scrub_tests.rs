//! Tests of the scrub: what it finds, puts right and leaves alone, and who may have one.

use std::fs;

use tempfile::TempDir;

use super::scrub::{Order, Scrubber};
use super::tests::{MIB, SIZE, content, digest, eventually, path_of, put};
use super::*;
use crate::metrics;

/// A store that knows its files.
async fn open(directory: &TempDir, tier: &str) -> Disk {
    let options = Options { name: tier.to_owned(), ..Options::new(SIZE) };
    let disk = Disk::open(directory.path(), options).unwrap();
    eventually("the end of the rebuilding", async || !disk.shared.is_rebuilding.load(Ordering::Acquire))
        .await;
    disk
}

fn quarantined(directory: &TempDir) -> usize {
    fs::read_dir(directory.path().join("quarantine")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_what_is_damaged_lost_or_left_over_and_puts_it_right() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "scrub").await;
    let mut sound = vec![put(&disk, 100, 1).await, put(&disk, MIB, 2).await];
    // The disk believes what it is told, so wrong bytes are easily had.
    let damaged = [(100, 3), (10_000, 4)].map(|(size, seed)| (Key::Blob(digest(&content(size, seed))), size));
    for (key, size) in &damaged {
        disk.put(key, Blob::Whole(content(*size, 99))).await.unwrap();
    }
    let lost = put(&disk, 20_000, 5).await;
    fs::remove_file(path_of(&disk, &lost)).unwrap();
    let stray = Key::Blob(digest(&content(30_000, 6)));
    fs::create_dir_all(path_of(&disk, &stray).parent().unwrap()).unwrap();
    fs::write(path_of(&disk, &stray), content(30_000, 6)).unwrap();
    fs::write(directory.path().join("tmp/4711"), "left over").unwrap();
    disk.put(&Key::Asset([1; 32]), Blob::Whole(content(9000, 7))).await.unwrap();

    let report = disk.scrub(None).await.unwrap();
    let findings = (report.damaged, report.lost, report.adopted, report.removed_temporary);
    assert_eq!(findings, (2, 1, 1, 1), "{report:?}");
    assert_eq!(report.blobs, 6);
    assert_eq!(quarantined(&directory), 2);
    let counted = |finding| metrics::SCRUB_FINDINGS.with_label_values(&["scrub", finding]).get();
    assert_eq!(["damaged", "lost", "adopted", "temporary"].map(counted), [2, 1, 1, 1]);
    sound.extend([stray, Key::Asset([1; 32])]);
    assert!(disk.missing(&sound).await.unwrap().is_empty());
    let gone = [damaged[0].0.clone(), damaged[1].0.clone(), lost];
    assert_eq!(disk.missing(&gone).await.unwrap(), gone);

    let again = disk.scrub(None).await.unwrap();
    let nothing = ScrubReport { blobs: 4, bytes: again.bytes, seconds: again.seconds, ..Default::default() };
    assert_eq!(again, nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_file_with_wrong_bytes_is_not_taken_up() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "stray").await;
    let stray = Key::Blob(digest(&content(30_000, 6)));
    fs::create_dir_all(path_of(&disk, &stray).parent().unwrap()).unwrap();
    fs::write(path_of(&disk, &stray), content(30_000, 7)).unwrap();
    let report = disk.scrub(None).await.unwrap();
    assert_eq!((report.adopted, report.damaged), (0, 1));
    assert!(!path_of(&disk, &stray).exists() && quarantined(&directory) == 1);
    assert_eq!(disk.missing(std::slice::from_ref(&stray)).await.unwrap(), [stray]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_blob_is_scrubbed_by_its_content() {
    let directory = TempDir::new().unwrap();
    let options = Options { compression: true, ..Options::new(1 << 30) };
    let disk = Disk::open(directory.path(), options).unwrap();
    let mut keys = Vec::new();
    for seed in 0..2_u8 {
        let text = Bytes::from([b'a' + seed, b'b', b'\n'].repeat(1 << 20));
        keys.push(Key::Blob(digest(&text)));
        disk.put(&keys[usize::from(seed)], Blob::Whole(text)).await.unwrap();
    }
    assert_eq!(disk.scrub(None).await.unwrap().damaged, 0);
    let path = disk.shared.files.path(&Name::from(&keys[0]), files::Form::Compressed);
    let mut stored = fs::read(&path).unwrap();
    stored[100] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, stored).unwrap();
    assert_eq!(disk.scrub(None).await.unwrap().damaged, 1);
    assert!(!path.exists() && quarantined(&directory) == 1);
    assert_eq!(disk.missing(&keys).await.unwrap(), [keys[0].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_was_put_again_is_not_withdrawn_for_its_damaged_copy() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "again").await;
    let key = put(&disk, 10_000, 1).await;
    let name = Name::from(&key);
    let entry = disk.shared.ledger.entry(&name).unwrap().unwrap();
    let form = files::Form::Plain;
    let file = Some((form, disk.shared.files.inode(&name, form)));
    // Held open, so that its inode is not given out again.
    let old = fs::File::open(path_of(&disk, &key)).unwrap();
    disk.remove(&key).await.unwrap();
    put(&disk, 10_000, 1).await;
    let damaged = Box::new(healing::Damaged { name, entry: Some(entry), file });
    let is_withdrawn = disk.ask(|done| Request::Withdraw { damaged, done }).await.unwrap().unwrap();
    assert!(!is_withdrawn && disk.missing(&[key]).await.unwrap().is_empty());
    drop(old);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_under_way_is_no_leftover() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "upload").await;
    let mut temporary = disk.shared.files.create().unwrap();
    temporary.write(&[content(10_000, 1)]).unwrap();
    assert_eq!(disk.scrub(None).await.unwrap().removed_temporary, 0);
    temporary.finish().unwrap();
    let key = Key::Blob(digest(&content(10_000, 1)));
    disk.publish(Name::from(&key), temporary).await.unwrap();
    assert!(disk.missing(&[key]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_scrub_at_a_time_and_one_that_is_dropped_makes_room() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "one").await;
    for seed in 0..3 {
        put(&disk, 100, seed).await;
    }
    {
        let mut slow = std::pin::pin!(disk.scrub(Some(1)));
        assert!(futures_util::poll!(&mut slow).is_pending());
        eventually("the refusal", async || {
            disk.scrub(None).await.err().is_some_and(|error| error.kind() == Kind::Unavailable)
        })
        .await;
        assert!(futures_util::poll!(&mut slow).is_pending());
    }
    eventually("the end of the dropped one", async || disk.scrub(None).await.is_ok()).await;
    let mut slow = std::pin::pin!(disk.scrub(Some(1)));
    assert!(futures_util::poll!(&mut slow).is_pending());
    // Dropping the store at the end does not wait for a scrub that nobody waits for.
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_in_the_background_gives_way_to_an_order_goes_on_and_is_not_repeated() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "background").await;
    for seed in 0..300 {
        put(&disk, 10, seed).await;
    }
    let note = || disk.shared.ledger.scrub_note().unwrap();
    let pass = |rate: u64, order: Option<Order>| {
        let (orders, received) = blocking::sync_channel(1);
        let options = Options { name: "background".into(), scrub_rate: rate, ..Options::new(SIZE) };
        let scrubber = Scrubber::new(disk.shared(), received, &options);
        order.into_iter().for_each(|order| orders.try_send(order).unwrap());
        tasks::blocking(move || {
            let interrupting = scrubber.scrub_in_the_background();
            drop(orders);
            Ok(interrupting.is_some())
        })
    };
    let (done, _answer) = oneshot::channel();
    assert!(pass(1, Some(Order { rate: None, done })).await.unwrap());
    assert_eq!(note(), None);
    assert!(!pass(u64::MAX, None).await.unwrap());
    eventually("the note", async || note().is_some()).await;
    let ended = note();
    assert!(!pass(1, None).await.unwrap(), "a pass that is not due is not begun");
    assert_eq!(note(), ended);
}

/// A crash may leave a file of the form that a blob had before.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_form_than_the_entrys_is_removed_and_the_blob_stays() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "forms").await;
    let (blob, result) = (put(&disk, 10_000, 1).await, Key::Asset([1; 32]));
    disk.put(&result, Blob::Whole(content(100, 2))).await.unwrap();
    let frames = |bytes| compressed::Packer::compressing().unwrap().pack(vec![bytes], true).unwrap().concat();
    let other = disk.shared.files.path(&Name::from(&blob), files::Form::Compressed);
    fs::write(&other, frames(Bytes::from(vec![7; 10_000]))).unwrap();
    let old = path_of(&disk, &result);
    fs::create_dir_all(old.parent().unwrap()).unwrap();
    fs::write(&old, content(9_000, 3)).unwrap();
    let report = disk.scrub(None).await.unwrap();
    assert_eq!((report.removed_temporary, report.adopted, report.damaged, report.lost), (2, 0, 0, 0));
    assert!(!other.exists() && !old.exists() && path_of(&disk, &blob).exists());
    assert!(disk.missing(&[blob, result]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_does_not_come_back_from_a_file_that_the_index_does_not_know() {
    let directory = TempDir::new().unwrap();
    let disk = open(&directory, "removed").await;
    let result = Key::Asset([1; 32]);
    let stray = path_of(&disk, &result);
    fs::create_dir_all(stray.parent().unwrap()).unwrap();
    fs::write(&stray, content(9_000, 3)).unwrap();
    disk.remove(&result).await.unwrap();
    assert_eq!(disk.scrub(None).await.unwrap().adopted, 0);
    assert_eq!(disk.missing(std::slice::from_ref(&result)).await.unwrap(), [result]);
}
