//! From records to bytes. It happens on the journal's own thread.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;

use super::super::super::id::{ExecutionId, WorkerId};
use super::super::super::record::{Pending, Record};
use super::super::super::task::{Availability, Task, Update};
use super::VERSION;
use crate::proto::journal as proto;

/// What the numbers, the digests and the field tags of a task take together, at most.
const TASK_BYTES: usize = 3 * 88 + 48;

/// What a value takes beside its task, its texts and its messages.
const VALUE_BYTES: usize = 64;

pub(super) fn value(record: &Record, bytes: &mut Vec<u8>) {
    match record {
        Record::Execution(pending) => encode(&execution(pending), bytes),
        Record::Live { execution, .. } => {
            operation(proto::operation::State::Live(execution_bytes(*execution)), bytes);
        }
        Record::Finished { update, .. } => {
            operation(proto::operation::State::Finished(finished(update)), bytes);
        }
        Record::Leased { worker, name, owner, .. } => {
            let (worker, name) = (worker_bytes(*worker), name.as_ref().into());
            encode(&proto::Lease { worker, name, owner: owner.as_ref().into() }, bytes);
        }
        Record::Worker { availability, .. } => {
            encode(&proto::Worker { availability: written_availability(availability) }, bytes);
        }
    }
}

pub(super) fn weight(record: &Record) -> usize {
    let content = match record {
        Record::Execution(pending) => task_weight(&pending.task),
        Record::Live { .. } => 0,
        Record::Leased { name, owner, .. } => name.len() + owner.len(),
        Record::Finished { update, .. } => {
            let response = update.response.as_ref().map_or(0, |response| response.encoded_len());
            let metadata = update.metadata.as_ref().map_or(0, |metadata| metadata.encoded_len());
            task_weight(&update.task) + response + metadata
        }
        Record::Worker { name, availability } => match availability {
            Availability::Open => name.len(),
            Availability::Cordoned { reason } | Availability::Draining { reason } => {
                name.len() + reason.len()
            }
        },
    };
    VALUE_BYTES + content
}

fn task_weight(task: &Task) -> usize {
    let platform: usize =
        task.platform.properties().iter().map(|(name, value)| name.len() + value.len() + 12).sum();
    let texts = task.instance.len() + task.invocation.len() + task.identity.len();
    TASK_BYTES + texts + platform + 8 * task.neighbours.len()
}

fn encode(message: &impl Message, bytes: &mut Vec<u8>) {
    bytes.push(VERSION);
    message.encode(bytes).expect("a vector has room for any message");
}

fn operation(state: proto::operation::State, bytes: &mut Vec<u8>) {
    encode(&proto::Operation { state: Some(state) }, bytes);
}

fn execution(pending: &Pending) -> proto::Execution {
    proto::Execution {
        task: Some(task(&pending.task)),
        arrival: pending.arrival,
        queued_at_ns: nanoseconds(pending.queued_at),
        priority: pending.priority,
        attempts: pending.attempts,
        failures: pending.failures,
        losses: pending.losses,
    }
}

fn finished(update: &Update) -> proto::Finished {
    proto::Finished {
        task: Some(task(&update.task)),
        queued_at_ns: nanoseconds(update.queued_at),
        attempt: update.attempt,
        execution: execution_bytes(update.execution),
        metadata: update.metadata.as_ref().map(|metadata| metadata.encode_to_vec().into()),
        response: update
            .response
            .as_ref()
            .map(|response| response.encode_to_vec().into())
            .unwrap_or_default(),
    }
}

fn written_availability(availability: &Availability) -> Option<proto::worker::Availability> {
    match availability {
        Availability::Open => None,
        Availability::Cordoned { reason } => Some(proto::worker::Availability::Cordoned(reason.clone())),
        Availability::Draining { reason } => Some(proto::worker::Availability::Draining(reason.clone())),
    }
}

fn task(task: &Task) -> proto::Task {
    let property =
        |(name, value): &(String, String)| proto::Property { name: name.clone(), value: value.clone() };
    proto::Task {
        instance: task.instance.as_ref().into(),
        action: Some(digest(&task.action_digest)),
        command: Some(digest(&task.command)),
        input_root: Some(digest(&task.input_root)),
        do_not_cache: task.do_not_cache,
        timeout: Some(crate::proto::duration(task.timeout)),
        platform: task.platform.properties().iter().map(property).collect(),
        priority: task.priority,
        invocation: task.invocation.as_ref().into(),
        identity: task.identity.as_ref().into(),
        neighbours: task.neighbours.to_vec(),
    }
}

fn digest(digest: &crate::digest::Digest) -> proto::Digest {
    proto::Digest {
        function: i32::from(digest.function().to_proto()),
        hash: Bytes::copy_from_slice(digest.hash()),
        size: digest.size(),
    }
}

fn execution_bytes(execution: ExecutionId) -> Bytes {
    Bytes::copy_from_slice(&execution.number().to_be_bytes())
}

fn worker_bytes(worker: WorkerId) -> Bytes {
    Bytes::copy_from_slice(&worker.number().to_be_bytes())
}

/// Times before 1970 and after 2554 are no times at which something was queued.
fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
