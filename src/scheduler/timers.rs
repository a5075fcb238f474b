//! Deadlines by what they are for. Each is held once, so a deadline that was met leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::id::{Lease, OperationId, Time, WorkerId};
use super::requirements::Requirements;

/// What happens when time passes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Nobody watches the operation.
    Abandon(OperationId),
    /// The finished operation was kept long enough.
    Forget(OperationId),
    /// The attempt takes too long.
    Lease(WorkerId, Lease),
    /// The worker does not confirm a kill.
    Kill(WorkerId, Lease),
    /// The worker is silent.
    Silence(WorkerId),
    /// The worker is without a connection.
    Away(WorkerId),
    /// The worker's failures are held against it.
    Probation(WorkerId),
    /// No connected worker could ever run what is queued with these requirements.
    Stranded(Arc<Requirements>),
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeMap<Timer, Time>,
    order: BTreeSet<(Time, Timer)>,
}

impl Timers {
    /// Sets or moves a deadline.
    pub(super) fn set(&mut self, timer: Timer, at: Time) {
        if let Some(old) = self.due.insert(timer.clone(), at) {
            self.order.remove(&(old, timer.clone()));
        }
        self.order.insert((at, timer));
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.due.remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.order.first().map(|(at, _)| *at)
    }

    #[cfg(test)]
    pub(super) fn holds(&self, timer: &Timer) -> bool {
        self.due.contains_key(timer)
    }

    /// Takes out the first deadline that has passed.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<Timer> {
        self.next().filter(|at| *at <= now)?;
        let (_, timer) = self.order.pop_first()?;
        self.due.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Time {
        Time::after_start(Duration::from_secs(seconds))
    }

    #[test]
    fn a_deadline_that_moves_is_due_once_at_its_last_time() {
        let mut timers = Timers::default();
        let timer = Timer::Silence(WorkerId::new(1));
        timers.set(timer.clone(), at(5));
        timers.set(timer.clone(), at(9));
        assert_eq!(timers.pop_due(at(8)), None);
        assert_eq!(timers.pop_due(at(9)), Some(timer));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_cleared_deadline_never_comes() {
        let mut timers = Timers::default();
        timers.set(Timer::Abandon(OperationId::new(1)), at(1));
        timers.clear(Timer::Abandon(OperationId::new(1)));
        assert_eq!(timers.pop_due(at(100)), None);
    }
}
