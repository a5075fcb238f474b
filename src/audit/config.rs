//! What is audited without being asked for, and how much is kept of it.

use serde::{Deserialize, Serialize};

/// `[audit]`: actions that are run again to see whether they give the same outputs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The share of new results that is audited, from 0 to 1; by the action's digest, so that it is always the same actions.
    pub rate: f64,
    /// How many actions are audited at the same time.
    pub parallel: usize,
    /// How many reports are kept, the latest.
    pub reports_max: usize,
}

/// Audits at the same time: each may hold two outputs in memory, to see where they differ.
const PARALLEL_MAX: usize = 64;

/// Reports that may be kept: each has up to some tens of KiB.
const REPORTS_MAX: usize = 100_000;

impl Default for Config {
    fn default() -> Self {
        Self { rate: 0.0, parallel: 2, reports_max: 1000 }
    }
}

impl Config {
    /// What is wrong with the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(0.0..=1.0).contains(&self.rate) {
            problems.push(format!("audit.rate: a share is from 0 to 1, not {}", self.rate));
        }
        if !(1..=PARALLEL_MAX).contains(&self.parallel) {
            problems.push(format!("audit.parallel: from 1 to {PARALLEL_MAX}, not {}", self.parallel));
        }
        if !(1..=REPORTS_MAX).contains(&self.reports_max) {
            problems.push(format!("audit.reports_max: from 1 to {REPORTS_MAX}, not {}", self.reports_max));
        }
        problems
    }
}
