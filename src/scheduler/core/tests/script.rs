//! A small language for scenarios: each line is one event, answered by what the core says.
//!
//! `1`, `2` … are operations, `w1` … workers, `a`, `b` … actions, and `1/2` is the second attempt at the execution that
//! operation 1 began.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::digest::Function;
use crate::proto::rev2::{ActionResult, ExecuteResponse, ExecutedActionMetadata};

use crate::scheduler::core::*;
use crate::scheduler::event::Submission;
use crate::scheduler::requirements::{Capacity, Requirements};
use crate::scheduler::task::{Offer, Outcome, Platform, Task};

/// An event, and what the core must say to it.
pub(super) type Line<'a> = (&'a str, &'a str);

struct Stage {
    core: Core,
    config: Arc<Config>,
    now: Time,
}

/// Plays `lines` with the default configuration, but with workers that need no heartbeat.
///
/// # Panics
/// When the core says anything else, or breaks an invariant.
pub(super) fn play(lines: &[Line<'_>]) {
    play_with(patient(), lines);
}

pub(super) fn patient() -> Config {
    Config { heartbeat_timeout: Duration::from_secs(1_000_000), ..Config::default() }
}

pub(super) fn play_with(config: Config, lines: &[Line<'_>]) {
    let mut stage = Stage::new(config);
    for (number, (line, expected)) in lines.iter().enumerate() {
        let said = stage.play(line).join("; ");
        assert_eq!(said, *expected, "line {}: {line}", number + 1);
    }
}

impl Stage {
    fn new(config: Config) -> Self {
        let config = Arc::new(config);
        Self { core: Core::new(Arc::clone(&config)), config, now: Time::START }
    }

    /// Plays one line and checks the core's invariants. Returns what it said.
    fn play(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let event = self.event(&words);
        let effects = self.core.handle(self.now, event);
        self.core.check().unwrap();
        effects.iter().map(say).collect()
    }

    fn event(&mut self, words: &[&str]) -> Event {
        match words {
            ["submit", operation, action, rest @ ..] => self.submit(operation, action, rest),
            ["watch", operation] => Event::Watched { operation: self::operation(operation) },
            ["leave", operation] => Event::Unwatched { operation: self::operation(operation) },
            ["cancel", operation] => Event::Cancel { operation: self::operation(operation) },
            ["delete", operation] => Event::Delete { operation: self::operation(operation) },
            ["join", worker, slots, properties @ ..] => self.join(worker, slots, properties),
            ["lost", worker] => Event::WorkerLeft { worker: self::worker(worker) },
            ["heartbeat", worker] => Event::Heartbeat { worker: self::worker(worker) },
            ["settled", lease] => {
                Event::Settled { lease: self::lease(lease), result: Ok(Box::new(response())) }
            }
            ["unsettled", lease] => {
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
        let properties =
            rest.iter().filter_map(|word| word.split_once('=')).filter(|(name, _)| *name != "priority");
        let priority = rest.iter().find_map(|word| word.strip_prefix("priority="));
        let task = Task {
            instance: "main".into(),
            action_digest: Function::Sha256.hash(action.as_bytes()),
            command: Function::Sha256.hash(format!("command {action}").as_bytes()),
            input_root: Function::Sha256.hash(format!("root {action}").as_bytes()),
            do_not_cache: rest.contains(&"uncached"),
            timeout: Duration::from_secs(60),
            platform: Arc::new(Platform::new(
                properties.map(|(name, value)| (name.to_owned(), value.to_owned())),
            )),
            priority: priority.map_or(0, |text| text.parse().unwrap()),
            invocation: "".into(),
            identity: "".into(),
            neighbours: Box::default(),
        };
        Event::Submit(Box::new(Submission {
            operation: self::operation(operation),
            execution: ExecutionId::new(operation.parse().unwrap()),
            requirements: Arc::new(Requirements::resolve(&self.config, &task.platform).unwrap()),
            task: Arc::new(task),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(7),
        }))
    }

    fn join(&self, worker: &str, slots: &str, properties: &[&str]) -> Event {
        let mut offered: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in properties.iter().filter_map(|word| word.split_once('=')) {
            offered.entry(name.to_owned()).or_default().push(value.to_owned());
        }
        let offer = Offer {
            worker: self::worker(worker),
            name: worker.to_owned(),
            slots: slots.parse().unwrap(),
            properties: offered,
            leases: Vec::new(),
        };
        let capacity = Arc::new(Capacity::resolve(&self.config, &offer).unwrap());
        Event::WorkerJoined {
            worker: self::worker(worker),
            name: worker.into(),
            capacity,
            leases: Vec::new(),
        }
    }
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

fn operation(text: &str) -> OperationId {
    OperationId::new(text.parse().unwrap())
}

fn worker(text: &str) -> WorkerId {
    WorkerId::new(text.strip_prefix('w').unwrap().parse().unwrap())
}

fn lease(text: &str) -> Lease {
    let (execution, attempt) = text.split_once('/').unwrap();
    Lease { execution: ExecutionId::new(execution.parse().unwrap()), attempt: attempt.parse().unwrap() }
}

fn say(effect: &Effect) -> String {
    let worker = |worker: &WorkerId| format!("w{}", worker.number());
    let lease = |lease: &Lease| format!("{}/{}", lease.execution.number(), lease.attempt);
    match effect {
        Effect::Start { worker: id, lease: one, .. } => format!("{} starts {}", worker(id), lease(one)),
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
        Effect::Acknowledge { .. } | Effect::Keep(_) | Effect::Erase(_) => String::new(),
        Effect::Drop { worker: id, reason } => format!("drop {}: {reason}", worker(id)),
        Effect::AttemptFailed { lease: one, worker, sentence } => {
            format!("{} failed on {worker}: {sentence}", lease(one))
        }
    }
}
