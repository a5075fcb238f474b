//! What an operator says about a tier in object storage.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lifecycle::Lifecycle;

/// A request that is not answered after less than this is tried again so often that a slow service gets slower.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// An S3 bucket, or one of a service that speaks S3.
///
/// Without `access_key_id` the credentials are those of the environment, of `~/.aws`, or of the machine's role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    pub bucket: String,
    /// The service's URL; by default Amazon's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// By default `AWS_REGION`, and with an `endpoint` of one's own `us-east-1`.
    #[serde(default)]
    pub region: Option<String>,
    /// The key's name; its secret is in `secret_access_key_file`.
    #[serde(default)]
    pub access_key_id: Option<String>,
    /// A file with the secret of `access_key_id`.
    #[serde(default)]
    pub secret_access_key_file: Option<PathBuf>,
    /// Whether requests go out unsigned, for a bucket that is open to the network it is in.
    #[serde(default)]
    pub skip_signature: bool,
    #[serde(default)]
    pub lifecycle: Lifecycle,
    #[serde(flatten)]
    pub requests: Requests,
}

/// A bucket of Google Cloud Storage.
///
/// Without `credential_file` the credentials are those of the environment, of `gcloud`, or of the machine's service account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Gcs {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    pub bucket: String,
    /// The service's URL; by default Google's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// A file with a service account's key, in JSON.
    #[serde(default)]
    pub credential_file: Option<PathBuf>,
    /// Whether requests go out unsigned, for a bucket that is open to the network it is in.
    #[serde(default)]
    pub skip_signature: bool,
    #[serde(default)]
    pub lifecycle: Lifecycle,
    #[serde(flatten)]
    pub requests: Requests,
}

/// A container of Azure Blob Storage.
///
/// Without `account_key_file` the credentials are those of the environment or of the machine's managed identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Azure {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    pub container: String,
    /// The storage account.
    pub account: String,
    /// The service's URL; by default `https://ACCOUNT.blob.core.windows.net`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// A file with the account's key.
    #[serde(default)]
    pub account_key_file: Option<PathBuf>,
    /// Whether requests go out unsigned, for a container that is open to the network it is in.
    #[serde(default)]
    pub skip_signature: bool,
    #[serde(default)]
    pub lifecycle: Lifecycle,
    #[serde(flatten)]
    pub requests: Requests,
}

/// A directory on a file system that several machines mount. Nothing is ever deleted from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fs {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    pub path: PathBuf,
    #[serde(flatten)]
    pub requests: Requests,
}

/// How a service is asked: the same for all of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Requests {
    /// What all objects' names begin with, as `farm/cas`; by default nothing.
    pub prefix: String,
    /// Requests that wait for an answer at the same time.
    pub requests_max: NonZeroUsize,
    /// How long one attempt of a request, or one chunk of an answer, may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Whether an `endpoint` may be `http://`, where anyone on the way reads and changes what is sent.
    pub allow_http: bool,
    /// How long it is remembered that an object exists; no request is made for it meanwhile.
    #[serde(with = "humantime_serde")]
    pub existence_ttl: Duration,
    /// Objects whose existence is remembered in memory, at 20 bytes each (20 MB a million). The disk remembers the others.
    pub existence_max: NonZeroUsize,
}

/// One of the services.
#[derive(Debug, Clone, Copy)]
pub enum Provider<'a> {
    S3(&'a S3),
    Gcs(&'a Gcs),
    Azure(&'a Azure),
    Fs(&'a Fs),
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            requests_max: NonZeroUsize::new(64).expect("it is not zero"),
            timeout: Duration::from_secs(30),
            allow_http: false,
            existence_ttl: Duration::from_secs(24 * 3600),
            existence_max: NonZeroUsize::new(2_000_000).expect("it is not zero"),
        }
    }
}

impl S3 {
    /// Every problem of the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Provider::S3(self).problems();
        problems.extend(is_empty("bucket", &self.bucket));
        if self.access_key_id.is_some() != self.secret_access_key_file.is_some() {
            problems
                .push("access_key_id and secret_access_key_file are given together or not at all".to_owned());
        }
        problems.extend(is_relative("secret_access_key_file", self.secret_access_key_file.as_deref()));
        problems
    }
}

impl Gcs {
    /// Every problem of the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Provider::Gcs(self).problems();
        problems.extend(is_empty("bucket", &self.bucket));
        problems.extend(is_relative("credential_file", self.credential_file.as_deref()));
        problems
    }
}

impl Azure {
    /// Every problem of the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Provider::Azure(self).problems();
        problems.extend(is_empty("container", &self.container));
        problems.extend(is_empty("account", &self.account));
        problems.extend(is_relative("account_key_file", self.account_key_file.as_deref()));
        problems
    }
}

