//! The start from what the journal held.
//!
//! Queued executions are queued in their old order. One that ran is taken to run on, on a worker that is away; the worker has as long to
//! come back as one whose connection broke. Operations have no watchers yet; their clients have a while to ask for them.
//! What does not fit together was about to be erased, or to be kept, when the journal ended: it is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::scheduler::history::Kin;
use crate::scheduler::record::{Pending, Record, RecordKey};
use crate::scheduler::requirements::{Capacity, Requirements, Shape};
use crate::scheduler::task::{Availability, Platform, Update};

/// The records by kind.
#[derive(Default)]
struct Past {
    executions: Vec<Pending>,
    live: BTreeMap<ExecutionId, Vec<OperationId>>,
    finished: Vec<(OperationId, Arc<Update>)>,
    leases: BTreeMap<ExecutionId, Vec<Leased>>,
    marks: Vec<(Arc<str>, Availability)>,
}

struct Leased {
    lease: Lease,
    worker: WorkerId,
    name: Arc<str>,
}

/// Requirements by platform, so that executions share them as they did.
type Shapes = BTreeMap<Arc<Platform>, Result<Arc<Requirements>, String>>;

impl Past {
    fn sort(records: Vec<Record>) -> Self {
        let mut past = Self::default();
        for record in records {
            match record {
                Record::Execution(pending) => past.executions.push(*pending),
                Record::Live { operation, execution } => {
                    past.live.entry(execution).or_default().push(operation)
                }
                Record::Finished { operation, update } => past.finished.push((operation, update)),
                Record::Leased { lease, worker, name, .. } => {
                    past.leases.entry(lease.execution).or_default().push(Leased { lease, worker, name });
                }
                Record::Worker { name, availability } => past.marks.push((name, availability)),
            }
        }
        past.executions.sort_by_key(|pending| pending.arrival);
        past
    }
}

impl Core {
    pub(super) fn restore(&mut self, records: Vec<Record>) {
        let mut past = Past::sort(records);
        for (name, availability) in std::mem::take(&mut past.marks) {
            if let Some(gone) = self.standings.set_mark(&name, availability) {
                self.erase(RecordKey::Worker(gone));
            }
        }
        for (operation, update) in std::mem::take(&mut past.finished) {
            self.effects.push(Effect::Report { operation, update });
            self.operations.insert_finished(operation, self.now + self.config.retention);
            self.bound_finished();
        }
        let mut shapes = Shapes::new();
        for pending in std::mem::take(&mut past.executions) {
            self.restore_execution(pending, &mut past, &mut shapes);
        }
        for operation in past.live.into_values().flatten() {
            self.erase(RecordKey::Operation(operation));
        }
        for leased in past.leases.into_values().flatten() {
            self.erase(RecordKey::Lease(leased.lease));
        }
    }

    fn restore_execution(&mut self, pending: Pending, past: &mut Past, shapes: &mut Shapes) {
        let id = pending.execution;
        self.arrivals = self.arrivals.max(pending.arrival);
        let key = pending.task.merge_key();
        let is_second = key.as_ref().is_some_and(|key| self.mergeable.get(key).is_some());
        let operations = if is_second { None } else { past.live.remove(&id) };
        let Some(operations) = operations else { return self.erase(RecordKey::Execution(id)) };
        let leased = self.last_two(past.leases.remove(&id).unwrap_or_default());
        let resolved = shapes.entry(Arc::clone(&pending.task.platform)).or_insert_with(|| {
            let resolved = Requirements::resolve(&self.config, &pending.task.platform);
            resolved.map(Arc::new).map_err(|error| error.public_message())
        });
        let kin = Kin::of(&pending.task);
        let (shape, problem) = match resolved {
            Ok(requirements) => (self.shape_of(kin, requirements), None),
            Err(sentence) => (Shape::default(), Some(sentence.clone())),
        };
        self.restore_operations(id, &pending, &operations);
        if let Some(key) = key {
            self.mergeable.insert(key, id);
        }
        self.executions.insert(id, Execution::restored(pending, (kin, shape), operations));
        match (problem, leased) {
            (Some(sentence), leased) => self.end_unresolved(id, &sentence, leased),
            (None, leased) if leased.is_empty() => {
                self.report(id);
                self.enqueue(id);
            }
            (None, leased) => self.take_over(id, leased),
        }
    }

    /// The leases that ran: none, one, or two where the execution was hedged.
    fn last_two(&mut self, mut leases: Vec<Leased>) -> Vec<Leased> {
        leases.sort_by_key(|leased| leased.lease);
        let last = leases.split_off(leases.len().saturating_sub(2));
        for older in leases {
            self.erase(RecordKey::Lease(older.lease));
        }
        last
    }

    fn restore_operations(&mut self, id: ExecutionId, pending: &Pending, operations: &[OperationId]) {
        let until = self.now + self.config.recover_within;
        for operation in operations {
            self.operations.insert(*operation, (id, 0), &pending.task);
            self.timers.set(Timer::Abandon(*operation), until);
        }
    }

    /// The configuration has changed, and the properties that the action demands are not declared any more.
    fn end_unresolved(&mut self, id: ExecutionId, sentence: &str, leased: Vec<Leased>) {
        self.finish(id, answers::unsatisfiable(sentence));
        for leased in leased {
            self.erase(RecordKey::Lease(leased.lease));
        }
    }

    /// The execution is taken to run on, until its workers come back or are given up.
    fn take_over(&mut self, id: ExecutionId, leased: Vec<Leased>) {
        #[cfg(test)]
        if self.bug == Some(Bug::RestartForgetsLease) {
            self.report(id);
            return self.enqueue(id);
        }
        for Leased { lease, worker, name } in leased {
            self.take_over_lease(lease, worker, name);
        }
        // A hedge is told to its worker before its record is safe, so the next number may be in use.
        if let Some(execution) = self.executions.get_mut(&id) {
            execution.reserve(execution.attempts + 1);
        }
        self.enter(id, Stage::Executing);
    }

    fn take_over_lease(&mut self, lease: Lease, worker: WorkerId, name: Arc<str>) {
        if !self.standings.is_known(worker) {
            self.standings.expect(worker, &name);
            let is_new_class = self.fleet.join(worker, name, Arc::new(Capacity::default()));
            self.fleet.set_takes_work(worker, false);
            self.expect_back(worker);
            if is_new_class {
                self.check_all_stranded();
            }
        }
        self.begin_lease(worker, lease);
    }
}
