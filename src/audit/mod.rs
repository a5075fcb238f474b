//! Runs cached actions again and reports what they do not give twice.
//!
//! An action whose outputs differ from run to run is what breaks remote caching: whatever depends on it is built again by everybody who
//! does not happen to have the same copy. An audit reads the cached result, has the action run again on another worker where there is one,
//! with the lowest priority and without the cache, and compares. The cached result stays as it is.

mod books;
mod compare;
mod config;
mod locate;
mod objects;
mod outputs;
mod report;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures_util::future;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::metrics;
use crate::proto::rev2::{Action, ActionResult, Command, ExecuteResponse};
use crate::store::{ActionCache, ActionKey, Cas};
use crate::tasks::Shutdown;

use self::books::{Books, Standing};
pub use self::config::Config;
pub use self::locate::Location;
pub use self::report::{Change, Difference, Outcome, Report};

/// In whose name audits run actions: as their invocation and as their identity.
pub const NAME: &str = "croft-audit";

/// Differences that one report lists, and so files that are looked into for it.
const DIFFERENCES_MAX: usize = 100;

/// Words and characters of a command that a report shows.
const WORDS_MAX: usize = 16;
const COMMAND_CHARS_MAX: usize = 200;

/// Who runs an action again.
#[async_trait]
pub trait Rerun: Send + Sync + 'static {
    /// Runs the action without the cache, on a worker that is not called `avoided` if there is one, when nothing else wants a worker.
    ///
    /// # Errors
    /// When the action cannot be run: its inputs are gone, or no worker was free for long.
    async fn rerun(&self, key: &ActionKey, avoided: &str) -> Result<ExecuteResponse>;
}

/// Takes actions to audit, audits them one after the other, and keeps the reports.
pub struct Auditor {
    config: Config,
    cas: Cas,
    action_cache: ActionCache,
    /// Held for a moment.
    books: Mutex<Books>,
    /// A permit for each action that waits.
    waiting: Semaphore,
}

/// All audits at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audits {
    pub waiting: usize,
    pub running: usize,
    /// The latest first.
    pub reports: Vec<Report>,
}

/// Where one audit stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Progress {
    Waiting,
    Running,
    Done { report: Box<Report> },
}

/// What an audit has compared.
struct Examined {
    workers: [String; 2],
    differences: Vec<Difference>,
    unlisted: usize,
    outcome: Outcome,
}

impl Auditor {
    pub fn new(config: Config, cas: Cas, action_cache: ActionCache) -> Self {
        let (books, waiting) = (Mutex::default(), Semaphore::new(0));
        Self { config, cas, action_cache, books, waiting }
    }

    /// A result was cached. It is audited if it is in the share that always is.
    pub fn noticed(&self, key: &ActionKey) {
        self.books().note_result(key);
        // When so many wait that there is no room, more would tell nothing else.
        if is_chosen(&key.digest, self.config.rate) {
            let _ = self.ask(vec![key.clone()], 0);
        }
    }

    /// Has actions audited, and up to `sample` of those whose results were cached since the start. Returns the numbers of their audits.
    ///
    /// # Errors
    /// `Exhausted` when too many wait; then none of them is audited.
    pub fn ask(&self, mut keys: Vec<ActionKey>, sample: usize) -> Result<Vec<u64>> {
        let mut books = self.books();
        keys.extend(books.sample(sample));
        let numbers = books.ask(keys)?;
        self.waiting.add_permits(numbers.len());
        Ok(numbers)
    }

    pub fn audits(&self) -> Audits {
        let books = self.books();
        Audits { waiting: books.waiting(), running: books.running(), reports: books.reports() }
    }

    /// `None` when there never was such an audit, or its report is forgotten.
    pub fn progress(&self, number: u64) -> Option<Progress> {
        Some(match self.books().standing(number)? {
            Standing::Waiting => Progress::Waiting,
            Standing::Running => Progress::Running,
            Standing::Done(report) => Progress::Done { report },
        })
    }

    /// Audits what is asked for, until `shutdown`.
    ///
    /// # Errors
    /// None; it is a part of the farm like others.
    pub async fn run(self: Arc<Self>, rerun: Arc<dyn Rerun>, shutdown: Shutdown) -> Result<()> {
        let auditing = future::join_all((0..self.config.parallel).map(|_| self.audit_all(&*rerun)));
        tokio::select! {
            _ = auditing => {}
            () = shutdown.cancelled() => {}
        }
        Ok(())
    }

