//! One run of a client: a `bazel build`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use crate::proto::rev2::RequestMetadata;
use crate::scheduler::OperationId;

use super::record::State;

/// Characters of a tool's name and version that are kept.
const TOOL_CHARS_MAX: usize = 100;

/// An invocation, as the requests of its client tell of it. What the client itself reports of it has its place here, too.
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
    /// Operations that ran and ended, by how.
    pub succeeded: u64,
    pub failed: u64,
    pub errors: u64,
    /// Those that are kept, in the order of their arrival.
    operations: VecDeque<OperationId>,
}

impl Invocation {
    pub(super) fn new((id, instance): (Arc<str>, Arc<str>), begun: SystemTime) -> Self {
        Self {
            id,
            instance,
            identity: "".into(),
            tool: String::new(),
            begun,
            last: begun,
            hits: 0,
            misses: 0,
            executed: 0,
            succeeded: 0,
            failed: 0,
            errors: 0,
            operations: VecDeque::new(),
        }
    }

    /// The operations that are kept, the oldest first.
    pub fn operations(&self) -> impl ExactSizeIterator<Item = &OperationId> {
        self.operations.iter()
    }

    /// The part of its actions that were hits; `None` without any. An action that is looked up and then executed counts once.
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.hits + self.misses.max(self.executed);
        (all > 0).then(|| self.hits as f64 / all as f64)
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
    pub(super) fn began(&mut self, is_hit: bool, now: SystemTime) {
        if is_hit {
            self.hits += 1;
        } else {
            self.executed += 1;
        }
        self.last = now;
    }

    pub(super) fn add(&mut self, operation: OperationId) {
        self.operations.push_back(operation);
    }

    /// Forgets an operation. Those of one invocation go in the order in which they came.
    pub(super) fn remove(&mut self, operation: OperationId) {
        if self.operations.front() == Some(&operation) {
            self.operations.pop_front();
        }
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
