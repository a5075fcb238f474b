//! The connected workers, what they hold, and which lines of the queue they could run.
//!
//! What is free on a worker is computed anew from the set of its leases each time the set changes. It is never counted up
//! and down, so no lost message can leak capacity.
//!
//! Workers with equal capacity are a class, and a class files its idle workers by what is free on them. So whether there is room is asked of
//! classes and of amounts, of which there are few, and not of workers.

mod able;
mod class;
mod locality;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::class::{Able, Class, Runnable};
use self::locality::Locality;
use super::id::{Lease, Time, WorkerId};
use super::lookup::Lookup;
use super::queue::{LineId, OLDEST_EVERY};
use super::requirements::{Capacity, Needs, Requirements, Shape};

pub(super) use self::worker::{Hold, Worker};

#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// By number; the number of a worker that left is used again.
    workers: Vec<Option<Worker>>,
    numbers: Lookup<WorkerId, u32>,
    unused: Vec<u32>,
    classes: Vec<Option<Class>>,
    by_capacity: BTreeMap<Arc<Capacity>, usize>,
    unused_classes: Vec<usize>,
    /// Classes that no line knows yet.
    new_classes: Vec<usize>,
    /// By the number of the line.
    lines: Vec<OpenLine>,
    locality: Locality,
    /// Workers whose reservation ended otherwise than by a start, so that they may have room.
    released: Vec<WorkerId>,
}

/// What the fleet knows of a line of the queue.
#[derive(Debug, Default)]
struct OpenLine {
    able: Vec<Able>,
    /// The worker that starts nothing else until it has room for this line.
    reserved: Option<WorkerId>,
}

/// Which workers to prefer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preference<'a> {
    /// Only if there is no other.
    pub(super) avoided: &'a BTreeSet<WorkerId>,
    /// The trees of the task's input root.
    pub(super) neighbours: &'a [u64],
}

/// A worker that may start something.
pub(super) struct Room<'a> {
    worker: &'a Worker,
    class: &'a Class,
}

impl Fleet {
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn get(&self, worker: WorkerId) -> Option<&Worker> {
        self.workers[*self.numbers.get(&worker)? as usize].as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter().flatten().map(|worker| (worker.id, worker))
    }

    /// Adds a worker that takes work. Returns whether it is the first of its class.
    pub(super) fn join(&mut self, id: WorkerId, name: Arc<str>, capacity: Arc<Capacity>) -> bool {
        let (class, is_new_class) = match self.by_capacity.get(&capacity) {
            Some(class) => (*class, false),
            None => (self.add_class(capacity), true),
        };
        let number = self.unused.pop().unwrap_or_else(|| {
            self.workers.push(None);
            u32::try_from(self.workers.len() - 1).expect("there are fewer workers than that")
        });
        let its_class = self.classes[class].as_mut().expect("a class with a number exists");
        its_class.members += 1;
        self.workers[number as usize] = Some(Worker::new(id, name, class, &its_class.whole));
        self.numbers.insert(id, number);
        self.file(number);
        is_new_class
    }

    fn add_class(&mut self, capacity: Arc<Capacity>) -> usize {
        let number = self.unused_classes.pop().unwrap_or_else(|| {
            self.classes.push(None);
            self.classes.len() - 1
        });
        self.by_capacity.insert(Arc::clone(&capacity), number);
        self.classes[number] = Some(Class::new(capacity));
        self.new_classes.push(number);
        number
    }

    /// Removes a worker. Returns what it was, and whether it was the last of its class.
    pub(super) fn leave(&mut self, id: WorkerId) -> Option<(Worker, bool)> {
        let number = *self.numbers.get(&id)?;
        self.unfile(number);
        self.numbers.remove(&id);
        self.unused.push(number);
        let worker = self.workers[number as usize].take().expect("a worker with a number exists");
        if let Some(line) = worker.reserved_for {
            self.lines[line.index()].reserved = None;
        }
        let class = self.class_mut(worker.class);
        class.members -= 1;
        let is_last = class.members == 0;
        if is_last {
            self.remove_class(worker.class);
        }
        Some((worker, is_last))
    }

