//! A world in which nothing goes wrong, but there is never enough: whose turn it is, and how long anybody waits for it.
//!
//! Every worker can run everything here, so what is promised of the order can be counted in starts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::actions::{Asker, response, task};
use super::random::Random;
use crate::scheduler::config::Config;
use crate::scheduler::core::inspect::ensure;
use crate::scheduler::core::{Bug, Core};
use crate::scheduler::event::{Effect, Event, Submission};
use crate::scheduler::id::{ExecutionId, Lease, OperationId, Time, WorkerId};
use crate::scheduler::requirements::{Capacity, Requirements};
use crate::scheduler::task::{Offer, Outcome, Task};

/// One start of so many is that of the execution that has waited longest.
const OLDEST_EVERY: u64 = 16;

/// How many starts an invocation gets in a row.
const QUANTUM: u64 = 16;

const INVOCATIONS: [&str; 5] = ["large", "second", "third", "fourth", "fifth"];

/// How many actions the large invocation has at once.
const LARGE: u64 = 300;

/// How many the others have, each at its own time.
const SMALL: u64 = 20;

struct Steady {
    random: Random,
    config: Arc<Config>,
    core: Core,
    /// All are equally urgent, and fairness can be counted.
    is_fair: bool,
    now: Time,
    agenda: BTreeMap<(Time, u64), Due>,
    entries: u64,
    starts: u64,
    queued: BTreeMap<ExecutionId, Waiting>,
    /// How many of which others were started while an invocation waited, since its own last start.
    passed: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
}

enum Due {
    Submits { invocation: &'static str },
    Ends { worker: WorkerId, lease: Lease, task: Arc<Task> },
}

/// An execution that is queued.
struct Waiting {
    invocation: &'static str,
    /// By which start it must have been started.
    latest: u64,
}

/// Runs one world to its end. Returns the first promise that was not kept.
pub(super) fn run(seed: u64, bug: Option<Bug>) -> Result<(), String> {
    let mut steady = Steady::new(seed, bug);
    steady.fill_agenda();
    steady.join_workers()?;
    while let Some(((at, _), due)) = steady.agenda.pop_first() {
        steady.now = at;
        match due {
            Due::Submits { invocation } => steady.submits(invocation)?,
            Due::Ends { worker, lease, task } => {
                let outcome = Outcome::Response(Box::new(response(&task, Duration::from_millis(50))));
                steady.feed(Event::Finished { worker, lease, outcome })?;
            }
        }
    }
    ensure!(steady.queued.is_empty(), "{} executions never started", steady.queued.len());
    Ok(())
}

impl Steady {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random::new(seed);
        let config = Config { heartbeat_timeout: Duration::from_secs(100_000), ..Config::default() };
        let config = Arc::new(config);
        let mut core = Core::new(Arc::clone(&config));
        core.bug = bug;
        Self {
            is_fair: random.chance(50),
            random,
            config,
            core,
            now: Time::START,
            agenda: BTreeMap::new(),
            entries: 0,
            starts: 0,
            queued: BTreeMap::new(),
            passed: BTreeMap::new(),
        }
    }

    fn fill_agenda(&mut self) {
        for _ in 0..LARGE {
            self.schedule(Duration::ZERO, Due::Submits { invocation: "large" });
        }
        for invocation in &INVOCATIONS[1..] {
            let begin = self.random.millis(1, 2000);
            for _ in 0..SMALL {
                let delay = begin + self.random.millis(0, 50);
                self.schedule(delay, Due::Submits { invocation });
            }
        }
    }

    fn schedule(&mut self, after: Duration, due: Due) {
        self.entries += 1;
        self.agenda.insert((self.now + after, self.entries), due);
    }

