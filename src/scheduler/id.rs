//! What the scheduler's events and effects refer to: time, operations, executions, workers, leases.
//!
//! The core makes no identifier and reads no clock: both come in with the events, so a run can be repeated exactly.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// Time since an arbitrary start, the same for all events of one core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Time(Duration);

impl Time {
    pub(super) const START: Self = Self(Duration::ZERO);

    pub(super) fn after_start(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    pub(super) fn since_start(self) -> Duration {
        self.0
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;

    /// Saturates: a deadline beyond the end of time never comes.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Defines an identifier of 128 bits that is written as 32 hexadecimal digits.
macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name {
            // Two halves, because whatever holds a whole `u128` has a size that is a multiple of 16 bytes.
            high: u64,
            low: u64,
        }

        impl $name {
            pub fn new(number: u128) -> Self {
                Self { high: (number >> 64) as u64, low: number as u64 }
            }

            pub fn number(self) -> u128 {
                u128::from(self.high) << 64 | u128::from(self.low)
            }
        }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                state.write_u128(self.number());
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.number())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:x})"), self.number())
            }
        }
    };
}

identifier! {
    /// What a client sees of one `Execute` call. Several operations may wait for one execution.
    OperationId
}

identifier! {
    /// One run of one action, over all its attempts.
    ExecutionId
}

identifier! {
    /// One life of a worker process, whatever becomes of its connections. The worker makes it when it starts.
    WorkerId
}

impl OperationId {
    /// Reads what `Display` writes; `None` for anything else, so that two texts never name one operation.
    pub fn parse(text: &str) -> Option<Self> {
        let is_canonical = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_canonical.then(|| u128::from_str_radix(text, 16).ok().map(Self::new)).flatten()
    }
}

/// One attempt at one execution. No lease is ever given out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    pub execution: ExecutionId,
    /// Counts from 1.
    pub attempt: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_read_as_it_is_written_and_in_no_other_way() {
        let operation = OperationId::new(0xabc);
        assert_eq!(OperationId::parse(&operation.to_string()), Some(operation));
        for text in ["", "abc", "00000000000000000000000000000ABC", "+0000000000000000000000000000abc"] {
            assert_eq!(OperationId::parse(text), None, "{text}");
        }
    }
}
