//! How much each invocation has had: fairness by virtual time.
//!
//! A *flow* is one invocation at one priority that has something queued. Each start moves its virtual time on by one. Flows of one
//! priority take turns by rounds of [`QUANTUM`] starts, so a flow keeps its place in the lines until its round is over. A flow that appears begins
//! at the clock of its priority, the latest virtual time at which one was started; what it had before is not remembered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Party;
use super::line::Key;
use crate::scheduler::lookup::Lookup;

/// Starts that an invocation gets in a row before it is another one's turn.
pub(super) const QUANTUM: u64 = 16;

/// How far a flow may be behind the clock: what was not to be had while its own workers were busy is not made up for later at the
/// cost of all others.
const BEHIND_MAX: u64 = 4 * QUANTUM;

#[derive(Debug, Default)]
pub(super) struct Flows {
    flows: Vec<Flow>,
    numbers: Lookup<Name, u32>,
    levels: BTreeMap<i32, Level>,
    unused: Vec<u32>,
}

#[derive(Debug)]
struct Flow {
    name: Name,
    /// Its virtual time: starts, counted from where it began.
    time: u64,
    /// How many of its executions are queued.
    queued: usize,
}

/// One priority.
#[derive(Debug, Default)]
struct Level {
    clock: u64,
    flows: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name {
    priority: i32,
    sender: Sender,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sender {
    Invocation(Arc<str>),
    /// Who sends no invocation has all that he sends counted together.
    Identity(Arc<str>),
}

impl Flows {
    /// Counts one more of a party's executions as queued. Returns the number of its flow.
    pub(super) fn join(&mut self, priority: i32, party: Party<'_>) -> u32 {
        let name = name(priority, party);
        if let Some(number) = self.numbers.get(&name) {
            self.flows[*number as usize].queued += 1;
            return *number;
        }
        let level = self.levels.entry(priority).or_default();
        level.flows += 1;
        let flow = Flow { name: name.clone(), time: level.clock, queued: 1 };
        let number = self.unused.pop().unwrap_or(u32::try_from(self.flows.len()).unwrap_or(u32::MAX));
        match self.flows.get_mut(number as usize) {
            Some(old) => *old = flow,
            None => self.flows.push(flow),
        }
        self.numbers.insert(name, number);
        number
    }

    /// Counts one less. A flow of which nothing is queued is forgotten.
    pub(super) fn leave(&mut self, number: u32) {
        let flow = &mut self.flows[number as usize];
        flow.queued -= 1;
        if flow.queued > 0 {
            return;
        }
        self.numbers.remove(&flow.name);
        self.unused.push(number);
        let priority = flow.name.priority;
        let level = self.levels.get_mut(&priority).expect("a flow has its level");
        level.flows -= 1;
        if level.flows == 0 {
            self.levels.remove(&priority);
        }
    }

    pub(super) fn find(&self, priority: i32, party: Party<'_>) -> Option<u32> {
        self.numbers.get(&name(priority, party)).copied()
    }

    /// One of the flow's executions starts.
    pub(super) fn charge(&mut self, number: u32) {
        let flow = &mut self.flows[number as usize];
        let level = self.levels.get_mut(&flow.name.priority).expect("a flow has its level");
        level.clock = level.clock.max(flow.time);
        flow.time = flow.time.max(level.clock.saturating_sub(BEHIND_MAX)) + 1;
    }

    pub(super) fn priority(&self, number: u32) -> i32 {
        self.flows[number as usize].name.priority
    }

    /// Where the flow's execution of that arrival stands.
    pub(super) fn key(&self, number: u32, arrival: u64) -> Key {
        let flow = &self.flows[number as usize];
        let round = u32::try_from(flow.time / QUANTUM).unwrap_or(u32::MAX);
        Key::new(flow.name.priority, round, arrival)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }
}

fn name(priority: i32, party: Party<'_>) -> Name {
    let sender = if party.invocation.is_empty() {
        Sender::Identity(Arc::clone(party.identity))
    } else {
        Sender::Invocation(Arc::clone(party.invocation))
    };
    Name { priority, sender }
}
