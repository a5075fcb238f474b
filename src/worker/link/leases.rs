//! The leases that a worker holds: they go on while no scheduler is connected, and their answers stay until they are safe.

use std::collections::{BTreeMap, VecDeque};
use std::future;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::reports::{PACE, Reports};
use crate::error::{Error, Kind, Result};
use crate::proto::worker::finished::Outcome;
use crate::proto::worker::worker_message::Message as FromWorker;
use crate::proto::worker::{Finished, Lease, Start, leases_max};
use crate::tasks::{self, Shutdown};
use crate::trace::{self, Carried};
use crate::worker::{Worker, answer};

/// What the running leases tell and no scheduler has taken yet; more waits in the tasks that tell it.
const REPORTS_MAX: usize = 64;

/// A lease as a key.
type Key = (Bytes, u32);

/// What a worker runs and has answered.
pub(super) struct Leases {
    worker: Worker,
    /// What cancels each.
    running: BTreeMap<Key, Shutdown>,
    ends: FuturesUnordered<JoinHandle<Box<Finished>>>,
    /// Taken, but not begun: too many answers are not acknowledged.
    waiting: VecDeque<Start>,
    /// Answers that are not acknowledged.
    answered: BTreeMap<Key, Finished>,
    outgoing: mpsc::Sender<FromWorker>,
    reports: mpsc::Receiver<FromWorker>,
}

/// What a lease has to say; boxed, because it can be large.
pub(super) enum Said {
    Report(Box<FromWorker>),
    Ended(Box<Finished>),
}

impl Leases {
    pub(super) fn new(worker: Worker) -> Self {
        let (outgoing, reports) = mpsc::channel(REPORTS_MAX);
        Self {
            worker,
            running: BTreeMap::new(),
            ends: FuturesUnordered::new(),
            waiting: VecDeque::new(),
            answered: BTreeMap::new(),
            outgoing,
            reports,
        }
    }

    /// Everything that the scheduler must know of: what runs, what waits, and what is answered and perhaps not heard.
    pub(super) fn held(&self) -> Vec<Lease> {
        let waiting = self.waiting.iter().filter_map(|start| start.lease.clone());
        self.running.keys().chain(self.answered.keys()).map(lease).chain(waiting).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.answered.is_empty()
    }

    /// The answers that a scheduler which was not connected before must hear.
    pub(super) fn unacknowledged(&self) -> Vec<Finished> {
        self.answered.values().cloned().collect()
    }

    /// Takes a lease. One that is held already is let be: a scheduler that lost sight of us says it again.
    ///
    /// # Errors
    /// `Exhausted` when the scheduler starts more than it can mean to.
    pub(super) fn start(&mut self, start: Start) -> Result<()> {
        let key = key(start.lease.as_ref());
        if self.running.contains_key(&key) || self.answered.contains_key(&key) || self.is_waiting(&key) {
            return Ok(());
        }
        if self.running.len() + self.waiting.len() >= self.max() {
            return Err(Error::new(Kind::Exhausted, "the scheduler starts more than the worker can hold"));
        }
        self.waiting.push_back(start);
        self.begin();
        Ok(())
    }

    /// Has a lease end. Returns the answer if nothing of it runs.
    pub(super) fn kill(&mut self, lease: Option<Lease>) -> Option<Finished> {
        let key = key(lease.as_ref());
        if let Some(kill) = self.running.get(&key) {
            kill.cancel();
            return None;
        }
        if self.answered.contains_key(&key) {
            // The answer and this order have crossed.
            return None;
        }
        self.waiting.retain(|start| self::key(start.lease.as_ref()) != key);
        // Of one that is not held nothing runs, and the scheduler waits for exactly that word. It need not be kept: if it is lost, the
        // next hello says the same by not naming the lease.
        Some(Finished { lease, outcome: Some(Outcome::Killed(true)) })
    }

    /// Kills all that runs and waits until nothing does. Returns the answers of what came to its own end all the same.
    pub(super) async fn end(&mut self) -> Vec<Finished> {
        self.waiting.clear();
        self.running.values().for_each(Shutdown::cancel);
        let mut answers = Vec::new();
        while !self.running.is_empty() {
            if let Said::Ended(finished) = self.next().await {
                self.ended((*finished).clone());
                if finished.outcome != Some(Outcome::Killed(true)) {
                    answers.push(*finished);
                }
            }
        }
        answers
    }

    /// Forgets an answer that is safe with the scheduler.
    pub(super) fn acknowledge(&mut self, lease: Option<&Lease>) {
        self.answered.remove(&key(lease));
        self.begin();
    }

    /// What a lease says next; waits for ever when none has anything to say. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Said {
        tokio::select! {
            biased;
            finished = next_end(&mut self.ends) => Said::Ended(finished),
            report = self.reports.recv() => Said::Report(Box::new(report.expect("its sender is here"))),
        }
    }

    /// A report that waits, if there is one: what was told before an end goes out before it.
    pub(super) fn waiting_report(&mut self) -> Option<FromWorker> {
        self.reports.try_recv().ok()
    }

    /// Keeps the answer of a lease that ended until it is acknowledged.
    pub(super) fn ended(&mut self, finished: Finished) {
        let key = key(finished.lease.as_ref());
        self.running.remove(&key);
        self.answered.insert(key, finished);
    }

    /// Begins what waits, as long as the answers that are kept, and those still to come of what runs, leave room: a hello that names
    /// more than the bound is refused, each time.
    fn begin(&mut self) {
        while self.answered.len() + self.running.len() < self.max()
            && let Some(start) = self.waiting.pop_front()
        {
            let kill = Shutdown::new();
            self.running.insert(key(start.lease.as_ref()), kill.clone());
            let reports = Reports::new(start.lease.clone().unwrap_or_default(), self.outgoing.clone());
            self.ends.push(tasks::spawn("run a lease", run(self.worker.clone(), start, (kill, reports))));
        }
    }

    fn is_waiting(&self, wanted: &Key) -> bool {
        self.waiting.iter().any(|start| key(start.lease.as_ref()) == *wanted)
    }

    /// The bound of what runs and waits, and of what runs and is answered.
    fn max(&self) -> usize {
        leases_max(self.worker.slots())
    }
}

async fn run(worker: Worker, start: Start, (kill, reports): (Shutdown, Reports)) -> Box<Finished> {
    let lease = start.lease.clone();
    let span = trace::resume(Carried::read(&start.trace_parent).as_ref(), "action");
    span.record("croft.worker", worker.name());
    let outcome = tokio::select! {
        outcome = worker.run(start, kill, reports.clone()).instrument(span) => outcome,
        never = reports.follow(PACE) => match never {},
    };
    Box::new(Finished { lease, outcome: Some(answer::fitting(outcome)) })
}

/// The next lease that ends; waits for ever while none runs.
async fn next_end(ends: &mut FuturesUnordered<JoinHandle<Box<Finished>>>) -> Box<Finished> {
    match ends.next().await {
        Some(Ok(end)) => end,
        // A task is cancelled only when the runtime ends, and this one with it.
        Some(Err(_)) | None => future::pending().await,
    }
}

fn key(lease: Option<&Lease>) -> Key {
    lease.map(|lease| (lease.execution.clone(), lease.attempt)).unwrap_or_default()
}

fn lease((execution, attempt): &Key) -> Lease {
    Lease { execution: execution.clone(), attempt: *attempt }
}
