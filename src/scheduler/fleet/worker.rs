//! One worker and its leases.

use std::sync::Arc;

use crate::scheduler::id::{Lease, WorkerId};
use crate::scheduler::queue::LineId;
use crate::scheduler::requirements::{Capacity, Needs, Shape, Share, SoftSize};

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
    needs: Needs,
    is_dying: bool,
}

/// The part of a worker's capacity that no lease holds. More slots are more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Free {
    pub(super) slots: u32,
    /// In the order of the capacity's amounts.
    hard: Box<[u64]>,
    /// By what the leases are expected to use; no bound for a worker that runs nothing.
    soft: Option<Share>,
}

/// How a worker holds a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scheduler) enum Hold {
    Running,
    Dying,
}

impl Worker {
    pub(super) fn new(id: WorkerId, name: Arc<str>, class: usize, capacity: &Capacity) -> Self {
        let mut worker = Self {
            id,
            name,
            class,
            leases: Vec::new(),
            free: Free { slots: 0, hard: capacity.amounts.values().copied().collect(), soft: None },
            takes_work: true,
            reserved_for: None,
            filed_at: None,
        };
        worker.compute_free(capacity);
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

    pub(super) fn holding(&self, lease: Lease) -> Option<Hold> {
        self.find(lease).ok().map(|index| self.leases[index].1.hold())
    }

    /// Whether anything may start here.
    pub(super) fn is_idle(&self) -> bool {
        self.takes_work && self.reserved_for.is_none() && self.free.slots > 0
    }

    pub(super) fn fits(&self, needs: &Needs) -> bool {
        self.free.has_room(needs)
    }

    pub(super) fn hold(&mut self, lease: Lease, shape: Option<&Shape>, capacity: &Capacity) {
        if let Err(index) = self.find(lease) {
            let held = Held { shape: shape.cloned(), needs: share_of(shape, capacity), is_dying: false };
            self.leases.insert(index, (lease, held));
        }
    }

    /// The worker offers something else than before; its leases stay.
    pub(super) fn move_to(&mut self, class: usize, capacity: &Capacity) {
        self.class = class;
        self.free.hard = capacity.amounts.values().copied().collect();
        for (_, held) in &mut self.leases {
            held.needs = share_of(held.shape.as_ref(), capacity);
        }
        self.compute_free(capacity);
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

    /// Computes what is free from nothing but the capacity and the leases. A worker may hold more than it offers: when it comes back
    /// with less, or before it has said what it offers.
    pub(super) fn compute_free(&mut self, capacity: &Capacity) {
        let held = u32::try_from(self.leases.len()).unwrap_or(u32::MAX);
        self.free.slots = capacity.slots.saturating_sub(held);
        for (index, (free, offered)) in self.free.hard.iter_mut().zip(capacity.amounts.values()).enumerate() {
            let used: u64 = self.leases.iter().map(|(_, held)| held.needs.hard[index]).sum();
            *free = offered.saturating_sub(used);
        }
        let left = |free: Share, (_, held): &(Lease, Held)| free.less(held.needs.soft);
        self.free.soft = (held > 0).then(|| self.leases.iter().fold(capacity.share(), left));
    }
}

/// What a lease takes: nothing but its slot on a worker that could not be given it as it stands, everything where it is not known.
fn share_of(shape: Option<&Shape>, capacity: &Capacity) -> Needs {
    let Some(shape) = shape else {
        return Needs { hard: capacity.amounts.values().copied().collect(), soft: capacity.share() };
    };
    let soft = SoftSize::default().share();
    capacity.needs(shape).unwrap_or_else(|| Needs { hard: vec![0; capacity.amounts.len()].into(), soft })
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
