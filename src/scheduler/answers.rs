//! The responses that the scheduler itself gives, and the timestamp it adds to those of workers.

use std::time::SystemTime;

use crate::proto::rev2::{ExecuteResponse, ExecutedActionMetadata};
use crate::proto::{Status, timestamp};

use super::execution::FailedAttempt;

/// Codes of `google.rpc.Code`. They travel inside a response, not as the status of a call.
const CANCELLED: i32 = 1;
const FAILED_PRECONDITION: i32 = 9;
const UNAVAILABLE: i32 = 14;

/// The operation was ended by its client, or for want of one.
pub(super) fn cancelled(sentence: &str) -> ExecuteResponse {
    answer(CANCELLED, sentence.to_owned())
}

/// No connected worker could ever run the action.
pub(super) fn unsatisfiable(reason: &str) -> ExecuteResponse {
    answer(FAILED_PRECONDITION, format!("the action cannot run: {reason}"))
}

/// The longest text of another process that is passed on, in characters.
const SENTENCE_MAX: usize = 200;

/// Workers were lost while they ran the action.
///
/// The code is one that clients do not retry by themselves: each retry could cost the farm another worker.
pub(super) fn quarantined(workers: u32, failed: &[FailedAttempt]) -> ExecuteResponse {
    let attempts = listed(failed);
    let sentence =
        format!("the action is quarantined: {workers} workers were lost while they ran it ({attempts})");
    answer(FAILED_PRECONDITION, sentence)
}

/// Every attempt failed by the fault of the farm.
pub(super) fn out_of_attempts(attempts: u32, failed: &[FailedAttempt]) -> ExecuteResponse {
    let noun = if attempts == 1 { "attempt" } else { "attempts" };
    let sentence = format!("the farm failed to run the action in {attempts} {noun} ({})", listed(failed));
    answer(UNAVAILABLE, sentence)
}

/// What is known of the failed attempts; those before a restart of the farm, and all but the last few, are not.
fn listed(failed: &[FailedAttempt]) -> String {
    let attempts = failed.iter().map(|one| format!("attempt {}: {}", one.attempt, one.sentence));
    attempts.collect::<Vec<_>>().join("; ")
}

/// The beginning of a text that another process or a person wrote, for a message that is passed on.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SENTENCE_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn answer(code: i32, message: String) -> ExecuteResponse {
    ExecuteResponse {
        status: Some(Status { code, message, ..Status::default() }),
        ..ExecuteResponse::default()
    }
}

/// Notes in a worker's response when its action was queued.
pub(super) fn stamp_response(response: &mut ExecuteResponse, queued_at: SystemTime) {
    if let Some(result) = &mut response.result {
        stamp(result.execution_metadata.get_or_insert_default(), queued_at);
    }
}

/// Notes when the action was queued.
pub(super) fn stamp(metadata: &mut ExecutedActionMetadata, queued_at: SystemTime) {
    metadata.queued_timestamp = Some(timestamp(queued_at));
}
