//! A gauge of how long ago something began, which is right at each scrape although nobody sets it meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use prometheus::IntGauge;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

/// In the place of a moment: there is nothing that began.
const NOTHING: u64 = u64::MAX;

/// Seconds since something began; 0 while there is nothing. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Age {
    gauge: IntGauge,
    since: Arc<AtomicU64>,
}

impl Age {
    pub(super) fn new(gauge: IntGauge) -> Self {
        Self { gauge, since: Arc::new(AtomicU64::new(NOTHING)) }
    }

    /// Says when it began, in seconds since 1970; `None` when there is nothing.
    pub fn set_since(&self, since: Option<u64>) {
        self.since.store(since.unwrap_or(NOTHING), Ordering::Relaxed);
    }

    fn seconds(&self, now: u64) -> i64 {
        match self.since.load(Ordering::Relaxed) {
            NOTHING => 0,
            since => i64::try_from(now.saturating_sub(since)).unwrap_or(i64::MAX),
        }
    }
}

impl Collector for Age {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.gauge.set(self.seconds(now.as_secs()));
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age() -> Age {
        Age::new(IntGauge::new("age", "an age").unwrap())
    }

    #[test]
    fn an_age_grows_until_nothing_is_left() {
        let age = age();
        assert_eq!(age.seconds(1_000), 0);
        age.set_since(Some(900));
        assert_eq!((age.seconds(1_000), age.seconds(1_080)), (100, 180));
        assert_eq!(age.seconds(800), 0, "the clock was put back");
        age.set_since(None);
        assert_eq!(age.seconds(2_000), 0);
    }

    #[test]
    fn each_look_at_it_is_of_its_own_moment() {
        let age = age();
        age.set_since(Some(1));
        let shown = age.collect()[0].get_metric()[0].get_gauge().get_value();
        assert!(shown > 1_700_000_000.0, "{shown}");
    }
}
