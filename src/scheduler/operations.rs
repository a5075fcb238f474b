//! What clients hold: live operations, each waiting for one execution, and finished ones that can still be asked for.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::id::{ExecutionId, OperationId, Time};
use super::lookup::Lookup;
use super::task::Task;

#[derive(Debug, Default)]
pub(super) struct Operations {
    live: Lookup<OperationId, Live>,
    identities: Tally,
    invocations: Tally,
    /// The finished ones, by the number of their finish.
    finished: Lookup<OperationId, u64>,
    /// The same, the oldest first; the first one is always there still, others may have been forgotten.
    by_age: VecDeque<Finished>,
    /// How many have finished.
    finishes: u64,
}

/// An operation that has ended.
#[derive(Debug)]
struct Finished {
    number: u64,
    operation: OperationId,
    /// It is kept until then.
    until: Time,
}

/// An operation that waits for its execution.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) execution: ExecutionId,
    /// How many clients follow it.
    pub(super) watchers: u32,
    /// No client will ask for it once it is finished.
    pub(super) is_deleted: bool,
    identity: u32,
    invocation: u32,
}

impl Operations {
    pub(super) fn live_count(&self) -> usize {
        self.live.len()
    }

    pub(super) fn finished_count(&self) -> usize {
        self.finished.len()
    }

    /// How many live operations one identity has.
    pub(super) fn count_of_identity(&self, identity: &str) -> usize {
        self.identities.count(identity)
    }

    /// How many live operations one invocation has.
    pub(super) fn count_of_invocation(&self, invocation: &str) -> usize {
        self.invocations.count(invocation)
    }

    /// Begins an operation of `task`, for an execution and so many clients that follow it.
    pub(super) fn insert(
        &mut self,
        operation: OperationId,
        (execution, watchers): (ExecutionId, u32),
        task: &Task,
    ) {
        let identity = self.identities.add(&task.identity);
        let invocation = self.invocations.add(&task.invocation);
        let live = Live { execution, watchers, is_deleted: false, identity, invocation };
        self.live.insert(operation, live);
    }

    pub(super) fn live(&self, operation: OperationId) -> Option<&Live> {
        self.live.get(&operation)
    }

    pub(super) fn live_mut(&mut self, operation: OperationId) -> Option<&mut Live> {
        self.live.get_mut(&operation)
    }

    /// Moves a live operation to the finished ones, to be kept until a time. Returns what it was.
    pub(super) fn finish(&mut self, operation: OperationId, until: Time) -> Option<Live> {
        let live = self.live.remove(&operation)?;
        self.identities.subtract(live.identity);
        self.invocations.subtract(live.invocation);
        self.insert_finished(operation, until);
        Some(live)
    }

    /// Adds an operation that finished after all that are there, and is kept no shorter than they are.
    pub(super) fn insert_finished(&mut self, operation: OperationId, until: Time) {
        self.finishes += 1;
        self.finished.insert(operation, self.finishes);
        self.by_age.push_back(Finished { number: self.finishes, operation, until });
    }

    /// Drops a finished operation. Returns whether there was one.
    pub(super) fn forget(&mut self, operation: OperationId) -> bool {
        let is_known = self.finished.remove(&operation).is_some();
        if is_known {
            self.tidy();
        }
        is_known
    }

    /// The operation that finished first, and until when it is kept.
    pub(super) fn oldest_finished(&self) -> Option<(OperationId, Time)> {
        self.by_age.front().map(|finished| (finished.operation, finished.until))
    }

    /// Keeps the first in line a finished one, and the line at most twice as long as what is in it.
    fn tidy(&mut self) {
        let finished = &self.finished;
        let is_kept = |one: &Finished| finished.get(&one.operation) == Some(&one.number);
        while self.by_age.front().is_some_and(|first| !is_kept(first)) {
            self.by_age.pop_front();
        }
        if self.by_age.len() > 2 * finished.len() + 16 {
            self.by_age.retain(is_kept);
        }
    }
}

#[cfg(test)]
impl Operations {
    pub(super) fn iter_live(&self) -> impl Iterator<Item = (OperationId, &Live)> {
        self.live
            .sorted_keys()
            .into_iter()
            .map(|operation| (*operation, self.live.get(operation).expect("it is listed")))
    }

