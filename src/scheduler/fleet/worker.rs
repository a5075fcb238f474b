//! One worker and its leases.

use std::sync::Arc;

use super::class::Class;
use crate::scheduler::id::{Lease, Time, WorkerId};
use crate::scheduler::queue::LineId;
use crate::scheduler::requirements::{Capacity, Needs, Shape, Share};

#[derive(Debug)]
pub(in crate::scheduler) struct Worker {
    pub(super) id: WorkerId,
    pub(in crate::scheduler) name: Arc<str>,
    pub(super) class: usize,
    /// Sorted by lease.
    leases: Vec<(Lease, Held)>,
    pub(super) free: Free,
    pub(super) takes_work: bool,
    /// The line that alone may start here.
    pub(super) reserved_for: Option<LineId>,
    /// Its place among the idle ones of its class.
    pub(super) filed_at: Option<usize>,
}

/// A lease on a worker. A killed one holds its share until the worker says that nothing of it runs.
#[derive(Debug)]
struct Held {
    /// `None` when nobody knows it.
    shape: Option<Shape>,
    needs: Arc<Needs>,
    /// It may run until then.
    deadline: Time,
    is_dying: bool,
}

/// The part of a worker's capacity that no lease holds. More slots are more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Free {
    pub(super) slots: u32,
    /// In the order of the class's amounts.
    hard: Box<[u64]>,
    /// By what the leases are expected to use; no bound for a worker that runs nothing.
    soft: Option<Share>,
}

/// What a worker of a class has when it holds nothing, as numbers.
#[derive(Debug)]
pub(super) struct Whole {
    slots: u32,
    hard: Box<[u64]>,
    soft: Share,
}

/// How a worker holds a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scheduler) enum Hold {
    Running,
    Dying,
}

impl Worker {
    pub(super) fn new(id: WorkerId, name: Arc<str>, class: usize, whole: &Whole) -> Self {
        let mut worker = Self {
            id,
            name,
            class,
            leases: Vec::new(),
            free: Free { slots: 0, hard: whole.hard.clone(), soft: None },
            takes_work: true,
            reserved_for: None,
            filed_at: None,
        };
        worker.compute_free(whole);
        worker
    }

    /// The leases that were not killed.
    pub(in crate::scheduler) fn running(&self) -> impl Iterator<Item = Lease> {
        self.leases.iter().filter(|(_, held)| !held.is_dying).map(|(lease, _)| *lease)
    }

    /// All leases, killed ones too.
    pub(in crate::scheduler) fn leases(&self) -> impl Iterator<Item = (Lease, Hold)> {
        self.leases.iter().map(|(lease, held)| (*lease, held.hold()))
    }

    /// The leases that were not killed, with their deadlines.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Lease, Time)> {
        self.leases.iter().filter(|(_, held)| !held.is_dying).map(|(lease, held)| (*lease, held.deadline))
    }

    pub(super) fn holding(&self, lease: Lease) -> Option<Hold> {
        self.find(lease).ok().map(|index| self.leases[index].1.hold())
    }

    /// Whether anything may start here.
    pub(super) fn is_idle(&self) -> bool {
        self.takes_work && self.reserved_for.is_none() && self.free.slots > 0
    }

    pub(super) fn fits(&self, needs: &Needs) -> bool {
        self.free.has_room(needs) && needs.admit(&self.name)
    }

    pub(super) fn hold(
        &mut self,
        (lease, deadline): (Lease, Time),
        shape: Option<&Shape>,
        needs: Arc<Needs>,
    ) {
        if let Err(index) = self.find(lease) {
            let held = Held { shape: shape.cloned(), needs, deadline, is_dying: false };
            self.leases.insert(index, (lease, held));
        }
    }

    /// The worker offers something else than before; its leases stay.
    pub(super) fn move_to(&mut self, number: usize, class: &Class) {
        self.class = number;
        self.free.hard = class.whole.hard.clone();
        for (_, held) in &mut self.leases {
            held.needs = class.needs(held.shape.as_ref());
        }
        self.compute_free(&class.whole);
    }

    pub(super) fn release(&mut self, lease: Lease) {
        if let Ok(index) = self.find(lease) {
            self.leases.remove(index);
        }
    }

    pub(super) fn mark_dying(&mut self, lease: Lease) {
        if let Ok(index) = self.find(lease) {
            self.leases[index].1.is_dying = true;
        }
    }

    fn find(&self, lease: Lease) -> Result<usize, usize> {
        self.leases.binary_search_by_key(&lease, |(lease, _)| *lease)
    }

    /// Computes what is free from nothing but the whole and the leases. A worker may hold more than it offers: when it comes back with
    /// less, or before it has said what it offers.
    pub(super) fn compute_free(&mut self, whole: &Whole) {
        let held = u32::try_from(self.leases.len()).unwrap_or(u32::MAX);
        self.free.slots = whole.slots.saturating_sub(held);
        self.free.hard.copy_from_slice(&whole.hard);
        let mut soft = whole.soft;
        for (_, held) in &self.leases {
            soft = soft.less(held.needs.soft);
            for (free, needed) in self.free.hard.iter_mut().zip(&held.needs.hard) {
                *free = free.saturating_sub(*needed);
            }
        }
        self.free.soft = (held > 0).then_some(soft);
    }
}

impl Whole {
    pub(super) fn of(capacity: &Capacity) -> Self {
        let hard = capacity.amounts.values().copied().collect();
        Self { slots: capacity.slots, hard, soft: capacity.share() }
    }
}

impl Free {
    pub(super) fn has_room(&self, needs: &Needs) -> bool {
        let is_enough = self.hard.iter().zip(&needs.hard).all(|(free, needed)| needed <= free);
        self.slots > 0 && is_enough && self.soft.is_none_or(|free| free.holds(needs.soft))
    }
}

impl Held {
    fn hold(&self) -> Hold {
        if self.is_dying { Hold::Dying } else { Hold::Running }
    }
}
