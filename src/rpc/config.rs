//! Limits of the services that clients may meet.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[execution]`: how long actions may run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The time an action may run when it names none.
    #[serde(with = "humantime_serde")]
    pub timeout_default: Duration,
    /// The longest time an action may ask for; REv2 demands that longer ones are refused.
    #[serde(with = "humantime_serde")]
    pub timeout_max: Duration,
}

/// `[http]`: the cache over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Whether what is put under `/ac/` must be an action result, and is found only while all of its outputs are in the CAS.
    pub validate_results: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self { validate_results: true }
    }
}

impl Default for Config {
    fn default() -> Self {
        // Bazel's longest test timeout, `eternal`, is an hour.
        Self { timeout_default: Duration::from_secs(3600), timeout_max: Duration::from_secs(6 * 3600) }
    }
}

impl Config {
    /// What is wrong with the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.timeout_default > self.timeout_max {
            problems.push("execution: timeout_default is longer than timeout_max".to_owned());
        }
        if self.timeout_max.is_zero() {
            problems.push("execution: timeout_max is zero, so every action would be refused".to_owned());
        }
        problems
    }
}
