//! What all runs of one kind come to, in a few figures that forget slowly.

use std::time::Duration;

use super::{Expectation, Run};

/// A new run counts for at least one part in this many of the usual time: what the sources were long ago matters little.
const USUAL_WEIGHT: u32 = 8;
/// Up to this many runs, the longest is the best guess at what one in twenty exceeds; beyond it, the guess is steered.
const LONG_EXACT_RUNS: u32 = 20;
/// How far one run moves the guess up, and down. They balance where one run in twenty is above the guess: then 19 steps down
/// undo one step up.
const LONG_UP: f64 = 1.25;
const LONG_DOWN: f64 = 0.988_325; // 1.25^(-1/19)
/// A peak that is not reached again loses one part in this many of what it has too much.
const PEAK_DECAY: u64 = 16;
/// A command that ran for less has used too little processor time to divide.
const WALL_MIN: Duration = Duration::from_millis(10);

/// Times in milliseconds, which in 32 bits is seven weeks.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Successful runs only.
    runs: u32,
    usual_ms: u32,
    long_ms: u32,
    cores_milli: u32,
    memory_kib: u32,
}

impl Past {
    pub(super) fn learn(&mut self, run: &Run) {
        self.runs = self.runs.saturating_add(1);
        self.usual_ms = blend(self.usual_ms, milliseconds(run.wall), self.runs);
        self.long_ms = self.longer(milliseconds(run.span));
        if let Some(cpu) = run.cpu {
            let cores = cpu.as_secs_f64() / run.wall.max(WALL_MIN).as_secs_f64();
            let weight = if self.cores_milli == 0 { 1 } else { self.runs };
            // At least one thousandth, because 0 means that nothing is known.
            self.cores_milli = blend(self.cores_milli, (cores * 1000.0).ceil() as u32, weight).max(1);
        }
        if run.memory_bytes > 0 {
            let kib = run.memory_bytes.div_ceil(1024);
            self.memory_kib = u32::try_from(peak(u64::from(self.memory_kib), kib)).unwrap_or(u32::MAX);
        }
    }

    /// A run would have taken longer than `wall`.
    pub(super) fn learn_timeout(&mut self, wall: Duration) {
        self.long_ms = self.long_ms.max(milliseconds(wall));
    }

    pub(super) fn expectation(&self) -> Option<Expectation> {
        (self.runs > 0).then(|| Expectation {
            runs: self.runs,
            usual: Duration::from_millis(self.usual_ms.into()),
            long: Duration::from_millis(self.long_ms.into()),
            cores_milli: self.cores_milli,
            memory_bytes: u64::from(self.memory_kib) * 1024,
        })
    }

    /// What about one run in twenty exceeds, after one that took `span_ms`.
    fn longer(&self, span_ms: u32) -> u32 {
        if self.runs <= LONG_EXACT_RUNS {
            return self.long_ms.max(span_ms);
        }
        let long = f64::from(self.long_ms);
        if span_ms > self.long_ms {
            // At least one more, or a guess of a millisecond would never rise.
            return ((long * LONG_UP) as u32).max(self.long_ms.saturating_add(1));
        }
        span_ms.max((long * LONG_DOWN) as u32)
    }
}

/// The mean of the first few values, then one in which older ones count less and less.
fn blend(old: u32, new: u32, count: u32) -> u32 {
    let weight = f64::from(count.clamp(1, USUAL_WEIGHT));
    let blended = f64::from(old) + (f64::from(new) - f64::from(old)) / weight;
    blended.round() as u32
}

