//! What an audit has found: plain values, ready to be printed or sent as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::locate::Location;

/// What came of one audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All outputs are the same.
    Same,
    /// The action gives other outputs when it runs again.
    Differs,
    /// Nothing can be said: the result or its inputs are gone, or the action did not run to its end.
    Failed,
}

/// One action that was run again, or should have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Larger is later; unique while the process lives.
    pub number: u64,
    pub instance: String,
    /// The digest of the action, with its function.
    pub action: String,
    /// The first words of its command; empty when that is gone.
    pub command: String,
    pub outcome: Outcome,
    /// The worker of the cached result; empty when the result does not say.
    pub first_worker: String,
    /// The worker of the second run; empty when there was none.
    pub second_worker: String,
    /// What differs, by path, at most 100.
    pub differences: Vec<Difference>,
    /// Differences that are not in `differences`.
    pub unlisted: usize,
    /// Why nothing can be said; empty otherwise.
    pub failure: String,
    /// When it ended, in seconds since 1970.
    pub ended_seconds: u64,
}

/// One thing that differs between the cached result and the second run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The path of the output from the working directory; empty for what the action as a whole did.
    pub path: String,
    pub change: Change,
    /// Where the contents differ, if they do and it could be found.
    pub location: Option<Location>,
}

/// In what the second run differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Content,
    /// The second run did not make it.
    Absent,
    /// Only the second run made it.
    Added,
    /// A file in one run, a symlink or a directory in the other.
    Type,
    Executable,
    /// The permissions, where the action asked for them to be kept.
    Mode,
    /// Where the symlink leads.
    Target {
        before: String,
        again: String,
    },
    /// The second run failed.
    ExitCode {
        again: i32,
    },
    Stdout,
    Stderr,
}

impl Outcome {
    /// A label of the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Differs => "differs",
            Self::Failed => "failed",
        }
    }
}

impl Change {
    /// Whether other actions or clients get something else by it. What is printed is only read by people, and often has times in it.
    pub fn matters(&self) -> bool {
        !matches!(self, Self::Stdout | Self::Stderr)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content => f.write_str("other content"),
            Self::Absent => f.write_str("not made by the second run"),
            Self::Added => f.write_str("made by the second run only"),
            Self::Type => f.write_str("another type of file"),
            Self::Executable => f.write_str("executable in one run only"),
            Self::Mode => f.write_str("other permissions"),
            Self::Target { before, again } => write!(f, "leads to `{before}`, then to `{again}`"),
            Self::ExitCode { again } => write!(f, "the second run ended with exit code {again}"),
            Self::Stdout => f.write_str("other standard output (no output of the action)"),
            Self::Stderr => f.write_str("other standard error (no output of the action)"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}", self.change)?;
        match &self.location {
            Some(location) => write!(f, ", {location}"),
            None => Ok(()),
        }
    }
}
