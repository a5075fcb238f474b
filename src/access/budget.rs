//! How often something may happen: a store of turns that fills up again with time.

use std::time::{Duration, Instant};

/// Turns that may be taken.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    turns_max: u32,
    /// The time in which one turn comes back.
    interval: Duration,
    turns: u32,
    counted: Instant,
}

impl Budget {
    /// A full one.
    pub(super) fn new(turns_max: u32, interval: Duration, now: Instant) -> Self {
        Self { turns_max, interval, turns: turns_max, counted: now }
    }

    /// Whether there was a turn, which is taken then.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let is_left = self.turns > 0;
        self.turns = self.turns.saturating_sub(1);
        is_left
    }

    /// A turn that was taken and is not counted after all.
    pub(super) fn give_back(&mut self) {
        self.turns = (self.turns + 1).min(self.turns_max);
    }

    /// Whether it is as good as new.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.turns == self.turns_max
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted);
        let back = u32::try_from(passed.as_nanos() / self.interval.as_nanos().max(1)).unwrap_or(u32::MAX);
        self.turns = self.turns.saturating_add(back).min(self.turns_max);
        self.counted += self.interval.checked_mul(back).map_or(passed, |whole| whole.min(passed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_back_one_by_one() {
        let start = Instant::now();
        let mut budget = Budget::new(2, Duration::from_secs(10), start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!([0, 0, 0].map(|second| budget.take(at(second))), [true, true, false]);
        assert!(!budget.is_full(at(10)));
        assert_eq!([10, 10, 19, 20].map(|second| budget.take(at(second))), [true, false, false, true]);
        assert!(budget.is_full(at(3600)));
        assert_eq!([3600, 3600, 3600].map(|second| budget.take(at(second))), [true, true, false]);
    }
}
