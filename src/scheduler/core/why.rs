//! Why an operation still waits, in sentences for operators. They may name workers, so clients never see them.

use std::collections::BTreeSet;

use super::report::seconds;
use super::*;
use crate::scheduler::execution::State;
use crate::scheduler::queue::Place;
use crate::scheduler::task::{Availability, Update};
use crate::scheduler::view::{Why, time};

/// Reasons of workers that are named in one sentence.
const REASONS_MAX: usize = 3;

/// The workers that could run an execution if they were idle, by why they do not.
#[derive(Debug, Default)]
struct Able {
    with_room: usize,
    busy: usize,
    away: usize,
    cordoned: BTreeSet<String>,
    cordoned_count: usize,
    draining: usize,
}

impl Core {
    /// Where an operation stands and why; `None` if it is not live.
    pub(in crate::scheduler) fn why(&self, now: Time, operation: OperationId) -> Option<Why> {
        let id = self.operations.live(operation)?.execution;
        let execution = self.executions.get(&id)?;
        let (stage, mut reasons) = match execution.state {
            State::Queued => ("queued", self.why_queued(now, id, execution)),
            State::Running { lease, worker } => ("executing", self.why_running(now, (worker, lease))),
            State::Settling { lease, worker } => {
                let on = self.worker_in_words(worker);
                let attempt = lease.attempt;
                let sentence = format!(
                    "attempt {attempt} {on} has ended; its outputs are checked and its result is stored"
                );
                ("executing", vec![sentence])
            }
        };
        reasons.extend(self.beside(now, execution));
        reasons.extend(failures(execution, self.config.attempts_max));
        reasons.extend(self.usual(execution));
        Some(Why { operation: operation.to_string(), stage: stage.to_owned(), reasons })
    }

    /// The second lease of an execution that takes far longer than earlier ones.
    fn beside(&self, now: Time, execution: &Execution) -> Option<String> {
        let hedge = execution.hedge?;
        let (lease, worker) = hedge.lease()?;
        let on = self.worker_in_words(worker);
        Some(match hedge {
            State::Queued | State::Running { .. } => {
                let runs = time(self.lease_seconds(now, worker, lease));
                let attempt = lease.attempt;
                format!(
                    "it takes far longer than earlier runs, so attempt {attempt} runs {on} beside it for {runs}"
                )
            }
            State::Settling { .. } => {
                format!("attempt {} {on} has ended first; its outputs are checked", lease.attempt)
            }
        })
    }

    fn usual(&self, execution: &Execution) -> Option<String> {
        let past = self.history.expectation(execution.kin).filter(|past| past.runs > 0)?;
        Some(format!("it usually takes {}", time(past.usual.as_secs_f64())))
    }

    fn why_queued(&self, now: Time, id: ExecutionId, execution: &Execution) -> Vec<String> {
        // An execution that is queued has a place in line.
        let Some(place) = execution.place else { return Vec::new() };
        let since = self.queue.since(place, execution.position);
        let mut reasons = Vec::new();
        if self.fleet.could_run(place.line()) {
            reasons.extend(self.able(execution).sentences());
            reasons.extend(self.reservation(id, place));
            reasons.extend(self.ahead(place, execution));
            reasons.extend(self.sharing(execution));
        } else {
            reasons.push(self.fleet.why_stranded(&execution.shape.requirements));
            let stranded =
                self.queue.stranded_since(place.line()).zip(since).map(|(since, waits)| since.max(waits));
            reasons.extend(stranded.map(|since| {
                let fails = since + self.config.unsatisfiable_after;
                format!("it fails in {} unless such a worker comes", time(seconds(now, fails)))
            }));
        }
        reasons.extend(since.map(|since| format!("it has waited {}", time(seconds(since, now)))));
        reasons
    }

    fn able(&self, execution: &Execution) -> Able {
        let mut able = Able::default();
        for (id, worker) in self.fleet.able(&execution.shape.requirements) {
            let has_room = self.fleet.has_room_for(worker, &execution.shape);
            able.count(self.is_connected(id), self.availability(id), has_room);
        }
        able
    }

    fn reservation(&self, id: ExecutionId, place: Place) -> Option<String> {
        let name = &self.fleet.reserved_worker(place.line())?.name;
        let is_first = self.queue.oldest_in(place.line()) == Some(id);
        let whom = if is_first { "it" } else { "what waits longest beside it" };
        Some(format!("worker `{name}` is reserved for {whom}: it starts nothing else until it has room"))
    }

    fn ahead(&self, place: Place, execution: &Execution) -> Vec<String> {
        let ahead = self.queue.ahead_of(place, execution.position);
        let rivals = self.queue.rivals(place, execution.position.priority);
        let mut sentences = Vec::new();
        if let Some((lowest, highest)) = rivals.more_urgent {
            let priority = if lowest == highest {
                format!("priority {lowest}")
            } else {
                format!("priorities {lowest} to {highest}")
            };
            sentences.push(format!("more urgent work of {priority} waits: {}", actions(ahead.more_urgent)));
        }
        if ahead.in_invocation > 0 {
            let at_least = if ahead.is_capped { "at least " } else { "" };
            sentences.push(format!("{at_least}{} ahead of it in its invocation", ahead.in_invocation));
        }
        match rivals.invocations {
            0 => {}
            1 => sentences.push("1 other invocation waits for the same workers; they take turns".to_owned()),
            many => {
                sentences.push(format!("{many} other invocations wait for the same workers; they take turns"))
            }
        }
        sentences
    }

