//! The simulation's own books: what the scheduler has said and heard, and whether that is allowed.
//!
//! They are kept from events and effects alone, so they cannot share a mistake with the core.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::proto::rev2::ExecuteResponse;

use super::world::action_number;
use crate::scheduler::core::inspect::ensure;
use crate::scheduler::event::{Effect, Event};
use crate::scheduler::id::{ExecutionId, Lease, OperationId, WorkerId};
use crate::scheduler::queue::OLDEST_EVERY;
use crate::scheduler::requirements::{Capacity, Requirements};
use crate::scheduler::task::{MergeKey, Outcome, Stage, Task, Update};

#[derive(Default)]
pub(super) struct Books {
    pub(super) operations: BTreeMap<OperationId, Operation>,
    workers: BTreeMap<WorkerId, Arc<Capacity>>,
    /// From the start until the worker confirms the end or is gone.
    leases: BTreeMap<Lease, Running>,
    attempts: BTreeMap<ExecutionId, u32>,
    settling: BTreeSet<Lease>,
    completed: BTreeSet<ExecutionId>,
    requirements: BTreeMap<u64, Arc<Requirements>>,
    urgency: BTreeMap<u64, i32>,
    /// Workers that the core keeps free for what has waited longest.
    pub(super) reserved: BTreeSet<WorkerId>,
    /// Starts, and those among them that were not the most urgent of their kind.
    starts: u64,
    overtakes: u64,
    /// How often each thing happened that a scheduler must cope with.
    pub(super) seen: BTreeMap<&'static str, u64>,
}

pub(super) struct Operation {
    pub(super) task: Arc<Task>,
    pub(super) stage: Stage,
}

struct Running {
    worker: WorkerId,
    requirements: Arc<Requirements>,
    key: Option<MergeKey>,
    is_killed: bool,
}

/// What a world may see; a simulation in which one of these never happens proves little.
pub(super) const KINDS: [&str; 16] = [
    "first attempt",
    "later attempt",
    "kill",
    "settle",
    "report",
    "refuse",
    "forget",
    "not confirmed",
    "silent",
    "fault",
    "result",
    "cancelled",
    "abandoned",
    "unsatisfiable",
    "quarantined",
    "out of attempts",
];

fn kind(effect: &Effect) -> &'static str {
    match effect {
        Effect::Start { lease, .. } if lease.attempt == 1 => "first attempt",
        Effect::Start { .. } => "later attempt",
        Effect::Kill { .. } => "kill",
        Effect::Settle { .. } => "settle",
        Effect::Report { update, .. } => {
            update.response.as_ref().map_or("report", |response| ending(response))
        }
        Effect::Refuse(_) => "refuse",
        Effect::Forget { .. } => "forget",
        Effect::Drop { reason, .. } if reason.contains("kill") => "not confirmed",
        Effect::Drop { .. } => "silent",
        Effect::AttemptFailed { .. } => "fault",
        Effect::Judged { .. } => "judged",
        Effect::Acknowledge { .. } => "acknowledge",
        Effect::Keep(_) => "keep",
        Effect::Erase(_) => "erase",
    }
}

fn ending(response: &ExecuteResponse) -> &'static str {
    let message = response.status.as_ref().map_or("", |status| status.message.as_str());
    let endings = [
        ("the client cancelled", "cancelled"),
        ("no client watched", "abandoned"),
        ("the action cannot run", "unsatisfiable"),
        ("the action is quarantined", "quarantined"),
        ("the farm failed", "out of attempts"),
    ];
    endings.iter().find(|(start, _)| message.starts_with(start)).map_or("result", |(_, ending)| ending)
}

type Checked = Result<(), String>;

impl Books {
    /// Enters one event and all that followed from it.
    pub(super) fn enter(&mut self, event: &Event, effects: &[Effect]) -> Checked {
        self.enter_event(event);
        for effect in effects {
            *self.seen.entry(kind(effect)).or_default() += 1;
            self.enter_effect(event, effect)?;
        }
        if let Event::Finished { worker, lease, .. } = event {
            self.end_lease(*worker, *lease);
        }
        self.check_order(effects)?;
        self.check_loads()?;
        self.check_merging()?;
        self.check_idle()
    }

    pub(super) fn live(&self) -> impl Iterator<Item = OperationId> {
        self.operations.iter().filter(|(_, one)| one.stage != Stage::Completed).map(|(id, _)| *id)
    }