    fn remove_class(&mut self, number: usize) {
        let class = self.classes[number].take().expect("a class that is removed exists");
        self.by_capacity.remove(&class.capacity);
        self.new_classes.retain(|new| *new != number);
        self.unused_classes.push(number);
        for runnable in class.lines {
            self.lines[runnable.line.index()].able.retain(|able| able.class != number);
        }
    }

    /// Lets every open line know the classes that have come since.
    pub(super) fn introduce<'a>(&mut self, lines: impl Iterator<Item = (LineId, &'a Shape)> + Clone) {
        for class in std::mem::take(&mut self.new_classes) {
            for (line, shape) in lines.clone() {
                self.match_up(line, shape, class);
            }
        }
    }

    /// A line was opened.
    pub(super) fn open_line(&mut self, line: LineId, shape: &Shape) {
        if self.lines.len() <= line.index() {
            self.lines.resize_with(line.index() + 1, OpenLine::default);
        }
        for class in 0..self.classes.len() {
            if self.classes[class].is_some() && !self.new_classes.contains(&class) {
                self.match_up(line, shape, class);
            }
        }
    }

    fn match_up(&mut self, line: LineId, shape: &Shape, number: usize) {
        let class = self.class_mut(number);
        if let Some(needs) = class.capacity.needs(shape) {
            let needs = Arc::new(needs);
            class.lines.push(Runnable { line, needs: Arc::clone(&needs) });
            self.lines[line.index()].able.push(Able { class: number, needs });
        }
    }

    /// A line without entries was closed.
    pub(super) fn close_line(&mut self, line: LineId) {
        for able in std::mem::take(&mut self.lines[line.index()].able) {
            self.class_mut(able.class).remove_line(line);
        }
    }

    /// A worker offers something else than before; its leases stay. Returns whether a class came or went.
    pub(super) fn change_capacity(&mut self, id: WorkerId, capacity: Arc<Capacity>) -> bool {
        let Some(number) = self.numbers.get(&id).copied() else { return false };
        let old = self.worker_mut(number).class;
        if self.class_mut(old).capacity == capacity {
            return false;
        }
        self.unfile(number);
        let given_up = self.worker_mut(number).reserved_for.take();
        if let Some(line) = given_up {
            self.lines[line.index()].reserved = None;
        }
        let class = match self.by_capacity.get(&capacity) {
            Some(class) => *class,
            None => self.add_class(Arc::clone(&capacity)),
        };
        self.class_mut(class).members += 1;
        let worker = self.workers[number as usize].as_mut().expect("a worker with a number exists");
        worker.move_to(class, self.classes[class].as_ref().expect("a class with a number exists"));
        let old_class = self.class_mut(old);
        old_class.members -= 1;
        if old_class.members == 0 {
            self.remove_class(old);
        }
        self.file(number);
        true
    }

    #[cfg(test)]
    pub(super) fn takes_work(&self, worker: WorkerId) -> bool {
        self.get(worker).is_some_and(|worker| worker.takes_work)
    }

    /// Whether the worker takes new work: it is connected, and nobody has said otherwise.
    pub(super) fn set_takes_work(&mut self, id: WorkerId, takes_work: bool) {
        let Some(number) = self.numbers.get(&id).copied() else { return };
        self.unfile(number);
        let worker = self.worker_mut(number);
        worker.takes_work = takes_work;
        let given_up = worker.reserved_for.take_if(|_| !takes_work);
        if let Some(line) = given_up {
            self.lines[line.index()].reserved = None;
        }
        self.file(number);
    }

    /// The worker, if it may start something: it takes work and has a free slot.
    pub(super) fn room(&self, worker: WorkerId) -> Option<Room<'_>> {
        let worker = self.get(worker).filter(|worker| worker.takes_work && worker.free.slots > 0)?;
        let class = self.classes[worker.class].as_ref().expect("a worker has its class");
        Some(Room { worker, class })
    }

    /// Among the workers that have room for what is in `line`: one that is not avoided, rather one that has had the trees, rather
    /// one with many free slots.
    pub(super) fn best_for(&self, line: LineId, preference: Preference<'_>) -> Option<WorkerId> {
        let able = &self.lines[line.index()].able;
        let is_liked = |worker: &Worker| !preference.avoided.contains(&worker.id);
        self.most_familiar(able, preference)
            .or_else(|| self.most_free(able, is_liked))
            .or_else(|| self.most_free(able, |worker| !is_liked(worker)))
    }

    fn most_familiar(&self, able: &[Able], preference: Preference<'_>) -> Option<WorkerId> {
        let familiar = self.locality.workers(preference.neighbours);
        let mut idle = familiar.filter_map(|number| self.workers.get(number as usize)?.as_ref());
        let found = idle.find(|worker| {
            let able = able.iter().find(|able| able.class == worker.class && worker.fits(&able.needs));
            worker.is_idle() && able.is_some() && !preference.avoided.contains(&worker.id)
        });
        found.map(|worker| worker.id)
    }

    fn most_free(&self, able: &[Able], is_allowed: impl Fn(&Worker) -> bool) -> Option<WorkerId> {
        let candidates = able.iter().filter_map(|able| {
            let class = self.classes[able.class].as_ref().expect("a line knows no class that is gone");
            let buckets = class.idle.iter().rev().filter(|(free, _)| free.has_room(&able.needs));
            let mut workers = buckets.flat_map(|(_, numbers)| numbers.iter().rev());
            let is_allowed = |one: &&Worker| able.needs.admit(&one.name) && is_allowed(one);
            workers.find_map(|number| self.workers[*number as usize].as_ref().filter(is_allowed))
        });
        candidates.max_by_key(|worker| (worker.free.slots, worker.id)).map(|worker| worker.id)
    }

    /// Whether some connected worker could run what is in `line` if it had nothing else to do.
    pub(super) fn could_run(&self, line: LineId) -> bool {
        !self.lines[line.index()].able.is_empty()
    }

    /// Why no connected worker could ever run this. It names what was asked for, never what the fleet offers.
    pub(super) fn why_stranded(&self, requirements: &Requirements) -> String {
        if self.len() == 0 {
            return "no worker is connected".to_owned();
        }
        let is_offered =
            |name: &str, value: &str| self.by_capacity.keys().any(|class| class.offers(name, value));
        let lacking = requirements.properties().find(|(name, value)| !is_offered(name, value));
        if let Some((name, value)) = lacking {
            return format!("no connected worker offers platform property `{name}` = `{value}`");
        }
        let names: Vec<_> =
            requirements.properties().map(|(name, value)| format!("`{name}` = `{value}`")).collect();
        format!("no connected worker offers all of the platform properties {}", names.join(", "))
    }

    /// A lease has its deadline with it. One on something of unknown shape may take all that the worker has.
    pub(super) fn hold(&mut self, worker: WorkerId, lease: (Lease, Time), shape: Option<&Shape>) {
        let Some(number) = self.numbers.get(&worker).copied() else { return };
        let class = self.worker_mut(number).class;
        let needs = self.class_mut(class).needs(shape);
        self.change(number, |worker| worker.hold(lease, shape, needs));
    }

    /// Does what `hold` does for something of an open line.
    pub(super) fn hold_of_line(
        &mut self,
        worker: WorkerId,
        lease: (Lease, Time),
        (line, shape): (LineId, &Shape),
    ) {
        let Some(number) = self.numbers.get(&worker).copied() else { return };
        let class = self.worker_mut(number).class;
        let able = self.lines[line.index()].able.iter().find(|able| able.class == class);
        let Some(needs) = able.map(|able| Arc::clone(&able.needs)) else {
            return self.hold(worker, lease, Some(shape));
        };
        self.change(number, |worker| worker.hold(lease, Some(shape), needs));
    }

    pub(super) fn release(&mut self, worker: WorkerId, lease: Lease) {
        let Some(number) = self.numbers.get(&worker).copied() else { return };
        self.change(number, |worker| worker.release(lease));
    }

    /// Frees the share of a lease on a worker that is filled next, and is offered to others with [`Fleet::offer`] after that.
    pub(super) fn vacate(&mut self, worker: WorkerId, lease: Lease) {
        let Some(number) = self.numbers.get(&worker).copied() else { return };
        self.unfile(number);
        self.change_unfiled(number, |worker| worker.release(lease));
    }

    /// Lets a worker that was filled be found for what comes, if it still has room.
    pub(super) fn offer(&mut self, worker: WorkerId) {
        let Some(number) = self.numbers.get(&worker).copied() else { return };
        if self.worker_mut(number).filed_at.is_none() {
            self.file(number);
        }
    }

    pub(super) fn mark_dying(&mut self, worker: WorkerId, lease: Lease) {
        if let Some(number) = self.numbers.get(&worker).copied() {
            self.worker_mut(number).mark_dying(lease);
        }
    }

    /// How the worker holds the lease; `None` if it does not.
    pub(super) fn holding(&self, worker: WorkerId, lease: Lease) -> Option<Hold> {
        self.get(worker)?.holding(lease)
    }

    /// Until when the lease may run; `None` if it does not run on the worker.
    pub(super) fn deadline(&self, worker: WorkerId, lease: Lease) -> Option<Time> {
        self.get(worker)?.deadlines().find(|(one, _)| *one == lease).map(|(_, deadline)| deadline)
    }

    /// When the first of the leases that run on the worker has run for too long.
    pub(super) fn first_deadline(&self, worker: WorkerId) -> Option<Time> {
        self.get(worker)?.deadlines().map(|(_, deadline)| deadline).min()
    }

    /// The leases of a worker that have run for too long, the longest overdue first.
    pub(super) fn overdue(&self, worker: WorkerId, now: Time) -> Vec<Lease> {
        let deadlines = self.get(worker).into_iter().flat_map(Worker::deadlines);
        let mut overdue: Vec<_> = deadlines.filter(|(_, deadline)| *deadline <= now).collect();
        overdue.sort_by_key(|(lease, deadline)| (*deadline, *lease));
        overdue.into_iter().map(|(lease, _)| lease).collect()
    }

    /// Remembers that a worker has these trees from here on.
    pub(super) fn familiarize(&mut self, worker: WorkerId, neighbours: &[u64]) {
        if let Some(number) = self.numbers.get(&worker) {
            self.locality.note(*number, neighbours);
        }
    }

    /// Counts a start on a worker that is about to be. Returns whether what has waited longest is to be taken.
    pub(super) fn count_start(&mut self, worker: WorkerId) -> bool {
        let Some(class) = self.get(worker).map(|worker| worker.class) else { return false };
        let class = self.class_mut(class);
        class.starts = (class.starts + 1) % OLDEST_EVERY;
        class.starts == 0
    }

    /// The line for which some worker starts nothing else, if this is one.
    pub(super) fn reserved_line(&self, worker: WorkerId) -> Option<LineId> {
        self.get(worker)?.reserved_for
    }

    pub(super) fn is_reserved(&self, line: LineId) -> bool {
        self.lines[line.index()].reserved.is_some()
    }

    /// Has a worker start nothing else until it has room for `line`.
    pub(super) fn reserve(&mut self, worker: WorkerId, line: LineId) {
        let Some(number) = self.numbers.get(&worker).copied() else { return };
        self.unfile(number);
        self.worker_mut(number).reserved_for = Some(line);
        self.lines[line.index()].reserved = Some(worker);
    }

    /// Ends the reservation for a line: something of it starts, or it has no entry left.
    pub(super) fn unreserve(&mut self, line: LineId) {
        let Some(worker) = self.lines[line.index()].reserved.take() else { return };
        let Some(number) = self.numbers.get(&worker).copied() else { return };
        self.worker_mut(number).reserved_for = None;
        self.file(number);
        self.released.push(worker);
    }

    /// A worker that may have room since its reservation ended.
    pub(super) fn next_released(&mut self) -> Option<WorkerId> {
        self.released.pop()
    }

    /// Changes the leases of a worker and computes anew what is free.
    fn change(&mut self, number: u32, change: impl FnOnce(&mut Worker)) {
        self.unfile(number);
        self.change_unfiled(number, change);
        self.file(number);
    }

    fn change_unfiled(&mut self, number: u32, change: impl FnOnce(&mut Worker)) {
        let worker = self.workers[number as usize].as_mut().expect("a worker with a number exists");
        let class = self.classes[worker.class].as_ref().expect("a worker has its class");
        change(worker);
        worker.compute_free(&class.whole);
    }

    /// Puts a worker among the idle ones of its class, if it is idle.
    fn file(&mut self, number: u32) {
        let worker = self.workers[number as usize].as_mut().expect("a worker with a number exists");
        if worker.is_idle() {
            let class = self.classes[worker.class].as_mut().expect("a worker has its class");
            worker.filed_at = Some(class.file(number, &worker.free));
        }
    }

    /// Takes a worker out of the idle ones of its class.
    fn unfile(&mut self, number: u32) {
        let worker = self.workers[number as usize].as_mut().expect("a worker with a number exists");
        let Some(place) = worker.filed_at.take() else { return };
        let class = self.classes[worker.class].as_mut().expect("a worker has its class");
        if let Some(moved) = class.unfile(place, &worker.free) {
            self.worker_mut(moved).filed_at = Some(place);
        }
    }

    fn worker_mut(&mut self, number: u32) -> &mut Worker {
        self.workers[number as usize].as_mut().expect("a worker with a number exists")
    }

    fn class_mut(&mut self, number: usize) -> &mut Class {
        self.classes[number].as_mut().expect("a class with a number exists")
    }
}

