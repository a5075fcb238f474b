//! What survives the scheduler: its records, on a medium behind one trait, written by one thread in groups.
//!
//! The driver hands over changes and goes on; what must not be said before they are safe waits at its gate.

mod codec;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod cut_tests;
mod embedded;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
pub(super) mod memory;
mod pages;
#[cfg(test)]
mod restart_tests;
#[cfg(test)]
pub(super) mod tests;
mod writer;

use super::record::{Record, RecordKey};
use crate::error::Result;
use crate::index::COMMIT_BYTES_MAX;

pub(super) use embedded::Embedded;
pub(super) use writer::{Progress, Writer};

/// A key with the record that it has from here on, or none.
pub(super) type Change = (RecordKey, Option<Record>);

/// About how many bytes one group writes: what the embedded database commits safely at once, but for a part with which the journal keeps
/// itself short.
const GROUP_BYTES_MAX: usize = COMMIT_BYTES_MAX / 4 * 3;

/// A medium that keeps records. One thread uses it, and every call blocks.
pub(super) trait Journal: Send + Sync {
    /// All records that are there, in any order. One that cannot be read is told to the log, counted and dropped.
    ///
    /// # Errors
    /// `Unavailable` when the medium does not answer.
    fn load(&self) -> Result<Vec<Record>>;

    /// Makes the changes, which have different keys: all of them or, after a crash, none. They are durable on return.
    ///
    /// # Errors
    /// When that cannot be relied on. Nothing more is committed then.
    fn commit(&self, changes: &[Change]) -> Result<()>;
}
