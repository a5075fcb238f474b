//! The writes that slower tiers lack, in memory: which are due, which are under way, and how many there may be.

use std::collections::{BTreeMap, HashMap, btree_map, hash_map};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::super::{Key, Pinned, Pins};
use super::Patience;
use crate::error::{Error, Kind, Result};
use crate::metrics::{STORE_PENDING_AGE, STORE_PENDING_BYTES, STORE_PENDING_WRITES};

/// Writes that may be pending; each takes about 500 bytes of memory.
const WRITES_MAX: usize = 200_000;

/// What is to be written where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// The place of the tier in the list.
    pub(super) tier: usize,
    pub(super) key: Key,
}

/// A write that somebody does.
pub(super) struct Job {
    pub(super) target: Target,
    number: u64,
}

/// How a job went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// It fails for the moment.
    Failed,
    /// There is nothing left to write.
    Lost,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is not pending any more.
    Gone,
    /// It will be done again.
    Again,
}

/// A write as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) since: u64,
}

/// The queue.
pub(super) struct Pending {
    state: Mutex<State>,
    /// One more is due.
    due: Notify,
    /// One went, or nobody is at it any more.
    let_go: Notify,
    pins: Pins,
    bytes_max: u64,
    retry: (Duration, Duration),
}

#[derive(Default)]
struct State {
    writes: HashMap<Target, Write>,
    due: BTreeMap<(Instant, u64), Target>,
    /// How many writes there are of each age: since when they are pending, in seconds since 1970.
    ages: BTreeMap<u64, usize>,
    bytes: u64,
    next: u64,
}

struct Write {
    record: Record,
    /// Changes with the value, so that a job knows whether it wrote the latest.
    number: u64,
    failures: u32,
    phase: Phase,
    /// Somebody has stored it once more since the job began, which may have looked before.
    is_stored_again: bool,
    _pinned: Pinned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not yet in the journal.
    Recording,
    Due((Instant, u64)),
    UnderWay,
}

impl Pending {
    pub(super) fn new(bytes_max: u64, pins: Pins, patience: Patience) -> Self {
        let retry = (patience.retry_min, patience.retry_max);
        let (state, due, let_go) = Default::default();
        Self { state, due, let_go, pins, bytes_max, retry }
    }

