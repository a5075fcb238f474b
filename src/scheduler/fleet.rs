//! The connected workers and what they hold.
//!
//! What is free on a worker is computed anew from the set of its leases each time the set changes. It is never counted up
//! and down, so no lost message can leak capacity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::id::{Lease, WorkerId};
use super::requirements::{Amounts, Capacity, Requirements};

#[derive(Debug, Default)]
pub(super) struct Fleet {
    workers: BTreeMap<WorkerId, Worker>,
    /// The workers by what they offer: whether an action could run at all is asked of classes, not of workers.
    classes: BTreeMap<Arc<Capacity>, Class>,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) name: Arc<str>,
    capacity: Arc<Capacity>,
    leases: BTreeMap<Lease, Held>,
    free: Free,
    /// It is connected, and nobody says that it is to rest.
    takes_work: bool,
}

/// A lease on a worker. A killed one holds its share until the worker says that nothing of it runs.
#[derive(Debug)]
struct Held {
    requirements: Arc<Requirements>,
    is_dying: bool,
}

/// The part of a worker's capacity that no lease holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Free {
    slots: u32,
    amounts: Amounts,
}

#[derive(Debug, Default)]
struct Class {
    members: BTreeSet<WorkerId>,
    /// The members with a free slot, by how many.
    idle: BTreeSet<(u32, WorkerId)>,
}

/// How a worker holds a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Running,
    Dying,
}

impl Fleet {
    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn get(&self, worker: WorkerId) -> Option<&Worker> {
        self.workers.get(&worker)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter().map(|(id, worker)| (*id, worker))
    }

    /// Adds a worker. Returns whether it is the first of its class.
    pub(super) fn join(&mut self, worker: WorkerId, name: Arc<str>, capacity: Arc<Capacity>) -> bool {
        let class = self.classes.entry(Arc::clone(&capacity)).or_default();
        let is_new_class = class.members.is_empty();
        class.members.insert(worker);
        class.idle.insert((capacity.slots, worker));
        let free = Free { slots: capacity.slots, amounts: capacity.amounts.clone() };
        self.workers
            .insert(worker, Worker { name, capacity, leases: BTreeMap::new(), free, takes_work: true });
        is_new_class
    }

