//! What earlier runs of a command have taken, from which later ones are packed and hedged.
//!
//! A command names arguments and outputs but not inputs, so the command's digest and the platform find the runs of the same action over
//! older sources. All of it is bounded: the entry that was not used for the longest time makes room.

mod past;
mod run;

use std::collections::BTreeMap;
use std::time::Duration;

use past::Past;
pub(super) use run::{Lesson, Run};

use super::lookup::fingerprint;
use super::task::Task;

/// Which runs are of the same kind. Two kinds that share a number by chance share what is expected of them, no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kin(u64);

/// What a run will probably take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expectation {
    /// How many runs this rests on.
    pub(super) runs: u32,
    /// How long the command usually runs.
    pub(super) usual: Duration,
    /// How long a lease takes that takes long: about one in twenty takes longer.
    pub(super) long: Duration,
    /// Processor time over wall time, in thousandths of a core; 0 if no worker has said.
    pub(super) cores_milli: u32,
    /// The peak of resident memory; 0 if no worker has said.
    pub(super) memory_bytes: u64,
}

impl Expectation {
    /// The cores to keep for a run: 0.5, 1, 2, 4 …, or 0 if nothing is known. Few steps, because actions that differ in this wait
    /// in different lines.
    pub(super) fn cores_to_keep(&self) -> f64 {
        if self.cores_milli == 0 {
            return 0.0;
        }
        let halves = (f64::from(self.cores_milli) / CORES_TOLERANCE / 500.0).ceil().max(1.0);
        f64::from((halves as u32).next_power_of_two()) / 2.0
    }

    /// The memory to keep for a run, in bytes: a power of two from 64 MiB that leaves a quarter of headroom, or 0 if nothing is known.
    pub(super) fn memory_to_keep(&self) -> u64 {
        if self.memory_bytes == 0 {
            return 0;
        }
        (self.memory_bytes + self.memory_bytes / 4).next_power_of_two().max(MEMORY_TO_KEEP_MIN)
    }
}

/// A command with one thread has helpers and an end that count beside it: it is to fit one core.
const CORES_TOLERANCE: f64 = 1.15;
/// What uses less is not worth a line of its own.
const MEMORY_TO_KEEP_MIN: u64 = 64 << 20;

/// What is remembered of each kind of run.
///
/// The entries form a list from the most to the least recently used, by their places in `slots`; no place is ever freed, only taken
/// over, so the list needs no more than these.
#[derive(Debug)]
pub(super) struct History {
    entries_max: usize,
    places: BTreeMap<Kin, u32>,
    slots: Vec<Slot>,
    /// The most and the least recently used.
    newest: u32,
    oldest: u32,
}

#[derive(Debug)]
struct Slot {
    kin: Kin,
    past: Past,
    newer: u32,
    older: u32,
}

/// No place.
const NONE: u32 = u32::MAX;

impl Kin {
    pub(super) fn of(task: &Task) -> Self {
        Self(fingerprint(&(&task.command, task.platform.fingerprint())))
    }
}

impl History {
    /// An empty history of up to `entries_max` kinds of run; with 0 it learns nothing.
    pub(super) fn new(entries_max: usize) -> Self {
        let entries_max = entries_max.min(NONE as usize);
        Self { entries_max, places: BTreeMap::new(), slots: Vec::new(), newest: NONE, oldest: NONE }
    }

    /// What to expect of the next run; `None` if none was seen.
    pub(super) fn expectation(&self, kin: Kin) -> Option<Expectation> {
        let place = self.places.get(&kin)?;
        self.slots[*place as usize].past.expectation()
    }

    pub(super) fn learn(&mut self, kin: Kin, lesson: Lesson) {
        let Some(past) = self.touch(kin) else { return };
        match lesson {
            Lesson::Success(run) => past.learn(&run),
            Lesson::Timeout(wall) => past.learn_timeout(wall),
        }
    }

    /// The entry of `kin`, new if need be, as the most recently used one.
    fn touch(&mut self, kin: Kin) -> Option<&mut Past> {
        if self.entries_max == 0 {
            return None;
        }
        let place = match self.places.get(&kin).copied() {
            Some(place) => {
                self.unlink(place);
                place
            }
            None => self.make(kin),
        };
        self.link(place);
        Some(&mut self.slots[place as usize].past)
    }

