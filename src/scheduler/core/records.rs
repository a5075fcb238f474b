//! What the journal is told.
//!
//! The journal may end after any of these records, and what it holds then is a state to start from:
//!
//! * an execution is kept before the first operation that waits for it, and its operations are kept as finished, or erased, before it is
//!   erased: an execution without operations is dropped at the start, an operation without execution is not lost;
//! * the lease of an attempt that failed is erased before the failure is counted: if the journal ends between, the worker, which was not
//!   thanked, says once more how it ended, and it is counted once;
//! * a start is told to its worker before its record is safe. So the number after the last recorded one may be in use.

use super::*;
use crate::scheduler::record::{Record, RecordKey};

impl Core {
    pub(super) fn keep(&mut self, record: Record) {
        if self.config.journal {
            self.effects.push(Effect::Keep(record));
        }
    }

    pub(super) fn erase(&mut self, key: RecordKey) {
        if self.config.journal {
            self.effects.push(Effect::Erase(key));
        }
    }

    pub(super) fn keep_execution(&mut self, id: ExecutionId) {
        if self.config.journal {
            let pending = self.executions[&id].pending(id);
            self.effects.push(Effect::Keep(Record::Execution(Box::new(pending))));
        }
    }

    /// Erases an execution that was taken out of the books, with the leases that it had.
    pub(super) fn erase_execution(&mut self, id: ExecutionId, execution: &Execution) {
        if !self.config.journal {
            return;
        }
        self.erase(RecordKey::Execution(id));
        for (lease, _) in execution.leases() {
            self.erase(RecordKey::Lease(lease));
        }
    }
}
