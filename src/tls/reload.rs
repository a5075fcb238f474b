//! What is made of files, and is made anew when their contents change.
//!
//! The contents are compared, not times or inodes: so it makes no difference whether a file is written, renamed into its place, or
//! reached through a symlink that is swapped, as those who hand out certificates do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::files::{Content, End, Identity, NamedFile};
use crate::error::{Context, Error, Result};
use crate::metrics;
use crate::tasks::{self, Shutdown};

/// The time between two looks at the files. They are small and few; new handshakes are to have a new certificate within 2 s.
const POLL: Duration = Duration::from_secs(1);

/// What all files of one listener or client together give.
pub(super) struct Made<T> {
    pub(super) value: T,
    /// What of it ends when, by the label in the metric.
    pub(super) ends: Vec<(&'static str, End)>,
}

type Make<T> = Box<dyn Fn(&[Content]) -> Result<Made<T>> + Send + Sync>;

/// The present value, and where the next one comes from.
pub(super) struct Reloaded<T> {
    /// Whose it is, in the log and in metrics.
    name: String,
    files: Vec<NamedFile>,
    make: Make<T>,
    state: Mutex<State<T>>,
    /// Counts the values.
    generation: watch::Sender<u64>,
}

struct State<T> {
    value: Arc<T>,
    identity: Identity,
    refused: Option<Refused>,
}

/// Contents that could not be used.
#[derive(Clone, Copy)]
struct Refused {
    identity: Identity,
    is_told: bool,
}

/// How sure a look at the files is to see a whole change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Someone may be in the middle of writing: what is wrong counts when it is still the same at the next look.
    Periodic,
    /// The operator says that the files are as they shall be.
    Asked,
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Makes the first value and has its files watched.
    ///
    /// # Errors
    /// When nothing can be made of the files.
    pub(super) fn new(name: String, files: Vec<NamedFile>, make: Make<T>) -> Result<Arc<Self>> {
        let contents: Vec<Content> = files.iter().map(NamedFile::read).collect();
        let made = make(&contents)?;
        tell_ends(&name, &made.ends);
        let identity = Identity::of(&contents);
        let state = State { value: Arc::new(made.value), identity, refused: None };
        let reloaded =
            Arc::new(Self { name, files, make, state: Mutex::new(state), generation: watch::Sender::new(0) });
        let watched: Arc<dyn Watched> = reloaded.clone();
        let mut all = lock(&WATCHED);
        all.retain(|watched| watched.strong_count() > 0);
        all.push(Arc::downgrade(&watched));
        Ok(reloaded)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn current(&self) -> Arc<T> {
        Arc::clone(&lock(&self.state).value)
    }

    /// Changes with the value.
    pub(super) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Tells of each change of the value from now on.
    pub(super) fn renewals(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn adopt(&self, identity: Identity, made: Made<T>) {
        tell_ends(&self.name, &made.ends);
        *lock(&self.state) = State { value: Arc::new(made.value), identity, refused: None };
        self.generation.send_modify(|generation| *generation += 1);
        tracing::info!(tls = self.name, "certificates were loaded anew");
    }

    fn refuse(&self, identity: Identity, look: Look, error: &Error) {
        let mut state = lock(&self.state);
        let before = state.refused.filter(|before| before.identity == identity);
        let is_settled = look == Look::Asked || before.is_some();
        let was_told = look == Look::Periodic && before.is_some_and(|before| before.is_told);
        state.refused = Some(Refused { identity, is_told: is_settled });
        drop(state);
        if is_settled && !was_told {
            metrics::TLS_RELOAD_FAILURES.with_label_values(&[&self.name]).inc();
            let error = error.chain();
            tracing::error!(tls = self.name, error, "new certificates are refused; the former stay in use");
        }
    }
}

/// Whatever is made of files.
pub(super) trait Watched: Send + Sync {
    /// Looks whether the files have changed, which blocks while they are read.
    fn look(&self, look: Look);
}

impl<T: Send + Sync + 'static> Watched for Reloaded<T> {
    fn look(&self, look: Look) {
        let contents: Vec<Content> = self.files.iter().map(NamedFile::read).collect();
        let identity = Identity::of(&contents);
        {
            let mut state = lock(&self.state);
            if state.identity == identity {
                state.refused = None;
                return;
            }
        }
        match (self.make)(&contents) {
            Ok(made) => self.adopt(identity, made),
            Err(error) => self.refuse(identity, look, &error),
        }
    }
}

/// All that is in use. Listeners and clients are made in many places; the one task that looks after their files belongs to none.
static WATCHED: Mutex<Vec<Weak<dyn Watched>>> = Mutex::new(Vec::new());

/// Looks after the files of all listeners and clients, at SIGHUP at once, until `shutdown`.
///
/// # Errors
/// When signals cannot be received.
pub async fn watch(shutdown: Shutdown) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context(|| "listen for SIGHUP")?;
    loop {
        let look = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(POLL) => Look::Periodic,
            _ = hangup.recv() => Look::Asked,
        };
        let all: Vec<_> = lock(&WATCHED).iter().filter_map(Weak::upgrade).collect();
        if look == Look::Asked {
            tracing::info!(count = all.len(), "certificates are looked at, since SIGHUP asks for it");
        }
        if all.is_empty() {
            continue;
        }
        tasks::blocking(move || {
            all.iter().for_each(|watched| watched.look(look));
            Ok(())
        })
        .await?;
    }
}

fn tell_ends(name: &str, ends: &[(&'static str, End)]) {
    for (of, end) in ends {
        metrics::TLS_EXPIRY.with_label_values(&[name, of]).set(end.unix_seconds());
    }
}

/// What the locks protect is whole between any two steps, so a poisoned one is as good as a clean one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
