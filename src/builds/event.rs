//! What a build tool tells of a build: one event each, as far as it is kept.

use std::time::{Duration, SystemTime};

use crate::digest::Digest;

/// One thing that a client says of its build. All texts are the client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Started(Started),
    /// What the user has said on the command line or in a file, with secrets hidden.
    Options(Vec<String>),
    Workspace(Workspace),
    /// What the user has said of the build, with secrets hidden.
    Metadata(Vec<(String, String)>),
    /// What people call a configuration.
    Configuration {
        id: String,
        mnemonic: String,
    },
    /// A target will be built; it has no configuration yet.
    Configured {
        target: Target,
        kind: String,
    },
    Completed {
        target: Target,
        end: Completion,
        why: String,
    },
    Tested {
        test: Test,
        result: TestResult,
    },
    /// What all runs of a test come to.
    Summarized {
        target: Target,
        status: TestStatus,
    },
    /// Something other than a target did not come about.
    Aborted(String),
    Metrics(Metrics),
    Finished {
        exit: Exit,
        at: Option<SystemTime>,
    },
    /// Nothing follows.
    Over,
}

/// The beginning of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Started {
    /// `build`, `test`, …
    pub command: String,
    /// What the user has asked for.
    pub patterns: Vec<String>,
    /// The version of the tool.
    pub version: String,
    pub at: Option<SystemTime>,
}

/// Where a build runs; each is empty where that is not told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workspace {
    pub user: String,
    pub host: String,
}

/// The name of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    pub label: String,
    /// Empty for the target itself.
    pub aspect: String,
    /// The identifier of its configuration.
    pub configuration: String,
}

/// What became of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// It is being built, or was when the build ended.
    Pending,
    Built,
    Failed,
    /// It was not tried to the end.
    Aborted,
    /// It was not to be built: the user said so, or it does not fit the platform.
    Skipped,
}

/// Which run of which test.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Test {
    pub target: Target,
    /// From 1 on, or 0 where there is only one.
    pub run: i32,
    pub shard: i32,
    pub attempt: i32,
}

/// What became of one run of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestResult {
    pub status: TestStatus,
    pub cached: Cached,
    pub took: Option<Duration>,
    /// What the test has printed, where that is in a CAS.
    pub log: Option<Digest>,
}

/// Whether a test was run at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    No,
    /// On the client's machine.
    Locally,
    /// On a farm.
    Remotely,
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestStatus {
    Unknown,
    Passed,
    /// It passed after it had failed.
    Flaky,
    TimedOut,
    Failed,
    Incomplete,
    RemoteFailure,
    NotBuilt,
    /// The build ended before it.
    NotRun,
}

/// How the tool ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// `SUCCESS`, `BUILD_FAILURE`, …
    pub name: String,
    pub code: i32,
}

/// What the tool has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    pub actions_created: u64,
    pub actions_executed: u64,
    /// Where actions were executed, and how many: `remote`, `remote cache hit`, …
    pub runners: Vec<(String, u64)>,
    pub took: Option<Duration>,
}

impl Completion {
    /// The word for it on pages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Built => "built",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::Skipped => "skipped",
        }
    }

    pub fn is_bad(self) -> bool {
        matches!(self, Self::Failed | Self::Aborted)
    }
}

impl TestStatus {
    /// The word for it on pages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Passed => "passed",
            Self::Flaky => "flaky",
            Self::TimedOut => "timed out",
            Self::Failed => "failed",
            Self::Incomplete => "incomplete",
            Self::RemoteFailure => "remote failure",
            Self::NotBuilt => "not built",
            Self::NotRun => "not run",
        }
    }

    pub fn is_bad(self) -> bool {
        !matches!(self, Self::Unknown | Self::Passed | Self::Flaky)
    }
}
