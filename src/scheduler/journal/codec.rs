//! How records and their keys are written as bytes.
//!
//! A key is a letter for its kind and then what it names, so that records of one kind stand together. A value is a version and a
//! message of `croft.journal.v1`.

mod entries;
mod read;
mod write;

use crate::error::{Error, Kind, Result};

use super::super::record::{Record, RecordKey};

pub(super) use entries::{Entries, entry_bytes, write_entry};
pub(super) use read::{Reader, read_key};

const EXECUTION: u8 = b'e';
const OPERATION: u8 = b'o';
const LEASE: u8 = b'l';
const WORKER: u8 = b'w';

/// What a key takes in a page, but for the names of workers, which are rare.
const KEY_BYTES: usize = 32;

/// Changes when an old value can be taken for something else by a new program. What protobuf can bridge is no such change.
const VERSION: u8 = 1;

/// The bytes of a key.
pub(super) fn key(key: &RecordKey) -> Vec<u8> {
    match key {
        RecordKey::Execution(execution) => named(EXECUTION, &execution.number().to_be_bytes()),
        RecordKey::Operation(operation) => named(OPERATION, &operation.number().to_be_bytes()),
        RecordKey::Lease(lease) => {
            let mut bytes = named(LEASE, &lease.execution.number().to_be_bytes());
            bytes.extend_from_slice(&lease.attempt.to_be_bytes());
            bytes
        }
        RecordKey::Worker(name) => named(WORKER, name.as_bytes()),
    }
}

fn named(prefix: u8, name: &[u8]) -> Vec<u8> {
    // Room for the longest key with a fixed length, that of a lease.
    let mut bytes = Vec::with_capacity(21.max(1 + name.len()));
    bytes.push(prefix);
    bytes.extend_from_slice(name);
    bytes
}

/// Appends the bytes of a value.
pub(super) fn write_value(record: &Record, bytes: &mut Vec<u8>) {
    write::value(record, bytes);
}

/// About as many bytes as a key takes with what becomes of it, never fewer by more than a few, for a fraction of the work.
pub(super) fn weight(record: Option<&Record>) -> usize {
    KEY_BYTES + record.map_or(0, write::weight)
}

fn damaged(what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("a record of the journal has {what}"))
}

fn checked<T>(value: Option<T>, what: &str) -> Result<T> {
    value.ok_or_else(|| damaged(what))
}

#[cfg(test)]
mod tests;
