//! Hits and misses of the last minutes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time that a rate is about. Shorter, and one cold build looks like a broken cache; longer, and a broken cache is noticed late.
pub const WINDOW: Duration = Duration::from_secs(300);

/// The window moves in steps of this.
const STEP: Duration = Duration::from_secs(10);

/// The steps of one window, the one under way included.
const STEPS: usize = (WINDOW.as_secs() / STEP.as_secs()) as usize;

/// Counts of each step, in a ring.
#[derive(Debug, Default)]
struct Ring {
    steps: [Step; STEPS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Step {
    /// Which it is, counted from the start.
    number: u64,
    hits: u64,
    misses: u64,
}

impl Ring {
    fn count(&mut self, age: Duration, is_hit: bool) {
        let number = number(age);
        let step = &mut self.steps[(number % STEPS as u64) as usize];
        if step.number != number {
            *step = Step { number, ..Step::default() };
        }
        if is_hit {
            step.hits += 1;
        } else {
            step.misses += 1;
        }
    }

    fn rate(&self, age: Duration) -> Option<f64> {
        let now = number(age);
        let recent = self.steps.iter().filter(|step| now.saturating_sub(step.number) < STEPS as u64);
        let (hits, misses) =
            recent.fold((0, 0), |(hits, misses), step| (hits + step.hits, misses + step.misses));
        let reads = hits + misses;
        (reads > 0).then(|| hits as f64 / reads as f64)
    }
}

fn number(age: Duration) -> u64 {
    age.as_secs() / STEP.as_secs()
}

/// A ring and the clock that moves it.
#[derive(Debug)]
pub(super) struct Window {
    start: Instant,
    ring: Mutex<Ring>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), ring: Mutex::default() }
    }

    pub(super) fn count(&self, is_hit: bool) {
        let age = self.start.elapsed();
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).count(age, is_hit);
    }

    /// Hits by hits and misses, or `None` if there was neither.
    pub(super) fn rate(&self) -> Option<f64> {
        let age = self.start.elapsed();
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).rate(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn without_reads_there_is_no_rate() {
        assert_eq!(Ring::default().rate(at(0)), None);
        assert_eq!(Ring::default().rate(at(100_000)), None);
    }

    #[test]
    fn hits_are_divided_by_all_reads() {
        let mut ring = Ring::default();
        for (second, is_hit) in [(0, true), (9, true), (10, false), (200, true)] {
            ring.count(at(second), is_hit);
        }
        assert_eq!(ring.rate(at(200)), Some(0.75));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut ring = Ring::default();
        ring.count(at(5), false);
        ring.count(at(295), true);
        assert_eq!(ring.rate(at(299)), Some(0.5));
        assert_eq!(ring.rate(at(300)), Some(1.0));
        assert_eq!(ring.rate(at(600)), None);
    }

    #[test]
    fn a_step_of_the_ring_is_used_again() {
        let mut ring = Ring::default();
        for second in 0..10 * WINDOW.as_secs() {
            ring.count(at(second), second % 2 == 0);
        }
        assert_eq!(ring.rate(at(10 * WINDOW.as_secs() - 1)), Some(0.5));
        let counted: u64 = ring.steps.iter().map(|step| step.hits + step.misses).sum();
        assert_eq!(counted, WINDOW.as_secs());
    }
}
