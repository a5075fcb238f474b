//! What clients and workers were told for good: it holds over every restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Books, Checked, Leases, Operation};
use crate::proto::rev2::ExecuteResponse;
use crate::scheduler::core::inspect::ensure;
use crate::scheduler::event::Effect;
use crate::scheduler::id::{ExecutionId, Lease, OperationId, WorkerId};
use crate::scheduler::record::{Record, RecordKey};
use crate::scheduler::simulation::journal::Word;
use crate::scheduler::task::Stage;

#[derive(Default)]
pub(super) struct Promises {
    claims: BTreeMap<OperationId, Claim>,
    /// Which execution each operation waits for.
    executions: BTreeMap<OperationId, ExecutionId>,
    /// Answers that are being checked.
    settling: BTreeSet<Lease>,
    /// Executions that have ended in this life of the scheduler.
    completed: BTreeSet<ExecutionId>,
    /// Executions of which this life of the scheduler has told the journal that they are over.
    erased: BTreeSet<ExecutionId>,
    /// Executions whose end somebody was told of: they never start again in any life.
    safe: BTreeSet<ExecutionId>,
}

/// What a client was told of its operation.
#[derive(Default)]
struct Claim {
    response: Option<Arc<ExecuteResponse>>,
    /// The scheduler has decided to forget it, and the client may not have heard of that.
    may_be_gone: bool,
}

impl Promises {
    pub(super) fn is_over(&self, execution: ExecutionId) -> bool {
        self.completed.contains(&execution) || self.safe.contains(&execution)
    }

    pub(super) fn settle(&mut self, lease: Lease) {
        self.settling.insert(lease);
    }

    pub(super) fn settled(&mut self, lease: Lease, is_good: bool) {
        if self.settling.remove(&lease) && is_good {
            self.completed.insert(lease.execution);
        }
    }

    pub(super) fn keep(&mut self, record: &Record) {
        if let Record::Live { operation, execution } = record {
            self.executions.insert(*operation, *execution);
        }
    }

    pub(super) fn erase(&mut self, key: &RecordKey) {
        if let RecordKey::Execution(execution) = key {
            self.erased.insert(*execution);
        }
    }

    pub(super) fn may_be_gone(&mut self, operation: OperationId) {
        if let Some(claim) = self.claims.get_mut(&operation) {
            claim.may_be_gone = true;
        }
    }

    /// A worker is told that its answer is safe only when nothing is done with it any more.
    pub(super) fn check_acknowledge(&self, lease: Lease, leases: &Leases) -> Checked {
        let is_in_hand = self.settling.contains(&lease) && leases.is_pending(lease.execution);
        ensure!(!is_in_hand, "{lease:?} is acknowledged while its answer is checked");
        let is_told = !self.completed.contains(&lease.execution) || self.erased.contains(&lease.execution);
        ensure!(is_told, "{lease:?} is acknowledged before the journal is told of its end");
        Ok(())
    }
}

impl Books {
    /// Something reaches a client or a worker that was held back until it could not be taken back.
    pub(in super::super) fn hear(&mut self, word: &Word) -> Checked {
        let promises = &mut self.promises;
        match word {
            Word::Accepted(operation) => {
                promises.claims.insert(*operation, Claim::default());
            }
            Word::Effect(Effect::Acknowledge { lease, .. })
                if promises.completed.contains(&lease.execution) =>
            {
                promises.safe.insert(lease.execution);
            }
            Word::Effect(Effect::Report { operation, update }) => {
                let Some(response) = &update.response else { return Ok(()) };
                if let Some(claim) = promises.claims.get_mut(operation) {
                    claim.response = Some(Arc::clone(response));
                }
                // After a restart it may be over for one that waited and not for another, who had not been told.
                let Some(execution) = promises.executions.get(operation).copied() else { return Ok(()) };
                let is_other = |(other, one): (&OperationId, &Operation)| {
                    one.stage != Stage::Completed && promises.executions.get(other) == Some(&execution)
                };
                if !self.operations.iter().any(is_other) {
                    promises.safe.insert(execution);
                }
            }
            Word::Effect(Effect::Forget { operation }) => {
                promises.claims.remove(operation);
            }
            Word::Effect(_) => {}
        }
        Ok(())
    }

    /// The client will not ask again.
    pub(in super::super) fn disclaim(&mut self, operation: OperationId) {
        self.promises.claims.remove(&operation);
    }

    pub(in super::super) fn was_given(&self, worker: WorkerId, lease: Lease) -> bool {
        self.leases.was_given(worker, lease)
    }

    /// Another life of the scheduler begins with these records.
    pub(in super::super) fn restart(&mut self, records: &[Record]) {
        self.operations.clear();
        (self.starts, self.by_age) = (0, 0);
        // The journal does not know what was to run elsewhere: whoever asked for that has ended with the scheduler.
        for requirements in self.requirements.values_mut().filter(|one| one.avoided().is_some()) {
            *requirements = Arc::new(requirements.anywhere());
        }
        self.leases.restart(records);
        self.promises.settling.clear();
        self.promises.completed.clear();
        self.promises.erased.clear();
    }

    /// What clients were told before a restart is true after it.
    pub(in super::super) fn check_restored(&self) -> Checked {
        for (operation, claim) in self.promises.claims.iter().filter(|(_, claim)| !claim.may_be_gone) {
            let Some(one) = self.operations.get(operation) else {
                return Err(format!("{operation:?} was accepted and is unknown after a restart"));
            };
            let Some(told) = &claim.response else { continue };
            let is_same = one.stage == Stage::Completed && one.response.as_ref() == Some(told);
            ensure!(is_same, "{operation:?} was completed and is {:?} after a restart", one.stage);
        }
        Ok(())
    }
}
