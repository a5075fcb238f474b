//! What an event of Bazel says, as far as it is kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;

use crate::builds::{
    Cached, Completion, Event, Exit, Metrics, Started, Target, Test, TestResult, TestStatus, Workspace,
};
use crate::digest::Digest;
use crate::proto::bazel_events::aborted::AbortReason;
use crate::proto::bazel_events::build_event::Payload;
use crate::proto::bazel_events::build_event_id::{ConfigurationId, Id};
use crate::proto::bazel_events::{self as wire, build_metadata, build_metrics, workspace_status};
use crate::proto::build_events::{BuildEvent, build_event};
use crate::proto::{Any, Timestamp, read_duration, since_epoch};

use super::masked;
use crate::rpc::resource;

/// What events of Bazel are in.
const TYPE: &str = "/build_event_stream.BuildEvent";

/// Bytes of an event that is looked at. What is larger lists what we do not keep, such as everything that a pattern stands for; decoded, one of
/// this size takes 16 MiB at the worst, for a moment.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Repeated messages of an event that are looked at: outputs of a test, events that the first one announces.
const REPEATED_MAX: usize = 200;

/// The output of a test that has what it printed.
const TEST_LOG: &str = "test.log";

/// The sum of what all runners have executed, which stands among them.
const TOTAL: &str = "total";

/// What an event says, and what it is counted as.
pub(crate) fn read(event: Option<BuildEvent>) -> (Option<Event>, &'static str) {
    match event.and_then(|event| event.event) {
        Some(build_event::Event::BazelEvent(any)) if any.type_url.ends_with(TYPE) => read_any(any),
        Some(build_event::Event::ComponentStreamFinished(_)) => (Some(Event::Over), "kept"),
        Some(build_event::Event::BazelEvent(_)) | None => (None, "ignored"),
    }
}

fn read_any(any: Any) -> (Option<Event>, &'static str) {
    if any.value.len() > EVENT_BYTES_MAX {
        return (None, "large");
    }
    let bytes = Bytes::from(any.value);
    match wire::BuildEvent::decode(bytes.clone()) {
        Ok(event) => match of(event, bytes) {
            Some(event) => (Some(event), "kept"),
            None => (None, "ignored"),
        },
        Err(_) => (None, "malformed"),
    }
}

fn of(event: wire::BuildEvent, bytes: Bytes) -> Option<Event> {
    let id = event.id.and_then(|id| id.id);
    Some(match (event.payload?, id) {
        (Payload::Started(started), _) => Event::Started(begin(started, bytes)),
        (Payload::OptionsParsed(options), _) => {
            let all = options.explicit_cmd_line.iter().take(REPEATED_MAX);
            Event::Options(all.map(|option| masked::option(option)).collect())
        }
        (Payload::WorkspaceStatus(status), _) => Event::Workspace(workspace(&status)),
        (Payload::BuildMetadata(metadata), _) => Event::Metadata(entries(&metadata)),
        (Payload::Configuration(configuration), Some(Id::Configuration(id))) => {
            Event::Configuration { id: id.id, mnemonic: configuration.mnemonic }
        }
        (Payload::Configured(configured), Some(Id::TargetConfigured(id))) => {
            let target = target((id.label, id.aspect), None);
            Event::Configured { target, kind: configured.target_kind }
        }
        (Payload::Completed(completed), Some(Id::TargetCompleted(id))) => {
            let end = if completed.success { Completion::Built } else { Completion::Failed };
            let target = target((id.label, id.aspect), id.configuration);
            Event::Completed { target, end, why: String::new() }
        }
        (Payload::TestResult(result), Some(Id::TestResult(id))) => {
            Event::Tested { test: test(id), result: tested(&result) }
        }
        (Payload::TestSummary(summary), Some(Id::TestSummary(id))) => {
            let target = target((id.label, String::new()), id.configuration);
            Event::Summarized { target, status: status(summary.overall_status()) }
        }
        (Payload::Aborted(aborted), id) => abort(&aborted, id),
        (Payload::BuildMetrics(metrics), _) => Event::Metrics(counted(metrics)),
        (Payload::Finished(finished), _) => finish(finished),
        (
            Payload::Configuration(_)
            | Payload::Configured(_)
            | Payload::Completed(_)
            | Payload::TestResult(_)
            | Payload::TestSummary(_),
            _,
        ) => return None,
    })
}

