//! How the tests of an invocation went, each counted once, however many runs, shards and attempts it has.

use std::collections::BTreeMap;

use super::event::TestStatus;
use super::told::{ROWS_MAX, TargetName};

/// Bytes of what is known of a test beside its name: a verdict, and its place in the tree.
const VERDICT_BYTES: usize = 120;

/// How many tests there are and how they went.
#[derive(Debug, Clone, Default)]
pub struct Verdicts {
    /// Those for which there was room.
    known: BTreeMap<TargetName, Verdict>,
    pub total: usize,
    /// Those of them that failed, and those that passed after they had failed.
    pub bad: usize,
    pub flaky: usize,
}

/// What is known of one test.
#[derive(Debug, Clone, Copy, Default)]
struct Verdict {
    /// What the client makes of all runs. It says so when they are over.
    summary: Option<TestStatus>,
    /// Runs and shards of which the last attempt failed.
    failing: u32,
    /// An attempt passed after one that had failed.
    is_flaky: bool,
}

impl Verdict {
    fn is_bad(self) -> bool {
        self.summary.map_or(self.failing > 0, TestStatus::is_bad)
    }

    fn is_flaky(self) -> bool {
        !self.is_bad() && self.summary.map_or(self.is_flaky, |status| status == TestStatus::Flaky)
    }
}

impl Verdicts {
    /// An attempt has ended; `before` is how the one before it did, of the same run and shard. Returns the bytes that this takes.
    ///
    /// A test for which there is no room counts when its summary comes.
    pub(super) fn attempted(
        &mut self,
        test: &TargetName,
        (before, now): (Option<TestStatus>, TestStatus),
        has_room: bool,
    ) -> usize {
        let Some((mut verdict, bytes)) = self.of(test, has_room) else { return 0 };
        let was_bad = before.is_some_and(TestStatus::is_bad);
        // Attempts may be told in another order than they were made; what comes of that is right again with the summary.
        verdict.failing =
            verdict.failing.saturating_add(u32::from(now.is_bad())).saturating_sub(u32::from(was_bad));
        verdict.is_flaky |= was_bad && !now.is_bad();
        self.put(test, verdict);
        bytes
    }

    /// The client says what all runs come to. Returns the bytes that this takes.
    pub(super) fn summarized(&mut self, test: &TargetName, status: TestStatus, has_room: bool) -> usize {
        let Some((verdict, bytes)) = self.of(test, has_room) else {
            self.count(Verdict { summary: Some(status), ..Verdict::default() });
            return 0;
        };
        self.put(test, Verdict { summary: Some(status), ..verdict });
        bytes
    }

    /// What is known of a test, and the bytes that it takes more from now on; none where there is no room for it.
    fn of(&self, test: &TargetName, has_room: bool) -> Option<(Verdict, usize)> {
        match self.known.get(test) {
            Some(verdict) => Some((*verdict, 0)),
            None if has_room && self.known.len() < ROWS_MAX => {
                Some((Verdict::default(), VERDICT_BYTES + test.text_bytes()))
            }
            None => None,
        }
    }

    fn put(&mut self, test: &TargetName, verdict: Verdict) {
        if let Some(before) = self.known.insert(test.clone(), verdict) {
            self.total -= 1;
            self.bad -= usize::from(before.is_bad());
            self.flaky -= usize::from(before.is_flaky());
        }
        self.count(verdict);
    }

    fn count(&mut self, verdict: Verdict) {
        self.total += 1;
        self.bad += usize::from(verdict.is_bad());
        self.flaky += usize::from(verdict.is_flaky());
    }
}

#[cfg(test)]
mod tests {
    use TestStatus::{Failed, Flaky, Passed, TimedOut};

    use super::*;

    fn name(label: &str) -> TargetName {
        TargetName { label: label.into(), aspect: "".into(), configuration: "".into() }
    }

    fn counts(verdicts: &Verdicts) -> [usize; 3] {
        [verdicts.total, verdicts.bad, verdicts.flaky]
    }

    #[test]
    fn a_test_is_one_whatever_its_attempts_and_its_summary_has_the_last_word() {
        let (mut verdicts, test) = (Verdicts::default(), name("//a"));
        let mut attempted = |before, now| {
            verdicts.attempted(&test, (before, now), true);
            counts(&verdicts)
        };
        assert_eq!(attempted(None, Failed), [1, 1, 0]);
        assert_eq!(attempted(Some(Failed), Passed), [1, 0, 1]);
        // Another shard.
        assert_eq!(attempted(None, TimedOut), [1, 1, 0]);
        assert_eq!(attempted(Some(TimedOut), TimedOut), [1, 1, 0]);
        verdicts.summarized(&test, Flaky, true);
        assert_eq!(counts(&verdicts), [1, 0, 1]);
        verdicts.summarized(&test, Failed, true);
        assert_eq!(counts(&verdicts), [1, 1, 0]);
    }

    #[test]
    fn tests_without_room_are_counted_by_their_summaries() {
        let mut verdicts = Verdicts::default();
        for number in 0..ROWS_MAX + 5 {
            let test = name(&number.to_string());
            verdicts.attempted(&test, (None, Failed), true);
            verdicts.summarized(&test, if number % 2 == 0 { Passed } else { Failed }, true);
        }
        assert_eq!(
            (verdicts.known.len(), counts(&verdicts)),
            (ROWS_MAX, [ROWS_MAX + 5, ROWS_MAX / 2 + 2, 0])
        );
        assert_eq!(verdicts.attempted(&name("late"), (None, Failed), true), 0);
        assert_eq!(verdicts.summarized(&name("full"), Flaky, false), 0);
        assert_eq!(counts(&verdicts), [ROWS_MAX + 6, ROWS_MAX / 2 + 2, 1]);
    }
}
