//! What clients hold: live operations, each waiting for one execution, and finished ones that can still be asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::id::{ExecutionId, OperationId, Time};

#[derive(Debug, Default)]
pub(super) struct Operations {
    live: BTreeMap<OperationId, Live>,
    finished: BTreeMap<OperationId, Time>,
    /// The finished ones, the oldest first.
    by_age: BTreeSet<(Time, OperationId)>,
}

/// An operation that waits for its execution.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) execution: ExecutionId,
    /// How many clients follow it.
    pub(super) watchers: u32,
    /// No client will ask for it once it is finished.
    pub(super) is_deleted: bool,
}

impl Operations {
    pub(super) fn live_count(&self) -> usize {
        self.live.len()
    }

    pub(super) fn finished_count(&self) -> usize {
        self.finished.len()
    }

    pub(super) fn insert(&mut self, operation: OperationId, execution: ExecutionId) {
        self.live.insert(operation, Live { execution, watchers: 1, is_deleted: false });
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
        self.finished.insert(operation, now);
        self.by_age.insert((now, operation));
        Some(live)
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
}