impl<'a> Room<'a> {
    /// The lines that the worker could run, each with what it takes.
    pub(super) fn lines(&self) -> impl Iterator<Item = (LineId, &'a Needs)> + Clone + use<'a> {
        self.class.lines.iter().map(|runnable| (runnable.line, &*runnable.needs))
    }

    pub(super) fn fits(&self, needs: &Needs) -> bool {
        self.worker.fits(needs)
    }

    /// Whether the worker would fit if it had nothing else to do.
    pub(super) fn could_fit(&self, needs: &Needs) -> bool {
        needs.admit(&self.worker.name)
    }

    /// Whether the worker has room for what is in `line`.
    pub(super) fn fits_line(&self, line: LineId) -> bool {
        self.lines().any(|(one, needs)| one == line && self.fits(needs))
    }
}

/// What operators ask.
impl Fleet {
    /// What the worker has, whether in use or not.
    pub(super) fn capacity_of(&self, worker: &Worker) -> &Capacity {
        &self.classes[worker.class].as_ref().expect("a worker has its class").capacity
    }

    /// The kinds of workers there are.
    pub(super) fn capacities(&self) -> impl Iterator<Item = &Capacity> {
        self.by_capacity.keys().map(AsRef::as_ref)
    }

    /// The worker that starts nothing else until it has room for `line`.
    pub(super) fn reserved_worker(&self, line: LineId) -> Option<&Worker> {
        self.get(self.lines.get(line.index())?.reserved?)
    }

    /// Whether something of this shape could start on the worker right now.
    pub(super) fn has_room_for(&self, worker: &Worker, shape: &Shape) -> bool {
        let needs = self.capacity_of(worker).needs(shape);
        worker.is_idle() && needs.is_some_and(|needs| worker.fits(&needs))
    }
}
