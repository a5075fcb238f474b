//! What is to be run, what a worker offers, how a run ends and what a client sees of it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::proto::rev2::{ExecuteResponse, ExecutedActionMetadata};
use crate::trace::Carried;

use super::id::{ExecutionId, Lease, WorkerId};
use super::lookup::fingerprint;

/// An action that a client wants run, with everything that the scheduler needs to know of it.
///
/// Up to a million of them are queued, so texts that many share are shared, and nothing is in here that nobody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub instance: Arc<str>,
    pub action_digest: Digest,
    /// The digest of the action's command.
    pub command: Digest,
    /// The digest of the action's input root.
    pub input_root: Digest,
    /// The action must run each time, and its result serves nobody else (REv2, `Action.do_not_cache`).
    pub do_not_cache: bool,
    /// How long the command may run; the server has already put its own limit in place of an absent one.
    pub timeout: Duration,
    pub platform: Arc<Platform>,
    /// Lower is sooner (REv2 `ExecutionPolicy.priority`).
    pub priority: i32,
    /// The client's `tool_invocation_id`, empty when it sent none. Invocations of one priority share the workers fairly.
    pub invocation: Arc<str>,
    /// Who asks, as far as the listener knows; limits are counted by it.
    pub identity: Arc<str>,
    /// Hashes of the trees that the input root is made of, at most [`NEIGHBOURS_MAX`]: a worker that had them is preferred.
    pub neighbours: Box<[u64]>,
    /// The trace of the request, if it is kept. A scheduler that starts again does not know it any more.
    pub trace: Option<Carried>,
}

/// The trees of an input root that count when a worker is chosen.
pub const NEIGHBOURS_MAX: usize = 8;

/// What makes two tasks the same work: instance and action. It points at a task instead of repeating it.
#[derive(Debug, Clone)]
pub(super) struct MergeKey {
    hash: u64,
    task: Arc<Task>,
}

impl Task {
    /// The key under which equal tasks share one execution; `None` for an action that must run each time.
    pub(super) fn merge_key(self: &Arc<Self>) -> Option<MergeKey> {
        let key = || MergeKey { hash: fingerprint(&self.same_work()), task: Arc::clone(self) };
        (!self.do_not_cache).then(key)
    }

    fn same_work(&self) -> (&Digest, &str) {
        (&self.action_digest, &self.instance)
    }
}

#[cfg(test)]
impl Task {
    /// A task of the instance `main` for the action that is `name`; all have one command, one input root and no invocation.
    pub(crate) fn example(name: &str) -> Self {
        use crate::digest::Function;
        Self {
            instance: "main".into(),
            action_digest: Function::Sha256.hash(name.as_bytes()),
            command: Function::Sha256.hash(b"command"),
            input_root: Function::Sha256.hash(b"root"),
            do_not_cache: false,
            timeout: Duration::from_secs(60),
            platform: Arc::new(Platform::default()),
            priority: 0,
            invocation: "".into(),
            identity: "".into(),
            neighbours: Box::default(),
            trace: None,
        }
    }
}

impl PartialEq for MergeKey {
    fn eq(&self, other: &Self) -> bool {
        // What looks for its own task need not read it.
        let is_same_task = || Arc::ptr_eq(&self.task, &other.task);
        self.hash == other.hash && (is_same_task() || self.task.same_work() == other.task.same_work())
    }
}

impl Eq for MergeKey {}

impl Ord for MergeKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.task.same_work().cmp(&other.task.same_work())
    }
}

impl PartialOrd for MergeKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for MergeKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// The platform properties that an action demands, in order. A name may repeat: every value is demanded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    /// A hash of the rest, so that finding equal ones does not read texts.
    fingerprint: u64,
    properties: Vec<(String, String)>,
}

impl Platform {
    pub fn new(properties: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut properties: Vec<_> = properties.into_iter().collect();
        properties.sort();
        properties.dedup();
        Self { fingerprint: fingerprint(&properties), properties }
    }

    /// The same but for the properties of this name.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        Self::new(self.properties.iter().filter(|(own, _)| own != name).cloned())
    }

    pub fn properties(&self) -> &[(String, String)] {
        &self.properties
    }

    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self::new([])
    }
}

impl Hash for Platform {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint);
    }
}

/// What a worker offers when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// One life of a worker process. It says the same when it connects again, to this scheduler or to the next.
    pub worker: WorkerId,
    /// A name for people; two workers may share it.
    pub name: String,
    /// Whose the worker is, as `token:workers`; empty where nobody asks.
    pub owner: Arc<str>,
    /// How many actions it runs at once.
    pub slots: u32,
    /// The values it offers of each declared property.
    pub properties: BTreeMap<String, Vec<String>>,
    /// What it still runs, or has run and not been thanked for.
    pub leases: Vec<Lease>,
}

/// Whether a worker takes new work, and why not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Availability {
    #[default]
    Open,
    /// An operator, or its own failures, took it out; it stays connected.
    Cordoned { reason: String },
    /// It finishes what it runs and leaves.
    Draining { reason: String },
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
    /// What the operation waits for; operations of equal actions may share it.
    pub execution: ExecutionId,
    pub stage: Stage,
    pub task: Arc<Task>,
    /// When the execution was first queued, by the wall clock.
    pub queued_at: SystemTime,
    /// The number of the attempt that runs or was last; 0 before the first.
    pub attempt: u32,
    /// What is known so far of the running attempt.
    pub metadata: Option<Box<ExecutedActionMetadata>>,
    /// Set if and only if the stage is `Completed`.
    pub response: Option<Arc<ExecuteResponse>>,
}
