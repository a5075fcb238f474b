//! Whether a remote part is worth a call: after a failure it is left alone for a while, then one call may try it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a part is left alone after its first failure; doubled by each that follows, up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// When another call may try, should the one that tries never tell how it went (its caller may have dropped it).
const PROBE_MAX: Duration = Duration::from_secs(5);

/// What is known of a remote part. All calls of one process share it, so that only one of them waits for a part that is gone.
#[derive(Debug, Default)]
pub(super) struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Up,
    /// No call until then.
    Down { until: Instant, pause: Duration },
    /// One call is trying.
    Probing { until: Instant, pause: Duration },
}

impl Health {
    /// Whether a call may be made. Whoever is admitted tells how it went.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match *state {
            State::Up => true,
            State::Down { until, .. } | State::Probing { until, .. } if now < until => false,
            State::Down { pause, .. } | State::Probing { pause, .. } => {
                *state = State::Probing { until: now + PROBE_MAX, pause };
                true
            }
        }
    }

    /// Whether the last that was heard of the part was good.
    pub(super) fn is_up(&self) -> bool {
        *self.lock() == State::Up
    }

    pub(super) fn succeeded(&self) {
        *self.lock() = State::Up;
    }

    /// Of many calls that fail together only the first counts.
    pub(super) fn failed(&self, now: Instant) {
        let mut state = self.lock();
        let pause = match *state {
            State::Up => PAUSE_MIN,
            State::Down { .. } => return,
            State::Probing { pause, .. } => (pause * 2).min(PAUSE_MAX),
        };
        *state = State::Down { until: now + pause, pause };
    }

    /// A state is one value, so a poisoned lock is as good as a clean one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_failed_is_tried_by_one_call_after_a_pause_that_grows() {
        let (health, mut now) = (Health::default(), Instant::now());
        health.failed(now);
        health.failed(now);
        let mut pause = PAUSE_MIN;
        for _ in 0..10 {
            assert!(!health.admits(now + pause - Duration::from_millis(1)));
            now += pause;
            assert!(health.admits(now), "one call probes");
            assert!(!health.admits(now), "the others wait for what it finds");
            health.failed(now);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        now += pause;
        assert!(health.admits(now) && !health.is_up());
        health.succeeded();
        assert!(health.admits(now) && health.admits(now) && health.is_up());
    }

    #[test]
    fn a_probe_that_is_never_heard_of_again_does_not_bar_the_next() {
        let (health, now) = (Health::default(), Instant::now());
        health.failed(now);
        assert!(health.admits(now + PAUSE_MIN));
        assert!(health.admits(now + PAUSE_MIN + PROBE_MAX));
    }
}
