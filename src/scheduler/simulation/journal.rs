//! The scheduler's journal: what is written, what of that would survive, and what waits for it.

use std::collections::{BTreeMap, VecDeque};

use super::random::Random;
use crate::scheduler::event::Effect;
use crate::scheduler::id::OperationId;
use crate::scheduler::record::{Record, RecordKey};

/// Changes become durable in their order, some time after they were made.
#[derive(Default)]
pub(super) struct Journal {
    durable: BTreeMap<RecordKey, Record>,
    /// What is written and not yet durable, the oldest first.
    tail: VecDeque<Change>,
    /// How many changes were ever made.
    made: u64,
    /// What may be said only when the changes before it are durable.
    gated: VecDeque<(u64, Word)>,
    /// The changes up to this one are being made durable.
    pub(super) is_committing: bool,
}

enum Change {
    Keep(Record),
    Erase(RecordKey),
}

/// What the scheduler lets out only when it cannot be taken back.
#[derive(Clone)]
pub(super) enum Word {
    /// The answer to a submission.
    Accepted(OperationId),
    Effect(Effect),
}

impl Journal {
    pub(super) fn keep(&mut self, record: Record) {
        self.made += 1;
        self.tail.push_back(Change::Keep(record));
    }

    pub(super) fn erase(&mut self, key: RecordKey) {
        self.made += 1;
        self.tail.push_back(Change::Erase(key));
    }

    pub(super) fn made(&self) -> u64 {
        self.made
    }

    pub(super) fn is_durable(&self) -> bool {
        self.tail.is_empty()
    }

    /// Holds a word back until everything that was written before is durable.
    pub(super) fn gate(&mut self, word: Word) {
        self.gated.push_back((self.made, word));
    }

    /// The changes up to `number` are durable. Returns what may be said.
    pub(super) fn commit(&mut self, number: u64) -> Vec<Word> {
        let count = self.tail.len() as u64 - (self.made - number);
        self.apply(count);
        let released = self.gated.partition_point(|(after, _)| *after <= number);
        self.gated.drain(..released).map(|(_, word)| word).collect()
    }

    fn apply(&mut self, count: u64) {
        for _ in 0..count {
            match self.tail.pop_front().unwrap() {
                Change::Keep(record) => self.durable.insert(record.key(), record),
                Change::Erase(key) => self.durable.remove(&key),
            };
        }
    }

    /// The scheduler dies, and with it what was not said yet. Of what is not durable any part from the front may have made it.
    /// Returns what is there for the next scheduler, and how many changes are lost.
    pub(super) fn cut(&mut self, random: &mut Random) -> (Vec<Record>, usize) {
        let survives = random.below(self.tail.len() as u64 + 1);
        self.apply(survives);
        let lost = self.tail.len();
        self.tail.clear();
        self.gated.clear();
        self.is_committing = false;
        (self.durable.values().cloned().collect(), lost)
    }

    /// What is left when nothing is queued, runs or is retained: the marks of workers may stay.
    pub(super) fn leftovers(&self) -> Vec<&RecordKey> {
        self.durable.keys().filter(|key| !matches!(key, RecordKey::Worker(_))).collect()
    }
}
