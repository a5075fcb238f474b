//! A small language for scenarios: each line is one event, answered by what the core says.
//!
//! `1`, `2` … are operations, `w1` … workers, `a`, `b` … actions, and `1/2` is the second attempt at the execution that
//! operation 1 began. `join w1 2 ISA=x name=n holds=1/1` is a worker with two slots, and what it says that it holds.
//! `reserved w1` is no event: it says which workers are kept free.
//!
//! After every line the core's invariants are checked; and the journal is kept, with every state that it is in after any of the
//! records, and from each of these a core is restored whose invariants hold as well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::digest::Function;
use crate::proto::rev2::{ActionResult, ExecuteResponse, ExecutedActionMetadata};
use crate::proto::worker::ResourceUsage;
use crate::proto::{self, Timestamp};

use crate::scheduler::core::*;
use crate::scheduler::event::Submission;
use crate::scheduler::record::{Record, RecordKey};
use crate::scheduler::requirements::{Capacity, Requirements};
use crate::scheduler::task::{Availability, Offer, Outcome, Platform, Task};

/// What a submission may say beside platform properties.
const HINTS: [&str; 5] = ["priority", "invocation", "identity", "trees", "not"];

/// An event, and what the core must say to it.
pub(super) type Line<'a> = (&'a str, &'a str);

pub(super) struct Stage {
    pub(super) core: Core,
    config: Arc<Config>,
    now: Time,
    pub(super) journal: BTreeMap<RecordKey, Record>,
    shown: Shown,
}

/// Which effects a scenario is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// All but what the journal is told, which answers are acknowledged and which inputs are made ready.
    Most,
    Warming,
    Acknowledgements,
    Records,
}