impl Fs {
    /// Every problem of the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Provider::Fs(self).problems();
        problems.extend(is_relative("path", Some(&self.path)));
        problems
    }
}

impl<'a> Provider<'a> {
    /// Every problem of the values, one sentence each.
    pub fn check(self) -> Vec<String> {
        match self {
            Self::S3(config) => config.check(),
            Self::Gcs(config) => config.check(),
            Self::Azure(config) => config.check(),
            Self::Fs(config) => config.check(),
        }
    }

    /// The tier's label: its own name, or the service's.
    pub fn label(self) -> &'a str {
        let name = match self {
            Self::S3(config) => &config.name,
            Self::Gcs(config) => &config.name,
            Self::Azure(config) => &config.name,
            Self::Fs(config) => &config.name,
        };
        name.as_deref().unwrap_or(self.service())
    }

    /// What the service is called in the configuration.
    pub fn service(self) -> &'static str {
        match self {
            Self::S3(_) => "s3",
            Self::Gcs(_) => "gcs",
            Self::Azure(_) => "azure",
            Self::Fs(_) => "fs",
        }
    }

    pub(super) fn requests(self) -> &'a Requests {
        match self {
            Self::S3(config) => &config.requests,
            Self::Gcs(config) => &config.requests,
            Self::Azure(config) => &config.requests,
            Self::Fs(config) => &config.requests,
        }
    }

    /// The bucket's rules; a directory has none.
    pub(super) fn lifecycle(self) -> Option<&'a Lifecycle> {
        match self {
            Self::S3(config) => Some(&config.lifecycle),
            Self::Gcs(config) => Some(&config.lifecycle),
            Self::Azure(config) => Some(&config.lifecycle),
            Self::Fs(_) => None,
        }
    }

    fn endpoint(self) -> Option<&'a str> {
        match self {
            Self::S3(config) => config.endpoint.as_deref(),
            Self::Gcs(config) => config.endpoint.as_deref(),
            Self::Azure(config) => config.endpoint.as_deref(),
            Self::Fs(_) => None,
        }
    }

    /// Problems of what the services have in common.
    fn problems(self) -> Vec<String> {
        let mut problems = self.requests().problems();
        if let Some(endpoint) = self.endpoint() {
            if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
                problems.push("endpoint must begin with https:// or http://".to_owned());
            }
            if endpoint.starts_with("http://") && !self.requests().allow_http {
                problems.push("endpoint is not encrypted: allow_http = true allows that".to_owned());
            }
        }
        if let Some(lifecycle) = self.lifecycle() {
            problems.extend(lifecycle.problems(self));
        }
        problems
    }
}

impl Requests {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.prefix.split('/').any(|part| part.is_empty() || part == ".." || part == ".")
            && !self.prefix.is_empty()
        {
            problems.push("prefix must be names with single slashes between them".to_owned());
        }
        if self.timeout < TIMEOUT_MIN {
            problems.push(format!("timeout must be at least {} s", TIMEOUT_MIN.as_secs()));
        }
        problems
    }
}

fn is_empty(key: &str, value: &str) -> Option<String> {
    value.is_empty().then(|| format!("{key} must not be empty"))
}

fn is_relative(key: &str, path: Option<&Path>) -> Option<String> {
    path.is_some_and(|path| !path.is_absolute()).then(|| format!("{key} must be an absolute path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_enough() {
        let config: S3 = toml::from_str("bucket = \"cas\"").unwrap();
        assert_eq!(config.check(), Vec::<String>::new());
        assert_eq!(config.requests, Requests::default());
        assert_eq!(Provider::S3(&config).label(), "s3");
    }

    #[test]
    fn common_and_own_settings_stand_side_by_side_and_are_written_back() {
        let text = "name = \"cloud\"\nbucket = \"cas\"\nprefix = \"farm/cas\"\nrequests_max = 8\ntimeout = \"5s\"\n\
                    [lifecycle]\nexpire_after = \"never\"\n";
        let config: Gcs = toml::from_str(text).unwrap();
        assert_eq!(config.check(), Vec::<String>::new());
        assert_eq!((config.requests.prefix.as_str(), config.requests.requests_max.get()), ("farm/cas", 8));
        let again: Gcs = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let error = toml::from_str::<S3>("bucket = \"cas\"\nsecret_access_key = \"x\"").unwrap_err();
        assert!(error.to_string().contains("secret_access_key"), "{error}");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = "bucket = \"\"\nendpoint = \"http://127.0.0.1:9\"\naccess_key_id = \"x\"\nprefix = \"/x\"\ntimeout = \"1ms\"\n\
                    [lifecycle]\nrefresh_after = \"300 days\"\n";
        let problems = toml::from_str::<S3>(text).unwrap().check();
        assert_eq!(problems.len(), 6, "{problems:?}");
    }
}
