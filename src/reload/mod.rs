//! What is made of files, and is made anew when their contents change.
//!
//! The contents are compared, not times or inodes: so it makes no difference whether a file is written, renamed into its place, or
//! reached through a symlink that is swapped, as those who hand out certificates do.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::file::Identity;
use crate::error::{Context, Error, Result};
use crate::metrics;
use crate::systemd;
use crate::tasks::{self, Shutdown};

mod file;

pub use self::file::{Content, NamedFile};

/// The time between two looks at the files. They are small and few; new handshakes are to have a new certificate within 2 s.
const POLL: Duration = Duration::from_secs(1);

/// What the files are, as a label of the metric and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of a listener or a client, with keys and revocation lists.
    Certificates,
    /// What this process shows where it is a client.
    Token,
    /// Of users.
    Passwords,
    /// Of an issuer of signed tokens.
    Keys,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Certificates => "certificates",
            Self::Token => "token",
            Self::Passwords => "passwords",
            Self::Keys => "keys",
        }
    }
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Reloaded")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Makes the value of the contents of all files together.
pub type Make<T> = Box<dyn Fn(&[Content]) -> Result<T> + Send + Sync>;

/// The present value, and where the next one comes from.
pub struct Reloaded<T> {
    kind: Kind,
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
pub enum Look {
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
    pub fn new((kind, name): (Kind, String), files: Vec<NamedFile>, make: Make<T>) -> Result<Arc<Self>> {
        let contents: Vec<Content> = files.iter().map(NamedFile::read).collect();
        let value = Arc::new(make(&contents)?);
        let state = Mutex::new(State { value, identity: Identity::of(&contents), refused: None });
        let generation = watch::Sender::new(0);
        let reloaded = Arc::new(Self { kind, name, files, make, state, generation });
        let watched: Arc<dyn Watched> = reloaded.clone();
        let mut all = lock(&WATCHED);
        all.retain(|watched| watched.strong_count() > 0);
        all.push(Arc::downgrade(&watched));
        Ok(reloaded)
    }

    /// Whose it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The present value.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&lock(&self.state).value)
    }

    /// Changes with the value.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Tells of each change of the value from now on.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn adopt(&self, identity: Identity, value: T) {
        *lock(&self.state) = State { value: Arc::new(value), identity, refused: None };
        self.generation.send_modify(|generation| *generation += 1);
        tracing::info!(of = self.name, "{} were loaded anew", self.kind.name());
    }

    fn refuse(&self, identity: Identity, look: Look, error: &Error) {
        let mut state = lock(&self.state);
        let before = state.refused.filter(|before| before.identity == identity);
        let is_settled = look == Look::Asked || before.is_some();
        let was_told = look == Look::Periodic && before.is_some_and(|before| before.is_told);
        state.refused = Some(Refused { identity, is_told: is_settled });
        drop(state);
        if is_settled && !was_told {
            let kind = self.kind.name();
            metrics::RELOAD_FAILURES.with_label_values(&[kind, &self.name]).inc();
            let error = error.chain();
            tracing::error!(of = self.name, error, "new {kind} are refused; the former stay in use");
        }
    }
}

/// Whatever is made of files.
pub trait Watched: Send + Sync {
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
            Ok(value) => self.adopt(identity, value),
            Err(error) => self.refuse(identity, look, &error),
        }
    }
}

/// All that is in use. It is made in many places; the one task that looks after their files belongs to none.
static WATCHED: Mutex<Vec<Weak<dyn Watched>>> = Mutex::new(Vec::new());

/// Looks after all these files, at SIGHUP at once, until `shutdown`.
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
            systemd::reloading();
            tracing::info!(count = all.len(), "files are looked at, since SIGHUP asks for it");
        }
        tasks::blocking(move || {
            all.iter().for_each(|watched| watched.look(look));
            Ok(())
        })
        .await?;
        if look == Look::Asked {
            systemd::reloaded();
        }
    }
}

/// What the locks protect is whole between any two steps, so a poisoned one is as good as a clean one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
