//! What an operator says about a tier of other servers.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};

use crate::credential;
use crate::proto::is_instance_name;
use crate::tls;

/// Connections to one server that are still worth their sockets.
const CONNECTIONS_MAX: usize = 64;

/// Other REv2 servers as one tier.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    /// The servers, as `http://host:port`, or all of them as `https://host:port` or `grpcs://host:port` with TLS. The text also decides which blobs a shard gets: another name for a server moves them.
    pub endpoints: Vec<String>,
    /// How blobs are spread over them.
    #[serde(default)]
    pub mode: Mode,
    /// The instance name under which blobs are kept there. Action results keep their own.
    #[serde(default)]
    pub instance: String,
    /// Connections to each server; one connection does not fill a fast network.
    #[serde(default = "connections")]
    pub connections: usize,
    /// With `mode = "replicas"`: how many must have stored a blob before the write is acknowledged; by default all of them.
    #[serde(default)]
    pub replicas_min: Option<usize>,
    /// How long a connection may take to come about, as in `3 s`.
    #[serde(default = "connect_timeout", with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long a server may take for an answer, or for one piece of a blob, as in `30 s`.
    #[serde(default = "timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// TLS to servers that are named so. Unset: the authorities of the system, and no certificate of its own.
    #[serde(default)]
    pub tls: Option<tls::Client>,
    /// The file of the token that the servers are shown, for servers that know their clients by tokens.
    #[serde(default)]
    pub token: Option<PathBuf>,
}

/// How blobs are spread over several servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Each blob on one of them (rendezvous hashing): a server that comes or goes moves only its share.
    #[default]
    Shards,
    /// Each blob on all of them; read from any, repaired when a reader finds it missing on one.
    Replicas,
}

fn connections() -> usize {
    4
}

fn connect_timeout() -> Duration {
    Duration::from_secs(3)
}

fn timeout() -> Duration {
    Duration::from_secs(30)
}

impl Config {
    /// The defaults for these servers.
    pub fn new(endpoints: Vec<String>, mode: Mode) -> Self {
        Self {
            name: None,
            endpoints,
            mode,
            instance: String::new(),
            connections: connections(),
            replicas_min: None,
            connect_timeout: connect_timeout(),
            timeout: timeout(),
            tls: None,
            token: None,
        }
    }

    /// Every problem of the configuration, as sentences for the operator.
    pub fn check(&self) -> Vec<String> {
        let mut problems: Vec<String> =
            self.endpoints.iter().filter_map(|text| endpoint_problem(text)).collect();
        if self.endpoints.is_empty() {
            problems.push("a farm tier needs at least one of `endpoints`".to_owned());
        }
        let distinct: HashSet<&String> = self.endpoints.iter().collect();
        if distinct.len() < self.endpoints.len() {
            problems.push("a farm tier names one of its `endpoints` twice".to_owned());
        }
        if !is_instance_name(&self.instance) {
            problems.push(format!("a farm tier: `{}` is no valid instance name", self.instance));
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            problems.push(format!("a farm tier: `connections` must be from 1 to {CONNECTIONS_MAX}"));
        }
        if self.connect_timeout.is_zero() || self.timeout.is_zero() {
            problems.push("a farm tier: `connect_timeout` and `timeout` must be above zero".to_owned());
        }
        problems.extend(self.replicas_problem());
        problems.extend(self.tls.iter().flat_map(|tls| tls.check("tls")));
        problems.extend(self.token_problems());
        let with_tls = self.endpoints.iter().filter(|endpoint| is_with_tls(endpoint)).count();
        if self.tls.is_some() && with_tls < self.endpoints.len() {
            problems
                .push("a farm tier has `tls`, so all of its `endpoints` must begin with https://".to_owned());
        }
        problems
    }

    /// How its servers are connected to with TLS; none when all are without.
    pub fn effective_tls(&self) -> Option<tls::Client> {
        let is_needed = self.endpoints.iter().any(|endpoint| is_with_tls(endpoint));
        is_needed.then(|| self.tls.clone().unwrap_or_default())
    }

