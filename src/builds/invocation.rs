//! One run of a client: a `bazel build`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Error, Kind, Result, shown};
use crate::proto::rev2::RequestMetadata;
use crate::scheduler::OperationId;

use super::event::Event;
use super::record::{Lookup, State};
use super::streams::{Position, Streams, Turn};
use super::texts::Texts;
use super::told::Told;

/// Characters of a tool's name and version that are kept.
const TOOL_CHARS_MAX: usize = 100;

/// An invocation, as the requests of its client tell of it, and what the client itself says of it.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The `tool_invocation_id`.
    pub id: Arc<str>,
    /// The instance of its first request.
    pub instance: Arc<str>,
    /// Who runs it, as limits count it; empty where that is not known.
    pub identity: Arc<str>,
    /// Name and version of the client.
    pub tool: String,
    /// The first and the last request.
    pub begun: SystemTime,
    pub last: SystemTime,
    /// Results that it got from the action cache.
    pub hits: u64,
    /// Look-ups in the action cache itself that found nothing. Bazel makes one before it executes.
    pub misses: u64,
    /// Operations that the action cache did not answer.
    pub executed: u64,
    /// Those of them whose result was looked for and not found.
    absent: u64,
    /// Operations that ran and ended, by how.
    pub succeeded: u64,
    pub failed: u64,
    pub errors: u64,
    /// What the client says; none where it says nothing, or there was no room for it any more.
    pub told: Option<Arc<Told>>,
    /// Who says it; none before anybody has. Nobody else may go on.
    pub publisher: Option<Arc<str>>,
    /// By whom it is counted: whoever was heard of first.
    pub(super) holder: Arc<str>,
    /// The how manieth it is, counted with operations.
    pub(super) arrival: u64,
    streams: Streams,
    is_told_forgotten: bool,
    /// Those that are counted in it, whether they are kept or not.
    operations_total: u64,
    /// Those that are kept, by the number of their arrival.
    operations: BTreeMap<u64, OperationId>,
}

/// How an invocation ended, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    UnderWay,
    Succeeded,
    /// The client says so, or an operation of it failed.
    Failed,
    /// The client says nothing of it, and no operation failed.
    Unknown,
}

impl Outcome {
    pub const ALL: [Self; 4] = [Self::UnderWay, Self::Succeeded, Self::Failed, Self::Unknown];

    /// The word for it in addresses and on pages.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnderWay => "under way",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// The part of look-ups that were hits, as docs/metrics.md has it; `None` without any. An action that is looked up, missed and then
/// executed, for which it is missed once more, counts once.
pub fn hit_rate(hits: u64, (looked_up, executed): (u64, u64)) -> Option<f64> {
    let all = hits + looked_up.max(executed);
    (all > 0).then(|| hits as f64 / all as f64)
}

impl Invocation {
    pub(super) fn new(
        (id, instance): (&Arc<str>, &Arc<str>),
        (holder, arrival): (&Arc<str>, u64),
        begun: SystemTime,
    ) -> Self {
        Self {
            id: Arc::clone(id),
            instance: Arc::clone(instance),
            holder: Arc::clone(holder),
            arrival,
            identity: "".into(),
            tool: String::new(),
            begun,
            last: begun,
            hits: 0,
            misses: 0,
            executed: 0,
            absent: 0,
            succeeded: 0,
            failed: 0,
            errors: 0,
            told: None,
            publisher: None,
            streams: Streams::default(),
            is_told_forgotten: false,
            operations_total: 0,
            operations: BTreeMap::new(),
        }
    }

    /// The operations that are kept, the oldest first.
    pub fn operations(&self) -> impl ExactSizeIterator<Item = &OperationId> {
        self.operations.values()
    }

    /// Operations that are counted and not kept any more.
    pub fn operations_forgotten(&self) -> u64 {
        self.operations_total.saturating_sub(self.operations.len() as u64)
    }

    /// The part of the actions that it looked up that were hits; `None` without any.
    pub fn hit_rate(&self) -> Option<f64> {
        hit_rate(self.hits, (self.misses, self.absent))
    }

    /// How it ended: as the client says, or else as its operations let one think.
    pub fn outcome(&self) -> Outcome {
        match self.told.as_deref().map(|told| (&told.exit, told.is_over)) {
            Some((Some(exit), _)) if exit.code == 0 => Outcome::Succeeded,
            Some((Some(_), _) | (None, true)) => Outcome::Failed,
            Some((None, false)) => Outcome::UnderWay,
            None if self.failed + self.errors > 0 => Outcome::Failed,
            None => Outcome::Unknown,
        }
    }

