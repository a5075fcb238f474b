//! The executions of one shape, by their order and by their age.

use std::collections::BTreeMap;

use super::flows::Flows;
use super::{Entry, Position};
use crate::scheduler::id::{ExecutionId, Time};
use crate::scheduler::requirements::Shape;

/// Where something stands in the order, as one number: priority, round of its invocation, arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u128);

impl Key {
    /// After everything.
    pub(super) const NONE: Self = Self(u128::MAX);

    pub(super) fn new(priority: i32, round: u32, arrival: u64) -> Self {
        let urgency = priority.cast_unsigned() ^ (1 << 31);
        Self(u128::from(urgency) << 96 | u128::from(round) << 64 | u128::from(arrival))
    }
}

#[derive(Debug)]
pub(super) struct Line {
    shape: Shape,
    groups: BTreeMap<u32, Group>,
    /// The flow of each group by the key of its head. A key is too low if the flow's round has ended since; it is then put right when it is
    /// looked at.
    order: BTreeMap<Key, u32>,
    /// The flow of each group by the arrival of its head.
    age: BTreeMap<u64, u32>,
    length: usize,
    /// Since when no connected worker could ever run this shape.
    pub(super) stranded_since: Option<Time>,
    /// It is among the lines to be closed when they have no entry.
    pub(super) is_listed: bool,
}

/// The entries of one flow, by arrival.
#[derive(Debug)]
struct Group {
    /// Under which it stands in the order.
    key: Key,
    entries: BTreeMap<u64, Queued>,
}

#[derive(Debug, Clone, Copy)]
struct Queued {
    execution: ExecutionId,
    since: Time,
}

/// What is first in a line.
pub(super) struct Head {
    pub(super) key: Key,
    pub(super) execution: ExecutionId,
}

impl Group {
    fn head(&self) -> Option<u64> {
        self.entries.first_key_value().map(|(arrival, _)| *arrival)
    }
}

impl Line {
    /// An empty line, which its queue has listed to be closed.
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            groups: BTreeMap::new(),
            order: BTreeMap::new(),
            age: BTreeMap::new(),
            length: 0,
            stranded_since: None,
            is_listed: true,
        }
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn insert(&mut self, flows: &Flows, flow: u32, entry: Entry) {
        let arrival = entry.position.arrival;
        let group = self.groups.entry(flow).or_insert(Group { key: Key::NONE, entries: BTreeMap::new() });
        let old_head = group.head();
        group.entries.insert(arrival, Queued { execution: entry.execution, since: entry.since });
        self.length += 1;
        if old_head.is_none_or(|old| arrival < old) {
            self.move_head(flows, flow, old_head);
        }
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, flows: &Flows, flow: u32, arrival: u64) -> Option<Entry> {
        let group = self.groups.get_mut(&flow)?;
        let old_head = group.head();
        let Queued { execution, since } = group.entries.remove(&arrival)?;
        self.length -= 1;
        if old_head == Some(arrival) {
            self.move_head(flows, flow, old_head);
        }
        Some(Entry { execution, position: Position { priority: flows.priority(flow), arrival }, since })
    }

    /// Files a group anew, whose head was another one.
    fn move_head(&mut self, flows: &Flows, flow: u32, old_head: Option<u64>) {
        let group = self.groups.get_mut(&flow).expect("a group whose head moves is there");
        if let Some(old) = old_head {
            self.order.remove(&group.key);
            self.age.remove(&old);
        }
        match group.head() {
            Some(head) => {
                group.key = flows.key(flow, head);
                self.order.insert(group.key, flow);
                self.age.insert(head, flow);
            }
            None => {
                self.groups.remove(&flow);
            }
        }
    }

    /// The key of the head, perhaps too low.
    pub(super) fn head_key(&self) -> Key {
        self.order.first_key_value().map_or(Key::NONE, |(key, _)| *key)
    }

    /// The head, with keys put right that are looked at.
    pub(super) fn head(&mut self, flows: &Flows) -> Option<Head> {
        loop {
            let (filed, flow) = self.order.first_key_value().map(|(key, flow)| (*key, *flow))?;
            let group = self.groups.get_mut(&flow).expect("what is in order has a group");
            let (arrival, queued) = group.entries.first_key_value().expect("a group has an entry");
            let key = flows.key(flow, *arrival);
            if key == filed {
                return Some(Head { key, execution: queued.execution });
            }
            group.key = key;
            self.order.pop_first();
            self.order.insert(key, flow);
        }
    }

    /// The arrival of the oldest entry.
    pub(super) fn oldest_arrival(&self) -> Option<u64> {
        self.age.first_key_value().map(|(arrival, _)| *arrival)
    }

    /// The oldest entry, and since when it waits.
    pub(super) fn oldest(&self) -> Option<(ExecutionId, Time)> {
        let (arrival, flow) = self.age.first_key_value()?;
        let queued = self.groups[flow].entries[arrival];
        Some((queued.execution, queued.since))
    }

    /// The entries of a flow that came before `arrival`.
    pub(super) fn before(&self, flow: u32, arrival: u64) -> impl Iterator<Item = ExecutionId> {
        let group = self.groups.get(&flow).into_iter();
        group.flat_map(move |group| group.entries.range(..arrival).map(|(_, queued)| queued.execution))
    }

    /// The flows in this line with how many entries each has.
    pub(super) fn flows(&self) -> impl Iterator<Item = (u32, usize)> {
        self.groups.iter().map(|(flow, group)| (*flow, group.entries.len()))
    }
}

/// What operators ask.
impl Line {
    /// Since when the entry of a flow with that arrival waits.
    pub(super) fn since(&self, flow: u32, arrival: u64) -> Option<Time> {
        Some(self.groups.get(&flow)?.entries.get(&arrival)?.since)
    }
}
