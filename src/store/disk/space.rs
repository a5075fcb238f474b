//! How many bytes the store has, may have, and could get.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FallocateFlags;

use super::ledger::Totals;
use crate::error::{Context, Error, Kind, Result};
use crate::metrics::{self, Gauge};

/// Above the high mark, in percent of the limit, blobs are evicted until the low mark.
const HIGH_PERCENT: u64 = 97;
const LOW_PERCENT: u64 = 92;

/// What is always left free on the file system, because the index takes a full disk badly: a 32nd of it, within bounds.
const FLOOR_MIN: u64 = 2 * 1024 * 1024;
const FLOOR_MAX: u64 = 64 * 1024 * 1024;

/// The part of that floor that is kept as a file, to be given up.
const RESERVE_PART: u64 = 4;

/// The bytes in use and on their way, against the limit and against the file system.
pub(super) struct Space {
    directory: PathBuf,
    size_gauge: Gauge,
    limit: u64,
    floor: u64,
    used: AtomicU64,
    /// What the index's file has beyond what its entries count for: it never shrinks.
    growth: AtomicU64,
    /// What is kept beside blobs and index to be looked at: damaged blobs and indexes. The reserve is a part of the floor.
    kept: AtomicU64,
    in_flight: AtomicU64,
}

/// Bytes that are on their way to the disk.
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Space {
    /// `tier` is the label of the metrics.
    pub(super) fn new(directory: &Path, limit: u64, tier: &str) -> Result<Self> {
        metrics::STORE_MAX.with_label_values(&[tier]).set(gauge(limit));
        let size_gauge = metrics::STORE_SIZE.with_label_values(&[tier]);
        let (used, growth, kept, in_flight) = Default::default();
        let floor = (file_system(directory)?.total / 32).clamp(FLOOR_MIN, FLOOR_MAX);
        Ok(Self { directory: directory.to_owned(), size_gauge, limit, floor, used, growth, kept, in_flight })
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether `size` bytes would fit if all that is stored went.
    pub(super) fn could_hold(&self, size: u64) -> Result<bool> {
        let room = file_system(&self.directory)?.available.saturating_add(self.used());
        Ok(size.saturating_add(self.floor) <= room)
    }

    /// Announces `bytes` that will be written.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Reservation {
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        Reservation { space: Arc::clone(self), bytes }
    }

    /// Takes note of what is stored.
    pub(super) fn update(&self, totals: &Totals, index_bytes: u64) {
        self.used.store(totals.bytes(), Ordering::Relaxed);
        self.growth.store(index_bytes.saturating_sub(totals.inline), Ordering::Relaxed);
        let held = totals.files + index_bytes.max(totals.inline) + self.kept.load(Ordering::Relaxed);
        self.size_gauge.set(gauge(held));
    }

    /// Looks how much is kept beside blobs and index: some dozens of files at most.
    pub(super) fn measure_kept(&self) {
        let siblings = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let kept = siblings.map(|sibling| match sibling.file_name().to_str() {
            Some("quarantine") => allocated_within(&sibling.path()),
            Some(name) if name.starts_with("index.bad-") => allocated_within(&sibling.path()),
            Some(_) | None => 0,
        });
        self.kept.store(kept.sum(), Ordering::Relaxed);
    }

    /// The bytes to evict for what is in flight and `more`: 0 when all fits.
    pub(super) fn shortage(&self, more: u64) -> Result<u64> {
        let coming = self.in_flight.load(Ordering::Relaxed).saturating_add(more);
        let over = self.used().saturating_add(coming).saturating_sub(self.effective_limit());
        Ok(over.max(self.shortage_of_disk(coming)?))
    }

    /// The bytes that the file system is short of for `coming`.
    pub(super) fn shortage_of_disk(&self, coming: u64) -> Result<u64> {
        let available = file_system(&self.directory)?.available;
        Ok(coming.saturating_add(self.floor).saturating_sub(available))
    }

    /// # Errors
    /// `Exhausted` when what is in flight does not fit.
    pub(super) fn check(&self) -> Result<()> {
        if self.shortage_of_disk(self.in_flight.load(Ordering::Relaxed))? > 0 {
            return Err(full());
        }
        if self.shortage(0)? > 0 {
            return Err(Error::new(Kind::Exhausted, "the store is full of what is being written"));
        }
        Ok(())
    }

    pub(super) fn is_above_high(&self) -> bool {
        self.used() > self.effective_limit() / 100 * HIGH_PERCENT
    }

    pub(super) fn above_low(&self) -> u64 {
        self.used().saturating_sub(self.effective_limit() / 100 * LOW_PERCENT)
    }

    /// Keeps a file that can be given up when the disk is full, so that there is room to put the index right and to evict.
    pub(super) fn keep_reserve(&self) {
        let path = self.reserve_path();
        if path.exists() || self.shortage_of_disk(self.floor).map_or(true, |shortage| shortage > 0) {
            return;
        }
        let kept = File::create(path).map_err(Error::from).and_then(|file| {
            Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.floor / RESERVE_PART)?)
        });
        if let Err(error) = kept {
            tracing::debug!("no reserve is kept: {}", error.chain());
            let _ = self.give_up_reserve();
        }
    }

    pub(super) fn give_up_reserve(&self) -> Result<()> {
        match fs::remove_file(self.reserve_path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::from(error).context("give up the reserve"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn reserve_path(&self) -> PathBuf {
        self.directory.join("reserve")
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The index's growth counts, and so does what is kept, but evicting everything would not make that smaller: half is always
    /// for blobs.
    fn effective_limit(&self) -> u64 {
        let others = self.growth.load(Ordering::Relaxed) + self.kept.load(Ordering::Relaxed);
        self.limit.saturating_sub(others).max(self.limit / 2)
    }
}

impl Reservation {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Announces more, up to `bytes` in all.
    pub(super) fn grow_to(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.bytes);
        self.space.in_flight.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The size of a store that nobody chose: half of what is available on the file system of `directory`, in bytes.
///
/// # Errors
/// When the file system cannot be asked.
pub fn default_size(directory: &Path) -> Result<u64> {
    Ok(file_system(directory)?.available / 2)
}

/// No room was to be had on the file system.
pub(super) fn full() -> Error {
    Error::new(Kind::Exhausted, "the disk is full")
}

/// The bytes that a file takes from the disk; none if it is gone.
fn allocated(entry: &fs::DirEntry) -> u64 {
    entry.metadata().map_or(0, |metadata| 512 * metadata.blocks())
}

fn allocated_within(folder: &Path) -> u64 {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| allocated(&entry)).sum()
}

struct FileSystem {
    available: u64,
    total: u64,
}

fn file_system(directory: &Path) -> Result<FileSystem> {
    let status = rustix::fs::statvfs(directory).context(|| "ask the file system for its free space")?;
    let bytes = |blocks: u64| blocks.saturating_mul(status.f_frsize);
    Ok(FileSystem { available: bytes(status.f_bavail), total: bytes(status.f_blocks) })
}

fn gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