    /// Who else has the workers. What runs is bounded by the fleet's slots.
    fn sharing(&self, execution: &Execution) -> Option<String> {
        let own = &execution.task.invocation;
        let mut running = 0;
        let mut others = BTreeSet::new();
        for lease in self.fleet.iter().flat_map(|(_, worker)| worker.running()) {
            match self.executions.get(&lease.execution).map(|execution| &execution.task.invocation) {
                Some(invocation) if invocation == own => running += 1,
                Some(invocation) => drop(others.insert(invocation)),
                None => {}
            }
        }
        let others = match others.len() {
            0 => return None,
            1 => "1 other invocation shares the workers".to_owned(),
            many => format!("{many} other invocations share the workers"),
        };
        Some(format!("its invocation has {running} running; {others}"))
    }

    fn why_running(&self, now: Time, (worker, lease): (WorkerId, Lease)) -> Vec<String> {
        let on = self.worker_in_words(worker);
        let runs = time(self.lease_seconds(now, worker, lease));
        let mut reasons = vec![format!("attempt {} runs {on} for {runs}", lease.attempt)];
        if self.fleet.get(worker).is_some() && !self.is_connected(worker) {
            let what = if self.standings.has_connected(worker) {
                "the connection to that worker broke"
            } else {
                "that worker has not connected since the farm started again"
            };
            let until = self.timers.due(&Timer::Away(worker)).map_or(0.0, |due| seconds(now, due));
            reasons.push(format!("{what}; it is waited for {} longer", time(until)));
        }
        reasons
    }

    fn worker_in_words(&self, worker: WorkerId) -> String {
        match self.fleet.get(worker) {
            Some(known) => format!("on worker `{}`", known.name),
            None => "on a worker that has left".to_owned(),
        }
    }
}

impl Able {
    fn count(&mut self, is_connected: bool, availability: Availability, has_room: bool) {
        match (is_connected, availability) {
            (false, _) => self.away += 1,
            (true, Availability::Open) if has_room => self.with_room += 1,
            (true, Availability::Open) => self.busy += 1,
            (true, Availability::Cordoned { reason }) => {
                self.cordoned_count += 1;
                if self.cordoned.len() < REASONS_MAX {
                    self.cordoned.insert(reason);
                }
            }
            (true, Availability::Draining { .. }) => self.draining += 1,
        }
    }

    fn sentences(&self) -> Vec<String> {
        let out = self.cordoned_count + self.draining + self.away;
        let mut sentences = Vec::new();
        if self.with_room > 0 {
            let has = if self.with_room == 1 { "has" } else { "have" };
            sentences.push(format!("{} that could run it {has} room", workers(self.with_room)));
        }
        if self.busy > 0 {
            let is_all = self.with_room == 0 && out == 0;
            sentences.push(match (is_all, self.busy) {
                (true, 1) => "the only worker that could run it is busy".to_owned(),
                (true, many) => format!("all {many} workers that could run it are busy"),
                (false, 1) => "1 worker that could run it is busy".to_owned(),
                (false, many) => format!("{many} workers that could run it are busy"),
            });
        }
        if out > 0 {
            let is_all = self.with_room + self.busy == 0;
            let (which, is) = match (is_all, out) {
                (true, 1) => ("the only worker that could run it".to_owned(), "is"),
                (true, many) => (format!("all {many} workers that could run it"), "are"),
                (false, 1) => ("1 more".to_owned(), "is"),
                (false, many) => (format!("{many} more"), "are"),
            };
            sentences.push(format!("{which} {is} {}", self.states().join(" or ")));
        }
        sentences
    }

    fn states(&self) -> Vec<String> {
        let reasons: Vec<&str> =
            self.cordoned.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        let because = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
        let states = [
            (self.cordoned_count, format!("cordoned{because}")),
            (self.draining, "draining".to_owned()),
            (self.away, "away, with a broken connection".to_owned()),
        ];
        states.into_iter().filter(|(count, _)| *count > 0).map(|(_, state)| state).collect()
    }
}

/// Where an operation stands that has ended.
pub(in crate::scheduler) fn why_completed(operation: OperationId, update: &Update) -> Option<Why> {
    let response = update.response.as_ref()?;
    let status = response.status.clone().unwrap_or_default();
    let sentence = match (status.code, &response.result) {
        (0, Some(result)) => format!("it ended with exit code {}", result.exit_code),
        (0, None) => "it ended without a result".to_owned(),
        (code, _) => format!("it ended with status {code}: {}", status.message),
    };
    Some(Why { operation: operation.to_string(), stage: "completed".to_owned(), reasons: vec![sentence] })
}

/// What has failed so far. What failed before a restart of the farm is counted, but not told.
fn failures(execution: &Execution, attempts_max: u32) -> Vec<String> {
    let mut sentences = Vec::new();
    if execution.failures > 0 {
        let lost = match execution.losses {
            0 => String::new(),
            losses => format!("; {} lost while they ran it", workers(losses as usize)),
        };
        sentences.push(format!("{} of at most {attempts_max} attempts failed{lost}", execution.failures));
    }
    let last = execution.failed.last();
    sentences.extend(last.map(|last| format!("attempt {} ended so: {}", last.attempt, last.sentence)));
    sentences
}

fn workers(count: usize) -> String {
    if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") }
}

fn actions(count: usize) -> String {
    if count == 1 { "1 action".to_owned() } else { format!("{count} actions") }
}
