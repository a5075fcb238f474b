//! Time, the agenda, and the scheduler in the middle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::digest::{Digest, Function};
use crate::proto::rev2::{ActionResult, ExecuteResponse};

use super::books::Books;
use super::random::Random;
use super::workers::Worker;
use crate::scheduler::config::Config;
use crate::scheduler::core::{Bug, Core};
use crate::scheduler::event::{Effect, Event};
use crate::scheduler::id::{Lease, OperationId, Time, WorkerId};
use crate::scheduler::task::{Outcome, Platform, Task};

/// How many lines of the story are shown when something is wrong.
const STORY_LINES: usize = 60;

pub(super) struct World {
    pub(super) random: Random,
    pub(super) config: Arc<Config>,
    core: Core,
    pub(super) books: Books,
    pub(super) now: Time,
    agenda: BTreeMap<(Time, u64), Happening>,
    entries: u64,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    /// The watches that clients have on each operation.
    pub(super) watches: BTreeMap<OperationId, u32>,
    /// While it lasts, things go wrong.
    pub(super) is_chaos: bool,
    story: Option<Vec<String>>,
    ids: u128,
}

/// What is going to happen.
pub(super) enum Happening {
    /// Something reaches the scheduler.
    Arrives(Event),
    /// A command reaches a worker.
    Told {
        worker: WorkerId,
        lease: Lease,
        order: Order,
    },
    /// An action ends on a worker.
    Ends {
        worker: WorkerId,
        lease: Lease,
    },
    Heartbeat {
        worker: WorkerId,
    },
    /// A client does something.
    Client,
    /// Something happens to a worker.
    Trouble,
}

pub(super) enum Order {
    Start(Arc<Task>),
    Kill,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let config = Arc::new(config());
        let mut core = Core::new(Arc::clone(&config));
        core.bug = bug;
        Self {
            random: Random::new(seed),
            config,
            core,
            books: Books::default(),
            now: Time::START,
            agenda: BTreeMap::new(),
            entries: 0,
            workers: BTreeMap::new(),
            watches: BTreeMap::new(),
            is_chaos: true,
            story: None,
            ids: 0,
        }
    }

    /// Keeps the last lines of what happens.
    pub(super) fn tell_story(&mut self) {
        self.story = Some(Vec::new());
    }

    pub(super) fn story(&self) -> &[String] {
        let lines = self.story.as_deref().unwrap_or_default();
        &lines[lines.len().saturating_sub(STORY_LINES)..]
    }

    pub(super) fn is_core_empty(&self) -> bool {
        self.core.is_empty()
    }

    pub(super) fn fresh_id(&mut self) -> u128 {
        self.ids += 1;
        self.ids
    }

    pub(super) fn schedule(&mut self, after: Duration, happening: Happening) {
        self.entries += 1;
        self.agenda.insert((self.now + after, self.entries), happening);
    }

    /// Lets the next thing happen. Returns whether there was one before `end`.
    pub(super) fn step(&mut self, end: Time) -> Result<bool, String> {
        let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let deadline = self.core.deadline();
        let Some(at) = next.into_iter().chain(deadline).min().filter(|at| *at < end) else {
            self.now = self.now.max(end);
            return Ok(false);
        };
        self.now = self.now.max(at);
        if next.is_some_and(|next| next <= at) {
            let (_, happening) = self.agenda.pop_first().unwrap();
            self.happen(happening)?;
        } else {
            self.feed(Event::Tick)?;
        }
        Ok(true)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Arrives(event) => return self.feed(event),
            Happening::Told { worker, lease, order } => self.told(worker, lease, order),
            Happening::Ends { worker, lease } => self.ends(worker, lease),
            Happening::Heartbeat { worker } => self.heartbeat(worker),
            Happening::Client => return self.client_acts(),
            Happening::Trouble => return self.trouble(),
        }
        Ok(())
    }

    /// Hands an event to the scheduler, checks what it says and makes it happen.
    pub(super) fn feed(&mut self, event: Event) -> Result<(), String> {
        let effects = self.core.handle(self.now, event.clone());
        self.note(&event, &effects);
        self.books.reserved = self.core.reserved().map(|(worker, _)| worker).collect();
        self.books.enter(&event, &effects)?;
        // A planted mistake must be seen from the outside.
        if self.core.bug.is_none() {
            self.core.check()?;
        }
        for effect in effects {
            self.perform(effect);
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) {
        let delay = self.random.millis(1, 50);
        match effect {
            Effect::Start { worker, lease, task } => {
                self.schedule(delay, Happening::Told { worker, lease, order: Order::Start(task) });
            }
            // A worker's commands stay in order.
            Effect::Kill { worker, lease } => {
                self.schedule(
                    Duration::from_millis(50),
                    Happening::Told { worker, lease, order: Order::Kill },
                );
            }
            Effect::Settle { lease, task: _, response } => self.settle(lease, response),
            Effect::Forget { operation } => {
                self.watches.remove(&operation);
            }
            Effect::Drop { worker, .. } => self.dropped(worker),
            Effect::Report { .. } | Effect::Refuse(_) => {}
            Effect::AttemptFailed { .. } | Effect::Judged { .. } => {}
            Effect::Acknowledge { .. } | Effect::Keep(_) | Effect::Erase(_) => {}
        }
    }

    fn settle(&mut self, lease: Lease, response: Box<ExecuteResponse>) {
        let fails = self.is_chaos && self.random.chance(8);
        let result = if fails { Err("an output is missing".to_owned()) } else { Ok(response) };
        let copies = 1 + u64::from(self.random.chance(5));
        for _ in 0..copies {
            let delay = self.random.millis(1, 800);
            self.schedule(delay, Happening::Arrives(Event::Settled { lease, result: result.clone() }));
        }
    }

    fn note(&mut self, event: &Event, effects: &[Effect]) {
        let Some(story) = &mut self.story else { return };
        story.push(format!("{:>9.3?} {}", self.now.since_start(), describe(event)));
        story.extend(effects.iter().map(|effect| format!("           -> {}", describe_effect(effect))));
    }
}

