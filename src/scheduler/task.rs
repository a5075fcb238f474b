//! What is to be run, what a worker offers, how a run ends and what a client sees of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::digest::Digest;
use crate::proto::rev2::{Action, ExecuteResponse, ExecutedActionMetadata};

/// An action that a client wants run, with everything that the scheduler needs to know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    pub instance: String,
    pub action_digest: Digest,
    pub action: Action,
    /// How long the command may run; the server has already put its own limit in place of an absent one.
    pub timeout: Duration,
    pub platform: Platform,
    /// Lower is sooner (REv2 `ExecutionPolicy.priority`).
    pub priority: i32,
    /// The client's `tool_invocation_id`, empty when it sent none.
    pub invocation: String,
}

/// What makes two tasks the same work.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MergeKey {
    instance: String,
    action_digest: Digest,
}

impl Task {
    /// The key under which equal tasks share one execution; `None` for an action that must run each time.
    pub(super) fn merge_key(&self) -> Option<MergeKey> {
        let key = || MergeKey { instance: self.instance.clone(), action_digest: self.action_digest };
        (!self.action.do_not_cache).then(key)
    }
}

/// The platform properties that an action demands, in order. A name may repeat: every value is demanded.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform(Vec<(String, String)>);

impl Platform {
    pub fn new(properties: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut properties: Vec<_> = properties.into_iter().collect();
        properties.sort();
        properties.dedup();
        Self(properties)
    }

    pub fn properties(&self) -> &[(String, String)] {
        &self.0
    }
}

/// What a worker offers when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// A name for people; two workers may share it.
    pub name: String,
    /// How many actions it runs at once.
    pub slots: u32,
    /// The values it offers of each declared property.
    pub properties: BTreeMap<String, Vec<String>>,
}

/// How a lease ended, as the worker tells it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// An answer for the client, final whatever its status: the command ran, or the request is at fault.
    Response(Box<ExecuteResponse>),
    /// The worker is at fault and another attempt may succeed. A sentence for people, which the client may see.
    Fault(String),
    /// The answer to a kill.
    Killed,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    Queued,
    Executing,
    Completed,
}

/// What a client sees of its operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    pub stage: Stage,
    pub task: Arc<Task>,
    /// When the execution was first queued, by the wall clock.
    pub queued_at: SystemTime,
    /// What is known so far of the running attempt.
    pub metadata: Option<Box<ExecutedActionMetadata>>,
    /// Set if and only if the stage is `Completed`.
    pub response: Option<Arc<ExecuteResponse>>,
}
