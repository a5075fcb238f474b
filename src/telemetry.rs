//! The log: text for people, JSON for machines, on standard error.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

/// `[log]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub format: Format,
    /// What is logged: a level, or levels by module as in `info,croft::scheduler=debug`.
    pub filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { format: Format::Text, filter: "info".to_owned() }
    }
}

impl Config {
    /// What is wrong with the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        self.parse().err().map(|error| error.to_string()).into_iter().collect()
    }

    fn parse(&self) -> Result<EnvFilter> {
        EnvFilter::try_new(&self.filter)
            .map_err(|error| Error::invalid(format!("log: filter `{}`: {error}", self.filter)))
    }
}

/// Starts the log. Once a process; a second call changes nothing.
///
/// # Errors
/// `Invalid` for a filter that does not parse.
pub fn start(config: &Config) -> Result<()> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(config.parse()?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().try_init(),
    };
    if started.is_err() {
        tracing::debug!("the log is started already");
    }
    Ok(())
}
