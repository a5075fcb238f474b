//! Who runs what, as far as the scheduler can know it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Checked;
use crate::scheduler::core::inspect::ensure;
use crate::scheduler::event::Event;
use crate::scheduler::id::{ExecutionId, Lease, WorkerId};
use crate::scheduler::record::{Record, RecordKey};
use crate::scheduler::requirements::{Capacity, Requirements};
use crate::scheduler::task::{Availability, MergeKey, Outcome, Task};

/// How many leases one execution may have at once: the second is a hedge.
const LEASES_MAX: usize = 2;

/// How many queued executions one worker may have the inputs of, and no more than it has slots.
const WARM_MAX: usize = 4;

#[derive(Default)]
pub(super) struct Leases {
    workers: BTreeMap<WorkerId, Worker>,
    held: BTreeMap<(WorkerId, Lease), Standing>,
    /// Every lease that a worker was ever given, by whichever life of the scheduler.
    given: BTreeSet<(WorkerId, Lease)>,
    /// Those that this life of the scheduler has given. An earlier one may have given the same again without a record of it, if it did not
    /// arrive.
    given_now: BTreeSet<(WorkerId, Lease)>,
    /// The last attempt at each execution.
    attempts: BTreeMap<ExecutionId, u32>,
    works: BTreeMap<ExecutionId, Work>,
    /// What workers have brought back that the scheduler may know nothing of, so that it cannot know how much they have free.
    strays: BTreeSet<(WorkerId, Lease)>,
    /// What was running when this life of the scheduler began, and has not been heard of.
    adrift: BTreeSet<(WorkerId, Lease)>,
    /// The names that operators have taken out.
    closed: BTreeSet<Arc<str>>,
    /// The workers that the scheduler has taken out for their failures.
    distrusted: BTreeSet<WorkerId>,
    /// Those that were lost while they were taken out. Nobody is told when their failures are forgotten.
    doubted: BTreeSet<WorkerId>,
    /// The queued executions whose inputs a worker was told to make ready.
    warm: BTreeMap<ExecutionId, WorkerId>,
    /// All that this life of the scheduler has said of that.
    warmed: BTreeSet<(WorkerId, ExecutionId)>,
}

struct Worker {
    name: Arc<str>,
    capacity: Arc<Capacity>,
    is_connected: bool,
    own: Own,
}

/// What a worker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    Open,
    Closed,
    /// It, or the scheduler for its failures, said that it takes no new work; it has connected anew, and nobody said so again.
    Unclear,
}

/// What a lease that a worker may hold is to the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Its answer counts.
    Current,
    /// Its answer does not count, and the worker has not been told.
    Void,
    /// The worker was told to stop it.
    Killed,
}

/// What is known of an execution from its first start.
struct Work {
    requirements: Arc<Requirements>,
    key: Option<MergeKey>,
}