    fn enter_event(&mut self, event: &Event) {
        match event {
            Event::Submit(submission) => {
                let number = action_number(&submission.task);
                self.requirements.insert(number, Arc::clone(&submission.requirements));
                self.note_urgency(number, submission.task.priority);
            }
            Event::WorkerJoined { worker, capacity, .. } => {
                self.workers.insert(*worker, Arc::clone(capacity));
            }
            Event::WorkerAway { worker } | Event::WorkerLeft { worker } => self.lose(*worker),
            Event::Settled { lease, result: Ok(_) } if self.settling.contains(lease) => {
                self.completed.insert(lease.execution);
            }
            Event::Finished { .. } | Event::Settled { .. } | Event::Stop | Event::Tick => {}
            Event::Watched { .. } | Event::Unwatched { .. } | Event::Cancel { .. } | Event::Delete { .. } => {
            }
            Event::Heartbeat { .. } | Event::Progress { .. } => {}
            Event::Restore(_) | Event::Mark { .. } => {}
        }
    }

    /// An action is as urgent as the most urgent of those who have asked for it since it was last at rest.
    fn note_urgency(&mut self, number: u64, priority: i32) {
        let mut live = self.operations.values().filter(|one| one.stage != Stage::Completed);
        let is_known = live.any(|one| action_number(&one.task) == number);
        let urgency = self.urgency.get(&number).filter(|_| is_known);
        let urgency = urgency.map_or(priority, |urgency| priority.min(*urgency));
        self.urgency.insert(number, urgency);
    }

    fn enter_effect(&mut self, event: &Event, effect: &Effect) -> Checked {
        match effect {
            Effect::Start { worker, lease, task } => {
                if let Event::Finished { worker, lease, .. } = event {
                    self.end_lease(*worker, *lease);
                }
                self.start(*worker, *lease, task)
            }
            Effect::Kill { worker, lease } => {
                let running = self.leases.get_mut(lease).filter(|running| running.worker == *worker);
                let running = running.ok_or(format!("{lease:?} is killed, but not on {worker:?}"))?;
                ensure!(!running.is_killed, "{lease:?} is killed twice");
                running.is_killed = true;
                Ok(())
            }
            Effect::Settle { lease, .. } => self.settle(event, *lease),
            Effect::Report { operation, update } => self.report(*operation, update),
            Effect::Forget { operation } => {
                let is_completed =
                    self.operations.remove(operation).is_some_and(|one| one.stage == Stage::Completed);
                ensure!(is_completed, "{operation:?} is forgotten before it is completed");
                Ok(())
            }
            Effect::Drop { worker, .. } => {
                self.lose(*worker);
                Ok(())
            }
            Effect::Refuse(_) | Effect::AttemptFailed { .. } | Effect::Judged { .. } => Ok(()),
            Effect::Acknowledge { .. } | Effect::Keep(_) | Effect::Erase(_) => Ok(()),
        }
    }

    fn start(&mut self, worker: WorkerId, lease: Lease, task: &Arc<Task>) -> Checked {
        ensure!(!self.completed.contains(&lease.execution), "{lease:?} starts after it was completed");
        ensure!(self.workers.contains_key(&worker), "{lease:?} starts on {worker:?}, which is gone");
        let last = self.attempts.insert(lease.execution, lease.attempt).unwrap_or(0);
        ensure!(lease.attempt == last + 1, "{lease:?} follows attempt {last}");
        let requirements = Arc::clone(&self.requirements[&action_number(task)]);
        let running = Running { worker, requirements, key: task.merge_key(), is_killed: false };
        ensure!(self.leases.insert(lease, running).is_none(), "{lease:?} is given out twice");
        Ok(())
    }

    fn settle(&mut self, event: &Event, lease: Lease) -> Checked {
        let Event::Finished { worker, lease: answered, outcome: Outcome::Response(_) } = event else {
            return Err(format!("{lease:?} is settled without an answer"));
        };
        ensure!(*answered == lease, "{lease:?} is settled with the answer to {answered:?}");
        let is_current = self.leases.get(&lease).is_some_and(|one| one.worker == *worker && !one.is_killed);
        ensure!(is_current, "{lease:?} is settled with a late answer of {worker:?}");
        self.settling.insert(lease);
        Ok(())
    }