fn begin(started: wire::BuildStarted, bytes: Bytes) -> Started {
    let at = moment(started.start_time.as_ref(), started.start_time_millis);
    let announced = wire::Announcement::decode(bytes).unwrap_or_default().children;
    let patterns = parts::<wire::BuildEventId>(&announced).filter_map(|id| match id.id? {
        Id::Pattern(id) | Id::PatternSkipped(id) => Some(id.pattern),
        Id::TargetCompleted(_)
        | Id::TestSummary(_)
        | Id::TestResult(_)
        | Id::Configuration(_)
        | Id::TargetConfigured(_)
        | Id::UnconfiguredLabel(_)
        | Id::ConfiguredLabel(_) => None,
    });
    let patterns = patterns.flatten().take(REPEATED_MAX).collect();
    Started { command: started.command, patterns, version: started.build_tool_version, at }
}

fn workspace(status: &wire::WorkspaceStatus) -> Workspace {
    let mut workspace = Workspace::default();
    for item in parts::<workspace_status::Item>(&status.item) {
        match item.key.as_str() {
            "BUILD_USER" => workspace.user = item.value,
            "BUILD_HOST" => workspace.host = item.value,
            _ => {}
        }
    }
    workspace
}

fn entries(metadata: &wire::BuildMetadata) -> Vec<(String, String)> {
    let entries = parts::<build_metadata::Entry>(&metadata.metadata);
    let entries = entries.map(|entry| {
        let value = masked::value(&entry.key, &entry.value);
        (entry.key, value)
    });
    let mut entries: Vec<(String, String)> = entries.collect();
    entries.sort();
    entries
}

fn target((label, aspect): (String, String), configuration: Option<ConfigurationId>) -> Target {
    Target { label, aspect, configuration: configuration.unwrap_or_default().id }
}

fn test(id: wire::build_event_id::TestResultId) -> Test {
    let target = target((id.label, String::new()), id.configuration);
    Test { target, run: id.run, shard: id.shard, attempt: id.attempt }
}

fn tested(result: &wire::TestResult) -> TestResult {
    let is_remote = result.execution_info.as_ref().is_some_and(|info| info.cached_remotely);
    let cached = match (result.cached_locally, is_remote) {
        (true, _) => Cached::Locally,
        (false, true) => Cached::Remotely,
        (false, false) => Cached::No,
    };
    let took = result.test_attempt_duration.as_ref().and_then(read_duration);
    let took = took.or_else(|| milliseconds(result.test_attempt_duration_millis));
    let mut logs = parts::<wire::File>(&result.test_action_output).filter(|file| file.name == TEST_LOG);
    let log = logs.find_map(|file| blob(&file.uri));
    TestResult { status: status(result.status()), cached, took, log }
}

/// The blob that an address speaks of, whatever its host: only the client knows which name of the farm that is.
fn blob(uri: &str) -> Option<Digest> {
    let (_, name) = uri.strip_prefix("bytestream://")?.split_once('/')?;
    resource::Read::parse(name).ok().map(|read| read.digest)
}

fn status(status: wire::TestStatus) -> TestStatus {
    match status {
        wire::TestStatus::NoStatus => TestStatus::Unknown,
        wire::TestStatus::Passed => TestStatus::Passed,
        wire::TestStatus::Flaky => TestStatus::Flaky,
        wire::TestStatus::Timeout => TestStatus::TimedOut,
        wire::TestStatus::Failed => TestStatus::Failed,
        wire::TestStatus::Incomplete => TestStatus::Incomplete,
        wire::TestStatus::RemoteFailure => TestStatus::RemoteFailure,
        wire::TestStatus::FailedToBuild => TestStatus::NotBuilt,
        wire::TestStatus::ToolHaltedBeforeTesting => TestStatus::NotRun,
    }
}

