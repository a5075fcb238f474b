//! What the scheduler shows to operators: plain values, ready to be printed or sent as JSON.

use std::time::Duration;

use humantime_serde::re::humantime::format_duration;
use serde::{Deserialize, Serialize};

use super::task::Availability;

/// Property sets that one overview lists at most: more rows are of no use to a reader, and each costs the scheduler a microsecond.
pub(super) const QUEUES_LISTED_MAX: usize = 100;

/// Workers that one overview lists at most, for the same reason.
pub(super) const WORKERS_LISTED_MAX: usize = 1000;

/// Leases of one worker that are listed at most.
pub(super) const RUNNING_LISTED_MAX: usize = 64;

/// The whole scheduler at one moment. What it costs grows with property sets, workers and what runs, never with what is queued.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// Executions that wait for a worker.
    pub queued: usize,
    /// Executions that run or are being settled.
    pub running: usize,
    /// Seconds that the longest waiting execution has waited; 0 when nothing waits.
    pub oldest_seconds: f64,
    /// What is queued, by property set: the one that has waited longest first, at most 100.
    pub queues: Vec<QueueView>,
    /// Property sets that are not in `queues`.
    pub queues_unlisted: usize,
    /// By name, at most 1,000.
    pub workers: Vec<WorkerView>,
    /// Workers that are not in `workers`.
    pub workers_unlisted: usize,
    /// All workers, by what may be expected of them.
    pub fleet: WorkerCounts,
}

/// What is queued with one set of platform properties.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueView {
    /// The properties as name and value, sorted.
    pub properties: Vec<(String, String)>,
    pub queued: usize,
    /// Seconds that the longest waiting one has waited.
    pub oldest_seconds: f64,
    /// An operation that waits for the longest waiting one, as 32 hexadecimal digits.
    pub oldest_operation: Option<String>,
    /// Connected workers that could run it if they were idle and open.
    pub able_workers: usize,
    /// Why no connected worker could ever run it.
    pub stranded: Option<String>,
}

/// How many workers there are, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCounts {
    /// Connected, and given new work.
    pub open: usize,
    pub cordoned: usize,
    pub draining: usize,
    /// Their connection broke; they may come back.
    pub away: usize,
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
    /// Slots that something holds: what runs, and what is being killed.
    pub slots_used: u32,
    pub properties: Vec<(String, String)>,
    /// What it runs; 64 are listed at most, `slots_used` counts all.
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
    /// Seconds since it was started; since it was to be killed when it is.
    pub seconds: f64,
}

/// Where an operation stands and, if it waits, why. For operators alone: it may name workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// As 32 hexadecimal digits.
    pub operation: String,
    /// `queued`, `executing` or `completed`.
    pub stage: String,
    /// Sentences for people, the most important first.
    pub reasons: Vec<String>,
}

/// What the fleet is asked for, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Executions that wait for a worker.
    pub queued: usize,
    /// Executions that run or are being settled.
    pub running: usize,
    /// Seconds that the longest waiting execution has waited; 0 when nothing waits.
    pub oldest_seconds: f64,
    pub fleet: WorkerCounts,
    /// Every property set that something queued or running has, in their order.
    pub demands: Vec<Demand>,
}

/// What one property set asks of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// The properties as name and value, sorted.
    pub properties: Vec<(String, String)>,
    /// Executions that wait and that run.
    pub queued: usize,
    pub running: usize,
    /// The workers that it would take to run all of it at once, with parts of one.
    pub workers_wanted: f64,
}

/// Properties as a worker's or a trigger's settings write them.
pub(crate) fn pairs(properties: &[(String, String)]) -> String {
    let pairs: Vec<String> = properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join(",")
}

/// A time for people, in whole seconds, as in `1m 5s`: nobody reads an operator's page by the millisecond.
pub(crate) fn time(seconds: f64) -> String {
    // The cast saturates, and what is shown is never negative.
    format_duration(Duration::from_secs(seconds as u64)).to_string()
}

/// How far a sum of shares may be above a whole number and still count as that number: thirds do not add up to one exactly.
const ROUNDING: f64 = 1e-6;

/// The whole workers that parts of workers add up to.
pub fn whole_workers(wanted: f64) -> u64 {
    // The cast saturates, and a sum of shares is never negative.
    (wanted - ROUNDING).ceil().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_workers_add_up_to_whole_ones() {
        let thirds: f64 = std::iter::repeat_n(1.0 / 3.0, 9).sum();
        for (wanted, whole) in [(0.0, 0), (0.01, 1), (1.0, 1), (thirds, 3), (3.1, 4)] {
            assert_eq!(whole_workers(wanted), whole, "{wanted}");
        }
    }
}