    /// A place for a new entry, in no list yet: at the end, or that of the least recently used one.
    fn make(&mut self, kin: Kin) -> u32 {
        let slot = Slot { kin, past: Past::default(), newer: NONE, older: NONE };
        let place = if self.slots.len() < self.entries_max {
            self.slots.push(slot);
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 entries")
        } else {
            let place = self.oldest;
            self.unlink(place);
            self.places.remove(&self.slots[place as usize].kin);
            self.slots[place as usize] = slot;
            place
        };
        self.places.insert(kin, place);
        place
    }

    fn unlink(&mut self, place: u32) {
        let Slot { newer, older, .. } = self.slots[place as usize];
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link(&mut self, place: u32) {
        let second = std::mem::replace(&mut self.newest, place);
        let slot = &mut self.slots[place as usize];
        (slot.newer, slot.older) = (NONE, second);
        match self.slots.get_mut(second as usize) {
            Some(slot) => slot.newer = place,
            None => self.oldest = place,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Lesson = Lesson::Success(Run {
        wall: Duration::from_secs(10),
        span: Duration::from_secs(11),
        cpu: Some(Duration::from_secs(5)),
        memory_bytes: 1 << 30,
    });

    /// The entries from the most to the least recently used, read in both directions.
    fn order(history: &History) -> Vec<u64> {
        let walk = |start: u32, next: fn(&Slot) -> u32| {
            let first = history.slots.get(start as usize);
            let slots = std::iter::successors(first, |slot| history.slots.get(next(slot) as usize));
            slots.map(|slot| slot.kin.0).collect::<Vec<_>>()
        };
        let forward = walk(history.newest, |slot| slot.older);
        let backward: Vec<u64> = walk(history.oldest, |slot| slot.newer).into_iter().rev().collect();
        assert_eq!(forward, backward);
        assert_eq!(forward.len(), history.places.len());
        forward
    }

    #[test]
    fn the_least_recently_used_entry_makes_room() {
        let mut history = History::new(3);
        for kin in [1, 2, 3, 1, 4, 4, 3, 5] {
            history.learn(Kin(kin), RUN);
        }
        assert_eq!(order(&history), [5, 3, 4]);
        assert_eq!(history.expectation(Kin(1)), None);
        assert_eq!(history.expectation(Kin(3)).unwrap().runs, 2);
        assert_eq!(history.slots.len(), 3);
    }

    #[test]
    fn a_history_of_one_entry_and_one_of_none_hold() {
        let mut history = History::new(1);
        for kin in [1, 1, 2] {
            history.learn(Kin(kin), RUN);
        }
        assert_eq!(order(&history), [2]);
        let mut history = History::new(0);
        history.learn(Kin(1), RUN);
        history.learn(Kin(1), Lesson::Timeout(Duration::from_secs(1)));
        assert_eq!(history.expectation(Kin(1)), None);
    }

    #[test]
    fn what_is_kept_for_a_run_comes_in_few_steps() {
        let keep = |cores_milli, memory_mib: u64| {
            let memory_bytes = memory_mib << 20;
            let past = Expectation {
                runs: 1,
                usual: Duration::ZERO,
                long: Duration::ZERO,
                cores_milli,
                memory_bytes,
            };
            (past.cores_to_keep(), past.memory_to_keep() >> 20)
        };
        assert_eq!(keep(0, 0), (0.0, 0));
        assert_eq!(keep(1, 1), (0.5, 64));
        assert_eq!(keep(500, 51), (0.5, 64));
        assert_eq!(keep(1020, 52), (1.0, 128));
        assert_eq!(keep(1200, 6 << 10), (2.0, 8 << 10));
        assert_eq!(keep(7900, 7 << 10), (8.0, 16 << 10));
        let most = (u32::MAX, (u64::from(u32::MAX) * 1024) >> 20);
        assert!(keep(most.0, most.1).0 >= 4e6);
    }

    /// What a B-tree of the standard library spends on an entry at most: a leaf of 11 keys and values that is half full, and its
    /// part of the inner nodes.
    const TREE_BYTES_PER_ENTRY: usize = 2 * (size_of::<Kin>() + size_of::<u32>()) + 8;

    #[test]
    fn a_full_history_of_the_default_size_takes_at_most_16_mib() {
        let entries = crate::scheduler::Config::default().history_max;
        assert!(size_of::<Past>() <= 32);
        assert!(entries * (size_of::<Slot>() + TREE_BYTES_PER_ENTRY) <= 16 << 20);
    }
}
