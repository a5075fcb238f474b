//! What an execution is expected to use, so that workers are filled by what runs there really take.

use std::sync::Arc;

use super::*;
use crate::proto::worker::{CORES, MEMORY};
use crate::scheduler::history::Kin;
use crate::scheduler::requirements::{Requirements, Shape, SoftSize};

impl Core {
    /// What a task is put in line as: its requirements, and what earlier runs of its kind have used where it demands nothing itself.
    pub(super) fn shape_of(&self, kin: Kin, requirements: &Arc<Requirements>) -> Shape {
        let is_vain = requirements.avoided().is_some() && !self.fleet.has_taker(requirements);
        #[cfg(test)]
        let is_vain = is_vain || self.bug == Some(Bug::RunOnAvoided);
        let placed = if is_vain { Arc::new(requirements.anywhere()) } else { Arc::clone(requirements) };
        let shape = |soft| Shape { requirements: placed, soft };
        let Some(past) = self.history.expectation(kin) else { return shape(SoftSize::default()) };
        let demands = |name: &str| requirements.amounts().contains_key(name);
        let cores = if demands(CORES) { 0.0 } else { past.cores_to_keep() };
        let memory = if demands(MEMORY) { 0 } else { past.memory_to_keep() };
        shape(SoftSize::of(cores, memory))
    }
}
