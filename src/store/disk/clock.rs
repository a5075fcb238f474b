//! The time as the disk notes it: in minutes, which take four bytes in an index of millions of entries.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// Minutes since 1970, and what a test adds.
#[derive(Default)]
pub(super) struct Clock {
    pub(super) ahead: AtomicU32,
}

impl Clock {
    pub(super) fn minute(&self) -> u32 {
        minutes(SystemTime::now()) + self.ahead.load(Ordering::Relaxed)
    }
}

/// Minutes since 1970; they overflow in the year 10136.
pub(super) fn minutes(time: SystemTime) -> u32 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs() / 60).unwrap_or(u32::MAX)
}
