//! What the writer said, and what must therefore be there.

use std::collections::HashMap;

use super::super::*;
use super::load::Put;

/// A blob must be there as long as less than this was put after it: the store's index may take half of its limit, and what is
/// evicted goes in the order of the puts.
const KEPT_BYTES: u64 = super::SIZE / 2 * 92 / 100 - IN_FLIGHT_BYTES;

/// What was put at the same time as a blob, and may count as put after it.
const IN_FLIGHT_BYTES: u64 = 8 << 20;

/// Blobs of earlier rounds that are looked at; they may be evicted, but not wrong.
const SAMPLE: usize = 40;

#[derive(Default)]
pub(super) struct Book {
    /// Bytes that all puts so far take, acknowledged or not.
    begun_bytes: u64,
    /// What `begun_bytes` was when a put that is not acknowledged began.
    begun: HashMap<Put, u64>,
    blobs: Vec<(Put, u64)>,
    /// By slot.
    results: HashMap<u64, (Put, u64)>,
    slowest_open: Duration,
    checked: usize,
    evicted: usize,
}

impl Book {
    /// Takes note of a line; tells whether it acknowledges a put.
    pub(super) fn note(&mut self, line: &str) -> bool {
        let put = |prefix| line.strip_prefix(prefix).and_then(Put::parse);
        if let Some(put) = put("begin ") {
            self.begun.insert(put, self.begun_bytes);
            self.begun_bytes += charge(put.content().len() as u64);
        }
        let Some(put) = put("done ") else { return false };
        let position = self.begun.remove(&put).expect("what is done was begun");
        match put {
            Put::Blob { .. } => self.blobs.push((put, position)),
            Put::Result { slot, .. } => drop(self.results.insert(slot, (put, position))),
        }
        true
    }

    fn is_kept(&self, position: u64) -> bool {
        self.begun_bytes - position < KEPT_BYTES
    }

    /// Opens the store after a crash, and looks for all that must be there and some that may.
    pub(super) async fn check(&mut self, directory: &Path, options: Options) {
        let directory = directory.join("cas");
        let start = std::time::Instant::now();
        let disk = Disk::open(&directory, options).unwrap();
        self.slowest_open = self.slowest_open.max(start.elapsed());
        assert_eq!(fs::read_dir(directory.join("tmp")).unwrap().count(), 0, "temporary files are left");
        assert!(!directory.join("index.bad-1").exists(), "the index was damaged");
        let first_kept = self.blobs.partition_point(|(_, position)| !self.is_kept(*position));
        let step = (first_kept / SAMPLE).max(1);
        for number in (0..first_kept).step_by(step).chain(first_kept..self.blobs.len()) {
            self.check_blob(&disk, self.blobs[number]).await;
        }
        for (put, position) in self.results.clone().into_values() {
            self.check_result(&disk, put, position).await;
        }
        self.begun.clear();
        // The looks of this test must not change the order of eviction.
        disk.shared.marks.forget_all();
    }

    async fn check_blob(&mut self, disk: &Disk, (put, position): (Put, u64)) {
        let content = put.content();
        self.checked += 1;
        match read(disk, &put.key(&content)).await {
            Some(read) => assert!(read == content, "{put} has other content"),
            None => self.may_be_evicted(put, position),
        }
    }

    /// The version that was acknowledged last, or one that was begun after it.
    async fn check_result(&mut self, disk: &Disk, put: Put, position: u64) {
        self.checked += 1;
        let Some(read) = read(disk, &put.key(&[])).await else { return self.may_be_evicted(put, position) };
        let found = Put::of_result(&read);
        assert!(read == found.content(), "{found} has other content");
        if found != put {
            let position = self.begun.get(&found).copied();
            let position = position.unwrap_or_else(|| panic!("{put} was acknowledged, but {found} is there"));
            let Put::Result { slot, .. } = found else { unreachable!("it is a result") };
            self.results.insert(slot, (found, position));
        }
    }

    fn may_be_evicted(&mut self, put: Put, position: u64) {
        assert!(!self.is_kept(position), "{put} of {} bytes is lost", put.content().len());
        self.evicted += 1;
    }

    pub(super) fn report(&self, what: &str, rounds: u32) {
        println!(
            "{rounds} {what}: {} blobs acknowledged, {} looks, of them {} at what was evicted, slowest reopen {:?}",
            self.blobs.len(),
            self.checked,
            self.evicted,
            self.slowest_open
        );
        assert!(self.evicted > 0, "the test must evict to be worth it");
    }
}

async fn read(disk: &Disk, key: &Key) -> Option<Bytes> {
    let is_missing = !disk.missing(std::slice::from_ref(key)).await.unwrap().is_empty();
    let blob = disk.get(key, 0..).await.unwrap();
    assert_eq!(blob.is_none(), is_missing, "{key:?}: what is reported present is there");
    Some(blob?.into_bytes(super::SIZE).await.unwrap())
}

/// What the store counts for a blob, at most.
fn charge(size: u64) -> u64 {
    128 + if size > INLINE_MAX { size.next_multiple_of(4096) } else { 2 * size }
}
