//! The executions by their identifiers, and those that equal tasks join.

use std::ops::Index;

use super::execution::Execution;
use super::id::ExecutionId;
use super::lookup::Lookup;
use super::task::MergeKey;

/// Everything that is queued, runs or is being settled.
#[derive(Debug, Default)]
pub(super) struct Executions(Lookup<ExecutionId, Box<Execution>>);

/// The executions that equal tasks join.
pub(super) type Mergeable = Lookup<MergeKey, ExecutionId>;

impl Executions {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn get(&self, id: &ExecutionId) -> Option<&Execution> {
        self.0.get(id).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, id: &ExecutionId) -> Option<&mut Execution> {
        self.0.get_mut(id).map(Box::as_mut)
    }

    pub(super) fn insert(&mut self, id: ExecutionId, execution: Execution) {
        self.0.insert(id, Box::new(execution));
    }

    pub(super) fn remove(&mut self, id: &ExecutionId) -> Option<Box<Execution>> {
        self.0.remove(id)
    }

    /// All of them in the order of their identifiers, for tests.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (ExecutionId, &Execution)> {
        self.0.sorted_keys().into_iter().map(|id| (*id, &self[id]))
    }
}

impl Index<&ExecutionId> for Executions {
    type Output = Execution;

    fn index(&self, id: &ExecutionId) -> &Execution {
        self.get(id).expect("whoever indexes knows that the execution exists")
    }
}
