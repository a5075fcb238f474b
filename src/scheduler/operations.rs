//! What clients hold: live operations, each waiting for one execution, and finished ones that can still be asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::id::{ExecutionId, OperationId, Time};
use super::task::Task;

#[derive(Debug, Default)]
pub(super) struct Operations {
    live: BTreeMap<OperationId, Live>,
    finished: BTreeMap<OperationId, Time>,
    /// The finished ones, the oldest first.
    by_age: BTreeSet<(Time, OperationId)>,
    of_identity: Counts,
    of_invocation: Counts,
}

/// An operation that waits for its execution.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) execution: ExecutionId,
    /// How many clients follow it.
    pub(super) watchers: u32,
    /// No client will ask for it once it is finished.
    pub(super) is_deleted: bool,
    identity: Arc<str>,
    invocation: Arc<str>,
}

/// How many live operations there are of each.
#[derive(Debug, Default)]
struct Counts(BTreeMap<Arc<str>, usize>);

impl Live {
    pub(super) fn new(execution: ExecutionId, task: &Task, watchers: u32) -> Self {
        let (identity, invocation) = (Arc::clone(&task.identity), Arc::clone(&task.invocation));
        Self { execution, watchers, is_deleted: false, identity, invocation }
    }
}

impl Counts {
    fn of(&self, name: &str) -> usize {
        self.0.get(name).copied().unwrap_or(0)
    }

    fn add(&mut self, name: &Arc<str>) {
        *self.0.entry(Arc::clone(name)).or_default() += 1;
    }

    fn remove(&mut self, name: &Arc<str>) {
        let Some(count) = self.0.get_mut(name) else { return };
        *count -= 1;
        if *count == 0 {
            self.0.remove(name);
        }
    }
}

impl Operations {
    pub(super) fn live_count(&self) -> usize {
        self.live.len()
    }

    pub(super) fn finished_count(&self) -> usize {
        self.finished.len()
    }

    /// How many live operations are of one identity.
    pub(super) fn count_of_identity(&self, identity: &str) -> usize {
        self.of_identity.of(identity)
    }

    /// How many live operations are of one invocation.
    pub(super) fn count_of_invocation(&self, invocation: &str) -> usize {
        self.of_invocation.of(invocation)
    }

    pub(super) fn insert(&mut self, operation: OperationId, live: Live) {
        self.of_identity.add(&live.identity);
        self.of_invocation.add(&live.invocation);
        self.live.insert(operation, live);
    }

    pub(super) fn live(&self, operation: OperationId) -> Option<&Live> {
        self.live.get(&operation)
    }

    pub(super) fn live_mut(&mut self, operation: OperationId) -> Option<&mut Live> {
        self.live.get_mut(&operation)
    }

    /// Moves a live operation to the finished ones. Returns what it was.
    pub(super) fn finish(&mut self, operation: OperationId, now: Time) -> Option<Live> {
        let live = self.live.remove(&operation)?;
        self.of_identity.remove(&live.identity);
        self.of_invocation.remove(&live.invocation);
        self.insert_finished(operation, now);
        Some(live)
    }

    /// Adds an operation that was finished before.
    pub(super) fn insert_finished(&mut self, operation: OperationId, now: Time) {
        self.finished.insert(operation, now);
        self.by_age.insert((now, operation));
    }

    /// Drops a finished operation. Returns whether there was one.
    pub(super) fn forget(&mut self, operation: OperationId) -> bool {
        let at = self.finished.remove(&operation);
        at.is_some_and(|at| self.by_age.remove(&(at, operation)))
    }

    /// The operation that finished first.
    pub(super) fn oldest_finished(&self) -> Option<OperationId> {
        self.by_age.first().map(|(_, operation)| *operation)
    }

    #[cfg(test)]
    pub(super) fn iter_live(&self) -> impl Iterator<Item = (OperationId, &Live)> {
        self.live.iter().map(|(operation, live)| (*operation, live))
    }

    #[cfg(test)]
    pub(super) fn iter_finished(&self) -> impl Iterator<Item = OperationId> {
        self.finished.keys().copied()
    }

    /// How many names are counted, and the sum of their counts.
    #[cfg(test)]
    pub(super) fn counted(&self) -> [(usize, usize); 2] {
        [&self.of_identity, &self.of_invocation].map(|counts| (counts.0.len(), counts.0.values().sum()))
    }
}
