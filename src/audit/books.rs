//! What waits for an audit, what is under way, and what was found.

use std::collections::{BTreeSet, VecDeque};

use crate::error::{Error, Kind, Result};
use crate::store::ActionKey;

use super::report::Report;

/// Actions that may wait for their audit. An audit of a sample needs no more; what is chosen by rate beyond that is let go.
pub(super) const WAITING_MAX: usize = 1000;

/// Recent results from which a sample is taken: some hundred KiB.
const RECENT_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Books {
    /// The number of the audit that was asked for last.
    last: u64,
    waiting: VecDeque<(u64, ActionKey)>,
    running: BTreeSet<u64>,
    /// In the order of their ends.
    reports: VecDeque<Report>,
    /// Results that were cached since the start, the latest last.
    recent: VecDeque<ActionKey>,
}

/// Where one audit stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Waiting,
    Running,
    Done(Box<Report>),
}

impl Books {
    pub(super) fn note_result(&mut self, key: &ActionKey) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(key.clone());
    }

    /// Puts actions in line, all of them or none. Returns their numbers.
    ///
    /// # Errors
    /// `Exhausted` when too many wait.
    pub(super) fn ask(&mut self, keys: Vec<ActionKey>) -> Result<Vec<u64>> {
        if self.waiting.len() + keys.len() > WAITING_MAX {
            let message = format!("at most {WAITING_MAX} actions wait for their audit");
            return Err(Error::new(Kind::Exhausted, message));
        }
        let numbers = keys.into_iter().map(|key| {
            self.last += 1;
            self.waiting.push_back((self.last, key));
            self.last
        });
        Ok(numbers.collect())
    }

    /// Up to `count` of the recent results, evenly spread.
    pub(super) fn sample(&self, count: usize) -> Vec<ActionKey> {
        let (length, count) = (self.recent.len(), count.min(self.recent.len()));
        (0..count).map(|number| self.recent[number * length / count].clone()).collect()
    }

    /// Begins the audit that has waited longest.
    pub(super) fn begin(&mut self) -> Option<(u64, ActionKey)> {
        let (number, key) = self.waiting.pop_front()?;
        self.running.insert(number);
        Some((number, key))
    }

    /// Ends an audit; the oldest report makes room if there are `reports_max`.
    pub(super) fn end(&mut self, report: Report, reports_max: usize) {
        self.running.remove(&report.number);
        while self.reports.len() >= reports_max {
            self.reports.pop_front();
        }
        self.reports.push_back(report);
    }

    /// `None` when the number was never given out, or its report is forgotten.
    pub(super) fn standing(&self, number: u64) -> Option<Standing> {
        if self.running.contains(&number) {
            return Some(Standing::Running);
        }
        if self.waiting.front().is_some_and(|(first, _)| *first <= number) && number <= self.last {
            return Some(Standing::Waiting);
        }
        let report = self.reports.iter().find(|report| report.number == number)?;
        Some(Standing::Done(Box::new(report.clone())))
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// The latest first.
    pub(super) fn reports(&self) -> Vec<Report> {
        self.reports.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Outcome;
    use crate::digest::Function;

    fn key(number: usize) -> ActionKey {
        ActionKey { instance: "".into(), digest: Function::Sha256.hash(&number.to_be_bytes()) }
    }

    fn report(number: u64) -> Report {
        Report {
            number,
            instance: String::new(),
            action: String::new(),
            command: String::new(),
            outcome: Outcome::Same,
            first_worker: String::new(),
            second_worker: String::new(),
            differences: Vec::new(),
            unlisted: 0,
            failure: String::new(),
            ended_seconds: 0,
        }
    }

    #[test]
    fn an_audit_waits_runs_and_is_done_until_its_report_makes_room() {
        let mut books = Books::default();
        assert_eq!(books.ask(vec![key(1), key(2)]).unwrap(), [1, 2]);
        assert_eq!(books.begin().unwrap(), (1, key(1)));
        assert_eq!(books.standing(1), Some(Standing::Running));
        assert_eq!(books.standing(2), Some(Standing::Waiting));
        assert_eq!(books.standing(3), None);
        books.end(report(1), 1);
        assert_eq!(books.standing(1), Some(Standing::Done(Box::new(report(1)))));
        books.begin().unwrap();
        books.end(report(2), 1);
        assert_eq!((books.standing(1), books.reports()), (None, vec![report(2)]));
    }

    #[test]
    fn what_waits_is_bounded_and_refused_as_a_whole() {
        let mut books = Books::default();
        books.ask((0..WAITING_MAX - 1).map(key).collect()).unwrap();
        assert_eq!(books.ask(vec![key(1), key(2)]).unwrap_err().kind(), Kind::Exhausted);
        assert_eq!(books.waiting(), WAITING_MAX - 1);
    }

    #[test]
    fn a_sample_is_spread_over_the_recent_results() {
        let mut books = Books::default();
        assert_eq!(books.sample(3), []);
        for number in 0..RECENT_MAX + 4 {
            books.note_result(&key(number));
        }
        let half = RECENT_MAX / 2;
        assert_eq!(books.sample(2), [key(4), key(4 + half)]);
        assert_eq!(books.sample(usize::MAX).len(), RECENT_MAX);
    }
}
