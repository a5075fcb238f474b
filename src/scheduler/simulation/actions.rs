//! The actions of the simulated clients: known by a number, and always the same for the same number.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::digest::{Digest, Function};
use crate::proto::rev2::{ActionResult, ExecuteResponse, ExecutedActionMetadata};
use crate::proto::timestamp;
use crate::scheduler::task::{Platform, Task};

/// Whose action it is and how urgent.
pub(super) struct Asker {
    pub(super) priority: i32,
    pub(super) invocation: &'static str,
    pub(super) identity: &'static str,
}

pub(super) fn task(number: u64, asker: &Asker) -> Task {
    let platforms: [&[(&str, &str)]; 8] = [
        &[],
        &[("ISA", "a")],
        &[("ISA", "b")],
        &[("ISA", "a"), ("ISA", "b")],
        &[("cores", "2")],
        &[("ISA", "a"), ("cores", "3")],
        &[("cores", "1"), ("memory", "5")],
        &[("ISA", "z")],
    ];
    let platform = platforms[usize::try_from(number % 8).unwrap()];
    let property = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    // Those that differ by the platform alone are of one kind, so that their runs are soon known.
    let kind = [u8::try_from(number % 8).unwrap(); 32];
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&number.to_be_bytes());
    Task {
        instance: if number.is_multiple_of(3) { "main" } else { "other" }.into(),
        action_digest: Digest::new(Function::Sha256, &hash, 1),
        command: Digest::new(Function::Sha256, &kind, 2),
        input_root: Digest::new(Function::Sha256, &hash, 3),
        do_not_cache: number.is_multiple_of(5),
        timeout: Duration::from_secs(2),
        platform: Arc::new(Platform::new(platform.iter().map(property))),
        priority: asker.priority,
        invocation: asker.invocation.into(),
        identity: asker.identity.into(),
        neighbours: Box::default(),
        trace: None,
    }
}

pub(super) fn action_number(task: &Task) -> u64 {
    u64::from_be_bytes(task.action_digest.hash()[..8].try_into().unwrap())
}

/// The result that this action always has, from a run that took so long.
pub(super) fn response(task: &Task, took: Duration) -> ExecuteResponse {
    let metadata = ExecutedActionMetadata {
        execution_start_timestamp: Some(timestamp(SystemTime::UNIX_EPOCH)),
        execution_completed_timestamp: Some(timestamp(SystemTime::UNIX_EPOCH + took)),
        ..ExecutedActionMetadata::default()
    };
    let result = ActionResult {
        stdout_raw: action_number(task).to_be_bytes().to_vec(),
        execution_metadata: Some(metadata),
        ..ActionResult::default()
    };
    ExecuteResponse { result: Some(result), ..ExecuteResponse::default() }
}

/// Whether this is the result of that action.
pub(super) fn is_result_of(result: &ActionResult, task: &Task) -> bool {
    result.stdout_raw[..] == action_number(task).to_be_bytes()
}
