//! The executions of one shape, by their order and by their age.

use std::collections::BTreeMap;

use super::Entry;
use super::flows::Flows;
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
    /// All entries in the order in which they were put in line.
    age: BTreeMap<u64, Aged>,
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
    ticket: u64,
}

#[derive(Debug, Clone, Copy)]
struct Aged {
    since: Time,
    flow: u32,
    arrival: u64,
}

/// What is first in a line.
pub(super) struct Head {
    pub(super) key: Key,
    pub(super) execution: ExecutionId,
}

impl Line {
    /// An empty line, which its queue has listed to be closed.
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            groups: BTreeMap::new(),
            order: BTreeMap::new(),
            age: BTreeMap::new(),
            stranded_since: None,
            is_listed: true,
        }
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) fn len(&self) -> usize {
        self.age.len()
    }

    /// Puts an entry in line under its ticket.
    pub(super) fn insert(&mut self, flows: &Flows, flow: u32, (ticket, entry): (u64, Entry)) {
        let arrival = entry.position.arrival;
        self.age.insert(ticket, Aged { since: entry.since, flow, arrival });
        let group = self.groups.entry(flow).or_insert(Group { key: Key::NONE, entries: BTreeMap::new() });
        let is_head = group.entries.first_key_value().is_none_or(|(first, _)| arrival < *first);
        group.entries.insert(arrival, Queued { execution: entry.execution, ticket });
        if is_head {
            self.order.remove(&group.key);
            group.key = flows.key(flow, arrival);
            self.order.insert(group.key, flow);
        }
    }

    /// Takes an entry out. Returns it with its ticket.
    pub(super) fn remove(&mut self, flows: &Flows, flow: u32, arrival: u64) -> Option<(u64, Entry)> {
        let group = self.groups.get_mut(&flow)?;
        let is_head = group.entries.first_key_value().is_some_and(|(first, _)| *first == arrival);
        let queued = group.entries.remove(&arrival)?;
        if is_head {
            self.order.remove(&group.key);
            match group.entries.first_key_value() {
                Some((next, _)) => {
                    group.key = flows.key(flow, *next);
                    self.order.insert(group.key, flow);
                }
                None => {
                    self.groups.remove(&flow);
                }
            }
        }
        let aged = self.age.remove(&queued.ticket).expect("what is in order has an age");
        let position = super::Position { priority: flows.priority(flow), arrival };
        Some((queued.ticket, Entry { execution: queued.execution, position, since: aged.since }))
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

    /// Since when the longest waiting entry waits.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.age.first_key_value().map(|(_, aged)| aged.since)
    }

    pub(super) fn oldest_ticket(&self) -> Option<u64> {
        self.age.first_key_value().map(|(ticket, _)| *ticket)
    }

    pub(super) fn oldest_execution(&self) -> Option<ExecutionId> {
        self.by_age().next().map(|(_, execution)| execution)
    }

    /// All entries, the longest waiting first, with the time since when they wait.
    pub(super) fn by_age(&self) -> impl Iterator<Item = (Time, ExecutionId)> {
        self.age.values().map(|aged| (aged.since, self.groups[&aged.flow].entries[&aged.arrival].execution))
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
        let ticket = self.groups.get(&flow)?.entries.get(&arrival)?.ticket;
        self.age.get(&ticket).map(|aged| aged.since)
    }
}