    fn token_problems(&self) -> Vec<String> {
        let Some(token) = &self.token else { return Vec::new() };
        let uris = self.endpoints.iter().filter_map(|endpoint| endpoint.parse::<Uri>().ok());
        let plain: Vec<Uri> = uris.filter(|uri| uri.scheme_str() == Some("http")).collect();
        credential::problems("a farm tier", token, plain.iter().filter_map(Uri::host))
    }

    fn replicas_problem(&self) -> Option<String> {
        let minimum = self.replicas_min?;
        match self.mode {
            Mode::Shards => {
                Some("a farm tier of shards keeps each blob once: drop `replicas_min`".to_owned())
            }
            Mode::Replicas if (1..=self.endpoints.len()).contains(&minimum) => None,
            Mode::Replicas => {
                let count = self.endpoints.len();
                Some(format!(
                    "a farm tier: `replicas_min` must be from 1 to {count}, the number of its endpoints"
                ))
            }
        }
    }
}

fn endpoint_problem(text: &str) -> Option<String> {
    let uri: Option<Uri> = text.parse().ok();
    let authority = uri.as_ref().and_then(Uri::authority).map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Some("a farm tier: an endpoint must not carry a user name or password".to_owned());
    }
    let is_right = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https" | "grpcs"))
            && uri.port_u16().is_some()
            && uri.path() == "/"
            && uri.query().is_none()
    });
    (!is_right).then(|| {
        format!("a farm tier: endpoint `{text}` is not of the form http://host:port or https://host:port")
    })
}

/// Whether a server is connected to with TLS.
pub(super) fn is_with_tls(endpoint: &str) -> bool {
    ["https://", "grpcs://"].iter().any(|scheme| endpoint.starts_with(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(endpoints: &[&str]) -> Config {
        Config::new(endpoints.iter().map(|text| (*text).to_owned()).collect(), Mode::Shards)
    }

    #[test]
    fn defaults_are_right_and_unknown_keys_stop() {
        let config: Config = toml::from_str("endpoints = [\"http://a:1\"]").unwrap();
        assert_eq!(config, endpoints(&["http://a:1"]));
        assert_eq!(config.check(), Vec::<String>::new());
        assert!(toml::from_str::<Config>("endpoints = []\nendpoint = \"http://a:1\"").is_err());
    }

    #[test]
    fn wrong_endpoints_are_told_each_with_its_reason() {
        let cases = [
            ("grpc://a:1", "not of the form"),
            ("http://a", "not of the form"),
            ("a:1", "not of the form"),
            ("http://a:1/path", "not of the form"),
            ("grpcs://a", "not of the form"),
            ("http://me:secret@a:1", "user name"),
        ];
        for (text, reason) in cases {
            let problems = endpoints(&[text]).check();
            assert!(problems.len() == 1 && problems[0].contains(reason), "{text}: {problems:?}");
            assert!(!problems[0].contains("secret"));
        }
        assert_eq!(endpoints(&[]).check().len(), 1);
        assert_eq!(endpoints(&["http://a:1", "http://a:1"]).check().len(), 1);
    }

    #[test]
    fn tls_is_for_all_servers_of_a_tier_or_for_none() {
        let with_tls = |text: &[&str]| Config { tls: Some(tls::Client::default()), ..endpoints(text) };
        assert_eq!(with_tls(&["https://a:1", "grpcs://b:1"]).check(), Vec::<String>::new());
        assert_eq!(with_tls(&["https://a:1", "http://b:1"]).check().len(), 1);
        assert_eq!(endpoints(&["https://a:1"]).effective_tls(), Some(tls::Client::default()));
        assert_eq!(endpoints(&["http://a:1"]).effective_tls(), None);
    }

    #[test]
    fn all_other_problems_are_told_at_once() {
        let config = Config {
            instance: "a//b".to_owned(),
            connections: 0,
            replicas_min: Some(1),
            timeout: Duration::ZERO,
            ..endpoints(&["http://a:1"])
        };
        assert_eq!(config.check().len(), 4);
        for (minimum, count) in [(0, 1), (1, 0), (2, 0), (3, 1)] {
            let endpoints = vec!["http://a:1".to_owned(), "http://b:1".to_owned()];
            let config = Config { replicas_min: Some(minimum), ..Config::new(endpoints, Mode::Replicas) };
            assert_eq!(config.check().len(), count, "{minimum}");
        }
    }
}
