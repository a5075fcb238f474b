//! The log: text for people, JSON for machines, on standard error; and the spans of traces, where they are exported.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
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
    let subscriber = Registry::default().with(lines(config)?).with(trace::layer().map(only_spans));
    if subscriber.try_init().is_err() {
        tracing::debug!("the log is started already");
    }
    Ok(())
}

/// The lines of the log.
fn lines(config: &Config) -> Result<Box<dyn Layer<Registry> + Send + Sync>> {
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    Ok(match config.format {
        Format::Text => lines.with_filter(config.parse()?).boxed(),
        Format::Json => lines.json().with_filter(config.parse()?).boxed(),
    })
}

/// Shows a layer our spans alone. A filter that does not name the level up to which it lets pass makes libraries ask it of each line that they
/// would write at the most verbose level, and the store writes thousands of those for each blob.
fn only_spans<L, S>(layer: L) -> impl Layer<S>
where
    L: Layer<S>,
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let is_ours = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == trace::TARGET;
    layer.with_filter(filter_fn(is_ours).with_max_level_hint(Level::ERROR))
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::Identity;

    use super::*;

    #[test]
    fn where_traces_are_exported_no_more_lines_are_asked_for_than_are_logged() {
        for (filter, most) in
            [("off", Level::ERROR), ("warn", Level::WARN), ("info,croft=debug", Level::DEBUG)]
        {
            let config = Config { filter: filter.to_owned(), ..Config::default() };
            let subscriber =
                Registry::default().with(lines(&config).unwrap()).with(only_spans(Identity::new()));
            assert_eq!(subscriber.max_level_hint(), Some(most.into()), "{filter}");
        }
    }
}
