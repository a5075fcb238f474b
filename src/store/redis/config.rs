//! What an operator says about a Redis tier.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::tls;

/// What the URL of a server with TLS begins with.
const WITH_TLS: &str = "rediss://";

/// A blob is held whole in memory, here and there; Redis itself ends at 512 MiB and answers nobody else while it sends one.
const BLOB_MAX: ByteSize = ByteSize::mib(64);

/// Below this a blob would be gone before the build that found it has used it.
const TTL_MIN: Duration = Duration::from_secs(60);

/// Redis refuses times whose milliseconds do not fit; nobody keeps a cache this long.
const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

const CREDENTIALS: &str =
    "redis: `url` must not carry a user name or password: use `username` and `password_file`";

/// Redis or Valkey, version 6.2 or later, as a tier: one server, or one address that fails over by itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    /// `redis://host:port/database`, or `rediss://` with TLS; without credentials.
    #[serde(deserialize_with = "without_credentials")]
    pub url: String,
    /// The user, if not the default one.
    #[serde(default)]
    pub username: Option<String>,
    /// The file that holds the password, read when the tier is opened; a line break at its end does not count.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// What all keys begin with, so that others may use the same database.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// The largest blob that is kept there, in bytes.
    #[serde(default = "blob_max")]
    pub blob_max: ByteSize,
    /// How long a blob is kept after it was put or found, as in `7 days`.
    #[serde(default = "ttl", with = "humantime_serde")]
    pub ttl: Duration,
    /// How long a connection may take to come about, as in `1 s`.
    #[serde(default = "connect_timeout", with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long an answer may take, as in `5 s`.
    #[serde(default = "timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// TLS to a server at `rediss://`. Unset: the authorities of the system, and no certificate of its own.
    #[serde(default)]
    pub tls: Option<tls::Client>,
}

fn prefix() -> String {
    "croft:".to_owned()
}

fn blob_max() -> ByteSize {
    ByteSize::kib(64)
}

fn ttl() -> Duration {
    Duration::from_secs(7 * 24 * 3600)
}

fn connect_timeout() -> Duration {
    Duration::from_secs(1)
}

fn timeout() -> Duration {
    Duration::from_secs(5)
}

/// A password that is never taken in is never printed: the error does not repeat the text.
fn without_credentials<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let url = String::deserialize(deserializer)?;
    if has_credentials(&url) { Err(de::Error::custom(CREDENTIALS)) } else { Ok(url) }
}

/// Whatever has a `@` or a `pass=` is taken for one that may; neither stands in the address of a server.
fn has_credentials(url: &str) -> bool {
    url.contains('@') || url.contains("pass=")
}

impl Config {
    /// The defaults for this server.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            name: None,
            url: url.into(),
            username: None,
            password_file: None,
            prefix: prefix(),
            blob_max: blob_max(),
            ttl: ttl(),
            connect_timeout: connect_timeout(),
            timeout: timeout(),
            tls: None,
        }
    }

    /// Every problem of the configuration, as sentences for the operator.
    pub fn check(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.url_problem().into_iter().collect();
        if self.password_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            problems.push("redis: `password_file` must be an absolute path".to_owned());
        }
        if self.username.is_some() && self.password_file.is_none() {
            problems.push("redis: `username` needs a `password_file`".to_owned());
        }
        if self.prefix.is_empty() {
            problems.push("redis: `prefix` must not be empty".to_owned());
        }
        if self.blob_max > BLOB_MAX {
            problems.push(format!(
                "redis: `blob_max` must be at most {BLOB_MAX}; a slower tier takes larger blobs"
            ));
        }
        if self.ttl < TTL_MIN {
            problems.push(format!("redis: `ttl` must be at least {} s", TTL_MIN.as_secs()));
        }
        if self.ttl > TTL_MAX {
            problems.push("redis: `ttl` must be at most 10 years".to_owned());
        }
        problems.extend(self.tls.iter().flat_map(|tls| tls.check("redis: tls")));
        if self.tls.is_some() && !self.is_with_tls() {
            problems.push(format!("redis: there is `tls`, so `url` must begin with {WITH_TLS}"));
        }
        if self.connect_timeout.is_zero() || self.timeout.is_zero() {
            problems.push("redis: `connect_timeout` and `timeout` must be above zero".to_owned());
        }
        problems
    }

    /// How the server is connected to with TLS; none when it is without.
    pub fn effective_tls(&self) -> Option<tls::Client> {
        self.is_with_tls().then(|| self.tls.clone().unwrap_or_default())
    }

    fn is_with_tls(&self) -> bool {
        self.url.starts_with(WITH_TLS)
    }

    /// Where the server is. TLS is ours and not that of the library, which knows nothing of certificates that change.
    pub(super) fn address(&self) -> RedisResult<ConnectionInfo> {
        self.url.replacen(WITH_TLS, "redis://", 1).as_str().into_connection_info()
    }

    fn url_problem(&self) -> Option<String> {
        if has_credentials(&self.url) {
            return Some(CREDENTIALS.to_owned());
        }
        let is_right = self
            .address()
            .is_ok_and(|info| matches!(info.addr(), ConnectionAddr::Tcp(..) | ConnectionAddr::Unix(_)));
        // The text is not repeated: nobody knows what else has got into it.
        (!is_right).then(|| {
            "redis: `url` is not of the form redis://host:port/database, or rediss:// with TLS".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_right_and_unknown_keys_stop() {
        let config: Config = toml::from_str("url = \"redis://127.0.0.1:6379/1\"").unwrap();
        assert_eq!(config, Config::new("redis://127.0.0.1:6379/1"));
        assert_eq!(config.check(), Vec::<String>::new());
        assert!(toml::from_str::<Config>("url = \"redis://a\"\npassword = \"x\"").is_err());
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_never_repeated() {
        for url in [
            "redis://:hunter2@a:1",
            "redis://me:hunter2@a:1/0",
            "rediss://:hunter2@a",
            "unix:///s?pass=hunter2",
        ] {
            let error = toml::from_str::<Config>(&format!("url = \"{url}\"")).unwrap_err();
            assert!(
                error.message().contains("password_file") && !error.message().contains("hunter2"),
                "{error}"
            );
            let problems = Config::new(url).check();
            assert!(problems.len() == 1 && problems[0].contains("password_file"), "{problems:?}");
            assert!(!problems[0].contains("hunter2"));
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let config = Config {
            password_file: Some("secret".into()),
            prefix: String::new(),
            blob_max: ByteSize::gib(1),
            ttl: Duration::ZERO,
            timeout: Duration::ZERO,
            ..Config::new("http://a")
        };
        assert_eq!(config.check().len(), 6);
        assert_eq!(Config::new("rediss://a:1").check(), Vec::<String>::new());
        let tls = Some(tls::Client::default());
        assert_eq!(Config { tls: tls.clone(), ..Config::new("redis://a") }.check().len(), 1);
        assert_eq!(Config { tls, ..Config::new("rediss://a") }.effective_tls(), Some(tls::Client::default()));
        assert_eq!(Config { ttl: Duration::MAX, ..Config::new("redis://a") }.check().len(), 1);
        assert_eq!(Config { username: Some("me".into()), ..Config::new("redis://a") }.check().len(), 1);
    }
}
