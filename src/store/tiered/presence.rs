//! What a client may be told: present is what the slowest durable tier has, or will have whatever happens.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};

use super::super::Key;
use super::Shared;
use super::write::target;
use crate::error::Result;

/// Blobs that are copied to the tier of record while a client waits for an answer; what is beyond them counts as missing.
const COPIES_MAX: usize = 256;

/// Copies at a time.
const COPYING_MAX: usize = 16;

/// What a question is put together from.
struct Question<'a> {
    shared: &'a Shared,
    /// The durable tiers, fast to slow.
    durable: Vec<usize>,
    keys: &'a [Key],
    /// What was pending for its tier of record before anybody was asked.
    pending: HashSet<&'a Key>,
    /// What each durable tier lacks, or why it cannot tell.
    lacks: Vec<Result<HashSet<Key>>>,
}

/// What the tiers together say of a key.
enum Verdict {
    Present,
    Absent,
    /// A faster tier than the tier of record has it.
    Stray(usize),
    /// It was pending, and is not where it was; perhaps it has just arrived.
    Doubtful(usize),
    /// This tier would have to tell.
    Unknown(usize),
}

impl Shared {
    /// The absent ones of `keys`. What only a fast tier has is brought to the tier of record first, or will be, or counts as absent.
    ///
    /// # Errors
    /// That of a tier that cannot tell when it matters.
    pub(super) async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let durable = (0..self.tiers.len()).filter(|at| self.tiers[*at].is_durable()).collect();
        let mut question =
            Question { shared: self, durable, keys, pending: HashSet::new(), lacks: Vec::new() };
        question.pending = question.pending();
        question.ask().await;
        question.answer().await
    }
}

impl<'a> Question<'a> {
    fn pending(&self) -> HashSet<&'a Key> {
        let Some(journal) = &self.shared.journal else { return HashSet::new() };
        let is_pending = |key: &&Key| {
            let record = self.tier_of_record(key);
            record.is_some_and(|record| journal.pending().contains(&target(self.durable[record], key)))
        };
        self.keys.iter().filter(is_pending).collect()
    }

    async fn ask(&mut self) {
        let tiers = self.durable.iter().map(|at| &self.shared.tiers[*at]);
        let limit = self.shared.patience.answer;
        let asked = join_all(tiers.clone().map(|tier| tier.missing_in_time(self.keys, limit))).await;
        for (tier, missing) in tiers.zip(&asked) {
            if let Err(error) = missing {
                tier.report("a tier cannot tell what it lacks", error);
            }
        }
        self.lacks = asked.into_iter().map(|missing| Ok(missing?.into_iter().collect())).collect();
    }

    async fn answer(mut self) -> Result<Vec<Key>> {
        let (mut missing, mut stray, mut doubtful) = (HashSet::new(), Vec::new(), Vec::new());
        for key in self.keys {
            match self.verdict(key) {
                Verdict::Present => {}
                Verdict::Absent => drop(missing.insert(key.clone())),
                Verdict::Stray(record) => stray.push((key.clone(), self.durable[record])),
                Verdict::Doubtful(record) => doubtful.push((key.clone(), self.durable[record])),
                Verdict::Unknown(record) => {
                    std::mem::replace(&mut self.lacks[record], Ok(HashSet::new()))?;
                }
            }
        }
        missing.extend(self.bring_down(stray).await);
        missing.extend(self.ask_again(doubtful).await?);
        Ok(self.keys.iter().filter(|key| missing.contains(key)).cloned().collect())
    }

    fn verdict(&self, key: &Key) -> Verdict {
        let Some(record) = self.tier_of_record(key) else { return Verdict::Absent };
        let was_pending = self.pending.contains(key);
        let is_above = self.is_above(record, key);
        if self.has(record, key) || (was_pending && is_above) {
            return Verdict::Present;
        }
        if self.lacks[record].is_err() {
            return Verdict::Unknown(record);
        }
        match (is_above, was_pending, self.silent_above(record)) {
            (true, _, _) => Verdict::Stray(record),
            (false, true, Some(silent)) => Verdict::Unknown(silent),
            (false, true, None) => Verdict::Doubtful(record),
            (false, false, _) => Verdict::Absent,
        }
    }

    /// What the tier of record still lacks.
    async fn ask_again(&self, doubtful: Vec<(Key, usize)>) -> Result<Vec<Key>> {
        let mut missing = Vec::new();
        for (key, record) in doubtful {
            let limit = self.shared.patience.answer;
            missing.extend(self.shared.tiers[record].missing_in_time(&[key], limit).await?);
        }
        Ok(missing)
    }

    /// The last durable tier that can hold the blob, as a place in `durable`.
    fn tier_of_record(&self, key: &Key) -> Option<usize> {
        let size = key.size().unwrap_or(0);
        self.durable.iter().rposition(|at| self.shared.tiers[*at].admits(size))
    }

    fn has(&self, place: usize, key: &Key) -> bool {
        self.lacks[place].as_ref().is_ok_and(|lacks| !lacks.contains(key))
    }

    /// Whether a faster durable tier has it.
    fn is_above(&self, record: usize, key: &Key) -> bool {
        (0..record).any(|place| self.has(place, key))
    }

    /// A faster durable tier that cannot tell. What is pending is pinned in one, and yet it may not be there: a record that a crash kept
    /// the journal from forgetting is of a blob that was removed.
    fn silent_above(&self, record: usize) -> Option<usize> {
        self.lacks[..record].iter().position(Result::is_err)
    }

    /// Sees to it that blobs get to their tier of record; gives those for which that does not work.
    async fn bring_down(&self, stray: Vec<(Key, usize)>) -> Vec<Key> {
        if stray.is_empty() {
            return Vec::new();
        }
        if let Some(journal) = &self.shared.journal {
            let targets: Vec<_> =
                stray.iter().map(|(key, to)| (target(*to, key), key.size().unwrap_or(0))).collect();
            if journal.add(&targets).await.is_ok() {
                return Vec::new();
            }
        }
        let stray: HashMap<Key, usize> = stray.into_iter().collect();
        let (now, rest): (Vec<_>, Vec<_>) =
            stray.into_iter().enumerate().partition(|(place, _)| *place < COPIES_MAX);
        let copies = stream::iter(now).map(async |(_, (key, to))| match self.shared.copy(&key, to).await {
            Ok(()) => None,
            Err(error) => {
                self.shared.tiers[to].report("a blob cannot be brought to its tier of record", &error);
                Some(key)
            }
        });
        let mut failed: Vec<Key> =
            copies.buffer_unordered(COPYING_MAX).filter_map(std::future::ready).collect().await;
        failed.extend(rest.into_iter().map(|(_, (key, _))| key));
        failed
    }
}
