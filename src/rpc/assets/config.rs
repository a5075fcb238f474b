//! What an operator says about assets that are fetched from elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::origins::Origins;

/// `[asset]`: which origins may be asked, and how much they may send.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Beginnings of the URLs that may be fetched, such as `https://github.com/bazelbuild/`; none named means that no origin is
    /// asked and only what was pushed is known. Redirects must lead to one of them too.
    pub allow: Vec<String>,
    /// Whether origins may have loopback, link-local and private addresses.
    pub allow_private: bool,
    /// Certificates, in PEM, of authorities to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The largest asset, and the most that an archive may unpack to.
    pub size_max: ByteSize,
    /// The longest time one fetch may take; what a request asks for beyond it is cut.
    #[serde(with = "humantime_serde")]
    pub timeout_max: Duration,
    /// Fetches from origins at the same time; more wait.
    pub concurrency: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            allow_private: false,
            ca_file: None,
            size_max: ByteSize::gib(4),
            timeout_max: Duration::from_secs(30 * 60),
            concurrency: 32,
        }
    }
}

impl Config {
    /// What is wrong with the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems: Vec<String> = Origins::parse(&self.allow).err().unwrap_or_default();
        if self.timeout_max.is_zero() {
            problems.push("asset: timeout_max is zero, so every fetch would fail".to_owned());
        }
        if self.size_max.as_u64() == 0 {
            problems.push("asset: size_max is zero, so every fetch would fail".to_owned());
        }
        if self.concurrency == 0 {
            problems.push("asset: concurrency is zero, so every fetch would wait for ever".to_owned());
        }
        problems
    }
}
