//! Entries by arrival, where nearly all come at the end and go at the start.
//!
//! They lie side by side, so that coming and going touches one cache line. What goes from the middle leaves a gap, and gaps are closed
//! when they are half of everything.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Entry, Position};
use crate::scheduler::id::{ExecutionId, Time};

/// An entry in 32 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queued {
    pub(super) arrival: u64,
    pub(super) execution: ExecutionId,
    /// Nanoseconds since the start, or [`GONE`].
    since: u64,
}

/// Entries that are looked at for one that is no gap, where a guess is as good as an answer.
const LOOKED_AT_MAX: usize = 64;

/// Marks a gap.
const GONE: u64 = u64::MAX;

#[derive(Debug, Default)]
pub(super) struct Run {
    /// The first and the last one are no gaps.
    entries: VecDeque<Queued>,
    gaps: usize,
}

impl Queued {
    pub(super) fn new(entry: Entry) -> Self {
        let since = u64::try_from(entry.since.since_start().as_nanos()).unwrap_or(GONE).min(GONE - 1);
        Self { arrival: entry.position.arrival, execution: entry.execution, since }
    }

    pub(super) fn entry(self, priority: i32) -> Entry {
        let position = Position { priority, arrival: self.arrival };
        Entry { execution: self.execution, position, since: self.since() }
    }

    pub(super) fn since(self) -> Time {
        Time::after_start(Duration::from_nanos(self.since))
    }

    fn is_gap(&self) -> bool {
        self.since == GONE
    }
}

impl Run {
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.gaps
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Queued> {
        self.entries.iter().filter(|entry| !entry.is_gap())
    }

    pub(super) fn insert(&mut self, entry: Queued) {
        if self.entries.back().is_none_or(|last| last.arrival < entry.arrival) {
            return self.entries.push_back(entry);
        }
        match self.entries.binary_search_by_key(&entry.arrival, |one| one.arrival) {
            Ok(index) => {
                self.gaps -= usize::from(self.entries[index].is_gap());
                self.entries[index] = entry;
            }
            Err(index) => self.entries.insert(index, entry),
        }
    }

    /// Takes out the first entry.
    pub(super) fn pop(&mut self) -> Option<Queued> {
        let first = self.entries.pop_front();
        self.trim();
        first
    }

    /// The entry with that arrival.
    pub(super) fn find(&self, arrival: u64) -> Option<&Queued> {
        let index = self.entries.binary_search_by_key(&arrival, |queued| queued.arrival).ok()?;
        self.entries.get(index).filter(|queued| !queued.is_gap())
    }

    /// The first entry that came after `arrival`; none if there is a wide gap.
    pub(super) fn after(&self, arrival: u64) -> Option<&Queued> {
        let begin = self.entries.partition_point(|queued| queued.arrival <= arrival);
        self.entries.range(begin..).take(LOOKED_AT_MAX).find(|queued| !queued.is_gap())
    }

    pub(super) fn remove(&mut self, arrival: u64) -> Option<Queued> {
        let index = self.entries.binary_search_by_key(&arrival, |one| one.arrival).ok()?;
        let found = self.entries[index];
        if found.is_gap() {
            return None;
        }
        self.entries[index].since = GONE;
        self.gaps += 1;
        self.trim();
        Some(found)
    }

    /// Drops the gaps at both ends, and all of them when they are more than the entries. Gives memory back that is much too large.
    fn trim(&mut self) {
        while self.entries.pop_front_if(|first| first.is_gap()).is_some() {
            self.gaps -= 1;
        }
        while self.entries.pop_back_if(|last| last.is_gap()).is_some() {
            self.gaps -= 1;
        }
        if self.gaps > self.len() {
            self.entries.retain(|entry| !entry.is_gap());
            self.gaps = 0;
        }
        if self.entries.capacity() > 4 * self.entries.len().max(16) {
            self.entries.shrink_to(2 * self.entries.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(arrival: u64) -> Queued {
        let position = Position { priority: 0, arrival };
        Queued::new(Entry { execution: ExecutionId::new(u128::MAX - 1), position, since: Time::START })
    }

    fn arrivals(run: &Run) -> Vec<u64> {
        run.iter().map(|entry| entry.arrival).collect()
    }

    #[test]
    fn entries_come_and_go_anywhere() {
        let mut run = Run::default();
        for arrival in [5, 6, 7, 8, 2] {
            run.insert(queued(arrival));
        }
        assert!(run.remove(6).is_some());
        assert!(run.remove(6).is_none());
        assert_eq!((arrivals(&run), run.len()), (vec![2, 5, 7, 8], 4));
        run.insert(queued(6));
        assert_eq!(run.pop().unwrap().arrival, 2);
        assert_eq!(run.pop().unwrap().execution, ExecutionId::new(u128::MAX - 1));
        assert_eq!(arrivals(&run), [6, 7, 8]);
    }

    #[test]
    fn the_next_one_after_another_is_found_beyond_gaps() {
        let mut run = Run::default();
        [2, 5, 6, 7, 9].into_iter().for_each(|arrival| run.insert(queued(arrival)));
        assert!(run.remove(6).is_some());
        let after = |arrival| run.after(arrival).map(|queued| queued.arrival);
        assert_eq!([0, 2, 5, 7, 9].map(after), [Some(2), Some(5), Some(7), Some(9), None]);
    }

    #[test]
    fn gaps_are_at_most_as_many_as_entries_and_memory_is_given_back() {
        let mut run = Run::default();
        (0..10_000).for_each(|arrival| run.insert(queued(arrival)));
        for arrival in (0..10_000).filter(|arrival| arrival % 100 != 50) {
            assert!(run.remove(arrival).is_some());
            assert!(run.gaps <= run.len() + 1);
        }
        assert_eq!(run.len(), 100);
        assert!(run.entries.capacity() <= 1_000, "{}", run.entries.capacity());
    }
}
