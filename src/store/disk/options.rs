//! What a store on disk is told.

use std::time::Duration;

use crate::store::Pins;

/// The shortest lease: a client that asks what is missing uploads that first and then needs the rest.
pub(super) const LEASE_MINUTES_MIN: u32 = 5;

/// Bytes per second that a scrub in the background reads: a tenth of a slow disk, and 200 GB in three hours.
const SCRUB_RATE: u64 = 20 * 1000 * 1000;

/// What a store on disk is told.
#[derive(Clone)]
pub struct Options {
    /// The label in metrics.
    pub name: String,
    /// The bytes that it may take on the disk.
    pub size_bytes: u64,
    /// How long a blob stays that was put, read or reported present, unless a write would have to be refused otherwise. At least
    /// some minutes. A kill of the process loses the uses of the last minutes, and so at most this much of a lease.
    pub lease: Duration,
    /// Whether blobs are compressed where that saves space.
    pub compression: bool,
    /// What is not evicted at all.
    pub pins: Pins,
    /// Bytes per second that are verified in the background; 0 for no scrub in the background.
    pub scrub_rate: u64,
}

impl Options {
    /// At most `size_bytes`, the shortest lease, nothing compressed, nothing pinned.
    pub fn new(size_bytes: u64) -> Self {
        Self {
            name: "disk".to_owned(),
            size_bytes,
            lease: Duration::ZERO,
            compression: false,
            pins: Pins::default(),
            scrub_rate: SCRUB_RATE,
        }
    }

    pub(super) fn lease_minutes(&self) -> u32 {
        // A lease of 8,000 years is one for ever.
        u32::try_from(self.lease.as_secs().div_ceil(60)).unwrap_or(u32::MAX / 2).max(LEASE_MINUTES_MIN)
    }
}
