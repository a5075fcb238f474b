//! Executions that wait for a worker: one queue per set of requirements, each in the order of its positions.
//!
//! Whoever has room looks only at the heads of the queues, in their order, so the cost does not grow with what is queued.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::id::{ExecutionId, Time};
use super::requirements::Requirements;

/// A set of requirements that something queued has.
pub(super) type Shape = Arc<Requirements>;

/// Where an execution stands in line; unique, so the order is total. Another order of the queue is another `Position`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// Lower is sooner.
    pub(super) priority: i32,
    /// The number of the submission: older is sooner, and a retry keeps its place.
    pub(super) arrival: u64,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: BTreeMap<Shape, Line>,
    /// The first position of each line.
    heads: BTreeMap<Position, Shape>,
    length: usize,
}

/// The executions of one shape.
#[derive(Debug, Default)]
struct Line {
    order: BTreeMap<Position, Entry>,
    /// The same executions by the time since when they wait.
    waiting: BTreeSet<(Time, Position)>,
    /// Since when no connected worker could ever run this shape.
    stranded_since: Option<Time>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) execution: ExecutionId,
    /// Since when it waits.
    pub(super) since: Time,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// How many different shapes are queued.
    pub(super) fn shapes(&self) -> impl ExactSizeIterator<Item = &Shape> {
        self.lines.keys()
    }

    pub(super) fn holds(&self, shape: &Requirements) -> bool {
        self.lines.contains_key(shape)
    }

    pub(super) fn insert(&mut self, shape: &Shape, position: Position, entry: Entry) {
        let line = self.lines.entry(Arc::clone(shape)).or_default();
        let old_head = line.head();
        line.order.insert(position, entry);
        line.waiting.insert((entry.since, position));
        let head = line.head();
        self.length += 1;
        self.move_head(shape, old_head, head);
    }

    /// Takes an execution out of line.
    pub(super) fn remove(&mut self, shape: &Shape, position: Position) {
        let Some(line) = self.lines.get_mut(shape) else { return };
        let old_head = line.head();
        let Some(entry) = line.order.remove(&position) else { return };
        line.waiting.remove(&(entry.since, position));
        let head = line.head();
        if head.is_none() {
            self.lines.remove(shape);
        }
        self.length -= 1;
        self.move_head(shape, old_head, head);
    }

    /// Moves an execution in its line; it has waited as long as before.
    pub(super) fn reposition(&mut self, shape: &Shape, old: Position, new: Position) {
        let Some(entry) = self.lines.get(shape).and_then(|line| line.order.get(&old)).copied() else {
            return;
        };
        self.insert(shape, new, entry);
        self.remove(shape, old);
    }

    /// The first execution whose shape `fits`.
    pub(super) fn first(&self, fits: impl Fn(&Requirements) -> bool) -> Option<ExecutionId> {
        let (position, shape) = self.heads.iter().find(|(_, shape)| fits(shape))?;
        Some(self.lines[shape].order[position].execution)
    }

    /// No connected worker could run `shape`, since `now` or longer. Returns when its longest waiting execution has waited `after`.
    pub(super) fn strand(&mut self, shape: &Requirements, now: Time, after: Duration) -> Option<Time> {
        let line = self.lines.get_mut(shape)?;
        let since = *line.stranded_since.get_or_insert(now);
        let (oldest, _) = line.waiting.first()?;
        Some((*oldest).max(since) + after)
    }

    /// A connected worker could run `shape`.
    pub(super) fn unstrand(&mut self, shape: &Requirements) {
        if let Some(line) = self.lines.get_mut(shape) {
            line.stranded_since = None;
        }
    }

    /// The executions of `shape` that have waited for `after` while no connected worker could ever run them.
    pub(super) fn overdue(&self, shape: &Requirements, now: Time, after: Duration) -> Vec<ExecutionId> {
        let Some(line) = self.lines.get(shape) else { return Vec::new() };
        if line.stranded_since.is_none_or(|since| since + after > now) {
            return Vec::new();
        }
        let waiting = line.waiting.iter().take_while(|(since, _)| *since + after <= now);
        waiting.map(|(_, position)| line.order[position].execution).collect()
    }

    fn move_head(&mut self, shape: &Shape, old: Option<Position>, new: Option<Position>) {
        if old == new {
            return;
        }
        if let Some(position) = old {
            self.heads.remove(&position);
        }
        if let Some(position) = new {
            self.heads.insert(position, Arc::clone(shape));
        }
    }
}

impl Line {
    fn head(&self) -> Option<Position> {
        self.order.first_key_value().map(|(position, _)| *position)
    }
}
