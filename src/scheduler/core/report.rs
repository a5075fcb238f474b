//! What operators ask: the scheduler at a glance, why an operation waits, what the fleet lacks.

use super::*;
use crate::scheduler::view::{Demand, Overview, Why};

impl Core {
    /// The whole scheduler at one moment.
    pub(in crate::scheduler) fn overview(&self, _now: Time) -> Overview {
        Overview { queued: self.queue.len(), ..Overview::default() }
    }

    /// Where an operation stands and why; `None` if it is unknown.
    pub(in crate::scheduler) fn why(&self, _now: Time, operation: OperationId) -> Option<Why> {
        self.operations.live(operation).map(|_| Why {
            operation: operation.to_string(),
            stage: String::new(),
            reasons: Vec::new(),
        })
    }

    /// What each property set asks of the fleet.
    pub(in crate::scheduler) fn demand(&self) -> Vec<Demand> {
        Vec::new()
    }
}
