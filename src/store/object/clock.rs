//! The time of day, which a test can move.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// Seconds since 1970. All clones are one clock.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    /// Seconds that it is ahead of the system's; zero outside tests.
    ahead: Arc<AtomicU64>,
}

impl Clock {
    pub(super) fn now(&self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since_1970.map_or(0, |time| time.as_secs()) + self.ahead.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn advance_days(&self, days: u64) {
        self.ahead.fetch_add(days * 24 * 3600, Ordering::Relaxed);
    }
}