    fn report(&mut self, operation: OperationId, update: &Update) -> Checked {
        let old = self.operations.get(&operation).map(|one| one.stage);
        let is_allowed = match (old, update.stage) {
            (None, Stage::Queued | Stage::Executing) => true,
            (Some(Stage::Queued), _) => update.stage != Stage::Queued,
            (Some(Stage::Executing), _) => true,
            (None | Some(Stage::Completed), _) => false,
        };
        ensure!(is_allowed, "{operation:?} goes from {old:?} to {:?}", update.stage);
        ensure!(
            update.response.is_some() == (update.stage == Stage::Completed),
            "{operation:?} has a wrong response"
        );
        let result = update.response.as_ref().and_then(|response| response.result.as_ref());
        let is_own = result.is_none_or(|result| result.exit_code as u64 == action_number(&update.task));
        ensure!(is_own, "{operation:?} gets the result of another action");
        self.operations.insert(operation, Operation { task: Arc::clone(&update.task), stage: update.stage });
        Ok(())
    }

    fn end_lease(&mut self, worker: WorkerId, lease: Lease) {
        if self.leases.get(&lease).is_some_and(|running| running.worker == worker) {
            self.leases.remove(&lease);
        }
    }

    fn lose(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
        self.leases.retain(|_, running| running.worker != worker);
    }

    /// Nothing starts while something more urgent with the same requirements waits, but for one start in so many.
    fn check_order(&mut self, effects: &[Effect]) -> Checked {
        for effect in effects {
            let Effect::Start { task, .. } = effect else { continue };
            let number = action_number(task);
            let urgency = self.urgency[&number];
            let waits = |one: &&Operation| {
                let requirements = &self.requirements[&action_number(&one.task)];
                one.stage == Stage::Queued && *requirements == self.requirements[&number]
            };
            let next = self.operations.values().filter(waits).map(|one| one.task.priority).min();
            self.starts += 1;
            self.overtakes += u64::from(next.is_some_and(|next| next < urgency));
            ensure!(
                self.overtakes * u64::from(OLDEST_EVERY) <= self.starts,
                "action {number} starts before a more urgent one"
            );
        }
        Ok(())
    }

    /// What a worker holds is at most what it offers.
    fn check_loads(&self) -> Checked {
        for (worker, capacity) in &self.workers {
            let held = self.held(*worker).count();
            ensure!(
                held <= capacity.slots as usize,
                "{worker:?} runs {held} actions in {} slots",
                capacity.slots
            );
            for (name, offered) in &capacity.amounts {
                let used = self.used(*worker, name);
                ensure!(used <= *offered, "{worker:?} gives {used} of {offered} {name}");
            }
        }
        Ok(())
    }

    /// Equal actions that may merge run once.
    fn check_merging(&self) -> Checked {
        let mut keys = BTreeSet::new();
        let running = self.leases.iter().filter(|(_, running)| !running.is_killed);
        for (lease, key) in running.filter_map(|(lease, running)| Some((lease, running.key.as_ref()?))) {
            ensure!(keys.insert(key), "{lease:?} runs beside an equal action");
        }
        Ok(())
    }

    /// Nothing that is queued would fit a worker, unless the worker is kept free.
    fn check_idle(&self) -> Checked {
        for (operation, one) in self.operations.iter().filter(|(_, one)| one.stage == Stage::Queued) {
            let requirements = &self.requirements[&action_number(&one.task)];
            let mut open = self.workers.keys().filter(|worker| !self.reserved.contains(worker));
            let idle = open.find(|worker| self.has_room(**worker, requirements));
            ensure!(idle.is_none(), "{operation:?} is queued beside idle {idle:?}");
        }
        Ok(())
    }

    fn has_room(&self, worker: WorkerId, requirements: &Requirements) -> bool {
        let capacity = &self.workers[&worker];
        let has = |(name, amount): (&String, &u64)| {
            capacity.amounts.get(name).is_some_and(|offered| self.used(worker, name) + amount <= *offered)
        };
        capacity.could_run(requirements)
            && self.held(worker).count() < capacity.slots as usize
            && requirements.amounts().iter().all(has)
    }

    fn held(&self, worker: WorkerId) -> impl Iterator<Item = &Running> {
        self.leases.values().filter(move |running| running.worker == worker)
    }

    fn used(&self, worker: WorkerId, name: &str) -> u64 {
        self.held(worker).filter_map(|running| running.requirements.amounts().get(name)).sum()
    }
}
