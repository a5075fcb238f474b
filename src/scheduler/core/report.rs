//! What operators see at a glance: the queue, the workers, and what the fleet lacks.

use std::collections::BTreeMap;

use super::*;
use crate::scheduler::fleet::{Hold, Worker};
use crate::scheduler::queue::LineId;
use crate::scheduler::requirements::{Requirements, Shape};
use crate::scheduler::task::Availability;
use crate::scheduler::view::{
    Demand, Load, Overview, QUEUES_LISTED_MAX, QueueView, RUNNING_LISTED_MAX, RunningView,
    WORKERS_LISTED_MAX, WorkerCounts, WorkerView,
};

/// What waits with one set of properties.
struct Waiting {
    length: usize,
    oldest: Time,
    /// The line of the longest waiting one.
    line: LineId,
}

/// How many workers of one name, or of one identifier, are found at most.
const FOUND_MAX: usize = 100;

impl Core {
    /// The whole scheduler at one moment.
    pub(in crate::scheduler) fn overview(&self, now: Time) -> Overview {
        let sets = self.waiting_sets();
        let queues = self.queue_views(now, &sets);
        let workers = self.worker_views(now);
        Overview {
            queued: self.queue.len(),
            running: self.executions.len() - self.queue.len(),
            oldest_seconds: self.oldest_seconds(now),
            queues_unlisted: sets.len() - queues.len(),
            queues,
            workers_unlisted: self.fleet.len() - workers.len(),
            workers,
            fleet: self.worker_counts(),
        }
    }

    /// What the fleet is asked for.
    pub(in crate::scheduler) fn load(&self, now: Time) -> Load {
        Load {
            queued: self.queue.len(),
            running: self.executions.len() - self.queue.len(),
            oldest_seconds: self.oldest_seconds(now),
            fleet: self.worker_counts(),
            demands: self.demands(),
        }
    }

    /// The workers whose name or identifier is `key`, at most 100. An operator's mark on any one of them
    /// holds for all of its name, since a worker that starts again has another identifier.
    pub(in crate::scheduler) fn find_workers(&self, now: Time, key: &str) -> Vec<(WorkerId, WorkerView)> {
        let is_meant = |id: WorkerId, worker: &Worker| *worker.name == *key || id.to_string() == key;
        let found = self.fleet.iter().filter(|(id, worker)| is_meant(*id, worker)).take(FOUND_MAX);
        found.map(|(id, worker)| (id, self.worker_view(now, id, worker))).collect()
    }

    fn oldest_seconds(&self, now: Time) -> f64 {
        let oldest = self.queue.lines().map(|line| line.oldest).min();
        oldest.map_or(0.0, |since| seconds(since, now))
    }

    /// What waits, by property set. One set has several lines when its actions are known to be of different sizes.
    fn waiting_sets(&self) -> BTreeMap<&Requirements, Waiting> {
        let mut sets: BTreeMap<&Requirements, Waiting> = BTreeMap::new();
        for line in self.queue.lines() {
            let waiting = Waiting { length: 0, oldest: line.oldest, line: line.id };
            let set = sets.entry(&line.shape.requirements).or_insert(waiting);
            set.length += line.length;
            if line.oldest < set.oldest {
                (set.oldest, set.line) = (line.oldest, line.id);
            }
        }
        sets
    }

    /// The property sets that have waited longest: that is where something is wrong.
    fn queue_views(&self, now: Time, sets: &BTreeMap<&Requirements, Waiting>) -> Vec<QueueView> {
        let mut longest: Vec<(&&Requirements, &Waiting)> = sets.iter().collect();
        longest.sort_by_key(|(_, waiting)| waiting.oldest);
        longest.truncate(QUEUES_LISTED_MAX);
        longest
            .into_iter()
            .map(|(requirements, waiting)| self.queue_view(now, requirements, waiting))
            .collect()
    }

    fn queue_view(&self, now: Time, requirements: &Requirements, waiting: &Waiting) -> QueueView {
        let oldest = self.queue.oldest_in(waiting.line).and_then(|id| self.executions.get(&id));
        let able_workers = self.fleet.able_workers(self.queue.shape(waiting.line));
        QueueView {
            properties: properties(requirements.properties()),
            queued: waiting.length,
            oldest_seconds: seconds(waiting.oldest, now),
            oldest_operation: oldest.and_then(Execution::any_operation),
            able_workers,
            stranded: (able_workers == 0).then(|| self.fleet.why_stranded(requirements)),
        }
    }

    fn worker_views(&self, now: Time) -> Vec<WorkerView> {
        let mut workers: Vec<(WorkerId, &Worker)> = self.fleet.iter().collect();
        workers.sort_by_key(|(id, worker)| (&worker.name, *id));
        workers.truncate(WORKERS_LISTED_MAX);
        workers.into_iter().map(|(id, worker)| self.worker_view(now, id, worker)).collect()
    }

