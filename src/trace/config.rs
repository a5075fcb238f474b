//! `[trace]`, and the standard variables of the environment, which are above it.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tls;

/// `[trace]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where spans are sent, as in `http://collector.example:4317`. Unset: nowhere, unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
    pub endpoint: Option<String>,
    pub protocol: Protocol,
    /// The share of traces that are kept, from 0 to 1. All calls of a build are of one trace, which is kept whole or not at all.
    pub sample: f64,
    /// Whom to trust at an endpoint at `https://`, and what to show there. Unset: the authorities of the system, and nothing.
    pub tls: Option<tls::Client>,
}

/// How spans are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// OTLP over gRPC, by custom at port 4317.
    Grpc,
    /// OTLP as protobuf over HTTP, by custom at port 4318; `/v1/traces` is added to an endpoint without a path.
    Http,
}

impl Default for Config {
    fn default() -> Self {
        Self { endpoint: None, protocol: Protocol::Grpc, sample: 1.0, tls: None }
    }
}

/// What holds, when the environment was asked, too.
#[derive(Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) endpoint: String,
    pub(super) protocol: Protocol,
    pub(super) sample: f64,
    /// Whether a caller that sends a trace decides for it.
    pub(super) follows_callers: bool,
}

impl Config {
    /// What is wrong with the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(0.0..=1.0).contains(&self.sample) {
            problems.push(format!("trace.sample is a share from 0 to 1, not {}", self.sample));
        }
        if let Some(endpoint) = &self.endpoint {
            let address = endpoint.parse::<http::Uri>().ok();
            let scheme = address.as_ref().and_then(http::Uri::scheme_str);
            if !matches!(scheme, Some("http" | "https")) {
                problems.push("trace.endpoint is an address that begins with http:// or https://".to_owned());
            }
            if scheme == Some("http") && self.tls.is_some() {
                problems.push("trace.tls: trace.endpoint is reached without TLS".to_owned());
            }
        }
        problems.extend(self.tls.iter().flat_map(|tls| tls.check("trace.tls")));
        problems
    }

    /// What holds where `variable` gives the variables of the environment; none when nothing is to be exported.
    ///
    /// # Errors
    /// `Invalid` with the variable whose value we do not understand.
    pub(super) fn settle(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Settings>> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let of_traces = |last: &str| {
            let general = format!("OTEL_EXPORTER_OTLP_{last}");
            variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{last}")).or_else(|| variable(&general))
        };
        let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let exporter = variable("OTEL_TRACES_EXPORTER");
        match exporter.as_deref() {
            Some("none") => return Ok(None),
            None | Some("otlp") => {}
            Some(other) => return Err(unknown("OTEL_TRACES_EXPORTER", other, "otlp, none")),
        }
        // The variable for traces alone has the whole address, the general one what all signals have in common.
        let exact = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let common = variable("OTEL_EXPORTER_OTLP_ENDPOINT").or_else(|| self.endpoint.clone());
        if is_off || (exact.is_none() && common.is_none()) {
            return Ok(None);
        }
        let protocol = match of_traces("PROTOCOL").as_deref() {
            None => self.protocol,
            Some("grpc") => Protocol::Grpc,
            Some("http/protobuf") => Protocol::Http,
            Some(other) => return Err(unknown("OTEL_EXPORTER_OTLP_PROTOCOL", other, "grpc, http/protobuf")),
        };
        let (sample, follows_callers) = self.sampling(variable)?;
        let endpoint = exact.or_else(|| common.map(|common| full(&common, protocol))).unwrap_or_default();
        Ok(Some(Settings { endpoint, protocol, sample, follows_callers }))
    }

    fn sampling(&self, variable: impl Fn(&str) -> Option<String>) -> Result<(f64, bool)> {
        let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else { return Ok((self.sample, true)) };
        let (kind, follows) = match sampler.strip_prefix("parentbased_") {
            Some(kind) => (kind, true),
            None => (&*sampler, false),
        };
        let known = "always_on, always_off, traceidratio, and each of them behind parentbased_";
        let share = match kind {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => share(variable("OTEL_TRACES_SAMPLER_ARG"))?,
            _ => return Err(unknown("OTEL_TRACES_SAMPLER", &sampler, known)),
        };
        Ok((share, follows))
    }
}

/// The standard's own default is everything.
fn share(text: Option<String>) -> Result<f64> {
    let Some(text) = text else { return Ok(1.0) };
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| unknown("OTEL_TRACES_SAMPLER_ARG", &text, "numbers from 0 to 1"))
}

fn unknown(variable: &str, value: &str, known: &str) -> Error {
    Error::invalid(format!("{variable}: `{value}` is not one of those that are understood: {known}"))
}

/// The address that OTLP over HTTP is sent to.
fn full(endpoint: &str, protocol: Protocol) -> String {
    let has_path = endpoint.parse::<http::Uri>().is_ok_and(|uri| uri.path().len() > 1);
    if protocol == Protocol::Grpc || has_path {
        return endpoint.to_owned();
    }
    format!("{}/v1/traces", endpoint.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(config: &Config, variables: &[(&str, &str)]) -> Result<Option<Settings>> {
        config.settle(|name| {
            variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn to(endpoint: &str) -> Config {
        Config { endpoint: Some(endpoint.to_owned()), ..Config::default() }
    }

    #[test]
    fn nothing_is_exported_unless_something_says_where_to() {
        let off = [
            (Config::default(), &[][..]),
            (to("http://a:1"), &[("OTEL_SDK_DISABLED", "true")]),
            (to("http://a:1"), &[("OTEL_TRACES_EXPORTER", "none")]),
            (Config::default(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]),
        ];
        for (config, variables) in off {
            assert_eq!(settled(&config, variables).unwrap(), None, "{variables:?}");
        }
        let of_file = settled(&to("http://a:1"), &[]).unwrap().unwrap();
        assert_eq!(of_file.endpoint, "http://a:1");
        assert!(of_file.follows_callers && of_file.sample == 1.0);
    }

    #[test]
    fn the_environment_is_above_the_file() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:2"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let settings = settled(&to("http://a:1"), &variables).unwrap().unwrap();
        let expected = Settings {
            endpoint: "http://b:2".into(),
            protocol: Protocol::Http,
            sample: 0.25,
            follows_callers: false,
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn a_path_is_added_where_http_needs_one() {
        for (endpoint, full) in [
            ("http://a:1", "http://a:1/v1/traces"),
            ("http://a:1/", "http://a:1/v1/traces"),
            ("http://a/x", "http://a/x"),
        ] {
            let config = Config { protocol: Protocol::Http, ..to(endpoint) };
            assert_eq!(settled(&config, &[]).unwrap().unwrap().endpoint, full);
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (name, value) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
        ] {
            let error = settled(&to("http://a:1"), &[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        let wrong = Config { endpoint: Some("collector:4317".to_owned()), sample: 2.0, ..Config::default() };
        assert_eq!(wrong.check().len(), 2);
    }
}
