//! Executions that wait for a worker: one line per shape, and in it one group per invocation.
//!
//! The order is: the lower priority first; in one priority, the invocation that has had the least; then the older. So that nothing waits for
//! ever, one start in [`OLDEST_EVERY`] takes the oldest instead, whatever its priority. Age goes by
//! submission, so a retry stays as old as it is.
//!
//! What an execution with `n` older ones before it, on the workers of a class that can run it, may rely on: it is among the first
//! `OLDEST_EVERY · (n + 1)` starts there, not counting the workers that have no room for it and are reserved for another line.
//!
//! Whoever has room looks at the heads of the lines that its class can run. They are numbers in one array, so the cost grows with
//! the lines and not with what is queued.

mod flows;
mod line;
mod ranking;
mod run;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use self::flows::Flows;
use self::line::{Key, Line};
use super::id::{ExecutionId, Time};
use super::lookup::Lookup;
use super::requirements::Shape;

/// One start of so many, on the workers of one class, takes the oldest.
pub(super) const OLDEST_EVERY: u32 = 16;

/// Lines without entries that are remembered, with the classes of workers that could run them: they come and go with every action
/// of a farm that keeps up.
const IDLE_LINES_MAX: usize = 1024;

/// Entries that are counted at most to say how many are before one.
const AHEAD_MAX: usize = 10_000;

/// The number of a line. It is used again when the line is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LineId(u32);

impl LineId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// How urgent an execution is and when it came; unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// Lower is sooner.
    pub(super) priority: i32,
    /// The number of the submission: older is sooner, and a retry keeps its place.
    pub(super) arrival: u64,
}

/// Where a queued execution is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    line: LineId,
    /// The number of its group in that line.
    group: u32,
}

impl Place {
    pub(super) fn line(self) -> LineId {
        self.line
    }
}

/// One invocation in one line: where a search for what comes next goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trail {
    line: LineId,
    flow: u32,
}

impl Trail {
    pub(super) fn line(self) -> LineId {
        self.line
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) execution: ExecutionId,
    pub(super) position: Position,
    /// Since when it waits.
    pub(super) since: Time,
}

/// Who shares the workers with others: an invocation, or everything that an identity has sent without one.
///
/// An identity with many invocations has as many shares: one account builds for many people, and often it is the only one. What one
/// identity can take of the queue is bounded by `operations_per_identity_max`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Party<'a> {
    pub(super) invocation: &'a Arc<str>,
    pub(super) identity: &'a Arc<str>,
}

/// What is before an execution in its line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Older ones of its own invocation and priority.
    pub(super) in_invocation: usize,
    /// There are more of them than were counted.
    pub(super) is_capped: bool,
    /// Those with a lower priority.
    pub(super) more_urgent: usize,
}

/// One line at a glance.
#[derive(Debug, Clone, Copy)]
pub(super) struct LineView<'a> {
    pub(super) id: LineId,
    pub(super) shape: &'a Shape,
    pub(super) length: usize,
    /// Since when its oldest execution waits.
    pub(super) oldest: Time,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: Vec<Option<Line>>,
    by_shape: Lookup<Shape, LineId>,
    /// The key of each line's head. It may be too low, never too high.
    heads: Vec<Key>,
    /// The arrival of each line's oldest entry.
    oldest: Vec<u64>,
    unused: Vec<LineId>,
    /// Lines that had no entry when they were put here, each once.
    idle: VecDeque<LineId>,
    flows: Flows,
    length: usize,
    /// How many lines have entries.
    shapes: usize,
}