fn abort(aborted: &wire::Aborted, id: Option<Id>) -> Event {
    let reason = reason(aborted.reason());
    let why = match aborted.description.as_str() {
        "" => reason.to_owned(),
        description => format!("{reason}: {description}"),
    };
    let end = match aborted.reason() {
        AbortReason::Skipped | AbortReason::NoAnalyze | AbortReason::NoBuild => Completion::Skipped,
        AbortReason::Unknown
        | AbortReason::UserInterrupted
        | AbortReason::TimeOut
        | AbortReason::RemoteEnvironmentFailure
        | AbortReason::Internal
        | AbortReason::LoadingFailure
        | AbortReason::AnalysisFailure
        | AbortReason::Incomplete
        | AbortReason::OutOfMemory => Completion::Aborted,
    };
    let about = match id {
        Some(Id::TargetCompleted(id)) => target((id.label, id.aspect), id.configuration),
        Some(Id::TargetConfigured(id)) => target((id.label, id.aspect), None),
        Some(Id::ConfiguredLabel(id)) => target((id.label, String::new()), id.configuration),
        Some(Id::UnconfiguredLabel(id)) => target((id.label, String::new()), None),
        Some(Id::TestResult(id)) => {
            let result =
                TestResult { status: TestStatus::Incomplete, cached: Cached::No, took: None, log: None };
            return Event::Tested { test: test(id), result };
        }
        Some(Id::TestSummary(id)) => {
            let target = target((id.label, String::new()), id.configuration);
            return Event::Summarized { target, status: TestStatus::Incomplete };
        }
        Some(Id::Pattern(id) | Id::PatternSkipped(id)) => {
            return Event::Aborted(format!("{}: {why}", id.pattern.join(" ")));
        }
        Some(Id::Configuration(_)) | None => return Event::Aborted(why),
    };
    Event::Completed { target: about, end, why }
}

fn reason(reason: AbortReason) -> &'static str {
    match reason {
        AbortReason::Unknown => "aborted",
        AbortReason::UserInterrupted => "interrupted by the user",
        AbortReason::TimeOut => "timed out",
        AbortReason::RemoteEnvironmentFailure => "remote failure",
        AbortReason::Internal => "internal error",
        AbortReason::LoadingFailure => "loading failed",
        AbortReason::AnalysisFailure => "analysis failed",
        AbortReason::Skipped => "skipped",
        AbortReason::NoAnalyze => "not to be analyzed",
        AbortReason::NoBuild => "not to be built",
        AbortReason::Incomplete => "the build ended before",
        AbortReason::OutOfMemory => "out of memory",
    }
}

fn counted(metrics: wire::BuildMetrics) -> Metrics {
    let actions = metrics.action_summary.unwrap_or_default();
    let count = |number: i64| u64::try_from(number).unwrap_or_default();
    let runners = parts::<build_metrics::action_summary::RunnerCount>(&actions.runner_count);
    let runners = runners
        .filter(|runner| runner.name != TOTAL)
        .map(|runner| (runner.name, count(runner.count.into())))
        .collect();
    Metrics {
        actions_created: count(actions.actions_created),
        actions_executed: count(actions.actions_executed),
        runners,
        took: metrics.timing_metrics.and_then(|timing| milliseconds(timing.wall_time_in_ms)),
    }
}

fn finish(finished: wire::BuildFinished) -> Event {
    let at = moment(finished.finish_time.as_ref(), finished.finish_time_millis);
    let exit = finished.exit_code.unwrap_or_default();
    Event::Finished { exit: Exit { name: exit.name, code: exit.code }, at }
}

/// The first of repeated messages; those that are malformed are passed over.
fn parts<M: Message + Default>(all: &[Bytes]) -> impl Iterator<Item = M> {
    all.iter().take(REPEATED_MAX).filter_map(|bytes| M::decode(bytes.clone()).ok())
}

/// A moment as older clients say it, in milliseconds, or newer ones; `None` where neither does.
fn moment(timestamp: Option<&Timestamp>, millis: i64) -> Option<SystemTime> {
    let since_epoch = timestamp.and_then(since_epoch).or_else(|| milliseconds(millis))?;
    UNIX_EPOCH.checked_add(since_epoch)
}

fn milliseconds(number: i64) -> Option<Duration> {
    u64::try_from(number).ok().filter(|number| *number > 0).map(Duration::from_millis)
}
