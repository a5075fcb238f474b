//! Names whose commit is under way: they can be read, but nobody is told yet that they are there to stay.
//!
//! An entry is visible a few milliseconds before a crash cannot undo it. Who asks for presence in between waits for the commit.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::name::Name;

/// The longest wait of one request for a commit, which takes milliseconds. On a disk that hangs the name is then taken to be absent: whoever puts
/// it again waits for the writer.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// How long a request still waits for commits, however many names it asks for.
pub(super) struct Patience(Option<Instant>);

impl Patience {
    pub(super) fn new() -> Self {
        Self(None)
    }

    /// It begins to run with the first wait.
    fn left(&mut self) -> Duration {
        let end = *self.0.get_or_insert_with(|| Instant::now() + WAIT_MAX);
        end.saturating_duration_since(Instant::now())
    }
}

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
    pub(super) fn is_settled(&self, name: &Name, patience: &mut Patience) -> bool {
        if !self.is_busy.load(Ordering::Acquire) {
            return true;
        }
        let is_open = |state: &mut State| !state.has_failed && state.names.contains(name);
        let waited = self.changed.wait_timeout_while(self.lock(), patience.left(), is_open);
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
        assert!(unsettled.is_settled(&name, &mut Patience::new()));
        unsettled.begin([name].into_iter());
        assert!(unsettled.contains(&name));
        assert!(unsettled.is_settled(&Name::from(&Key::Asset([4; 32])), &mut Patience::new()));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| unsettled.is_settled(&name, &mut Patience::new()));
            unsettled.end();
            assert!(waiting.join().unwrap());
        });
        unsettled.begin([name].into_iter());
        unsettled.fail();
        assert!(!unsettled.is_settled(&name, &mut Patience::new()));
        unsettled.end();
        assert!(unsettled.is_settled(&name, &mut Patience::new()));
    }

    #[test]
    fn one_request_waits_once_for_a_commit_that_hangs() {
        let unsettled = Unsettled::default();
        let names: Vec<Name> = (0..20).map(|number| Name::from(&Key::Asset([number; 32]))).collect();
        unsettled.begin(names.iter().copied());
        let (started, mut patience) = (Instant::now(), Patience::new());
        assert!(names.iter().all(|name| !unsettled.is_settled(name, &mut patience)));
        assert!(started.elapsed() < 5 * WAIT_MAX);
    }
}
