//! The core's invariants, checked from the inside. For tests: it walks everything.

use std::collections::BTreeSet;

use super::*;
use crate::scheduler::execution::State;
use crate::scheduler::fleet::{Hold, Preference};
use crate::scheduler::queue::LineId;
use crate::scheduler::record::RecordKey;

/// Fails with the given sentence unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)*) => {
        if !$condition {
            return Err(format!($($sentence)*));
        }
    };
}
pub(in crate::scheduler) use ensure;

impl Core {
    /// The first thing that is wrong.
    pub(in crate::scheduler) fn check(&self) -> Result<(), String> {
        self.check_operations()?;
        for (id, execution) in self.executions.iter() {
            self.check_execution(id, execution)?;
        }
        self.check_fleet()?;
        self.check_standings()?;
        self.check_warming()?;
        let queued = self.executions.iter().filter(|(_, execution)| execution.state == State::Queued).count();
        ensure!(
            queued == self.queue.len(),
            "{queued} executions are queued, but {} are in line",
            self.queue.len()
        );
        self.check_idle()
    }

    fn check_operations(&self) -> Result<(), String> {
        let held: usize = self.executions.iter().map(|(_, execution)| execution.operations.len()).sum();
        let live = self.operations.live_count();
        ensure!(held == live, "{held} operations wait, {live} live");
        for (operation, one) in self.operations.iter_live() {
            let is_timed = self.timers.holds(&Timer::Abandon(operation));
            ensure!(is_timed == (one.watchers == 0), "{operation:?} has {} watchers", one.watchers);
        }
        let oldest = self.operations.oldest_finished().map(|(_, until)| until);
        let is_in_time = self.timers.due(&Timer::Forget) <= oldest;
        ensure!(
            is_in_time && self.timers.holds(&Timer::Forget) == oldest.is_some(),
            "what ended is not forgotten in time"
        );
        for operation in self.operations.iter_finished() {
            ensure!(self.operations.live(operation).is_none(), "{operation:?} is live and finished");
        }
        for (names, sum) in self.operations.counted() {
            ensure!(
                sum == live && names <= live,
                "{sum} operations of {names} names are counted, {live} live"
            );
        }
        Ok(())
    }

    fn check_execution(&self, id: ExecutionId, execution: &Execution) -> Result<(), String> {
        ensure!(!execution.operations.is_empty(), "nobody waits for {id:?}");
        for operation in execution.operations.iter() {
            let waits = self.operations.live(*operation).is_some_and(|live| live.execution == id);
            ensure!(waits, "{operation:?} does not wait for {id:?}");
        }
        if let Some(key) = execution.task.merge_key() {
            ensure!(self.mergeable.get(&key) == Some(&id), "{id:?} cannot be joined");
        }
        ensure!(execution.position.arrival <= self.arrivals, "{id:?} has not arrived yet");
        self.check_hedge(id, execution)?;
        for state in execution.states() {
            self.check_state(state, execution)?;
        }
        Ok(())
    }

    fn check_hedge(&self, id: ExecutionId, execution: &Execution) -> Result<(), String> {
        ensure!(
            execution.hedge.is_some() == self.hedged.contains(&id),
            "it is not known that {id:?} runs twice"
        );
        let workers: BTreeSet<WorkerId> = execution.leases().map(|(_, worker)| worker).collect();
        ensure!(workers.len() == execution.leases().count(), "{id:?} runs twice on one worker");
        ensure!(execution.hedge.is_none() || workers.len() == 2, "{id:?} is queued and runs");
        Ok(())
    }

    fn check_state(&self, state: State, execution: &Execution) -> Result<(), String> {
        match state {
            State::Queued => {}
            State::Running { lease, worker } => {
                let is_held = self.fleet.holding(worker, lease) == Some(Hold::Running);
                ensure!(is_held, "{lease:?} runs, but {worker:?} does not hold it");
                let due = self.timers.due(&Timer::Leases(worker));
                let deadline = self.fleet.deadline(worker, lease);
                ensure!(due.is_some() && due <= deadline, "{lease:?} may run for ever");
                ensure!(execution.unrecorded.is_none(), "{lease:?} runs, and another may too");
            }
            State::Settling { lease, worker } => {
                ensure!(self.fleet.holding(worker, lease).is_none(), "{lease:?} is answered and held");
            }
        }
        if let Some((lease, _)) = state.lease() {
            ensure!(lease.attempt <= execution.attempts, "{lease:?} is of the future");
        }
        Ok(())
    }

