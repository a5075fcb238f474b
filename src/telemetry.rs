//! The log: text for people, JSON for machines, on standard error; and the spans of traces, where they are exported.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::error::{Error, Result};
use crate::trace;

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

/// Starts the log, and the making of spans if traces are exported by now ([`trace::Export`]). Once a process; a second call changes nothing.
///
/// # Errors
/// `Invalid` for a filter that does not parse.
pub fn start(config: &Config) -> Result<()> {
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        Format::Text => lines.with_filter(config.parse()?).boxed(),
        Format::Json => lines.json().with_filter(config.parse()?).boxed(),
    };
    let spans = trace::layer().map(|layer| {
        layer.with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == trace::TARGET))
    });
    if tracing_subscriber::registry().with(lines).with(spans).try_init().is_err() {
        tracing::debug!("the log is started already");
    }
    Ok(())
}