    async fn audit_all(&self, rerun: &dyn Rerun) {
        loop {
            let permit = self.waiting.acquire().await.expect("nobody closes it");
            permit.forget();
            let begun = self.books().begin();
            let Some((number, key)) = begun else { continue };
            let report = self.audit(number, &key, rerun).await;
            self.publish(report);
        }
    }

    async fn audit(&self, number: u64, key: &ActionKey, rerun: &dyn Rerun) -> Report {
        let examined = self.examine(key, rerun).await;
        let mut report = Report {
            number,
            instance: printable(&key.instance),
            action: key.digest.to_string(),
            command: self.command(&key.digest).await.unwrap_or_default(),
            outcome: Outcome::Failed,
            first_worker: String::new(),
            second_worker: String::new(),
            differences: Vec::new(),
            unlisted: 0,
            failure: String::new(),
            ended_seconds: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        };
        match examined {
            Ok(Examined { workers: [first, second], differences, unlisted, outcome }) => {
                (report.first_worker, report.second_worker) = (first, second);
                (report.differences, report.unlisted, report.outcome) = (differences, unlisted, outcome);
            }
            Err(error) => report.failure = printable(&error.public_message()),
        }
        report
    }

    fn publish(&self, report: Report) {
        metrics::AUDITS.with_label_values(&[report.outcome.name()]).inc();
        let matters = report.differences.iter().filter(|difference| difference.change.matters()).count();
        metrics::AUDIT_DIFFERENCES.inc_by((matters + report.unlisted) as u64);
        if report.outcome == Outcome::Differs {
            let first = report.differences.first().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(
                action = report.action,
                differences = matters,
                first,
                "an action is not reproducible"
            );
        }
        self.books().end(report, self.config.reports_max);
    }

    async fn examine(&self, key: &ActionKey, rerun: &dyn Rerun) -> Result<Examined> {
        let absent = || Error::new(Kind::NotFound, "no complete result of the action is cached");
        let before = self.action_cache.get(key).await?.ok_or_else(absent)?;
        let first = worker(&before);
        let response = rerun.rerun(key, &first).await?;
        let again = answer(response)?;
        let mut found = compare::runs(&before, &again);
        if again.exit_code == before.exit_code {
            let (one, other) = outputs::of(&self.cas, key.digest.function(), [&before, &again]).await?;
            found.extend(compare::outputs(&one, &other));
        }
        let is_other = found.iter().any(|one| one.difference.change.matters());
        let unlisted = found.len().saturating_sub(DIFFERENCES_MAX);
        let mut differences = Vec::new();
        for one in found.into_iter().take(DIFFERENCES_MAX) {
            let location = match one.contents {
                Some(contents) => locate::find(&self.cas, contents).await?,
                None => None,
            };
            differences.push(Difference { location, ..one.difference });
        }
        let outcome = if is_other { Outcome::Differs } else { Outcome::Same };
        Ok(Examined {
            workers: [printable(&first), printable(&worker(&again))],
            differences,
            unlisted,
            outcome,
        })
    }

    /// The first words of the command, as far as they can be read.
    async fn command(&self, action: &Digest) -> Option<String> {
        let message: Action = self.cas.message(action).await.ok()??;
        let digest = Digest::from_proto(action.function(), message.command_digest.as_ref()).ok()?;
        let command: Command = self.cas.message(&digest).await.ok()??;
        let words: Vec<String> = command.arguments.into_iter().take(WORDS_MAX).collect();
        let shown: String = words.join(" ").chars().take(COMMAND_CHARS_MAX).collect();
        Some(printable(&shown))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(response: ExecuteResponse) -> Result<ActionResult> {
    if let Some(status) = response.status.filter(|status| status.code != 0) {
        return Err(Error::new(Kind::Precondition, format!("the second run failed: {}", status.message)));
    }
    response.result.ok_or_else(|| Error::bug("the second run has no result"))
}

fn worker(result: &ActionResult) -> String {
    result.execution_metadata.as_ref().map(|metadata| metadata.worker.clone()).unwrap_or_default()
}

/// Whether an action is in the share `rate` of all. The hash of a digest is as good as a die, and falls the same way every time.
fn is_chosen(digest: &Digest, rate: f64) -> bool {
    let first: &[u8; 4] = digest.hash().first_chunk().expect("no function has fewer than 8 bytes");
    f64::from(u32::from_be_bytes(*first)) < rate * 2_f64.powi(32)
}

/// The text in one line, with everything escaped that a terminal or a reader could take for something else.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}
