//! One operation, as far as it is remembered.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::digest::Digest;
use crate::proto::rev2::{ExecuteResponse, ExecutedActionMetadata};
use crate::proto::worker::ResourceUsage;
use crate::proto::{Timestamp, read_timestamp};
use crate::scheduler::{Lease, OperationId, Stage, Update};

/// Characters of an error that are kept.
const ERROR_CHARS_MAX: usize = 500;

/// An operation: what it is, who wanted it, and what became of it.
#[derive(Debug, Clone)]
pub struct Record {
    pub operation: OperationId,
    /// The how manieth it is of all.
    pub(super) arrival: u64,
    pub instance: Arc<str>,
    pub action: Digest,
    pub client: Client,
    /// Whose request it was, as limits count it.
    pub identity: Arc<str>,
    pub begun: SystemTime,
    /// None while it has not.
    pub ended: Option<SystemTime>,
    pub state: State,
    pub lookup: Lookup,
    /// The attempt that runs or was last.
    pub lease: Option<Lease>,
    pub worker: Arc<str>,
    pub times: Times,
    /// What the command has used, as the worker tells it.
    pub usage: Option<ResourceUsage>,
    /// None while there is none; 0 where the command succeeded.
    pub exit_code: Option<i32>,
    /// Why there is no result, or what the worker says of the one that there is.
    pub message: String,
    /// The answer, while there is room for it.
    pub response: Option<Arc<ExecuteResponse>>,
}

/// What the client says of its request; each is empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    pub invocation: Arc<str>,
    pub target: Arc<str>,
    pub mnemonic: Arc<str>,
}

/// Where an operation stands, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Queued,
    Executing,
    /// The command ended with 0.
    Succeeded,
    /// The command ended with something else.
    Failed,
    /// There is no result.
    Error,
    /// The action cache had the result.
    Cached,
}

/// What came of looking into the action cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    Hit,
    /// There is no entry, or one whose outputs are gone.
    Absent,
    /// The client asked not to look.
    Skipped,
    /// The action says that its result is not to be kept.
    Uncacheable,
    /// It was before the process started, or an audit.
    Unknown,
}

/// When the stages of an execution began and ended; the worker's clock is not the server's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    pub queued: Option<SystemTime>,
    pub worker: Span,
    pub inputs: Span,
    pub execution: Span,
    pub outputs: Span,
}

/// A beginning and an end.
pub type Span = (Option<SystemTime>, Option<SystemTime>);

impl State {
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Executing, Self::Succeeded, Self::Failed, Self::Error, Self::Cached];

    /// The word for it in addresses and on pages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Executing => "executing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Error => "error",
            Self::Cached => "cached",
        }
    }

    pub fn has_failed(self) -> bool {
        matches!(self, Self::Failed | Self::Error)
    }

    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Executing)
    }
}

impl Lookup {
    /// Why the result did not come from the action cache, in a sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Hit => "The action cache had the result",
            Self::Absent => {
                "The action cache had no entry under this key, or one of which an output was gone: nothing with the same command, \
                 inputs and platform had succeeded before, or it was evicted"
            }
            Self::Skipped => "The client asked not to look into the action cache (skip_cache_lookup)",
            Self::Uncacheable => "The action is not to be cached (do_not_cache)",
            Self::Unknown => "It is not known whether the action cache was asked",
        }
    }
}

impl Times {
    fn of(metadata: &ExecutedActionMetadata) -> Self {
        let span = |begin: &Option<Timestamp>, end: &Option<Timestamp>| (time(begin), time(end));
        Self {
            queued: time(&metadata.queued_timestamp),
            worker: span(&metadata.worker_start_timestamp, &metadata.worker_completed_timestamp),
            inputs: span(&metadata.input_fetch_start_timestamp, &metadata.input_fetch_completed_timestamp),
            execution: span(&metadata.execution_start_timestamp, &metadata.execution_completed_timestamp),
            outputs: span(
                &metadata.output_upload_start_timestamp,
                &metadata.output_upload_completed_timestamp,
            ),
        }
    }
}

/// None for what is before 1970 or beyond the clock.
fn time(timestamp: &Option<Timestamp>) -> Option<SystemTime> {
    read_timestamp(timestamp.as_ref()?)
}

impl Record {
    pub(super) fn new(
        (operation, arrival): (OperationId, u64),
        (instance, action): (&Arc<str>, Digest),
        client: Client,
    ) -> Self {
        Self {
            operation,
            arrival,
            instance: Arc::clone(instance),
            action,
            client,
            identity: "".into(),
            begun: SystemTime::now(),
            ended: None,
            state: State::Queued,
            lookup: Lookup::Unknown,
            lease: None,
            worker: "".into(),
            times: Times::default(),
            usage: None,
            exit_code: None,
            message: String::new(),
            response: None,
        }
    }

    /// How long it took, or has taken so far.
    pub fn duration(&self) -> Duration {
        let end = self.ended.unwrap_or_else(SystemTime::now);
        end.duration_since(self.begun).unwrap_or_default()
    }

    /// How long its command ran; `None` where that is not known.
    pub fn execution(&self) -> Option<Duration> {
        let (Some(begin), Some(end)) = self.times.execution else { return None };
        end.duration_since(begin).ok()
    }

    pub(super) fn note(&mut self, update: &Update, worker: Arc<str>) {
        self.state = state(update);
        if update.attempt > 0 {
            self.lease = Some(Lease { execution: update.execution, attempt: update.attempt });
        }
        if !worker.is_empty() {
            self.worker = worker;
        }
        if let Some(metadata) = metadata(update) {
            self.times = Times::of(metadata);
            self.usage = ResourceUsage::of(metadata);
        }
        let Some(response) = &update.response else { return };
        self.ended = Some(SystemTime::now());
        self.exit_code = response.result.as_ref().map(|result| result.exit_code);
        let status = response.status.as_ref().filter(|status| status.code != 0);
        let message = status.map_or(&response.message, |status| &status.message);
        self.message = message.chars().take(ERROR_CHARS_MAX).collect();
    }
}

pub(super) fn state(update: &Update) -> State {
    let Some(response) = &update.response else {
        return match update.stage {
            Stage::Queued => State::Queued,
            Stage::Executing | Stage::Completed => State::Executing,
        };
    };
    let is_ok = response.status.as_ref().is_none_or(|status| status.code == 0);
    match &response.result {
        Some(result) if is_ok && result.exit_code == 0 => State::Succeeded,
        Some(_) if is_ok => State::Failed,
        Some(_) | None => State::Error,
    }
}

/// What is known of how it runs or ran.
fn metadata(update: &Update) -> Option<&ExecutedActionMetadata> {
    let of_result = || update.response.as_ref()?.result.as_ref()?.execution_metadata.as_ref();
    of_result().or(update.metadata.as_deref())
}

pub(super) fn worker(update: &Update) -> Option<&str> {
    metadata(update).map(|metadata| metadata.worker.as_str())
}
