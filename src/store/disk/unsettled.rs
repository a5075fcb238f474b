//! Names whose commit is under way: they can be read, but nobody is told yet that they are there to stay.
//!
//! An entry is visible a few milliseconds before a crash cannot undo it. Who asks for presence in between waits for the commit.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::store::name::Name;

/// The longest wait for a commit, which takes milliseconds. On a disk that hangs the name is then taken to be absent: whoever puts
/// it again waits for the writer.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The names of the commit under way, or of one that failed.
#[derive(Default)]
pub(super) struct Unsettled {
    state: Mutex<State>,
    changed: Condvar,
    /// Spares readers the lock while nothing is under way.
    is_busy: AtomicBool,
}

#[derive(Default)]
struct State {
    names: HashSet<Name>,
    /// Nobody knows what of the names is durable, until the index is opened again.
    has_failed: bool,
}

impl Unsettled {
    /// To be called before any of `names` becomes visible.
    pub(super) fn begin(&self, names: impl Iterator<Item = Name>) {
        let mut state = self.lock();
        state.names.extend(names);
        state.has_failed = false;
        self.is_busy.store(!state.names.is_empty(), Ordering::Release);
    }

    /// What is visible is durable.
    pub(super) fn end(&self) {
        *self.lock() = State::default();
        self.is_busy.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// The commit failed: its names stay unsettled, and nobody waits for them.
    pub(super) fn fail(&self) {
        self.lock().has_failed = true;
        self.changed.notify_all();
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        self.is_busy.load(Ordering::Acquire) && self.lock().names.contains(name)
    }

    /// Whether `name`, which the caller has seen in the index, is there to stay. Waits for the commit that is under way, but not
    /// for longer than a moment.
    pub(super) fn is_settled(&self, name: &Name) -> bool {
        if !self.is_busy.load(Ordering::Acquire) {
            return true;
        }
        let is_open = |state: &mut State| !state.has_failed && state.names.contains(name);
        let waited = self.changed.wait_timeout_while(self.lock(), WAIT_MAX, is_open);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.names.contains(name)
    }

    /// The names are whole between any two steps that can panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    #[test]
    fn a_name_is_settled_when_its_commit_ends_and_not_when_it_fails() {
        let (unsettled, name) = (Unsettled::default(), Name::from(&Key::Asset([3; 32])));
        assert!(unsettled.is_settled(&name));
        unsettled.begin([name].into_iter());
        assert!(unsettled.contains(&name));
        assert!(unsettled.is_settled(&Name::from(&Key::Asset([4; 32]))));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| unsettled.is_settled(&name));
            unsettled.end();
            assert!(waiting.join().unwrap());
        });
        unsettled.begin([name].into_iter());
        unsettled.fail();
        assert!(!unsettled.is_settled(&name));
        unsettled.end();
        assert!(unsettled.is_settled(&name));
    }
}