    /// Says whether a worker gets new leases. What it would be able to run does not depend on it.
    pub(super) fn set_takes_work(&mut self, id: WorkerId, takes_work: bool) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.takes_work = takes_work;
        self.change(id, |_| ());
    }

    #[cfg(test)]
    pub(super) fn takes_work(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.takes_work)
    }

    /// A worker offers something else than before; its leases stay. Returns whether a class came or went.
    pub(super) fn change_capacity(&mut self, id: WorkerId, capacity: Arc<Capacity>) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return false };
        if worker.capacity == capacity {
            return false;
        }
        let old = std::mem::replace(&mut worker.capacity, Arc::clone(&capacity));
        let slots = worker.free.slots;
        if let Some(class) = self.classes.get_mut(&old) {
            class.members.remove(&id);
            class.idle.remove(&(slots, id));
            if class.members.is_empty() {
                self.classes.remove(&old);
            }
        }
        self.classes.entry(capacity).or_default().members.insert(id);
        self.change(id, |_| ());
        true
    }

    /// Removes a worker. Returns what it was, and whether it was the last of its class.
    pub(super) fn leave(&mut self, id: WorkerId) -> Option<(Worker, bool)> {
        let worker = self.workers.remove(&id)?;
        let class =
            self.classes.get_mut(&worker.capacity).expect("every worker is in the class of its capacity");
        class.members.remove(&id);
        class.idle.remove(&(worker.free.slots, id));
        let is_last = class.members.is_empty();
        if is_last {
            self.classes.remove(&worker.capacity);
        }
        Some((worker, is_last))
    }

    pub(super) fn has_free_slot(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.takes_work && worker.free.slots > 0)
    }

    /// Whether the worker has room for the requirements right now.
    pub(super) fn fits(&self, worker: WorkerId, requirements: &Requirements) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.takes_work && worker.fits(requirements))
    }

    /// The worker with the most free slots among those that have room, if possible none of `avoided`.
    pub(super) fn best_for(
        &self,
        requirements: &Requirements,
        avoided: &BTreeSet<WorkerId>,
    ) -> Option<WorkerId> {
        let preferred = self.most_free(requirements, |worker| !avoided.contains(&worker));
        preferred.or_else(|| self.most_free(requirements, |worker| avoided.contains(&worker)))
    }

    fn most_free(
        &self,
        requirements: &Requirements,
        is_allowed: impl Fn(WorkerId) -> bool,
    ) -> Option<WorkerId> {
        let classes = self.classes.iter().filter(|(capacity, _)| capacity.could_run(requirements));
        let candidates = classes.filter_map(|(_, class)| {
            let mut idle = class.idle.iter().rev();
            idle.find(|(_, worker)| is_allowed(*worker) && self.workers[worker].has_room(requirements))
        });
        candidates.max().map(|(_, worker)| *worker)
    }

    /// Whether some connected worker could run this if it had nothing else to do.
    pub(super) fn could_run(&self, requirements: &Requirements) -> bool {
        self.classes.keys().any(|capacity| capacity.could_run(requirements))
    }

    /// Why no connected worker could ever run this. It names what was asked for, never what the fleet offers.
    pub(super) fn why_stranded(&self, requirements: &Requirements) -> String {
        if self.workers.is_empty() {
            return "no worker is connected".to_owned();
        }
        let is_offered = |name: &str, value: &str| self.classes.keys().any(|class| class.offers(name, value));
        let lacking = requirements.properties().find(|(name, value)| !is_offered(name, value));
        if let Some((name, value)) = lacking {
            return format!("no connected worker offers platform property `{name}` = `{value}`");
        }
        let names: Vec<_> =
            requirements.properties().map(|(name, value)| format!("`{name}` = `{value}`")).collect();
        format!("no connected worker offers all of the platform properties {}", names.join(", "))
    }

    pub(super) fn hold(&mut self, worker: WorkerId, lease: Lease, requirements: Arc<Requirements>) {
        let held = Held { requirements, is_dying: false };
        self.change(worker, |leases| leases.insert(lease, held));
    }

    pub(super) fn mark_dying(&mut self, worker: WorkerId, lease: Lease) {
        if let Some(held) = self.workers.get_mut(&worker).and_then(|worker| worker.leases.get_mut(&lease)) {
            held.is_dying = true;
        }
    }

    pub(super) fn release(&mut self, worker: WorkerId, lease: Lease) {
        self.change(worker, |leases| leases.remove(&lease));
    }

    /// How the worker holds the lease; `None` if it does not.
    pub(super) fn holding(&self, worker: WorkerId, lease: Lease) -> Option<Hold> {
        self.workers.get(&worker)?.leases.get(&lease).map(Held::hold)
    }

    /// Changes the leases of a worker and computes anew what is free.
    fn change<R>(&mut self, id: WorkerId, change: impl FnOnce(&mut BTreeMap<Lease, Held>) -> R) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let class =
            self.classes.get_mut(&worker.capacity).expect("every worker is in the class of its capacity");
        class.idle.remove(&(worker.free.slots, id));
        change(&mut worker.leases);
        worker.free = worker.compute_free();
        if worker.takes_work && worker.free.slots > 0 {
            class.idle.insert((worker.free.slots, id));
        }
    }
}

impl Worker {
    /// The leases that were not killed.
    pub(super) fn running(&self) -> impl Iterator<Item = Lease> {
        self.leases.iter().filter(|(_, held)| !held.is_dying).map(|(lease, _)| *lease)
    }

    /// All leases, killed ones too.
    pub(super) fn leases(&self) -> impl Iterator<Item = (Lease, Hold)> {
        self.leases.iter().map(|(lease, held)| (*lease, held.hold()))
    }

    fn fits(&self, requirements: &Requirements) -> bool {
        self.has_room(requirements) && self.capacity.could_run(requirements)
    }

    fn has_room(&self, requirements: &Requirements) -> bool {
        let has =
            |name: &String, amount: &u64| self.free.amounts.get(name).is_some_and(|free| amount <= free);
        self.free.slots > 0 && requirements.amounts().iter().all(|(name, amount)| has(name, amount))
    }

    /// A worker may hold more than it offers: when it comes back with less, or before it has said what it offers.
    fn compute_free(&self) -> Free {
        let held = u32::try_from(self.leases.len()).unwrap_or(u32::MAX);
        let slots = self.capacity.slots.saturating_sub(held);
        let mut amounts = self.capacity.amounts.clone();
        for (name, amount) in self.leases.values().flat_map(|held| held.requirements.amounts()) {
            if let Some(free) = amounts.get_mut(name) {
                *free = free.saturating_sub(*amount);
            }
        }
        Free { slots, amounts }
    }
}

impl Held {
    fn hold(&self) -> Hold {
        if self.is_dying { Hold::Dying } else { Hold::Running }
    }
}