    fn check_fleet(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (id, worker) in self.fleet.iter() {
            for (lease, hold) in worker.leases() {
                let execution = self.executions.get(&lease.execution);
                let states = execution.into_iter().flat_map(|execution| execution.states());
                let is_running =
                    states.into_iter().any(|state| state == State::Running { lease, worker: id });
                ensure!(
                    is_running == (hold == Hold::Running),
                    "{id:?} holds {lease:?}: {hold:?}, but it runs: {is_running}"
                );
                ensure!(!is_running || seen.insert(lease), "{lease:?} runs on two workers");
                let is_being_killed = hold == Hold::Dying && self.standings.is_connected(id);
                let is_timed = self.timers.holds(&Timer::Kill(id, lease));
                ensure!(is_timed == is_being_killed, "{lease:?} on {id:?} is {hold:?}, timed: {is_timed}");
            }
        }
        Ok(())
    }

    fn check_standings(&self) -> Result<(), String> {
        let known: Vec<WorkerId> = self.standings.workers().collect();
        let mut held: Vec<WorkerId> = self.fleet.iter().map(|(id, _)| id).collect();
        held.sort();
        ensure!(known == held, "{known:?} are known, {held:?} are in the fleet");
        for worker in known {
            let is_connected = self.standings.is_connected(worker);
            let timers = [Timer::Silence(worker), Timer::Away(worker)].map(|timer| self.timers.holds(&timer));
            ensure!(timers == [is_connected, !is_connected], "{worker:?} is watched wrongly: {timers:?}");
            let takes_work = self.fleet.takes_work(worker);
            ensure!(takes_work == self.standings.takes_work(worker), "{worker:?} takes work: {takes_work}");
            let is_out = self.standings.health(worker).is_some_and(|health| health.reason().is_some());
            let is_timed = self.timers.holds(&Timer::Probation(worker));
            ensure!(!is_out || is_timed, "{worker:?} is out for ever");
        }
        Ok(())
    }

    /// Only what is queued has its inputs made ready.
    fn check_warming(&self) -> Result<(), String> {
        self.warming.check(&self.fleet.iter().map(|(id, _)| id).collect())?;
        for id in self.warming.executions() {
            let execution = self.executions.get(&id);
            let is_queued = execution.is_some_and(|one| one.place.is_some() && one.was_warmed);
            ensure!(is_queued, "{id:?} is in no line, and a worker has its inputs ready");
        }
        Ok(())
    }

    fn check_idle(&self) -> Result<(), String> {
        for line in self.queue.lines() {
            let preference = Preference { avoided: &BTreeSet::new(), neighbours: &[] };
            let worker = self.fleet.best_for(line.id, preference);
            ensure!(worker.is_none(), "{:?} is queued beside idle {worker:?}", line.shape);
            let is_timed = self.timers.holds(&Timer::Stranded(line.shape.clone()));
            ensure!(is_timed != self.fleet.could_run(line.id), "{:?} is stranded: {is_timed}", line.shape);
        }
        self.check_reservations()
    }

    /// A reservation is for something that waits and has no room there.
    fn check_reservations(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (worker, line) in self.reserved() {
            ensure!(self.queue.has_entries(line), "{worker:?} is reserved for nothing");
            ensure!(seen.insert(line), "{worker:?} is not alone reserved for {line:?}");
            let room = self.fleet.room(worker);
            ensure!(room.is_none_or(|room| !room.fits_line(line)), "{worker:?} has room for {line:?}");
        }
        Ok(())
    }

    /// The keys of everything that the journal must hold.
    pub(in crate::scheduler) fn record_keys(&self) -> BTreeSet<RecordKey> {
        let executions = self.executions.iter().map(|(id, _)| RecordKey::Execution(id));
        let live = self.operations.iter_live().map(|(operation, _)| operation);
        let operations = live.chain(self.operations.iter_finished()).map(RecordKey::Operation);
        let leases = self.executions.iter().flat_map(|(_, execution)| execution.leases());
        let leases = leases.map(|(lease, _)| RecordKey::Lease(lease));
        let marks = self.standings.marked().map(|name| RecordKey::Worker(Arc::clone(name)));
        executions.chain(operations).chain(leases).chain(marks).collect()
    }

    /// The workers that start nothing but what is in a line.
    pub(in crate::scheduler) fn reserved(&self) -> impl Iterator<Item = (WorkerId, LineId)> {
        let workers = self.fleet.iter().map(|(worker, _)| worker);
        workers.filter_map(|worker| Some((worker, self.fleet.reserved_line(worker)?)))
    }

    /// Whether nothing is left: no operation, no worker, no deadline.
    pub(in crate::scheduler) fn is_empty(&self) -> bool {
        self.executions.is_empty()
            && self.mergeable.len() == 0
            && self.queue.len() == 0
            && self.queue.shape_count() == 0
            && self.fleet.len() == 0
            && self.warming.is_empty()
            && self.standings.is_empty()
            && self.operations.live_count() + self.operations.finished_count() == 0
            && self.timers.next().is_none()
    }
}