/// Plays `lines` with the default configuration, but with workers that need no heartbeat and are given up after 20 s.
///
/// # Panics
/// When the core says anything else, or breaks an invariant.
pub(super) fn play(lines: &[Line<'_>]) {
    play_with(patient(), lines);
}

pub(super) fn patient() -> Config {
    Config {
        heartbeat_timeout: Duration::from_secs(1_000_000),
        reconnect_within: Duration::from_secs(20),
        ..Config::default()
    }
}

pub(super) fn play_with(config: Config, lines: &[Line<'_>]) {
    play_shown(config, Shown::Most, lines);
}

/// Plays `lines` and shows, beside the rest, which answers are acknowledged.
pub(super) fn play_acknowledged(lines: &[Line<'_>]) {
    play_shown(patient(), Shown::Acknowledgements, lines);
}

/// Plays `lines` and shows, beside the rest, what the journal is told and which answers are acknowledged.
pub(super) fn play_recorded(lines: &[Line<'_>]) {
    play_shown(patient(), Shown::Records, lines);
}

/// Plays `lines` and shows, beside the rest, which inputs are made ready.
pub(super) fn play_warming(lines: &[Line<'_>]) {
    play_shown(patient(), Shown::Warming, lines);
}

fn play_shown(config: Config, shown: Shown, lines: &[Line<'_>]) {
    let mut stage = Stage { shown, ..Stage::new(config) };
    for (number, (line, expected)) in lines.iter().enumerate() {
        let said = stage.play(line).join("; ");
        assert_eq!(said, *expected, "line {}: {line}", number + 1);
    }
}

/// The core after `lines`, whatever it said to them, and the time of the last one.
pub(super) fn core_after(lines: &[&str]) -> (Core, Time) {
    let mut stage = Stage::new(patient());
    for line in lines {
        stage.play(line);
    }
    (stage.core, stage.now)
}

impl Stage {
    pub(super) fn new(config: Config) -> Self {
        let config = Arc::new(config);
        let (core, journal) = (Core::new(Arc::clone(&config)), BTreeMap::new());
        Self { core, config, now: Time::START, journal, shown: Shown::Most }
    }

    /// As `new`, but it shows which inputs are made ready.
    pub(super) fn warming(config: Config) -> Self {
        Self { shown: Shown::Warming, ..Self::new(config) }
    }

    /// Plays one line and checks the core's invariants. Returns what it said.
    pub(super) fn play(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["reserved", expected @ ..] = words.as_slice() {
            let reserved: Vec<_> = self.core.reserved().map(|(id, _)| format!("w{}", id.number())).collect();
            assert_eq!(reserved, expected, "the workers that are kept free");
            return Vec::new();
        }
        let event = self.event(&words);
        let effects = self.core.handle(self.now, event);
        self.core.check().unwrap();
        self.record(&effects);
        effects.iter().filter(|effect| self.shows(effect)).map(say).collect()
    }

    fn shows(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Keep(_) | Effect::Erase(_) => self.shown == Shown::Records,
            Effect::Warm { .. } => self.shown == Shown::Warming,
            Effect::Acknowledge { .. } => matches!(self.shown, Shown::Acknowledgements | Shown::Records),
            Effect::Start { .. } | Effect::Kill { .. } | Effect::Settle { .. } | Effect::Report { .. } => {
                true
            }
            Effect::Refuse(_) | Effect::Forget { .. } | Effect::Drop { .. } => true,
            Effect::AttemptFailed { .. } | Effect::Judged { .. } | Effect::Hedge { .. } => true,
        }
    }

    /// Does what the journal is told, and starts from each of its states.
    fn record(&mut self, effects: &[Effect]) {
        for effect in effects {
            if tell(&mut self.journal, effect) {
                restored(&self.config, self.now, &self.journal);
            }
        }
        assert!(!self.config.journal || self.journal.keys().eq(self.core.record_keys().iter()));
    }

    /// The next scheduler does not know the platform properties in `undeclare=NAME`.
    fn undeclare(&mut self, words: &[&str]) {
        let mut config = (*self.config).clone();
        for name in words.iter().filter_map(|word| word.strip_prefix("undeclare=")) {
            config.properties.remove(name);
        }
        self.config = Arc::new(config);
    }

    /// What the next scheduler is told first.
    fn restart(&mut self) -> Event {
        self.core = Core::new(Arc::clone(&self.config));
        Event::Restore(self.journal.values().cloned().collect())
    }

    fn event(&mut self, words: &[&str]) -> Event {
        match words {
            ["restart", undeclared @ ..] => {
                self.undeclare(undeclared);
                self.restart()
            }
            ["away", worker] => Event::WorkerAway { worker: self::worker(worker) },
            ["leaves", worker] => Event::WorkerLeft { worker: self::worker(worker) },
            ["cordon", worker, reason @ ..] => {
                mark(worker, Availability::Cordoned { reason: reason.join(" ") }, true)
            }
            ["drain", worker, reason @ ..] => {
                mark(worker, Availability::Draining { reason: reason.join(" ") }, true)
            }
            ["open", worker] => mark(worker, Availability::Open, true),
            [worker, "drains"] => {
                mark(worker, Availability::Draining { reason: "it was told to".into() }, false)
            }
            ["submit", operation, action, rest @ ..] => self.submit(operation, action, rest),
            ["watch", operation] => Event::Watched { operation: self::operation(operation) },
            ["leave", operation] => Event::Unwatched { operation: self::operation(operation) },
            ["cancel", operation] => Event::Cancel { operation: self::operation(operation) },
            ["delete", operation] => Event::Delete { operation: self::operation(operation) },
            ["join", worker, slots, properties @ ..] => self.join(worker, slots, properties),
            ["heartbeat", worker] => Event::Heartbeat { worker: self::worker(worker) },
            ["settled", lease, rest @ ..] => {
                Event::Settled { lease: self::lease(lease), result: Ok(Box::new(response_after(rest))) }
            }
            ["unsettled", lease, ..] => {
                Event::Settled { lease: self::lease(lease), result: Err("output x is missing".into()) }
            }
            ["wait", time] => {
                self.now = self.now + Duration::from_secs(time.parse().unwrap());
                Event::Tick
            }
            ["stop"] => Event::Stop,
            [worker, lease, said] => told(self::worker(worker), self::lease(lease), said),
            other => panic!("{other:?} is no event"),
        }
    }

    fn submit(&self, operation: &str, action: &str, rest: &[&str]) -> Event {
        let words = rest.iter().filter_map(|word| word.split_once('='));
        let properties = words.filter(|(name, _)| !HINTS.contains(name));
        let priority = option(rest, "priority=");
        let trees = option(rest, "trees=").unwrap_or_default();
        let task = Task {
            command: Function::Sha256.hash(format!("command {action}").as_bytes()),
            do_not_cache: rest.contains(&"uncached"),
            platform: Arc::new(Platform::new(
                properties.map(|(name, value)| (name.to_owned(), value.to_owned())),
            )),
            priority: priority.map_or(0, |text| text.parse().unwrap()),
            invocation: option(rest, "invocation=").unwrap_or_default().into(),
            identity: option(rest, "identity=").unwrap_or_default().into(),
            neighbours: trees.split(',').filter_map(|tree| tree.parse().ok()).collect(),
            ..Task::example(action)
        };
        let requirements = Requirements::resolve(&self.config, &task.platform).unwrap();
        let requirements = match option(rest, "not=") {
            Some(worker) => requirements.elsewhere(worker.into()),
            None => requirements,
        };
        Event::Submit(Box::new(Submission {
            operation: self::operation(operation),
            execution: ExecutionId::new(operation.parse().unwrap()),
            requirements: Arc::new(requirements),
            task: Arc::new(task),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(7),
        }))
    }

    fn join(&self, worker: &str, slots: &str, properties: &[&str]) -> Event {
        let mut offered: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let words = properties.iter().filter_map(|word| word.split_once('='));
        for (name, value) in words.filter(|(name, _)| !["name", "holds"].contains(name)) {
            offered.entry(name.to_owned()).or_default().push(value.to_owned());
        }
        let offer = Offer {
            worker: self::worker(worker),
            name: option(properties, "name=").unwrap_or(worker).to_owned(),
            owner: "".into(),
            slots: slots.parse().unwrap(),
            properties: offered,
            leases: properties.iter().filter_map(|word| word.strip_prefix("holds=")).map(lease).collect(),
        };
        let capacity = Arc::new(Capacity::resolve(&self.config, &offer).unwrap());
        Event::WorkerJoined {
            worker: self::worker(worker),
            name: offer.name.into(),
            owner: offer.owner,
            capacity,
            leases: offer.leases,
        }
    }
}

/// Does one thing that a journal is told. Returns whether that was what the effect is about.
fn tell(journal: &mut BTreeMap<RecordKey, Record>, effect: &Effect) -> bool {
    if let Effect::Keep(record) = effect {
        journal.insert(record.key(), record.clone());
    }
    if let Effect::Erase(key) = effect {
        journal.remove(key);
    }
    matches!(effect, Effect::Keep(_) | Effect::Erase(_))
}

/// A core that starts from this journal, in a state that is sound and that the journal holds.
pub(super) fn restored(config: &Arc<Config>, now: Time, journal: &BTreeMap<RecordKey, Record>) -> Core {
    let mut core = Core::new(Arc::clone(config));
    let effects = core.handle(now, Event::Restore(journal.values().cloned().collect()));
    core.check().unwrap();
    let mut after = journal.clone();
    for effect in &effects {
        tell(&mut after, effect);
    }
    assert!(after.keys().eq(core.record_keys().iter()), "{:?} is not {:?}", after.keys(), core.record_keys());
    core
}

fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name))
}

fn mark(worker: &str, availability: Availability, by_operator: bool) -> Event {
    Event::Mark { worker: self::worker(worker), availability, by_operator }
}

fn told(worker: WorkerId, lease: Lease, said: &str) -> Event {
    let outcome = match said {
        "progress" => {
            let metadata = Box::new(ExecutedActionMetadata { worker: "w".into(), ..Default::default() });
            return Event::Progress { worker, lease, metadata };
        }
        "answers" => Outcome::Response(Box::new(response())),
        "faults" => Outcome::Fault("the disk is full".into()),
        "killed" => Outcome::Killed,
        other => panic!("a worker does not say {other}"),
    };
    Event::Finished { worker, lease, outcome }
}

fn response() -> ExecuteResponse {
    ExecuteResponse { result: Some(ActionResult::default()), ..ExecuteResponse::default() }
}

/// `took` are the seconds of a run, `cores` what it kept busy all the time, `memory` its peak in MiB.
fn response_after(words: &[&str]) -> ExecuteResponse {
    let number = |name| option(words, name).map(|text| text.parse::<u64>().unwrap());
    let Some(took) = number("took=") else { return response() };
    let seconds = i64::try_from(took).unwrap();
    let mut metadata = ExecutedActionMetadata {
        execution_start_timestamp: Some(Timestamp { seconds: 1000, nanos: 0 }),
        execution_completed_timestamp: Some(Timestamp { seconds: 1000 + seconds, nanos: 0 }),
        ..ExecutedActionMetadata::default()
    };
    let cpu_time = number("cores=")
        .map(|cores| proto::Duration { seconds: seconds * i64::try_from(cores).unwrap(), nanos: 0 });
    let peak_memory_bytes = number("memory=").unwrap_or(0) << 20;
    ResourceUsage { cpu_time, peak_memory_bytes, ..ResourceUsage::default() }.attach(&mut metadata);
    let result = ActionResult { execution_metadata: Some(metadata), ..ActionResult::default() };
    ExecuteResponse { result: Some(result), ..ExecuteResponse::default() }
}

fn operation(text: &str) -> OperationId {
    OperationId::new(text.parse().unwrap())
}

fn worker(text: &str) -> WorkerId {
    WorkerId::new(text.strip_prefix('w').unwrap().parse().unwrap())
}

pub(super) fn lease(text: &str) -> Lease {
    let (execution, attempt) = text.split_once('/').unwrap();
    Lease { execution: ExecutionId::new(execution.parse().unwrap()), attempt: attempt.parse().unwrap() }
}

fn say(effect: &Effect) -> String {
    let worker = |worker: &WorkerId| format!("w{}", worker.number());
    let lease = |lease: &Lease| format!("{}/{}", lease.execution.number(), lease.attempt);
    match effect {
        Effect::Start { worker: id, lease: one, .. } => format!("{} starts {}", worker(id), lease(one)),
        Effect::Warm { worker: id, execution, .. } => format!("{} warms {}", worker(id), execution.number()),
        Effect::Kill { worker: id, lease: one } => format!("{} kills {}", worker(id), lease(one)),
        Effect::Settle { lease: one, .. } => format!("settle {}", lease(one)),
        Effect::Report { operation, update } => {
            let status = update.response.as_ref().map(|response| response.status.clone().unwrap_or_default());
            match status {
                None => format!("{} {:?}", operation.number(), update.stage),
                Some(status) if status.code == 0 => format!("{} done", operation.number()),
                Some(status) => format!("{} ends {}: {}", operation.number(), status.code, status.message),
            }
        }
        Effect::Refuse(refusal) => format!("refuse {refusal:?}"),
        Effect::Forget { operation } => format!("forget {}", operation.number()),
        Effect::Acknowledge { worker: id, lease: one } => format!("{} may forget {}", worker(id), lease(one)),
        Effect::Keep(record @ Record::Finished { .. }) => format!("keep finished {}", say_key(&record.key())),
        Effect::Keep(record) => format!("keep {}", say_key(&record.key())),
        Effect::Erase(key) => format!("erase {}", say_key(key)),
        Effect::Drop { worker: id, reason } => format!("drop {}: {reason}", worker(id)),
        Effect::Hedge { lease: one, hedging } => format!("hedge {} {}", lease(one), hedging.name()),
        Effect::Judged { worker: id, availability, .. } => match availability {
            Availability::Open => format!("{} opens", worker(id)),
            Availability::Cordoned { reason } | Availability::Draining { reason } => {
                format!("{} is taken out: {reason}", worker(id))
            }
        },
        Effect::AttemptFailed { lease: one, worker, sentence } => {
            format!("{} failed on {worker}: {sentence}", lease(one))
        }
    }
}

fn say_key(key: &RecordKey) -> String {
    match key {
        RecordKey::Execution(id) => format!("execution {}", id.number()),
        RecordKey::Operation(id) => format!("operation {}", id.number()),
        RecordKey::Lease(lease) => format!("lease {}/{}", lease.execution.number(), lease.attempt),
        RecordKey::Worker(name) => format!("worker {name}"),
    }
}