    pub(super) fn iter_finished(&self) -> impl Iterator<Item = OperationId> {
        self.finished.sorted_keys().into_iter().copied()
    }

    /// How many names are counted, and the sum of their counts.
    pub(super) fn counted(&self) -> [(usize, usize); 2] {
        let sum = |tally: &Tally| tally.counts.iter().map(|(_, count)| count).sum();
        [&self.identities, &self.invocations].map(|tally| (tally.numbers.len(), sum(tally)))
    }
}

/// How many live operations each name has. A name without any is not kept.
#[derive(Debug, Default)]
struct Tally {
    numbers: Lookup<Arc<str>, u32>,
    counts: Vec<(Arc<str>, usize)>,
    unused: Vec<u32>,
}

impl Tally {
    fn count(&self, name: &str) -> usize {
        self.numbers.get(name).map_or(0, |number| self.counts[*number as usize].1)
    }

    /// Counts one more. Returns the name's number.
    fn add(&mut self, name: &Arc<str>) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            self.counts[*number as usize].1 += 1;
            return *number;
        }
        let number = self.unused.pop().unwrap_or_else(|| {
            self.counts.push((Arc::from(""), 0));
            u32::try_from(self.counts.len() - 1).expect("there are fewer names than operations")
        });
        self.counts[number as usize] = (Arc::clone(name), 1);
        self.numbers.insert(Arc::clone(name), number);
        number
    }

    fn subtract(&mut self, number: u32) {
        let (name, count) = &mut self.counts[number as usize];
        *count -= 1;
        if *count == 0 {
            self.numbers.remove(name);
            *name = Arc::from("");
            self.unused.push(number);
        }
    }
}

/// The operations that wait for one execution: nearly always a single one, so that costs no memory of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::box_collection, reason = "the rare case must not make the common one larger")]
pub(super) enum Waiters {
    #[default]
    Nobody,
    One(OperationId),
    Many(Box<BTreeSet<OperationId>>),
}

impl FromIterator<OperationId> for Waiters {
    fn from_iter<I: IntoIterator<Item = OperationId>>(operations: I) -> Self {
        let mut waiters = Self::default();
        operations.into_iter().for_each(|operation| waiters.insert(operation));
        waiters
    }
}

impl Waiters {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Nobody => 0,
            Self::One(_) => 1,
            Self::Many(all) => all.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn insert(&mut self, operation: OperationId) {
        match self {
            Self::Nobody => *self = Self::One(operation),
            Self::One(first) => *self = Self::Many(Box::new(BTreeSet::from([*first, operation]))),
            Self::Many(all) => {
                all.insert(operation);
            }
        }
    }

    pub(super) fn remove(&mut self, operation: &OperationId) {
        match self {
            Self::Nobody => {}
            Self::One(first) if first == operation => *self = Self::Nobody,
            Self::One(_) => {}
            Self::Many(all) => {
                all.remove(operation);
            }
        }
    }

    /// The operations in the order of their identifiers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &OperationId> {
        let (one, many) = match self {
            Self::Nobody => (None, None),
            Self::One(first) => (Some(first), None),
            Self::Many(all) => (None, Some(all)),
        };
        one.into_iter().chain(many.into_iter().flat_map(|all| all.iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_counted_as_long_as_it_has_operations() {
        let mut tally = Tally::default();
        let (a, b) = (tally.add(&"a".into()), tally.add(&"b".into()));
        tally.add(&"a".into());
        assert_eq!((tally.count("a"), tally.count("b"), tally.count("c")), (2, 1, 0));
        tally.subtract(a);
        tally.subtract(b);
        assert_eq!((tally.count("a"), tally.count("b"), tally.numbers.len()), (1, 0, 1));
        assert_eq!(tally.add(&"c".into()), b);
        assert_eq!(tally.count("c"), 1);
    }

    #[test]
    fn waiters_come_and_go() {
        let [one, two] = [1, 2].map(OperationId::new);
        let mut waiters = Waiters::One(two);
        waiters.remove(&one);
        waiters.insert(one);
        assert_eq!(waiters.iter().copied().collect::<Vec<_>>(), [one, two]);
        waiters.remove(&one);
        waiters.remove(&two);
        assert!(waiters.is_empty());
    }
}
