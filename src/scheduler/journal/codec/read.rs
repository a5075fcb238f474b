//! From bytes to records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;

use super::super::super::id::{ExecutionId, Lease, OperationId, WorkerId};
use super::super::super::record::{Pending, Record, RecordKey};
use super::super::super::task::{Availability, Platform, Stage, Task, Update};
use super::{EXECUTION, LEASE, OPERATION, VERSION, WORKER, checked, damaged};
use crate::digest::{Digest, Function};
use crate::error::Result;
use crate::proto::journal as proto;
use crate::proto::rev2::{ExecuteResponse, ExecutedActionMetadata};

/// What a key names.
///
/// # Errors
/// `Corrupt` when it is no key that this program knows.
pub(in super::super) fn read_key(key: &[u8]) -> Result<RecordKey> {
    let (prefix, name) = checked(key.split_first(), "an empty key")?;
    match *prefix {
        EXECUTION => Ok(RecordKey::Execution(ExecutionId::new(number(name)?))),
        OPERATION => Ok(RecordKey::Operation(OperationId::new(number(name)?))),
        LEASE => Ok(RecordKey::Lease(lease(name)?)),
        WORKER => {
            Ok(RecordKey::Worker(checked(std::str::from_utf8(name).ok(), "a name that is no text")?.into()))
        }
        _ => Err(damaged("an unknown kind")),
    }
}

/// Reads records, and shares again among them what the tasks of one build share.
#[derive(Default)]
pub(in super::super) struct Reader {
    texts: BTreeSet<Arc<str>>,
    platforms: BTreeSet<Arc<Platform>>,
}

impl Reader {
    /// The record with this key and this value.
    ///
    /// # Errors
    /// `Corrupt` when they are no record that this program knows.
    pub(in super::super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<Record> {
        let (version, message) = checked(value.split_first(), "no version")?;
        if *version != VERSION {
            return Err(damaged("another version"));
        }
        match read_key(key)? {
            RecordKey::Execution(execution) => self.execution(execution, message),
            RecordKey::Operation(operation) => self.operation(operation, message),
            RecordKey::Lease(lease) => self.lease(lease, message),
            RecordKey::Worker(name) => self.worker(&name, message),
        }
    }

    fn execution(&mut self, execution: ExecutionId, message: &[u8]) -> Result<Record> {
        let read: proto::Execution = decode(message)?;
        Ok(Record::Execution(Box::new(Pending {
            execution,
            task: self.task(read.task)?,
            arrival: read.arrival,
            queued_at: time(read.queued_at_ns),
            priority: read.priority,
            attempts: read.attempts,
            failures: read.failures,
            losses: read.losses,
        })))
    }

    fn operation(&mut self, operation: OperationId, message: &[u8]) -> Result<Record> {
        let read: proto::Operation = decode(message)?;
        match checked(read.state, "no state")? {
            proto::operation::State::Live(execution) => {
                Ok(Record::Live { operation, execution: ExecutionId::new(number(&execution)?) })
            }
            proto::operation::State::Finished(finished) => {
                Ok(Record::Finished { operation, update: Arc::new(self.update(finished)?) })
            }
        }
    }

    fn update(&mut self, read: proto::Finished) -> Result<Update> {
        let metadata: Option<ExecutedActionMetadata> = read.metadata.as_deref().map(decode).transpose()?;
        let response: ExecuteResponse = decode(&read.response)?;
        Ok(Update {
            execution: ExecutionId::new(number(&read.execution)?),
            stage: Stage::Completed,
            task: self.task(read.task)?,
            queued_at: time(read.queued_at_ns),
            attempt: read.attempt,
            metadata: metadata.map(Box::new),
            response: Some(Arc::new(response)),
        })
    }

    fn lease(&mut self, lease: Lease, message: &[u8]) -> Result<Record> {
        let read: proto::Lease = decode(message)?;
        Ok(Record::Leased {
            lease,
            worker: WorkerId::new(number(&read.worker)?),
            name: self.text(&read.name),
            owner: self.text(&read.owner),
        })
    }

    fn worker(&mut self, name: &str, message: &[u8]) -> Result<Record> {
        let read: proto::Worker = decode(message)?;
        let availability = match read.availability {
            None => Availability::Open,
            Some(proto::worker::Availability::Cordoned(reason)) => Availability::Cordoned { reason },
            Some(proto::worker::Availability::Draining(reason)) => Availability::Draining { reason },
        };
        Ok(Record::Worker { name: self.text(name), availability })
    }

    fn task(&mut self, read: Option<proto::Task>) -> Result<Arc<Task>> {
        let read = checked(read, "no task")?;
        let properties = read.platform.into_iter().map(|property| (property.name, property.value));
        let platform = Platform::new(properties);
        let timeout = checked(read.timeout, "no timeout")?;
        Ok(Arc::new(Task {
            instance: self.text(&read.instance),
            action_digest: digest(read.action)?,
            command: digest(read.command)?,
            input_root: digest(read.input_root)?,
            do_not_cache: read.do_not_cache,
            timeout: checked(crate::proto::read_duration(&timeout), "a malformed timeout")?,
            platform: self.platform(platform),
            priority: read.priority,
            invocation: self.text(&read.invocation),
            identity: self.text(&read.identity),
            neighbours: read.neighbours.into(),
            trace: None,
        }))
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let text: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&text));
        text
    }

    fn platform(&mut self, platform: Platform) -> Arc<Platform> {
        if let Some(known) = self.platforms.get(&platform) {
            return Arc::clone(known);
        }
        let platform = Arc::new(platform);
        self.platforms.insert(Arc::clone(&platform));
        platform
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M> {
    M::decode(bytes).map_err(|error| damaged("a broken message").with_source(error))
}

fn number(bytes: &[u8]) -> Result<u128> {
    let bytes = checked(bytes.try_into().ok(), "an identifier of a wrong length")?;
    Ok(u128::from_be_bytes(bytes))
}

fn lease(name: &[u8]) -> Result<Lease> {
    let (execution, attempt) = checked(name.split_last_chunk(), "a short key")?;
    Ok(Lease { execution: ExecutionId::new(number(execution)?), attempt: u32::from_be_bytes(*attempt) })
}

fn digest(read: Option<proto::Digest>) -> Result<Digest> {
    let read = checked(read, "no digest")?;
    let function = checked(Function::from_proto(read.function).ok().flatten(), "an unknown digest function")?;
    if read.hash.len() != function.hash_bytes() {
        return Err(damaged("a hash of a wrong length"));
    }
    Ok(Digest::new(function, &read.hash, read.size))
}

fn time(nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}