    /// Takes up all of `targets` with their sizes, or none. They become due with [`Pending::recorded`].
    ///
    /// # Errors
    /// `Exhausted` when there would be too many.
    pub(super) fn insert(&self, targets: &[(Target, u64)]) -> Result<Vec<Record>> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut state = self.lock();
        let new = targets.iter().filter(|(target, _)| !state.writes.contains_key(target));
        let (count, bytes) = new.fold((0, 0), |(count, bytes), (_, size)| (count + 1, bytes + size));
        if state.writes.len() + count > WRITES_MAX || state.bytes + bytes > self.bytes_max {
            return Err(Error::new(Kind::Exhausted, "too much is pending for a slower tier"));
        }
        let records = targets.iter().map(|(target, size)| {
            state.insert(target, (Record { size: *size, since }, Phase::Recording), &self.pins)
        });
        let records = records.collect();
        state.tell();
        Ok(records)
    }

    /// Takes up what the journal remembers.
    pub(super) fn restore(&self, target: &Target, record: Record) {
        let mut state = self.lock();
        state.insert(target, (record, Phase::Recording), &self.pins);
        state.make_due(target, Instant::now());
        state.tell();
    }

    /// The journal has them.
    pub(super) fn recorded<'a>(&self, targets: impl IntoIterator<Item = &'a Target>) {
        let mut state = self.lock();
        for target in targets {
            if state.writes.get(target).is_some_and(|write| write.phase == Phase::Recording) {
                state.make_due(target, Instant::now());
                self.due.notify_one();
            }
        }
    }

    /// The journal could not take them.
    pub(super) fn not_recorded<'a>(&self, targets: impl IntoIterator<Item = &'a Target>) {
        let mut state = self.lock();
        for target in targets {
            if state.writes.get(target).is_some_and(|write| write.phase == Phase::Recording) {
                state.remove(target);
            }
        }
        self.tell(&state);
    }

    /// The next write that is due. Waits for it.
    pub(super) async fn next(&self) -> Job {
        loop {
            let wake = match self.take() {
                Ok(job) => return job,
                Err(next) => next,
            };
            let woken = async {
                match wake {
                    Some(wake) => sleep_until(wake).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.due.notified() => {}
                () = woken => {}
            }
        }
    }

    /// A write that is due, or when the first one will be.
    fn take(&self) -> Result<Job, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.lock();
        let first = state.due.first_key_value().map(|(due, _)| *due);
        let Some(due) = first.filter(|(at, _)| *at <= now) else {
            return Err(first.map(|(at, _)| at));
        };
        let target = state.due.remove(&due).expect("it was seen under the same lock");
        if !state.due.is_empty() {
            self.due.notify_one();
        }
        let write = state.writes.get_mut(&target).expect("what is due is pending");
        write.phase = Phase::UnderWay;
        write.is_stored_again = false;
        Ok(Job { number: write.number, target })
    }

    /// Tells how a job went.
    pub(super) fn finish(&self, job: &Job, outcome: Outcome) -> Fate {
        let mut state = self.lock();
        let write = state.writes.get_mut(&job.target).expect("what somebody is at stays in the queue");
        let is_over = match outcome {
            Outcome::Done => write.number == job.number,
            Outcome::Lost => write.number == job.number && !write.is_stored_again,
            Outcome::Failed => false,
        };
        if is_over {
            state.remove(&job.target);
            self.tell(&state);
            return Fate::Gone;
        }
        let mut at = Instant::now();
        if outcome == Outcome::Failed {
            write.failures = write.failures.saturating_add(1);
            at += self.pause(write.failures);
        }
        state.make_due(&job.target, at);
        self.due.notify_one();
        self.tell(&state);
        Fate::Again
    }

    /// Between a half and the whole of what doubles with each failure, so that not all come back at once.
    fn pause(&self, failures: u32) -> Duration {
        let (min, max) = self.retry;
        let pause = min.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX)).min(max);
        let random = uuid::Uuid::new_v4().as_u128() % 1000;
        pause / 2 + pause / 2 * u32::try_from(random).expect("below 1000") / 1000
    }

    /// Forgets the writes of `key`; gives those that there were. Waits until nobody is at one of them.
    pub(super) async fn withdraw(&self, key: &Key, tiers: usize) -> Vec<Target> {
        let targets: Vec<Target> = (0..tiers).map(|tier| Target { tier, key: key.clone() }).collect();
        self.when(|| self.withdraw_at_rest(&targets)).await
    }

    /// Looks each time that a write goes or is let go of, until that gives something.
    async fn when<T>(&self, look: impl Fn() -> Option<T>) -> T {
        loop {
            let mut let_go = std::pin::pin!(self.let_go.notified());
            let_go.as_mut().enable();
            if let Some(seen) = look() {
                return seen;
            }
            let_go.await;
        }
    }

    /// Forgets those of `targets` that are pending and gives them, or none of them while somebody is at one.
    fn withdraw_at_rest(&self, targets: &[Target]) -> Option<Vec<Target>> {
        let mut state = self.lock();
        let is_under_way =
            |target| state.writes.get(target).is_some_and(|write| write.phase == Phase::UnderWay);
        if targets.iter().any(is_under_way) {
            return None;
        }
        let withdrawn = targets.iter().filter(|target| state.remove(target)).cloned().collect();
        self.tell(&state);
        Some(withdrawn)
    }

    pub(super) fn contains(&self, target: &Target) -> bool {
        self.record(target).is_some()
    }

    pub(super) fn record(&self, target: &Target) -> Option<Record> {
        let state = self.lock();
        state.writes.get(target).map(|write| write.record)
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        self.lock().writes.keys().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().writes.len()
    }

    /// Makes everything due at once and waits until nothing is pending.
    pub(super) async fn drained(&self) {
        self.hurry();
        self.when(|| (self.len() == 0).then_some(())).await;
    }

    fn hurry(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        state.due =
            std::mem::take(&mut state.due).into_iter().map(|((_, n), target)| ((now, n), target)).collect();
        for write in state.writes.values_mut() {
            if let Phase::Due((at, _)) = &mut write.phase {
                *at = now;
            }
        }
        self.due.notify_one();
    }

    fn tell(&self, state: &State) {
        state.tell();
        self.let_go.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between the steps of a change can panic but what is a bug of ours, which ends the process.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert(&mut self, target: &Target, (record, phase): (Record, Phase), pins: &Pins) -> Record {
        self.next += 1;
        match self.writes.entry(target.clone()) {
            hash_map::Entry::Occupied(mut write) => {
                let write = write.get_mut();
                if target.key.is_mutable() {
                    write.number = self.next;
                }
                write.is_stored_again = true;
                write.record
            }
            hash_map::Entry::Vacant(vacant) => {
                let _pinned = pins.pin([&target.key]);
                vacant.insert(Write {
                    record,
                    number: self.next,
                    failures: 0,
                    phase,
                    is_stored_again: false,
                    _pinned,
                });
                self.bytes += record.size;
                *self.ages.entry(record.since).or_default() += 1;
                record
            }
        }
    }

    fn make_due(&mut self, target: &Target, at: Instant) {
        self.next += 1;
        if let Some(write) = self.writes.get_mut(target) {
            write.phase = Phase::Due((at, self.next));
            self.due.insert((at, self.next), target.clone());
        }
    }

    fn remove(&mut self, target: &Target) -> bool {
        let Some(write) = self.writes.remove(target) else { return false };
        if let Phase::Due(due) = write.phase {
            self.due.remove(&due);
        }
        self.bytes -= write.record.size;
        self.forget_age(write.record.since);
        true
    }

    fn forget_age(&mut self, since: u64) {
        if let btree_map::Entry::Occupied(mut count) = self.ages.entry(since) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn tell(&self) {
        STORE_PENDING_WRITES.set(i64::try_from(self.writes.len()).unwrap_or(i64::MAX));
        STORE_PENDING_BYTES.set(i64::try_from(self.bytes).unwrap_or(i64::MAX));
        STORE_PENDING_AGE.set_since(self.oldest());
    }

    /// Since when the oldest write is pending.
    fn oldest(&self) -> Option<u64> {
        self.ages.first_key_value().map(|(since, _)| *since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(content: &[u8]) -> Target {
        Target { tier: 1, key: Key::Blob(crate::digest::Function::Sha256.hash(content)) }
    }

    #[tokio::test]
    async fn the_oldest_write_counts_although_it_failed_and_others_are_due_before_it() {
        let pending = Pending::new(1_000, Pins::default(), Patience::default());
        let oldest = || pending.lock().oldest();
        assert_eq!(oldest(), None);
        let targets = [target(b"fails"), target(b"under way"), target(b"due"), target(b"as old")];
        let restore = |place: usize, since| pending.restore(&targets[place], Record { size: 10, since });
        restore(0, 100);
        let failed = pending.next().await;
        assert_eq!(pending.finish(&failed, Outcome::Failed), Fate::Again);
        restore(1, 200);
        let under_way = pending.next().await;
        restore(2, 300);
        restore(3, 300);
        assert_eq!(oldest(), Some(100));
        assert_eq!(pending.withdraw(&targets[0].key, 2).await, [targets[0].clone()]);
        assert_eq!(oldest(), Some(200));
        assert_eq!(pending.finish(&under_way, Outcome::Done), Fate::Gone);
        for (target, left) in [(&targets[2], Some(300)), (&targets[3], None)] {
            assert_eq!(oldest(), Some(300));
            pending.withdraw(&target.key, 2).await;
            assert_eq!(oldest(), left);
        }
    }

    #[tokio::test]
    async fn what_somebody_is_at_is_withdrawn_when_they_are_done_however_that_went() {
        for outcome in [Outcome::Done, Outcome::Failed, Outcome::Lost] {
            let pending = Pending::new(1_000, Pins::default(), Patience::default());
            let target = Target { tier: 1, key: Key::Asset([1; 32]) };
            pending.insert(&[(target.clone(), 10)]).unwrap();
            pending.recorded([&target]);
            let job = pending.next().await;
            let mut withdrawn = std::pin::pin!(pending.withdraw(&target.key, 2));
            assert!(futures_util::poll!(&mut withdrawn).is_pending());
            assert!(pending.contains(&target), "who waits and goes has changed nothing");
            let fate = pending.finish(&job, outcome);
            let left = if fate == Fate::Again { vec![target.clone()] } else { Vec::new() };
            assert_eq!(withdrawn.await, left);
            assert_eq!(pending.len(), 0);
        }
    }

    #[tokio::test]
    async fn what_is_stored_again_while_a_job_looks_for_it_is_not_lost() {
        let pending = Pending::new(1_000, Pins::default(), Patience::default());
        let target = target(b"stored again");
        pending.insert(&[(target.clone(), 10)]).unwrap();
        pending.recorded([&target]);
        let job = pending.next().await;
        pending.insert(&[(target.clone(), 10)]).unwrap();
        assert_eq!(pending.finish(&job, Outcome::Lost), Fate::Again);
        let job = pending.next().await;
        assert_eq!(pending.finish(&job, Outcome::Lost), Fate::Gone);
        assert_eq!(pending.len(), 0);
    }
}