impl Leases {
    /// Enters what an event says of workers. Returns the leases that a worker has brought back and that count.
    pub(super) fn enter_event(&mut self, event: &Event) -> Vec<(WorkerId, Lease)> {
        match event {
            Event::WorkerJoined { worker, name, capacity, leases, .. } => {
                let (name, capacity) = (Arc::clone(name), Arc::clone(capacity));
                let old = self.workers.get(worker);
                // If it was given up meanwhile, what it said of itself is forgotten.
                let is_clear = old.is_none_or(|old| old.own == Own::Open) && !self.doubted.contains(worker);
                let own = if is_clear { Own::Open } else { Own::Unclear };
                let joined = Worker { name, capacity, is_connected: true, own };
                self.workers.insert(*worker, joined);
                return self.bring_back(*worker, leases);
            }
            Event::WorkerAway { worker } => {
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.is_connected = false;
                }
            }
            Event::WorkerLeft { worker } => self.lose(*worker),
            Event::Mark { worker, availability, by_operator } => {
                self.mark(*worker, *availability == Availability::Open, *by_operator);
            }
            Event::Restore(_) | Event::Submit(_) | Event::Settled { .. } | Event::Stop | Event::Tick => {}
            Event::Watched { .. } | Event::Unwatched { .. } | Event::Cancel { .. } | Event::Delete { .. } => {
            }
            Event::Heartbeat { .. } | Event::Progress { .. } | Event::Finished { .. } => {}
        }
        Vec::new()
    }

    fn mark(&mut self, id: WorkerId, is_open: bool, by_operator: bool) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if !by_operator {
            worker.own = if is_open { Own::Open } else { Own::Closed };
        } else if is_open {
            let name = Arc::clone(&worker.name);
            self.closed.remove(&name);
            // An operator who opens a worker knows better than its past failures.
            let workers = &self.workers;
            self.distrusted.retain(|id| workers.get(id).is_none_or(|worker| worker.name != name));
        } else {
            self.closed.insert(Arc::clone(&worker.name));
        }
    }

    /// The scheduler takes a worker out for its failures, or gives it another chance.
    pub(super) fn judge(&mut self, worker: WorkerId, availability: &Availability) {
        self.doubted.remove(&worker);
        if *availability == Availability::Open {
            self.distrusted.remove(&worker);
        } else {
            self.distrusted.insert(worker);
        }
    }

    /// A worker holds what it says that it holds, and nothing else.
    fn bring_back(&mut self, worker: WorkerId, leases: &[Lease]) -> Vec<(WorkerId, Lease)> {
        let of_worker = |held: &BTreeMap<(WorkerId, Lease), Standing>| -> BTreeMap<Lease, Standing> {
            held.iter().filter(|((id, _), _)| *id == worker).map(|((_, lease), one)| (*lease, *one)).collect()
        };
        let before = of_worker(&self.held);
        self.held.retain(|(id, _), _| *id != worker);
        let strays = std::mem::take(&mut self.strays);
        self.strays = strays.iter().filter(|(id, _)| *id != worker).copied().collect();
        for lease in leases {
            if !before.contains_key(lease) || strays.contains(&(worker, *lease)) {
                self.strays.insert((worker, *lease));
            }
            let is_current = before.get(lease) == Some(&Standing::Current);
            let standing = if is_current { Standing::Current } else { Standing::Void };
            self.held.insert((worker, *lease), standing);
        }
        let kept = leases.iter().filter(|lease| before.get(lease) == Some(&Standing::Current));
        kept.map(|lease| (worker, *lease)).collect()
    }

    /// What a worker brings back in time goes on.
    pub(super) fn check_kept(&mut self, brought_back: &[(WorkerId, Lease)]) -> Checked {
        for one in brought_back {
            let standing = self.held.get(one);
            ensure!(
                standing == Some(&Standing::Current),
                "{one:?} was brought back in time and is {standing:?}"
            );
            self.adrift.remove(one);
        }
        Ok(())
    }

    pub(super) fn is_adrift(&self, one: (WorkerId, Lease)) -> bool {
        self.adrift.contains(&one)
    }

    /// A lease that has ended frees its share before anything else is started.
    pub(super) fn leave_event(&mut self, event: &Event) {
        if let Event::Finished { worker, lease, .. } = event {
            self.held.remove(&(*worker, *lease));
            self.strays.remove(&(*worker, *lease));
        }
    }

    pub(super) fn was_given(&self, worker: WorkerId, lease: Lease) -> bool {
        self.given.contains(&(worker, lease))
    }

    /// Returns whether this is a second lease of a running execution.
    pub(super) fn start(
        &mut self,
        (worker, lease): (WorkerId, Lease),
        task: &Arc<Task>,
        requirements: &Arc<Requirements>,
    ) -> Result<bool, String> {
        let seen = self.check_takes_work(worker);
        let seen = seen.map_err(|why| format!("{lease:?} starts on {worker:?}, which {why}"))?;
        let is_avoided = requirements.avoided() == Some(&*seen.name);
        ensure!(!is_avoided, "{lease:?} starts on {worker:?}, which it avoids");
        let last = self.attempts.insert(lease.execution, lease.attempt).unwrap_or(0);
        ensure!(lease.attempt > last, "{lease:?} follows attempt {last}");
        self.given.insert((worker, lease));
        ensure!(self.given_now.insert((worker, lease)), "{lease:?} is given to {worker:?} twice");
        let work = Work { requirements: Arc::clone(requirements), key: task.merge_key() };
        self.works.insert(lease.execution, work);
        let others: Vec<_> = self.current().filter(|(_, other)| other.execution == lease.execution).collect();
        let is_apart = others.iter().all(|(holder, _)| *holder != worker);
        ensure!(is_apart, "{lease:?} starts on {worker:?}, which runs the same already");
        ensure!(others.len() < LEASES_MAX, "{lease:?} is the third at once");
        self.held.insert((worker, lease), Standing::Current);
        Ok(!others.is_empty())
    }

    fn check_takes_work(&self, worker: WorkerId) -> Result<&Worker, &'static str> {
        let Some(seen) = self.workers.get(&worker) else { return Err("is gone") };
        if !seen.is_connected {
            return Err("is away");
        }
        let is_open = seen.own != Own::Closed && self.is_open(worker, seen);
        if is_open { Ok(seen) } else { Err("is taken out") }
    }

    /// A worker is told to make the inputs of a queued execution ready: once, and only a few at a time.
    pub(super) fn warm(
        &mut self,
        worker: WorkerId,
        execution: ExecutionId,
        requirements: &Requirements,
    ) -> Checked {
        let seen = self.check_takes_work(worker);
        let seen = seen.map_err(|why| format!("{execution:?} is warmed on {worker:?}, which {why}"))?;
        let could_run = seen.capacity.could_run(requirements);
        ensure!(could_run, "{execution:?} is warmed on {worker:?}, which could not run it");
        let is_avoided = requirements.avoided() == Some(&*seen.name);
        ensure!(!is_avoided, "{execution:?} is warmed on {worker:?}, which it avoids");
        let most = WARM_MAX.min(seen.capacity.slots as usize);
        let has = self.warm.values().filter(|holder| **holder == worker).count();
        ensure!(has < most, "{execution:?} is warmed on {worker:?} beside {has} others");
        let is_new = self.warmed.insert((worker, execution));
        ensure!(is_new, "{execution:?} is warmed on {worker:?} for the second time");
        self.warm.insert(execution, worker);
        Ok(())
    }

    /// The execution is in line no more. Returns the worker that has its inputs ready.
    pub(super) fn cool(&mut self, execution: ExecutionId) -> Option<WorkerId> {
        self.warm.remove(&execution)
    }

    pub(super) fn kill(&mut self, worker: WorkerId, lease: Lease) -> Checked {
        let Some(standing) = self.held.get_mut(&(worker, lease)) else {
            return Err(format!("{lease:?} is killed, but not on {worker:?}"));
        };
        ensure!(*standing != Standing::Killed, "{lease:?} is killed twice");
        *standing = Standing::Killed;
        Ok(())
    }

    /// Only the answer of the worker that has the lease counts.
    pub(super) fn check_settle(&self, event: &Event, lease: Lease) -> Checked {
        let Event::Finished { worker, lease: answered, outcome: Outcome::Response(_) } = event else {
            return Err(format!("{lease:?} is settled without an answer"));
        };
        ensure!(*answered == lease, "{lease:?} is settled with the answer to {answered:?}");
        let standing = self.held.get(&(*worker, lease));
        let is_current = standing == Some(&Standing::Current);
        ensure!(is_current, "{lease:?} is settled with a late answer of {worker:?}: {standing:?}");
        Ok(())
    }

    /// An attempt is over for the scheduler, whatever its worker does.
    pub(super) fn fail(&mut self, lease: Lease) {
        self.void(|one| one == lease);
    }

    /// The scheduler takes a lease for that of a worker: with a start, or because the worker says that it has it.
    pub(super) fn keep(&mut self, record: &Record) {
        match record {
            Record::Leased { lease, worker, .. } => {
                if let Some(standing) = self.held.get_mut(&(*worker, *lease)) {
                    *standing = Standing::Current;
                }
            }
            Record::Worker { name, availability } if *availability != Availability::Open => {
                self.closed.insert(Arc::clone(name));
            }
            Record::Worker { name, .. } => {
                self.closed.remove(name);
            }
            Record::Execution(_) | Record::Live { .. } | Record::Finished { .. } => {}
        }
    }

    pub(super) fn erase(&mut self, key: &RecordKey) {
        match key {
            RecordKey::Execution(execution) => {
                self.cool(*execution);
                self.void(|lease| lease.execution == *execution);
            }
            RecordKey::Worker(name) => {
                self.closed.remove(name);
            }
            RecordKey::Operation(_) | RecordKey::Lease(_) => {}
        }
    }

    fn void(&mut self, is_meant: impl Fn(Lease) -> bool) {
        for ((_, lease), standing) in &mut self.held {
            if *standing == Standing::Current && is_meant(*lease) {
                *standing = Standing::Void;
            }
        }
    }

    pub(super) fn lose(&mut self, worker: WorkerId) {
        if self.distrusted.remove(&worker) {
            self.doubted.insert(worker);
        }
        self.workers.remove(&worker);
        self.warm.retain(|_, holder| *holder != worker);
        self.held.retain(|(id, _), _| *id != worker);
    }

    /// Another life of the scheduler knows what the journal says, and no worker is connected.
    pub(super) fn restart(&mut self, records: &[Record]) {
        self.workers.clear();
        self.held.clear();
        self.strays.clear();
        self.given_now.clear();
        self.adrift.clear();
        self.closed.clear();
        self.distrusted.clear();
        self.doubted.clear();
        self.warm.clear();
        self.warmed.clear();
        for record in records {
            match record {
                Record::Execution(pending) => {
                    self.attempts.insert(pending.execution, pending.attempts);
                }
                Record::Worker { .. } => self.keep(record),
                Record::Leased { .. } | Record::Live { .. } | Record::Finished { .. } => {}
            }
        }
        let wanted: BTreeSet<_> = records.iter().filter_map(execution_of_live).collect();
        for record in records {
            let Record::Leased { lease, worker, .. } = record else { continue };
            // What has ended is erased record by record, and some may be left.
            let is_pending = records.iter().any(|other| other.key() == RecordKey::Execution(lease.execution));
            if !is_pending || !wanted.contains(&lease.execution) {
                continue;
            }
            let last = self.attempts.entry(lease.execution).or_default();
            *last = lease.attempt.max(*last);
            self.held.insert((*worker, *lease), Standing::Current);
            self.adrift.insert((*worker, *lease));
        }
    }

    /// Equal actions that may merge are one execution, and that has as many leases as it may have.
    pub(super) fn check_merging(&self) -> Checked {
        let mut running = BTreeMap::new();
        for (_, lease) in self.current() {
            let Some(key) = self.works.get(&lease.execution).and_then(|work| work.key.as_ref()) else {
                continue;
            };
            let first = *running.entry(key).or_insert(lease.execution);
            ensure!(first == lease.execution, "{lease:?} runs beside the equal {first:?}");
        }
        Ok(())
    }

    /// No connected worker runs in vain what it could be told to stop.
    pub(super) fn check_told(&self) -> Checked {
        let is_void = |(one, standing): &(&(WorkerId, Lease), &Standing)| {
            // What the scheduler knows nothing of may be an answer that it has already.
            let is_connected = self.workers.get(&one.0).is_some_and(|worker| worker.is_connected);
            **standing == Standing::Void && is_connected && !self.strays.contains(*one)
        };
        let untold = self.held.iter().find(is_void).map(|(one, _)| one);
        ensure!(untold.is_none(), "{untold:?} is in vain, and the worker is not told to stop it");
        Ok(())
    }

    /// Whether there is a worker that takes work and could run what is to run elsewhere; `None` where nobody can tell.
    pub(super) fn has_taker(&self, requirements: &Requirements) -> Option<bool> {
        let is_able = |(id, worker): &(&WorkerId, &Worker)| {
            let is_other = requirements.avoided() != Some(&*worker.name);
            is_other && worker.capacity.could_run(requirements) && self.check_takes_work(**id).is_ok()
        };
        let owns: Vec<Own> = self.workers.iter().filter(is_able).map(|(_, worker)| worker.own).collect();
        if owns.contains(&Own::Open) {
            return Some(true);
        }
        owns.is_empty().then_some(false)
    }

    /// The workers that could start this now.
    pub(super) fn idle_for(&self, requirements: &Requirements) -> impl Iterator<Item = WorkerId> {
        let is_idle = |(id, worker): &(&WorkerId, &Worker)| {
            let is_open = worker.own == Own::Open && self.is_open(**id, worker);
            let has_stray = self.strays.iter().any(|(holder, _)| holder == *id);
            worker.is_connected && is_open && !has_stray && self.has_room(**id, worker, requirements)
        };
        self.workers.iter().filter(is_idle).map(|(id, _)| *id)
    }

    /// The worker could run this if it had less to do.
    pub(super) fn is_too_busy_for(&self, id: WorkerId, requirements: &Requirements) -> bool {
        let worker = &self.workers[&id];
        let is_avoided = requirements.avoided() == Some(&*worker.name);
        !is_avoided && worker.capacity.could_run(requirements) && !self.has_room(id, worker, requirements)
    }

    /// Nobody but the worker itself says that it takes no new work.
    fn is_open(&self, id: WorkerId, worker: &Worker) -> bool {
        !self.distrusted.contains(&id) && !self.closed.contains(&worker.name)
    }

    fn has_room(&self, id: WorkerId, worker: &Worker, requirements: &Requirements) -> bool {
        let held = || self.held.keys().filter(|(holder, _)| *holder == id).map(|(_, lease)| lease.execution);
        let used = |name: &str| -> u64 {
            let works = held().filter_map(|execution| self.works.get(&execution));
            works.filter_map(|work| work.requirements.amounts().get(name)).sum()
        };
        let has = |(name, amount): (&String, &u64)| {
            worker.capacity.amounts.get(name).is_some_and(|offered| used(name) + amount <= *offered)
        };
        requirements.avoided() != Some(&*worker.name)
            && worker.capacity.could_run(requirements)
            && held().count() < worker.capacity.slots as usize
            && requirements.amounts().iter().all(has)
    }

    /// An attempt at the execution counts.
    pub(super) fn is_pending(&self, execution: ExecutionId) -> bool {
        self.current().any(|(_, lease)| lease.execution == execution)
    }

    fn current(&self) -> impl Iterator<Item = (WorkerId, Lease)> {
        self.held.iter().filter(|(_, standing)| **standing == Standing::Current).map(|(one, _)| *one)
    }
}

fn execution_of_live(record: &Record) -> Option<ExecutionId> {
    match record {
        Record::Live { execution, .. } => Some(*execution),
        Record::Execution(_) | Record::Finished { .. } | Record::Leased { .. } | Record::Worker { .. } => {
            None
        }
    }
}