/// The largest value, in which older ones count less and less.
fn peak(old: u64, new: u64) -> u64 {
    new.max(old - old.saturating_sub(new) / PEAK_DECAY)
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: u64) -> Run {
        let time = Duration::from_secs(seconds);
        Run { wall: time, span: time, cpu: Some(time * 3), memory_bytes: seconds << 20 }
    }

    fn past(seconds: impl IntoIterator<Item = u64>) -> Expectation {
        let mut past = Past::default();
        for seconds in seconds {
            past.learn(&run(seconds));
        }
        past.expectation().unwrap()
    }

    /// The numbers from 1 to `n` in an order that looks like chance.
    fn mixed(n: u64) -> impl Iterator<Item = u64> {
        // 7919 is a prime above all `n` here, so every number comes once.
        (1..=n).map(move |i| (i * 7919) % n + 1)
    }

    #[test]
    fn the_first_runs_are_averaged_and_the_longest_of_them_is_long() {
        let past = past([10, 20, 60]);
        assert_eq!((past.runs, past.usual, past.long), (3, Duration::from_secs(30), Duration::from_secs(60)));
        assert_eq!((past.cores_milli, past.memory_bytes), (3000, 60 << 20));
    }

    #[test]
    fn what_is_long_is_exceeded_by_about_one_run_in_twenty() {
        for n in [100, 1000, 5000] {
            let long = past(mixed(n)).long.as_secs();
            assert!((n * 85 / 100..=n * 120 / 100).contains(&long), "of 1 to {n}, {long} is long");
        }
        let mut past = Past::default();
        let mut above = 0;
        for seconds in mixed(5000) {
            above += u32::from(past.long_ms < milliseconds(run(seconds).span));
            past.learn(&run(seconds));
        }
        assert!((150..=350).contains(&above), "{above} of 5000 runs were longer than long");
    }

    #[test]
    fn one_outlier_makes_nothing_long_for_ever() {
        let quick = std::iter::repeat_n(10, 100);
        let long = past(quick.clone().chain([10_000])).long;
        assert!(long <= Duration::from_secs(13), "{long:?}");
        let early = past([10_000].into_iter().chain(std::iter::repeat_n(10, 1000))).long;
        assert_eq!(early, Duration::from_secs(10));
    }

    #[test]
    fn a_command_that_became_slower_is_expected_to_be_slow() {
        let past = past(std::iter::repeat_n(10, 100).chain(std::iter::repeat_n(100, 20)));
        assert!(
            past.usual > Duration::from_secs(90) && (100..125).contains(&past.long.as_secs()),
            "{past:?}"
        );
    }

    #[test]
    fn a_peak_of_memory_is_forgotten_slowly() {
        let peak = |runs| past([1000].into_iter().chain(std::iter::repeat_n(100, runs))).memory_bytes >> 20;
        assert_eq!(peak(0), 1000);
        assert!((900..1000).contains(&peak(1)), "{}", peak(1));
        assert!((100..110).contains(&peak(100)), "{}", peak(100));
    }

    #[test]
    fn a_timeout_lengthens_and_is_no_run() {
        let mut past = Past::default();
        past.learn_timeout(Duration::from_secs(50));
        assert_eq!(past.expectation(), None);
        past.learn(&run(10));
        let expected = past.expectation().unwrap();
        assert_eq!((expected.runs, expected.usual), (1, Duration::from_secs(10)));
        assert_eq!(expected.long, Duration::from_secs(50));
    }

    #[test]
    fn runs_of_no_time_and_runs_of_all_time_hold() {
        let nothing =
            Run { wall: Duration::ZERO, span: Duration::ZERO, cpu: Some(Duration::ZERO), memory_bytes: 1 };
        let all = Run {
            wall: Duration::MAX,
            span: Duration::MAX,
            cpu: Some(Duration::MAX),
            memory_bytes: u64::MAX,
        };
        let mut past = Past::default();
        for run in std::iter::repeat_n([nothing, all], 50).flatten() {
            past.learn(&run);
        }
        assert_eq!(past.expectation().unwrap().runs, 100);
    }

    #[test]
    fn usage_that_nobody_told_stays_unknown() {
        let silent = Run { cpu: None, memory_bytes: 0, ..run(10) };
        let mut past = Past::default();
        past.learn(&silent);
        let expected = past.expectation().unwrap();
        assert_eq!((expected.cores_milli, expected.memory_bytes), (0, 0));
        past.learn(&run(10));
        assert_eq!(past.expectation().unwrap().cores_milli, 3000);
    }
}
