//! The executions of one shape, by their order and by their age.

use super::Entry;
use super::flows::Flows;
use super::ranking::Ranking;
use super::run::{Queued, Run};
use crate::scheduler::id::{ExecutionId, Time};
use crate::scheduler::lookup::Lookup;
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
    /// By number; the number of a group that is gone is used again.
    groups: Vec<Group>,
    unused: Vec<u32>,
    /// The group of each flow that has entries here.
    by_flow: Lookup<u32, u32>,
    /// The groups by the key of their heads. A key is too low if its flow's round has ended since; it is then put right when it is looked at.
    order: Ranking<Key>,
    /// The groups by the arrival of their heads.
    age: Ranking<u64>,
    length: usize,
    /// Since when no connected worker could ever run this shape.
    pub(super) stranded_since: Option<Time>,
    /// It is among the lines to be closed when they have no entry.
    pub(super) is_listed: bool,
}

/// The entries of one flow. The head is kept apart: it is looked at more often than it changes.
#[derive(Debug)]
struct Group {
    flow: u32,
    head: Queued,
    rest: Run,
    /// The arrival up to which a search for what comes next has come.
    advanced: u64,
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
            groups: Vec::new(),
            unused: Vec::new(),
            by_flow: Lookup::default(),
            order: Ranking::default(),
            age: Ranking::default(),
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

    /// Puts an entry in line. Returns the number of its group.
    pub(super) fn insert(&mut self, flows: &Flows, flow: u32, entry: Entry) -> u32 {
        let queued = Queued::new(entry);
        self.length += 1;
        let Some(number) = self.by_flow.get(&flow).copied() else {
            return self.add_group(flows, flow, queued);
        };
        let group = &mut self.groups[number as usize];
        if group.head.arrival < queued.arrival {
            group.rest.insert(queued);
            return number;
        }
        group.rest.insert(group.head);
        self.file(flows, number, queued);
        number
    }

    fn add_group(&mut self, flows: &Flows, flow: u32, head: Queued) -> u32 {
        let group = Group { flow, head, rest: Run::default(), advanced: 0 };
        let number = match self.unused.pop() {
            Some(number) => {
                self.groups[number as usize] = group;
                number
            }
            None => {
                self.groups.push(group);
                u32::try_from(self.groups.len() - 1).expect("there are fewer groups than executions")
            }
        };
        self.by_flow.insert(flow, number);
        self.file(flows, number, head);
        number
    }

    /// Takes an entry out of a group.
    pub(super) fn remove(&mut self, flows: &Flows, number: u32, arrival: u64) -> Option<Entry> {
        let group = self.groups.get_mut(number as usize)?;
        let flow = group.flow;
        let queued = if group.head.arrival == arrival {
            let (head, next) = (group.head, group.rest.pop());
            match next {
                Some(next) => self.file(flows, number, next),
                None => {
                    self.order.remove(number);
                    self.age.remove(number);
                    self.by_flow.remove(&flow);
                    self.unused.push(number);
                }
            }
            head
        } else {
            group.rest.remove(arrival)?
        };
        self.length -= 1;
        Some(queued.entry(flows.priority(flow)))
    }

    /// Files a group under its head.
    fn file(&mut self, flows: &Flows, number: u32, head: Queued) {
        let group = &mut self.groups[number as usize];
        group.head = head;
        self.order.set(number, flows.key(group.flow, head.arrival));
        self.age.set(number, head.arrival);
    }

    /// The key of the head, perhaps too low.
    pub(super) fn head_key(&self) -> Key {
        self.order.first().map_or(Key::NONE, |(key, _)| key)
    }

    /// The head, with keys put right that are looked at.
    pub(super) fn head(&mut self, flows: &Flows) -> Option<Head> {
        loop {
            let (filed, number) = self.order.first()?;
            let group = &self.groups[number as usize];
            let key = flows.key(group.flow, group.head.arrival);
            if key == filed {
                return Some(Head { key, execution: group.head.execution });
            }
            self.order.set(number, key);
        }
    }

    /// The arrival of the oldest entry.
    pub(super) fn oldest_arrival(&self) -> Option<u64> {
        self.age.first().map(|(arrival, _)| arrival)
    }

    /// The oldest entry, and since when it waits.
    pub(super) fn oldest(&self) -> Option<(ExecutionId, Time)> {
        let (_, number) = self.age.first()?;
        let head = self.groups[number as usize].head;
        Some((head.execution, head.since()))
    }

    /// How many entries of a group came before `arrival`, counted up to `most`.
    pub(super) fn count_before(&self, number: u32, arrival: u64, most: usize) -> usize {
        let group = &self.groups[number as usize];
        let first = usize::from(group.head.arrival < arrival);
        (first + group.rest.iter().take(most).take_while(|queued| queued.arrival < arrival).count()).min(most)
    }

    /// The oldest entry of a flow beyond what was passed.
    pub(super) fn next_of(&self, flow: u32) -> Option<ExecutionId> {
        let group = &self.groups[*self.by_flow.get(&flow)? as usize];
        let head = Some(&group.head).filter(|head| head.arrival > group.advanced);
        head.or_else(|| group.rest.after(group.advanced)).map(|queued| queued.execution)
    }

    pub(super) fn advance(&mut self, flow: u32, arrival: u64) {
        if let Some(number) = self.by_flow.get(&flow) {
            let group = &mut self.groups[*number as usize];
            group.advanced = arrival.max(group.advanced);
        }
    }

    pub(super) fn flow(&self, number: u32) -> u32 {
        self.groups[number as usize].flow
    }

    /// The flows in this line with how many entries each has.
    pub(super) fn flows(&self) -> impl Iterator<Item = (u32, usize)> {
        let groups = self.age.numbers().map(|number| &self.groups[number as usize]);
        groups.map(|group| (group.flow, group.rest.len() + 1))
    }
}

/// What operators ask.
impl Line {
    /// Since when the entry of a group with that arrival waits.
    pub(super) fn since(&self, number: u32, arrival: u64) -> Option<Time> {
        let group = self.groups.get(number as usize)?;
        let found = if group.head.arrival == arrival { Some(&group.head) } else { group.rest.find(arrival) };
        found.map(|queued| queued.since())
    }
}