    fn join_workers(&mut self) -> Result<(), String> {
        let properties = BTreeMap::from([("ISA".to_owned(), vec!["a".to_owned(), "b".to_owned()])]);
        let slots = 1 + u32::try_from(self.random.below(3)).unwrap();
        for number in 1..=1 + self.random.below(4) {
            let (worker, name) = (WorkerId::new(u128::from(number)), format!("worker {number}"));
            let properties = properties.clone();
            let offer =
                Offer { worker, name: name.clone(), owner: "".into(), slots, properties, leases: Vec::new() };
            let capacity = Arc::new(Capacity::resolve(&self.config, &offer).unwrap());
            self.feed(Event::WorkerJoined {
                worker,
                name: name.into(),
                owner: "".into(),
                capacity,
                leases: Vec::new(),
            })?;
        }
        Ok(())
    }

    fn submits(&mut self, invocation: &'static str) -> Result<(), String> {
        let priority = if self.is_fair { 0 } else { i32::try_from(self.random.below(3)).unwrap() };
        let asker = Asker { priority, invocation, identity: "" };
        self.entries += 1;
        // The first four kinds of actions demand no share of a worker.
        let number = self.entries * 8 + self.random.below(4);
        let task = task(number, &asker);
        let requirements = Arc::new(Requirements::resolve(&self.config, &task.platform).unwrap());
        let id = u128::from(self.entries);
        let (operation, execution) = (OperationId::new(id), ExecutionId::new(id));
        let latest = self.starts + OLDEST_EVERY * (self.queued.len() as u64 + 1);
        self.queued.insert(execution, Waiting { invocation, latest });
        self.feed(Event::Submit(Box::new(Submission {
            operation,
            execution,
            task: Arc::new(task),
            requirements,
            at: SystemTime::UNIX_EPOCH,
        })))
    }

    fn feed(&mut self, event: Event) -> Result<(), String> {
        for effect in self.core.handle(self.now, event) {
            match effect {
                Effect::Start { worker, lease, task } => {
                    self.started(lease.execution)?;
                    let time = self.random.millis(5, 100);
                    self.schedule(time, Due::Ends { worker, lease, task });
                }
                Effect::Settle { lease, response, .. } => {
                    self.feed(Event::Settled { lease, result: Ok(response) })?;
                }
                Effect::Refuse(refusal) => return Err(format!("{refusal:?}")),
                Effect::Report { .. } | Effect::Forget { .. } | Effect::Acknowledge { .. } => {}
                Effect::Keep(_) | Effect::Erase(_) | Effect::Kill { .. } | Effect::Drop { .. } => {}
                Effect::AttemptFailed { .. } | Effect::Judged { .. } | Effect::Hedge { .. } => {}
                Effect::Warm { .. } => {}
            }
        }
        Ok(())
    }

    fn started(&mut self, execution: ExecutionId) -> Result<(), String> {
        self.starts += 1;
        let Some(started) = self.queued.remove(&execution) else { return Ok(()) };
        let late = self.queued.iter().find(|(_, one)| one.latest < self.starts);
        ensure!(
            late.is_none(),
            "{:?} waits beyond its turn by age",
            late.map(|(id, one)| (id, one.invocation))
        );
        self.count_passed(started.invocation)
    }

    /// An invocation that waits is passed by no more starts than two turns of each other one that passes it, and two more for
    /// those that start by age.
    fn count_passed(&mut self, started: &'static str) -> Result<(), String> {
        self.passed.remove(started);
        let mut waiting: Vec<_> = self.queued.values().map(|one| one.invocation).collect();
        waiting.sort_unstable();
        waiting.dedup();
        self.passed.retain(|invocation, _| waiting.contains(invocation));
        for invocation in waiting.iter().filter(|invocation| **invocation != started) {
            let passed = self.passed.entry(invocation).or_default();
            *passed.entry(started).or_default() += 1;
            let count: u64 = passed.values().sum();
            let is_kept = !self.is_fair || count <= 2 * QUANTUM * (passed.len() as u64 + 1);
            ensure!(is_kept, "{invocation} waits and was passed by {passed:?}");
        }
        Ok(())
    }
}
