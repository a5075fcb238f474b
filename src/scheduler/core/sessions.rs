//! Connections of workers: they come, break, are resumed, and end.
//!
//! A worker whose connection broke runs on, and is taken to do so until it is given up. When it comes back it says what it holds, and
//! the difference to what it was given is settled then.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::attempts::Failure;
use super::*;
use crate::scheduler::execution::{Blame, State};
use crate::scheduler::fleet::Hold;
use crate::scheduler::requirements::Capacity;
use crate::scheduler::task::Availability;

/// How a worker went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Departure {
    /// It said goodbye.
    Left,
    /// It is given up.
    Lost,
}

impl Core {
    /// A worker connects, for the first time or again. It gets nothing new before it is known what it has.
    pub(super) fn connect(
        &mut self,
        worker: WorkerId,
        (name, owner): (Arc<str>, Arc<str>),
        capacity: Arc<Capacity>,
    ) {
        #[cfg(test)]
        let capacity = self.misjudged(capacity);
        let slots = capacity.slots;
        for predecessor in self.standings.succeeded_by(worker, &name) {
            self.drop_worker(predecessor, "another worker came under its name");
        }
        let are_classes_changed = if self.standings.connect(worker, &name, owner) {
            self.fleet.change_capacity(worker, capacity)
        } else {
            self.fleet.join(worker, name, capacity)
        };
        self.fleet.set_takes_work(worker, false);
        self.warming.join(worker, slots);
        self.timers.clear(Timer::Away(worker));
        self.heard(worker);
        if are_classes_changed {
            self.check_all_stranded();
        }
    }

    /// Whether a worker that is about to connect was connected before, itself or as another that died under its name. What was connected
    /// to an earlier scheduler only does not count: that it comes is no sign of trouble.
    pub(in crate::scheduler) fn comes_back(&self, worker: WorkerId, name: &Arc<str>) -> bool {
        let predecessors = self.standings.succeeded_by(worker, name);
        predecessors.into_iter().chain([worker]).any(|worker| self.standings.has_connected(worker))
    }

    /// A worker that has connected says which leases it holds.
    pub(super) fn resume(&mut self, worker: WorkerId, leases: &[Lease]) {
        self.reconcile(worker, leases);
        self.refresh_availability(worker);
    }

    /// Settles what a worker was given with what it says that it holds.
    fn reconcile(&mut self, worker: WorkerId, named: &[Lease]) {
        let named: BTreeSet<Lease> = named.iter().copied().collect();
        let held: Vec<_> = self.fleet.get(worker).into_iter().flat_map(|worker| worker.leases()).collect();
        let gone = held.into_iter().filter(|(lease, _)| !named.contains(lease));
        let (running, dying): (Vec<_>, Vec<_>) = gone.partition(|(_, hold)| *hold == Hold::Running);
        for (lease, _) in dying {
            self.timers.clear(Timer::Kill(worker, lease));
            self.fleet.release(worker, lease);
        }
        for lease in self.in_line(running.into_iter().map(|(lease, _)| lease)) {
            self.lost_on_the_way(worker, lease);
        }
        for lease in named {
            self.recognise(worker, lease);
        }
    }

    /// The worker never had the lease, or had it in another life: neither it nor the action is at fault.
    fn lost_on_the_way(&mut self, worker: WorkerId, lease: Lease) {
        self.timers.clear(Timer::Hedge(lease));
        self.fleet.release(worker, lease);
        let sentence = "the action did not reach its worker".to_owned();
        self.retry(lease, Failure { worker: self.standings.name(worker), sentence, blame: Blame::Nobody });
    }

    /// A worker says that it holds a lease: it runs it, or its answer to it was not acknowledged and follows.
    fn recognise(&mut self, worker: WorkerId, lease: Lease) {
        match self.fleet.holding(worker, lease) {
            #[cfg(test)]
            Some(Hold::Running) if self.bug == Some(Bug::ResumeDropsLease) => {
                self.lost_on_the_way(worker, lease);
            }
            Some(Hold::Running) => {}
            Some(Hold::Dying) => self.send_kill(worker, lease),
            None if self.is_settling(worker, lease) => {}
            None if self.may_be_adopted(lease) => self.adopt(worker, lease),
            None => self.kill_stray(worker, lease),
        }
    }

    /// Whether an earlier scheduler may have started this attempt without a record of it.
    fn may_be_adopted(&self, lease: Lease) -> bool {
        let Some(execution) = self.executions.get(&lease.execution) else { return false };
        execution.state == State::Queued && execution.may_have_started(lease.attempt)
    }