fn config() -> Config {
    Config {
        lease_slack: Duration::from_secs(8),
        kill_timeout: Duration::from_secs(4),
        heartbeat_interval: Duration::from_secs(1),
        heartbeat_timeout: Duration::from_secs(4),
        reconnect_within: Duration::from_secs(3),
        health_failures_max: u32::MAX,
        abandon_after: Duration::from_secs(3),
        unsatisfiable_after: Duration::from_secs(6),
        retention: Duration::from_secs(10),
        finished_max: 12,
        operations_max: 24,
        ..Config::default()
    }
}

/// The action of this number: always the same for the same number.
pub(super) fn task(number: u64, priority: i32) -> Task {
    let platforms: [&[(&str, &str)]; 8] = [
        &[],
        &[("ISA", "a")],
        &[("ISA", "b")],
        &[("ISA", "a"), ("ISA", "b")],
        &[("cores", "2")],
        &[("ISA", "a"), ("cores", "3")],
        &[("cores", "1"), ("memory", "5")],
        &[("ISA", "z")],
    ];
    let platform = platforms[usize::try_from(number % 8).unwrap()];
    let property = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&number.to_be_bytes());
    Task {
        instance: if number.is_multiple_of(3) { "main" } else { "other" }.into(),
        action_digest: Digest::new(Function::Sha256, &hash, 1),
        command: Digest::new(Function::Sha256, &hash, 2),
        input_root: Digest::new(Function::Sha256, &hash, 3),
        do_not_cache: number.is_multiple_of(5),
        timeout: Duration::from_secs(2),
        platform: Arc::new(Platform::new(platform.iter().map(property))),
        priority,
        invocation: "".into(),
        identity: "".into(),
        neighbours: Box::default(),
    }
}

pub(super) fn action_number(task: &Task) -> u64 {
    u64::from_be_bytes(task.action_digest.hash()[..8].try_into().unwrap())
}

/// The result that this action always has.
pub(super) fn response(task: &Task) -> ExecuteResponse {
    let exit_code = i32::try_from(action_number(task)).unwrap();
    let result = ActionResult { exit_code, ..ActionResult::default() };
    ExecuteResponse { result: Some(result), ..ExecuteResponse::default() }
}

pub(super) fn some_wall_time() -> SystemTime {
    SystemTime::UNIX_EPOCH
}

fn describe(event: &Event) -> String {
    match event {
        Event::Submit(one) => format!("Submit {:?} action {}", one.operation, action_number(&one.task)),
        Event::Restore(records) => format!("Restore {} records", records.len()),
        Event::WorkerJoined { worker, capacity, .. } => format!("WorkerJoined {worker:?} {capacity:?}"),
        Event::Finished { worker, lease, outcome } => match outcome {
            Outcome::Response(_) => format!("Finished {worker:?} {lease:?} with a response"),
            Outcome::Fault(_) | Outcome::Killed => format!("Finished {worker:?} {lease:?} {outcome:?}"),
        },
        Event::Settled { lease, result } => format!("Settled {lease:?} ok: {}", result.is_ok()),
        Event::Progress { worker, lease, .. } => format!("Progress {worker:?} {lease:?}"),
        Event::Watched { .. } | Event::Unwatched { .. } | Event::Cancel { .. } | Event::Delete { .. } => {
            format!("{event:?}")
        }
        Event::WorkerAway { .. }
        | Event::WorkerLeft { .. }
        | Event::Mark { .. }
        | Event::Heartbeat { .. }
        | Event::Tick
        | Event::Stop => {
            format!("{event:?}")
        }
    }
}

fn describe_effect(effect: &Effect) -> String {
    match effect {
        Effect::Start { worker, lease, task } => {
            format!("Start {worker:?} {lease:?} action {}", action_number(task))
        }
        Effect::Settle { lease, .. } => format!("Settle {lease:?}"),
        Effect::Report { operation, update } => format!("Report {operation:?} {:?}", update.stage),
        Effect::Kill { .. } | Effect::Refuse(_) | Effect::Forget { .. } => format!("{effect:?}"),
        Effect::Drop { .. } | Effect::AttemptFailed { .. } | Effect::Judged { .. } => format!("{effect:?}"),
        Effect::Acknowledge { .. } | Effect::Erase(_) => format!("{effect:?}"),
        Effect::Keep(record) => format!("Keep {:?}", record.key()),
    }
}