/// The arrival of what is in a line without entries.
const NEVER: u64 = u64::MAX;

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// How many different shapes are queued.
    pub(super) fn shape_count(&self) -> usize {
        self.shapes
    }

    /// The lines that have entries.
    pub(super) fn lines(&self) -> impl Iterator<Item = LineView<'_>> {
        let lines = self.by_number().filter_map(|(id, line)| Some((id, line, line.oldest()?.1)));
        lines.map(|(id, line, oldest)| LineView { id, shape: line.shape(), length: line.len(), oldest })
    }

    /// All open lines, those without entries too.
    pub(super) fn open_lines(&self) -> impl Iterator<Item = (LineId, &Shape)> + Clone {
        self.by_number().map(|(id, line)| (id, line.shape()))
    }

    /// Whether something of this shape is queued.
    pub(super) fn holds(&self, shape: &Shape) -> bool {
        self.find(shape).is_some_and(|line| self.has_entries(line))
    }

    pub(super) fn has_entries(&self, line: LineId) -> bool {
        self.oldest[line.index()] != NEVER
    }

    pub(super) fn find(&self, shape: &Shape) -> Option<LineId> {
        self.by_shape.get(shape).copied()
    }

    pub(super) fn shape(&self, line: LineId) -> &Shape {
        self.line(line).shape()
    }

    /// Opens a line for a shape that has none.
    pub(super) fn open(&mut self, shape: &Shape) -> LineId {
        let id = self.unused.pop().unwrap_or_else(|| {
            self.lines.push(None);
            self.heads.push(Key::NONE);
            self.oldest.push(NEVER);
            LineId(u32::try_from(self.lines.len() - 1).expect("lines are bounded far below that"))
        });
        self.lines[id.index()] = Some(Line::new(shape.clone()));
        self.by_shape.insert(shape.clone(), id);
        self.idle.push_back(id);
        id
    }

    /// Closes a line that has had no entry for long, if more than enough of them are remembered.
    pub(super) fn close_idle(&mut self) -> Option<LineId> {
        while self.idle.len() > IDLE_LINES_MAX {
            let id = self.idle.pop_front()?;
            if self.has_entries(id) {
                self.line_mut(id).is_listed = false;
                continue;
            }
            let line = self.lines[id.index()].take().expect("a listed line is open");
            self.by_shape.remove(line.shape());
            self.unused.push(id);
            return Some(id);
        }
        None
    }

    /// Puts an execution in line.
    pub(super) fn insert(&mut self, line: LineId, party: Party<'_>, entry: Entry) -> Place {
        let flow = self.flows.join(entry.position.priority, party);
        self.put(line, flow, entry)
    }

    fn put(&mut self, id: LineId, flow: u32, entry: Entry) -> Place {
        self.shapes += usize::from(!self.has_entries(id));
        self.length += 1;
        let line = self.lines[id.index()].as_mut().expect("what is put in line has an open one");
        let group = line.insert(&self.flows, flow, entry);
        self.look_again(id);
        Place { line: id, group }
    }

    /// Takes an execution out of line.
    pub(super) fn remove(&mut self, place: Place, position: Position) {
        self.take(place, position);
    }

    fn take(&mut self, place: Place, position: Position) -> Option<Entry> {
        let line = self.lines[place.line.index()].as_mut()?;
        let flow = line.flow(place.group);
        let taken = line.remove(&self.flows, place.group, position.arrival)?;
        self.flows.leave(flow);
        self.length -= 1;
        self.look_again(place.line);
        if !self.has_entries(place.line) {
            self.shapes -= 1;
            self.list(place.line);
        }
        Some(taken)
    }

    /// Moves an execution to another priority; it has waited as long as before.
    pub(super) fn reposition(
        &mut self,
        place: Place,
        (old, new): (Position, Position),
        party: Party<'_>,
    ) -> Place {
        match self.take(place, old) {
            Some(entry) => self.insert(place.line, party, Entry { position: new, ..entry }),
            None => place,
        }
    }

    /// Counts a start to an invocation, before the execution leaves its line.
    pub(super) fn charge(&mut self, place: Place) {
        let flow = self.line(place.line).flow(place.group);
        self.flows.charge(flow);
    }

    /// Counts the start of an execution that was in no line.
    pub(super) fn charge_party(&mut self, priority: i32, party: Party<'_>) {
        if self.length > 0
            && let Some(flow) = self.flows.find(priority, party)
        {
            self.flows.charge(flow);
        }
    }

    /// The first execution in order among those `lines` that fit. Lines come with what fits is asked of.
    pub(super) fn first<N>(
        &mut self,
        lines: impl Iterator<Item = (LineId, N)> + Clone,
        fits: impl Fn(N) -> bool,
    ) -> Option<ExecutionId> {
        loop {
            let mut best = (Key::NONE, None);
            for (line, needs) in lines.clone() {
                let key = self.heads[line.index()];
                if key < best.0 && fits(needs) {
                    best = (key, Some(line));
                }
            }
            let (key, index) = (best.0, best.1?.index());
            let line = self.lines[index].as_mut().expect("a line with a head is open");
            let head = line.head(&self.flows)?;
            if head.key == key {
                return Some(head.execution);
            }
            self.heads[index] = head.key;
        }
    }

    /// Whose turn it is by age: the line whose oldest entry is the oldest, with the arrival of that.
    pub(super) fn oldest_line(&self, lines: impl Iterator<Item = LineId>) -> Option<(u64, LineId)> {
        let waiting = lines.map(|line| (self.oldest[line.index()], line));
        waiting.min().filter(|(arrival, _)| *arrival != NEVER)
    }

    /// The oldest execution of a line.
    pub(super) fn oldest_in(&self, line: LineId) -> Option<ExecutionId> {
        self.line(line).oldest().map(|(execution, _)| execution)
    }

    /// The trail that an execution is on.
    pub(super) fn trail(&self, place: Place) -> Trail {
        Trail { line: place.line, flow: self.line(place.line).flow(place.group) }
    }

    /// The oldest on a trail beyond what [`Queue::advance`] has passed.
    pub(super) fn next_on(&self, trail: Trail) -> Option<ExecutionId> {
        self.lines[trail.line.index()].as_ref()?.next_of(trail.flow)
    }

    /// Nothing up to this position is found on the trail any more.
    pub(super) fn advance(&mut self, trail: Trail, position: Position) {
        if let Some(line) = &mut self.lines[trail.line.index()] {
            line.advance(trail.flow, position.arrival);
        }
    }

    /// What is before an execution in its line. It counts no further than 10,000.
    pub(super) fn ahead_of(&self, place: Place, position: Position) -> Ahead {
        let line = self.line(place.line);
        let in_invocation = line.count_before(place.group, position.arrival, AHEAD_MAX);
        let more_urgent = line.flows().take(AHEAD_MAX);
        let more_urgent = more_urgent.filter(|(flow, _)| self.flows.priority(*flow) < position.priority);
        Ahead {
            in_invocation,
            is_capped: in_invocation == AHEAD_MAX,
            more_urgent: more_urgent.map(|(_, length)| length).sum(),
        }
    }

    /// No connected worker could run what is in `line`, since `now` or longer. Returns when its oldest execution has
    /// waited `after`.
    pub(super) fn strand(&mut self, line: LineId, now: Time, after: Duration) -> Option<Time> {
        let line = self.line_mut(line);
        let since = *line.stranded_since.get_or_insert(now);
        Some(line.oldest()?.1.max(since) + after)
    }

    /// A connected worker could run what is in `line`. Returns whether that is news.
    pub(super) fn unstrand(&mut self, line: LineId) -> bool {
        self.line_mut(line).stranded_since.take().is_some()
    }

    /// The oldest execution of a line, if it has waited for `after` while no connected worker could ever run it. A retry is as old as it was,
    /// but waits anew, and what came after it waits with it.
    pub(super) fn overdue(&self, line: LineId, now: Time, after: Duration) -> Option<ExecutionId> {
        let line = self.line(line);
        line.stranded_since.filter(|since| *since + after <= now)?;
        line.oldest().filter(|(_, since)| *since + after <= now).map(|(execution, _)| execution)
    }

    fn by_number(&self) -> impl Iterator<Item = (LineId, &Line)> + Clone {
        let lines = (0..).map(LineId).zip(&self.lines);
        lines.filter_map(|(id, line)| Some((id, line.as_ref()?)))
    }

    fn line(&self, id: LineId) -> &Line {
        self.lines[id.index()].as_ref().expect("nobody keeps the number of a closed line")
    }

    fn line_mut(&mut self, id: LineId) -> &mut Line {
        self.lines[id.index()].as_mut().expect("nobody keeps the number of a closed line")
    }

    fn look_again(&mut self, id: LineId) {
        let line = self.line(id);
        let (head, oldest) = (line.head_key(), line.oldest_arrival());
        self.heads[id.index()] = head;
        self.oldest[id.index()] = oldest.unwrap_or(NEVER);
    }

    fn list(&mut self, id: LineId) {
        let line = self.line_mut(id);
        if !line.is_listed {
            line.is_listed = true;
            self.idle.push_back(id);
        }
    }
}

