//! Deadlines by what they are for. Each is held once, so a deadline that was met leaves nothing behind.

use std::collections::BTreeMap;

use super::id::{Lease, OperationId, Time, WorkerId};
use super::lookup::Lookup;
use super::requirements::Shape;

/// What happens when time passes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// Nobody watches the operation.
    Abandon(OperationId),
    /// The oldest finished operation was kept long enough.
    Forget,
    /// An attempt on the worker takes too long, or one took that has ended since.
    Leases(WorkerId),
    /// The attempt takes far longer than earlier ones.
    Hedge(Lease),
    /// The worker does not confirm a kill.
    Kill(WorkerId, Lease),
    /// The worker is silent.
    Silence(WorkerId),
    /// The worker is without a connection.
    Away(WorkerId),
    /// The worker's failures are held against it.
    Probation(WorkerId),
    /// No connected worker could ever run what is queued in this shape.
    Stranded(Shape),
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    due: Lookup<Timer, Due>,
    /// By where each deadline is filed.
    order: BTreeMap<Slot, Timer>,
    /// How often a deadline was filed.
    filings: u64,
}

/// A deadline that moves away stays filed where it was, and is filed anew only when that time has come: a worker's deadline moves
/// with every word of it, but is looked at once in a heartbeat's time.
#[derive(Debug, Clone, Copy)]
struct Due {
    at: Time,
    /// Not after `at`.
    filed: Slot,
}

/// A time, and a number so that no two deadlines are filed in one place. It is compared instead of what the deadline is for.
type Slot = (Time, u64);

impl Timers {
    /// Sets or moves a deadline.
    pub(super) fn set(&mut self, timer: Timer, at: Time) {
        let filed = (at, self.filings);
        match self.due.get_mut(&timer) {
            Some(due) if due.filed.0 <= at => {
                due.at = at;
                return;
            }
            Some(due) => {
                self.order.remove(&due.filed);
                *due = Due { at, filed };
            }
            None => {
                self.due.insert(timer.clone(), Due { at, filed });
            }
        }
        self.filings += 1;
        self.order.insert(filed, timer);
    }

    /// Sets a deadline, or moves it if it is later.
    pub(super) fn bring_forward(&mut self, timer: Timer, at: Time) {
        if self.due(&timer).is_none_or(|due| due > at) {
            self.set(timer, at);
        }
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(due) = self.due.remove(&timer) {
            self.order.remove(&due.filed);
        }
    }

    /// When to look again: not after the first deadline, and perhaps before it.
    pub(super) fn next(&self) -> Option<Time> {
        self.order.first_key_value().map(|((at, _), _)| *at)
    }

    #[cfg(test)]
    pub(super) fn holds(&self, timer: &Timer) -> bool {
        self.due.get(timer).is_some()
    }

    /// Takes out the first deadline that has passed.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<Timer> {
        loop {
            self.next().filter(|at| *at <= now)?;
            let ((_, number), timer) = self.order.pop_first()?;
            let due = self.due.get_mut(&timer).expect("what is filed is due");
            if due.at <= now {
                self.due.remove(&timer);
                return Some(timer);
            }
            due.filed = (due.at, number);
            self.order.insert(due.filed, timer);
        }
    }
}

impl Timers {
    /// When something is due.
    pub(super) fn due(&self, timer: &Timer) -> Option<Time> {
        self.due.get(timer).map(|due| due.at)
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
    fn a_deadline_that_comes_nearer_is_due_at_its_new_time() {
        let mut timers = Timers::default();
        let timer = Timer::Silence(WorkerId::new(1));
        timers.set(timer.clone(), at(9));
        timers.set(timer.clone(), at(5));
        assert_eq!(timers.pop_due(at(5)), Some(timer));
        assert_eq!(timers.pop_due(at(9)), None);
    }

    #[test]
    fn a_deadline_is_brought_forward_and_never_put_off() {
        let mut timers = Timers::default();
        let timer = Timer::Leases(WorkerId::new(1));
        for seconds in [9, 5, 7] {
            timers.bring_forward(timer.clone(), at(seconds));
        }
        assert_eq!(timers.pop_due(at(5)), Some(timer));
        assert_eq!(timers.pop_due(at(9)), None);
    }

    #[test]
    fn a_cleared_deadline_never_comes() {
        let mut timers = Timers::default();
        timers.set(Timer::Abandon(OperationId::new(1)), at(1));
        timers.clear(Timer::Abandon(OperationId::new(1)));
        assert_eq!(timers.pop_due(at(100)), None);
    }
}
