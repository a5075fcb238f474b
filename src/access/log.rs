//! The access log: who was refused what, and who changed what of the farm. It is the target `croft::access` of the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::shown;
use crate::metrics;

use super::budget::Budget;

/// The target of all lines, for filters.
const TARGET: &str = "croft::access";

/// Refusals that are written at once, and how often one more is: a flood must not fill the disk.
const LINES_MAX: u32 = 100;
const LINE_PAUSE: Duration = Duration::from_millis(200);

/// Why somebody was refused: the label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// Nobody said who calls, and it is not for everybody.
    Unauthenticated,
    /// What was shown as a proof proves nothing.
    Credential,
    /// Whoever calls may not do that.
    Right,
    /// A worker spoke for what is another's, or for longer than its proof holds.
    Worker,
    /// Whoever calls has too many requests open.
    Requests,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Credential => "credential",
            Self::Right => "right",
            Self::Worker => "worker",
            Self::Requests => "requests",
        }
    }
}

/// A line of the log; what clients wrote is cut to a bound.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) identity: &'a str,
    pub(super) method: &'a str,
    pub(super) instance: &'a str,
    pub(super) peer: &'a str,
}

/// The log of one process. Each reason has a budget of its own, so that a flood of strangers hides nobody else.
#[derive(Debug)]
pub(super) struct Log(Mutex<BTreeMap<Reason, State>>);

#[derive(Debug)]
struct State {
    budget: Budget,
    left_out: u64,
}

impl Log {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    pub(super) fn refused(&self, line: &Line<'_>, reason: Reason, message: &str) {
        metrics::ACCESS_REFUSALS.with_label_values(&[reason.name()]).inc();
        let Some(left_out) = self.turn(reason, Instant::now()) else { return };
        tracing::warn!(
            target: TARGET,
            reason = reason.name(),
            identity = shown(line.identity),
            method = shown(line.method),
            instance = shown(line.instance),
            peer = line.peer,
            left_out,
            "refused: {}", shown(message)
        );
    }

    /// A call of an operator. There are few, and none is left out.
    pub(super) fn administrative(&self, line: &Line<'_>) {
        tracing::info!(
            target: TARGET,
            identity = shown(line.identity),
            method = shown(line.method),
            instance = shown(line.instance),
            peer = line.peer,
            "administrative call"
        );
    }

    /// How many lines were left out before this one; none when this one is left out, too.
    fn turn(&self, reason: Reason, now: Instant) -> Option<u64> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = || State { budget: Budget::new(LINES_MAX, LINE_PAUSE, now), left_out: 0 };
        let state = states.entry(reason).or_insert_with(full);
        if state.budget.take(now) {
            return Some(std::mem::take(&mut state.left_out));
        }
        state.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_written() {
        let (log, now) = (Log::new(), Instant::now());
        let stranger = Reason::Unauthenticated;
        let written = (0..10 * LINES_MAX).filter(|_| log.turn(stranger, now).is_some()).count();
        assert_eq!(written, LINES_MAX as usize);
        assert_eq!(log.turn(stranger, now + LINE_PAUSE), Some(u64::from(9 * LINES_MAX)));
        assert_eq!(log.turn(stranger, now + LINE_PAUSE), None);
        assert_eq!(log.turn(Reason::Right, now), Some(0), "who is known is not hidden by strangers");
    }
}
