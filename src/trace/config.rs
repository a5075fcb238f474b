//! `[trace]`, and the standard variables of the environment, which are above it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tls;

/// Where OTLP over HTTP takes traces.
const PATH: &str = "/v1/traces";

/// Spans that wait to be sent, unless the environment says otherwise: the standard's own number.
const QUEUE_MAX: usize = 2048;

/// How long a collector may take for a batch, unless the environment says otherwise: the standard's own time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// As many as one may ask for: a span takes about a kilobyte.
const QUEUE_LIMIT: usize = 1 << 20;

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
    /// OTLP as protobuf over HTTP, by custom at port 4318; `/v1/traces` is added to an endpoint that does not end with it.
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
    /// Spans that may wait to be sent.
    pub(super) queue: usize,
    /// How long the collector may take for a batch.
    pub(super) timeout: Duration,
    pub(super) tls: tls::Client,
}

impl Config {
    /// What is wrong with the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(0.0..=1.0).contains(&self.sample) {
            problems.push(format!("trace.sample is a share from 0 to 1, not {}", self.sample));
        }
        if let Some(endpoint) = &self.endpoint {
            if !is_http(endpoint) {
                problems.push("trace.endpoint is an address that begins with http:// or https://".to_owned());
            }
            if endpoint.starts_with("http://") && self.tls.is_some() {
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
        let variable = &|name: &str| variable(name).filter(|value| !value.is_empty());
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
        refuse_others(of_traces, variable)?;
        let (sample, follows_callers) = self.sampling(variable)?;
        let endpoint = exact.or_else(|| common.map(|common| full(&common, protocol))).unwrap_or_default();
        if !is_http(&endpoint) {
            return Err(unknown("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint, "http://…, https://…"));
        }
        let queue = match variable("OTEL_BSP_MAX_QUEUE_SIZE") {
            Some(text) => {
                let queue = text.parse().ok().filter(|queue| (1..=QUEUE_LIMIT).contains(queue));
                let known = format!("whole numbers from 1 to {QUEUE_LIMIT}");
                queue.ok_or_else(|| unknown("OTEL_BSP_MAX_QUEUE_SIZE", &text, &known))?
            }
            None => QUEUE_MAX,
        };
        let timeout = number("OTEL_EXPORTER_OTLP_TIMEOUT", of_traces("TIMEOUT"))?;
        let timeout = timeout.map_or(TIMEOUT, Duration::from_millis);
        let tls = self.tls(&endpoint, of_traces)?;
        Ok(Some(Settings { endpoint, protocol, sample, follows_callers, queue, timeout, tls }))
    }

    fn tls(&self, endpoint: &str, of_traces: impl Fn(&str) -> Option<String>) -> Result<tls::Client> {
        let certificate = of_traces("CERTIFICATE").or_else(|| of_traces("CLIENT_CERTIFICATE"));
        if let Some(path) = certificate.filter(|_| endpoint.starts_with("http://")) {
            return Err(unknown(
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
                &path,
                "none where the address is http://",
            ));
        }
        let own = self.tls.clone().unwrap_or_default();
        let path = |last: &str| of_traces(last).map(PathBuf::from);
        Ok(tls::Client {
            authorities: path("CERTIFICATE").or(own.authorities),
            certificate: path("CLIENT_CERTIFICATE").or(own.certificate),
            key: path("CLIENT_KEY").or(own.key),
            server_name: own.server_name,
        })
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

/// What would change how spans are sent and has no effect here is refused, so that nobody relies on it. The exporter itself reads the headers.
fn refuse_others(
    of_traces: impl Fn(&str) -> Option<String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<()> {
    let known: [(&str, Option<String>, &[&str]); 2] = [
        ("OTEL_EXPORTER_OTLP_COMPRESSION", of_traces("COMPRESSION"), &["none"]),
        ("OTEL_PROPAGATORS", variable("OTEL_PROPAGATORS"), &["tracecontext", "tracecontext,baggage"]),
    ];
    for (name, value, known) in known {
        if let Some(value) = value.filter(|value| !known.contains(&value.as_str())) {
            return Err(unknown(name, &value, &known.join(", ")));
        }
    }
    NUMBERS.into_iter().try_for_each(|name| number(name, variable(name)).map(drop))
}

fn number(name: &str, value: Option<String>) -> Result<Option<u64>> {
    let parsed = value.map(|text| text.parse().map_err(|_| unknown(name, &text, "whole numbers")));
    parsed.transpose()
}

/// What the SDK reads itself, and passes over where it is no number. Times are in milliseconds.
const NUMBERS: [&str; 4] = [
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_MAX_CONCURRENT_EXPORTS",
];

fn is_http(address: &str) -> bool {
    let address = address.parse::<http::Uri>().ok();
    matches!(address.as_ref().and_then(http::Uri::scheme_str), Some("http" | "https"))
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

/// The address that OTLP over HTTP is sent to, where what all signals have in common is given.
fn full(endpoint: &str, protocol: Protocol) -> String {
    let base = endpoint.trim_end_matches('/');
    if protocol == Protocol::Grpc || base.ends_with(PATH) {
        return endpoint.to_owned();
    }
    format!("{base}{PATH}")
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
            queue: 2048,
            timeout: Duration::from_secs(10),
            tls: tls::Client::default(),
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn the_path_of_traces_is_added_to_what_all_signals_have_in_common() {
        for (endpoint, full) in [
            ("http://a:1", "http://a:1/v1/traces"),
            ("http://a:1/", "http://a:1/v1/traces"),
            ("http://a/x", "http://a/x/v1/traces"),
            ("http://a/x/v1/traces", "http://a/x/v1/traces"),
        ] {
            let config = Config { protocol: Protocol::Http, ..to(endpoint) };
            assert_eq!(settled(&config, &[]).unwrap().unwrap().endpoint, full);
            let of_traces = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)];
            assert_eq!(settled(&config, &of_traces).unwrap().unwrap().endpoint, endpoint);
        }
    }

    #[test]
    fn certificates_of_the_environment_are_above_those_of_the_file() {
        let own =
            tls::Client { server_name: Some("a".into()), key: Some("own".into()), ..Default::default() };
        let config = Config { tls: Some(own), ..to("https://a:1") };
        let variables = [
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "authorities"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "key"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "certificate"),
        ];
        let expected = tls::Client {
            authorities: Some("authorities".into()),
            certificate: Some("certificate".into()),
            key: Some("key".into()),
            server_name: Some("a".into()),
        };
        assert_eq!(settled(&config, &variables).unwrap().unwrap().tls, expected);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (name, value) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_SCHEDULE_DELAY", "5s"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/without/tls"),
        ] {
            let error = settled(&to("http://a:1"), &[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        let wrong = Config { endpoint: Some("collector:4317".to_owned()), sample: 2.0, ..Config::default() };
        assert_eq!(wrong.check().len(), 2);
    }
}