/// Who else waits in the line of an execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rivals {
    /// The lowest and the highest of the priorities that are lower than its own.
    pub(super) more_urgent: Option<(i32, i32)>,
    /// The other invocations of its own priority.
    pub(super) invocations: usize,
}

/// What operators ask.
impl Queue {
    /// Who else waits in the line of an execution. It counts no further than 10,000.
    pub(super) fn rivals(&self, place: Place, priority: i32) -> Rivals {
        let mut rivals = Rivals::default();
        let line = self.line(place.line);
        let own = line.flow(place.group);
        for (flow, _) in line.flows().take(AHEAD_MAX) {
            let its = self.flows.priority(flow);
            if its < priority {
                let (lowest, highest) = rivals.more_urgent.unwrap_or((its, its));
                rivals.more_urgent = Some((lowest.min(its), highest.max(its)));
            } else if its == priority && flow != own {
                rivals.invocations += 1;
            }
        }
        rivals
    }

    /// Since when an execution waits.
    pub(super) fn since(&self, place: Place, position: Position) -> Option<Time> {
        self.line(place.line).since(place.group, position.arrival)
    }

    /// Since when no connected worker could ever run what is in `line`.
    pub(super) fn stranded_since(&self, line: LineId) -> Option<Time> {
        self.line(line).stranded_since
    }
}
