//! One run as its worker tells it, checked: the only place that reads what workers say of time and resources.

use std::time::Duration;

use crate::proto::rev2::{ActionResult, ExecuteResponse, ExecutedActionMetadata};
use crate::proto::worker::ResourceUsage;
use crate::proto::{Timestamp, read_duration, since_epoch};

/// No lease lasts this long, so a worker that says so has a clock that jumped.
const SPAN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Above what any machine has. A worker's word beyond it is taken for a mistake.
const CORES_MAX: u32 = 4096;
const MEMORY_BYTES_MAX: u64 = 1 << 42;
/// `google.rpc.Code.DEADLINE_EXCEEDED`: REv2's status of an action that ran into its timeout.
const DEADLINE_EXCEEDED: i32 = 4;

/// What one run has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scheduler) struct Run {
    /// From the start to the end of the command.
    pub(in crate::scheduler) wall: Duration,
    /// From the start to the end of the whole lease, with inputs and outputs.
    pub(in crate::scheduler) span: Duration,
    /// Processor time of all its processes, if the worker has said.
    pub(in crate::scheduler) cpu: Option<Duration>,
    /// The peak of resident memory; 0 if the worker has not said.
    pub(in crate::scheduler) memory_bytes: u64,
}

/// What can be learned from an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scheduler) enum Lesson {
    Success(Run),
    /// The command was ended by its timeout after this time.
    Timeout(Duration),
}

impl Lesson {
    /// Reads an answer. `None` when it teaches nothing: a command that fails may end early or late for reasons that its inputs have, and
    /// a worker may have said nothing or what cannot be.
    pub(in crate::scheduler) fn of(response: &ExecuteResponse) -> Option<Self> {
        let code = response.status.as_ref().map_or(0, |status| status.code);
        let result: &ActionResult = response.result.as_ref()?;
        let run = Run::of(result.execution_metadata.as_ref()?)?;
        match (code, result.exit_code) {
            (0, 0) => Some(Self::Success(run)),
            (DEADLINE_EXCEEDED, _) => Some(Self::Timeout(run.wall)),
            _ => None,
        }
    }
}

impl Run {
    fn of(metadata: &ExecutedActionMetadata) -> Option<Self> {
        let between = |start: &Option<Timestamp>, end: &Option<Timestamp>| {
            let passed = since_epoch(end.as_ref()?)?.checked_sub(since_epoch(start.as_ref()?)?)?;
            (passed <= SPAN_MAX).then_some(passed)
        };
        let wall = between(&metadata.execution_start_timestamp, &metadata.execution_completed_timestamp)?;
        let span = between(&metadata.worker_start_timestamp, &metadata.worker_completed_timestamp);
        let usage = ResourceUsage::of(metadata).unwrap_or_default();
        let cpu = usage.cpu_time.as_ref().and_then(read_duration);
        Some(Self {
            wall,
            span: span.unwrap_or_default().max(wall),
            cpu: cpu
                .filter(|cpu| *cpu <= wall.saturating_add(Duration::from_secs(1)).saturating_mul(CORES_MAX)),
            memory_bytes: Some(usage.peak_memory_bytes)
                .filter(|bytes| *bytes <= MEMORY_BYTES_MAX)
                .unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Duration as Message, Status};

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 500_000_000 })
    }

    /// A lease from `0` to `times[2]`, whose command ran between the first two.
    fn answer(times: [i64; 3], change: impl FnOnce(&mut ExecutedActionMetadata)) -> ExecuteResponse {
        let mut metadata = ExecutedActionMetadata {
            worker_start_timestamp: at(0),
            execution_start_timestamp: at(times[0]),
            execution_completed_timestamp: at(times[1]),
            worker_completed_timestamp: at(times[2]),
            ..ExecutedActionMetadata::default()
        };
        let cpu_time = Some(Message { seconds: 8, nanos: 0 });
        ResourceUsage { cpu_time, peak_memory_bytes: 6 << 30, ..ResourceUsage::default() }
            .attach(&mut metadata);
        change(&mut metadata);
        let result = ActionResult { execution_metadata: Some(metadata), ..ActionResult::default() };
        ExecuteResponse { result: Some(result), ..ExecuteResponse::default() }
    }

    fn run_of(response: &ExecuteResponse) -> Option<Run> {
        match Lesson::of(response)? {
            Lesson::Success(run) => Some(run),
            Lesson::Timeout(_) => None,
        }
    }

    #[test]
    fn a_success_teaches_time_and_usage() {
        let run = Run {
            wall: Duration::from_secs(4),
            span: Duration::from_secs(7),
            cpu: Some(Duration::from_secs(8)),
            memory_bytes: 6 << 30,
        };
        assert_eq!(run_of(&answer([2, 6, 7], |_| {})), Some(run));
    }

    #[test]
    fn a_failure_teaches_nothing_and_a_timeout_its_time() {
        let mut failed = answer([2, 6, 7], |_| {});
        failed.result.as_mut().unwrap().exit_code = 1;
        assert_eq!(Lesson::of(&failed), None);
        failed.status = Some(Status { code: DEADLINE_EXCEEDED, ..Status::default() });
        assert_eq!(Lesson::of(&failed), Some(Lesson::Timeout(Duration::from_secs(4))));
        assert_eq!(Lesson::of(&ExecuteResponse::default()), None);
    }

    #[test]
    fn clocks_that_jump_and_stamps_that_are_absent_teach_nothing() {
        assert_eq!(run_of(&answer([6, 2, 7], |_| {})), None);
        assert_eq!(run_of(&answer([0, i64::MAX, 7], |_| {})), None);
        assert_eq!(run_of(&answer([-5, 2, 7], |_| {})), None);
        assert_eq!(run_of(&answer([2, 6, 7], |metadata| metadata.execution_start_timestamp = None)), None);
        let odd = Some(Timestamp { seconds: 1, nanos: -1 });
        assert_eq!(run_of(&answer([2, 6, 7], |metadata| metadata.execution_start_timestamp = odd)), None);
    }

    #[test]
    fn a_lease_lasts_at_least_as_long_as_its_command() {
        assert_eq!(run_of(&answer([2, 6, -1], |_| {})).unwrap().span, Duration::from_secs(4));
    }

    #[test]
    fn absurd_usage_counts_as_none() {
        let absurd = |cpu_seconds, peak_memory_bytes| {
            let response = answer([2, 6, 7], |metadata| {
                metadata.auxiliary_metadata.clear();
                let cpu_time = Some(Message { seconds: cpu_seconds, nanos: 0 });
                ResourceUsage { cpu_time, peak_memory_bytes, ..ResourceUsage::default() }.attach(metadata);
            });
            run_of(&response).unwrap()
        };
        let run = absurd(i64::MAX, u64::MAX);
        assert_eq!((run.cpu, run.memory_bytes), (None, 0));
        assert_eq!(absurd(-1, 0).cpu, None);
        assert_eq!(
            run_of(&answer([2, 6, 7], |metadata| metadata.auxiliary_metadata.clear())).unwrap().cpu,
            None
        );
    }
}