    /// Whether what is asked for by this account in the name of the invocation is counted in it. Identifiers of invocations are no secrets,
    /// so whoever has told of it or asked for something first goes on, and nobody else; but of those who have not said who they are, the
    /// addresses may change.
    pub(super) fn admits(&self, account: &str) -> bool {
        let is_address = |account: &str| account.parse::<IpAddr>().is_ok();
        let is_same = |other: &str| other == account || (is_address(other) && is_address(account));
        self.identity.is_empty() || is_same(&self.identity) || is_same(&self.holder)
    }

    /// Whether nothing is known of it but look-ups in the action cache.
    pub(super) fn only_looks_up(&self) -> bool {
        self.executes_nothing() && self.publisher.is_none()
    }

    /// Whether it has not had anything executed here.
    pub(super) fn executes_nothing(&self) -> bool {
        self.operations_total == 0
    }

    pub(super) fn learn(&mut self, client: &RequestMetadata, identity: &Arc<str>) {
        if self.identity.is_empty() {
            self.identity = Arc::clone(identity);
        }
        if let Some(tool) = client.tool_details.as_ref().filter(|_| self.tool.is_empty()) {
            let name = format!("{} {}", tool.tool_name, tool.tool_version);
            self.tool = name.trim().chars().take(TOOL_CHARS_MAX).collect();
        }
    }

    /// Counts a look-up in the action cache itself.
    pub(super) fn looked_up(&mut self, is_hit: bool, now: SystemTime) {
        if is_hit {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
        self.last = now;
    }

    /// Counts an operation that was accepted.
    pub(super) fn began(&mut self, lookup: Lookup, now: SystemTime) {
        match lookup {
            Lookup::Hit => self.hits += 1,
            Lookup::Absent => {
                self.executed += 1;
                self.absent += 1;
            }
            Lookup::Skipped | Lookup::Uncacheable | Lookup::Unknown => self.executed += 1,
        }
        self.last = now;
    }

    /// Whether it is the turn of an event, and this client's to tell it: whoever has begun goes on.
    pub(super) fn advance(
        &mut self,
        position: &Position<'_>,
        publisher: &Arc<str>,
        now: SystemTime,
    ) -> Result<Turn> {
        if self.publisher.get_or_insert_with(|| Arc::clone(publisher)) != publisher {
            let message = format!("somebody else tells of invocation `{}`", shown(&self.id));
            return Err(Error::new(Kind::Denied, message));
        }
        self.last = now;
        self.streams.advance(position)
    }

    /// Keeps what the client says.
    pub(super) fn tell(&mut self, event: Event, texts: &mut Texts) {
        if self.is_told_forgotten {
            return;
        }
        if let (Event::Started(started), true) = (&event, self.tool.is_empty()) {
            self.tool = format!("bazel {}", started.version).trim().chars().take(TOOL_CHARS_MAX).collect();
        }
        // A page may look at it at this moment; then it keeps what it has.
        Arc::make_mut(self.told.get_or_insert_default()).take(event, texts);
    }

    /// About the bytes of what the client has said.
    pub(super) fn told_bytes(&self) -> usize {
        self.told.as_ref().map_or(0, |told| told.bytes())
    }

    /// Makes room of what the client has said, and will say.
    pub(super) fn forget_told(&mut self) {
        self.is_told_forgotten |= self.told.take().is_some();
    }

    /// Whether there was more than is kept of what the client says.
    pub fn is_told_forgotten(&self) -> bool {
        self.is_told_forgotten
    }

    /// Whether the client has said something before what this process has heard first.
    pub fn is_begun_elsewhere(&self) -> bool {
        self.streams.is_begun_elsewhere()
    }

    /// Whether an operation is one of those that are kept.
    pub(super) fn has(&self, arrival: u64) -> bool {
        self.operations.contains_key(&arrival)
    }

    pub(super) fn add(&mut self, arrival: u64, operation: OperationId) {
        self.operations_total += 1;
        self.operations.insert(arrival, operation);
    }

    /// Forgets an operation, if it is one of this invocation.
    pub(super) fn remove(&mut self, arrival: u64) {
        self.operations.remove(&arrival);
    }

    /// Counts the end of an operation.
    pub(super) fn ended(&mut self, state: State, now: SystemTime) {
        match state {
            State::Succeeded => self.succeeded += 1,
            State::Failed => self.failed += 1,
            State::Error => self.errors += 1,
            State::Queued | State::Executing | State::Cached => {}
        }
        self.last = now;
    }
}