    fn adopt(&mut self, worker: WorkerId, lease: Lease) {
        self.dequeue(lease.execution);
        self.begin_lease(worker, lease);
        self.keep_lease(worker, lease);
        self.enter(lease.execution, Stage::Executing);
    }

    /// Ends a lease that is over, was given to another worker, or was never given out. It holds its share until the worker confirms;
    /// where nobody knows how much that is, it may be all that the worker has.
    fn kill_stray(&mut self, worker: WorkerId, lease: Lease) {
        let execution = self.executions.get_mut(&lease.execution);
        let shape = execution.map(|execution| {
            // The number is not to be given out again while the worker has it.
            execution.reserve(lease.attempt);
            execution.shape.clone()
        });
        self.fleet.hold(worker, (lease, self.now), shape.as_ref());
        self.fleet.mark_dying(worker, lease);
        self.send_kill(worker, lease);
    }

    pub(super) fn worker_away(&mut self, worker: WorkerId) {
        if !self.standings.disconnect(worker) {
            return;
        }
        self.timers.clear(Timer::Silence(worker));
        self.expect_back(worker);
        // What it has not heard it cannot confirm; it is told again when it is back.
        for lease in self.dying(worker) {
            self.timers.clear(Timer::Kill(worker, lease));
        }
        #[cfg(test)]
        if self.bug == Some(Bug::StartOnAway) {
            return;
        }
        self.fleet.set_takes_work(worker, false);
    }

    pub(super) fn expect_back(&mut self, worker: WorkerId) {
        self.timers.set(Timer::Away(worker), self.now + self.config.reconnect_within);
    }

    fn dying(&self, worker: WorkerId) -> Vec<Lease> {
        let leases = self.fleet.get(worker).into_iter().flat_map(|worker| worker.leases());
        leases.filter(|(_, hold)| *hold == Hold::Dying).map(|(lease, _)| lease).collect()
    }

    pub(super) fn worker_left(&mut self, worker: WorkerId) {
        let name = self.standings.name(worker);
        self.depart(worker, Departure::Left);
        // A drain is over when its worker has left; a cordon is not.
        let is_drained = matches!(self.standings.mark(&name), Some(Availability::Draining { .. }));
        if is_drained && self.standings.named(&name).is_empty() {
            self.set_mark(&name, Availability::Open);
        }
    }

    /// Gives up a worker, whether it is connected or not.
    pub(super) fn drop_worker(&mut self, worker: WorkerId, reason: &'static str) {
        self.effects.push(Effect::Drop { worker, reason });
        self.depart(worker, Departure::Lost);
    }

    /// A worker is gone, and every attempt that it ran is over.
    fn depart(&mut self, id: WorkerId, departure: Departure) {
        let has_connected = self.standings.has_connected(id);
        self.standings.remove(id);
        self.warming.leave(id);
        let Some((worker, is_last_of_class)) = self.fleet.leave(id) else { return };
        self.timers.clear(Timer::Silence(id));
        self.timers.clear(Timer::Away(id));
        self.timers.clear(Timer::Leases(id));
        for (lease, hold) in worker.leases() {
            match hold {
                Hold::Running => self.timers.clear(Timer::Hedge(lease)),
                Hold::Dying => self.timers.clear(Timer::Kill(id, lease)),
            }
        }
        self.outlive_health(id, departure == Departure::Lost);
        if is_last_of_class {
            self.check_all_stranded();
        }
        let (sentence, blame) = match departure {
            Departure::Left => ("the worker left before the action had ended", Blame::Nobody),
            // It may have been killed with the farm that it was part of.
            Departure::Lost if !has_connected => {
                ("the worker did not come back after a restart of the farm", Blame::Nobody)
            }
            Departure::Lost => ("a worker was lost while it ran the action", Blame::LostWorker),
        };
        for lease in self.in_line(worker.running()) {
            let (worker, sentence) = (Arc::clone(&worker.name), sentence.to_owned());
            self.retry(lease, Failure { worker, sentence, blame });
        }
    }

    /// Leases in the order of their executions: the first in line gets the first idle worker.
    fn in_line(&self, leases: impl Iterator<Item = Lease>) -> Vec<Lease> {
        let mut leases: Vec<Lease> = leases.collect();
        leases.sort_by_key(|lease| self.executions.get(&lease.execution).map(|execution| execution.position));
        leases
    }

    /// Any word of a worker says that it lives.
    pub(super) fn heard(&mut self, worker: WorkerId) {
        if self.standings.is_connected(worker) {
            self.timers.set(Timer::Silence(worker), self.now + self.config.heartbeat_timeout);
        }
    }
}
