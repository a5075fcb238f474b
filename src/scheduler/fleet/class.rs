//! Workers with equal capacity.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::worker::{Free, Whole};
use crate::scheduler::queue::LineId;
use crate::scheduler::requirements::{Capacity, Needs, Shape, SoftSize};

#[derive(Debug)]
pub(super) struct Class {
    pub(super) capacity: Arc<Capacity>,
    pub(super) whole: Whole,
    pub(super) members: usize,
    /// The numbers of the members that have a free slot and may take work, by what is free on them.
    pub(super) idle: BTreeMap<Free, Vec<u32>>,
    /// The open lines that its members could run.
    pub(super) lines: Vec<Runnable>,
    /// Starts since what had waited longest was taken.
    pub(super) starts: u32,
}

/// A line that a class could run, and what it takes.
#[derive(Debug)]
pub(super) struct Runnable {
    pub(super) line: LineId,
    pub(super) needs: Arc<Needs>,
}

/// A class that could run a line, and what it takes.
#[derive(Debug)]
pub(super) struct Able {
    pub(super) class: usize,
    pub(super) needs: Arc<Needs>,
}

impl Class {
    pub(super) fn new(capacity: Arc<Capacity>) -> Self {
        let whole = Whole::of(&capacity);
        Self { capacity, whole, members: 0, idle: BTreeMap::new(), lines: Vec::new(), starts: 0 }
    }

    /// What a lease takes: nothing but its slot on a member that could not be given it as it stands, everything where nobody knows.
    pub(super) fn needs(&self, shape: Option<&Shape>) -> Arc<Needs> {
        let Some(shape) = shape else {
            let hard = self.capacity.amounts.values().copied().collect();
            return Arc::new(Needs { hard, soft: self.capacity.share(), avoided: None });
        };
        let soft = SoftSize::default().share();
        let hard = || vec![0; self.capacity.amounts.len()].into();
        let only_a_slot = || Needs { hard: hard(), soft, avoided: None };
        Arc::new(self.capacity.needs(shape).unwrap_or_else(only_a_slot))
    }

    /// Puts a member among the idle ones. Returns where.
    pub(super) fn file(&mut self, number: u32, free: &Free) -> usize {
        if let Some(bucket) = self.idle.get_mut(free) {
            bucket.push(number);
            return bucket.len() - 1;
        }
        self.idle.insert(free.clone(), vec![number]);
        0
    }

    /// Takes the member at `place` out of the idle ones. Returns the one that is there instead.
    pub(super) fn unfile(&mut self, place: usize, free: &Free) -> Option<u32> {
        let bucket = self.idle.get_mut(free).expect("a filed worker is filed under what is free on it");
        bucket.swap_remove(place);
        let moved = bucket.get(place).copied();
        if bucket.is_empty() {
            self.idle.remove(free);
        }
        moved
    }

    pub(super) fn remove_line(&mut self, line: LineId) {
        if let Some(index) = self.lines.iter().position(|runnable| runnable.line == line) {
            self.lines.swap_remove(index);
        }
    }
}