    fn worker_view(&self, now: Time, id: WorkerId, worker: &Worker) -> WorkerView {
        let capacity = self.fleet.capacity_of(worker);
        let leases = worker.leases().take(RUNNING_LISTED_MAX);
        WorkerView {
            id: id.to_string(),
            name: worker.name.to_string(),
            availability: self.availability(id),
            is_connected: self.is_connected(id),
            slots: capacity.slots,
            slots_used: u32::try_from(worker.leases().count()).unwrap_or(u32::MAX),
            properties: properties(capacity.properties()),
            running: leases.map(|(lease, hold)| self.running_view(now, (id, lease), hold)).collect(),
        }
    }

    fn running_view(&self, now: Time, (worker, lease): (WorkerId, Lease), hold: Hold) -> RunningView {
        let execution = self.executions.get(&lease.execution).filter(|_| hold == Hold::Running);
        RunningView {
            operation: execution.and_then(Execution::any_operation),
            action: execution.map(|execution| execution.task.action_digest.to_string()),
            attempt: lease.attempt,
            seconds: self.lease_seconds(now, worker, lease),
        }
    }

    /// Seconds since the lease was given out, or since it was to be killed.
    pub(super) fn lease_seconds(&self, now: Time, worker: WorkerId, lease: Lease) -> f64 {
        let timeout = self.executions.get(&lease.execution).map(|execution| execution.task.timeout);
        let given = timeout.and_then(|timeout| {
            let due = self.fleet.deadline(worker, lease)?;
            due.since_start().checked_sub(timeout.saturating_add(self.config.lease_slack))
        });
        let killed = || {
            let due = self.timers.due(&Timer::Kill(worker, lease))?;
            due.since_start().checked_sub(self.config.kill_timeout)
        };
        given.or_else(killed).map_or(0.0, |since| seconds(Time::after_start(since), now))
    }

    fn worker_counts(&self) -> WorkerCounts {
        let mut counts = WorkerCounts::default();
        for (id, _) in self.fleet.iter() {
            match (self.is_connected(id), self.availability(id)) {
                (false, _) => counts.away += 1,
                (true, Availability::Open) => counts.open += 1,
                (true, Availability::Cordoned { .. }) => counts.cordoned += 1,
                (true, Availability::Draining { .. }) => counts.draining += 1,
            }
        }
        counts
    }

    fn demands(&self) -> Vec<Demand> {
        let mut parts = Parts { core: self, known: BTreeMap::new() };
        let mut demands: BTreeMap<&Requirements, Demand> = BTreeMap::new();
        for line in self.queue.lines() {
            let demand = demands.entry(&line.shape.requirements).or_insert_with(|| none(line.shape));
            demand.queued += line.length;
            demand.workers_wanted += line.length as f64 * parts.of(line.shape);
        }
        for (lease, hold) in self.fleet.iter().flat_map(|(_, worker)| worker.leases()) {
            let execution = self.executions.get(&lease.execution).filter(|_| hold == Hold::Running);
            if let Some(Execution { shape, .. }) = execution {
                let demand = demands.entry(&shape.requirements).or_insert_with(|| none(shape));
                demand.running += 1;
                demand.workers_wanted += parts.of(shape);
            }
        }
        demands.into_values().collect()
    }
}

/// The part of a worker that one execution takes, by shape: of the connected workers that could run it the one of which it takes
/// least, because that is the kind that is worth adding. Where there is none, an action is taken to need a worker.
struct Parts<'a> {
    core: &'a Core,
    known: BTreeMap<&'a Shape, f64>,
}

impl<'a> Parts<'a> {
    fn of(&mut self, shape: &'a Shape) -> f64 {
        *self.known.entry(shape).or_insert_with(|| {
            let parts = self.core.fleet.capacities().filter_map(|capacity| capacity.part_of(shape));
            parts.min_by(f64::total_cmp).unwrap_or(1.0)
        })
    }
}

fn none(shape: &Shape) -> Demand {
    let properties = properties(shape.requirements.properties());
    Demand { properties, queued: 0, running: 0, workers_wanted: 0.0 }
}

impl Execution {
    /// One of the operations that wait for it.
    pub(super) fn any_operation(&self) -> Option<String> {
        self.operations.iter().next().map(ToString::to_string)
    }
}

/// Seconds from `since` to `now`.
pub(super) fn seconds(since: Time, now: Time) -> f64 {
    now.since_start().saturating_sub(since.since_start()).as_secs_f64()
}

fn properties<'a>(properties: impl Iterator<Item = (&'a str, String)>) -> Vec<(String, String)> {
    properties.map(|(name, value)| (name.to_owned(), value)).collect()
}
