//! What the scheduler shows to operators: plain values, ready to be printed or sent as JSON.

use serde::{Deserialize, Serialize};

use super::task::Availability;

/// The whole scheduler at one moment. Its size grows with property sets and workers, never with what is queued.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// Executions that wait for a worker.
    pub queued: usize,
    /// Executions that run or are being settled.
    pub running: usize,
    /// Seconds that the longest waiting execution has waited; 0 when nothing waits.
    pub oldest_seconds: f64,
    /// What is queued, by property set.
    pub queues: Vec<QueueView>,
    pub workers: Vec<WorkerView>,
}

/// What is queued with one set of platform properties.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueView {
    /// The properties as name and value, sorted.
    pub properties: Vec<(String, String)>,
    pub queued: usize,
    /// Seconds that the longest waiting one has waited.
    pub oldest_seconds: f64,
    /// Connected workers that could run it if they were idle and open.
    pub able_workers: usize,
    /// Why no connected worker could ever run it.
    pub stranded: Option<String>,
}

/// One worker, connected or expected back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// The identifier of this life of the worker, as 32 hexadecimal digits.
    pub id: String,
    /// The name for people.
    pub name: String,
    pub availability: Availability,
    /// The connection stands.
    pub is_connected: bool,
    pub slots: u32,
    pub properties: Vec<(String, String)>,
    pub running: Vec<RunningView>,
}

/// What a worker runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunningView {
    /// One of the operations that wait for it, as 32 hexadecimal digits; absent when it is being killed.
    pub operation: Option<String>,
    /// The digest of the action, as hash and size.
    pub action: Option<String>,
    pub attempt: u32,
    /// Seconds since it was started.
    pub seconds: f64,
}

/// Where an operation stands and, if it waits, why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// As 32 hexadecimal digits.
    pub operation: String,
    /// `queued`, `executing` or `completed`.
    pub stage: String,
    /// Sentences for people, the most important first.
    pub reasons: Vec<String>,
}

/// What one property set asks of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    pub properties: Vec<(String, String)>,
    /// Executions that wait and that run.
    pub queued: usize,
    pub running: usize,
    /// The workers that it would take to run all of it at once.
    pub workers_wanted: f64,
}
