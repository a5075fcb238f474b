//! The server's own look at what a worker reports: outputs must be in the CAS, and only then the result is cached.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use tracing::Instrument;

use crate::audit::Auditor;
use crate::builds::Builds;
use crate::error::{Error, Kind, Result};
use crate::metrics;
use crate::proto::read_timestamp;
use crate::proto::rev2::ExecuteResponse;
use crate::scheduler::{OperationId, Settle, Task, Update};
use crate::status;
use crate::store::{ActionCache, ActionKey, Cas, absent_outputs};
use crate::trace;

/// Checks results and writes the action cache; workers never do.
pub struct Settler {
    cas: Cas,
    action_cache: ActionCache,
    auditor: Arc<Auditor>,
    builds: Builds,
}

impl Settler {
    /// What is cached is told to `auditor`, and where operations stand to `builds`.
    pub fn new(cas: Cas, action_cache: ActionCache, auditor: Arc<Auditor>, builds: Builds) -> Self {
        Self { cas, action_cache, auditor, builds }
    }

    /// Checks what is in the response, and caches its result.
    async fn check_and_keep(&self, task: &Task, response: ExecuteResponse) -> Result<ExecuteResponse> {
        let is_ok = response.status.as_ref().is_none_or(|status| status.code == 0);
        let Some(result) = response.result.as_ref().filter(|_| is_ok) else {
            return Ok(response);
        };
        let absent = absent_outputs(&self.cas, task.action_digest.function(), result).await?;
        if let Some(first) = absent.first() {
            let message = format!(
                "the worker reported {} outputs that are not in the CAS, {first} first",
                absent.len()
            );
            return Err(Error::new(Kind::Unavailable, message));
        }
        // A failed run may be a flaky one, and a cached failure would never be tried again.
        if result.exit_code == 0 && !task.do_not_cache {
            let key = key(task);
            // The run was good and its outputs are safe; without an entry it only runs again another time.
            match self.action_cache.put(&key, result).await {
                Ok(()) => self.auditor.noticed(&key),
                Err(error) => {
                    tracing::warn!(action = %key.digest, error = error.chain(), "a result was not cached");
                }
            }
        }
        Ok(response)
    }
}

#[async_trait]
impl Settle for Settler {
    async fn settle(&self, task: &Task, response: ExecuteResponse) -> Result<ExecuteResponse> {
        count(&response);
        if let Some(carried) = &task.trace
            && let Some(waited) = waited(&response)
        {
            trace::past(carried, "queued", waited);
        }
        self.check_and_keep(task, response).instrument(trace::resume(task.trace.as_ref(), "settle")).await
    }

    fn noted(&self, operation: OperationId, update: &Update) {
        self.builds.noted(operation, update);
    }

    async fn recall(&self, task: &Task) -> Option<ExecuteResponse> {
        if task.do_not_cache {
            return None;
        }
        match self.action_cache.get(&key(task)).await {
            Ok(result) => result.map(|result| ExecuteResponse {
                result: Some(result),
                status: Some(status::ok()),
                ..ExecuteResponse::default()
            }),
            Err(error) => {
                tracing::warn!(action = %task.action_digest, error = error.chain(), "a result was not looked up");
                None
            }
        }
    }
}

/// When the action was queued and when a worker took it.
fn waited(response: &ExecuteResponse) -> Option<(SystemTime, SystemTime)> {
    let times = response.result.as_ref()?.execution_metadata.as_ref()?;
    let (queued, started) = (times.queued_timestamp.as_ref()?, times.worker_start_timestamp.as_ref()?);
    Some((read_timestamp(queued)?, read_timestamp(started)?))
}

/// Counts an attempt that was answered, and its stages.
fn count(response: &ExecuteResponse) {
    let is_ok = response.status.as_ref().is_none_or(|status| status.code == 0);
    let outcome = match &response.result {
        Some(result) if is_ok && result.exit_code == 0 => "ok",
        Some(_) if is_ok => "failed",
        Some(_) | None => "error",
    };
    metrics::ACTIONS.with_label_values(&[outcome]).inc();
    let times = response.result.as_ref().and_then(|result| result.execution_metadata.as_ref());
    let Some(times) = times.filter(|_| is_ok) else { return };
    let stages = [
        ("queued", &times.queued_timestamp, &times.worker_start_timestamp),
        ("inputs", &times.input_fetch_start_timestamp, &times.input_fetch_completed_timestamp),
        ("execution", &times.execution_start_timestamp, &times.execution_completed_timestamp),
        ("outputs", &times.output_upload_start_timestamp, &times.output_upload_completed_timestamp),
    ];
    for (stage, start, end) in stages {
        if let (Some(start), Some(end)) = (start, end) {
            let seconds = end.seconds.saturating_sub(start.seconds) as f64
                + (f64::from(end.nanos) - f64::from(start.nanos)) / 1e9;
            // Two clocks say when an action was queued and when a worker took it.
            metrics::ACTION_STAGES.with_label_values(&[stage]).observe(seconds.max(0.0));
        }
    }
}

fn key(task: &Task) -> ActionKey {
    ActionKey { instance: Arc::clone(&task.instance), digest: task.action_digest }
}
