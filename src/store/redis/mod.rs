//! A leaf in Redis or Valkey: small blobs for a while, shared by several servers.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::error::{Error, Kind, Result};

/// What an operator says about a Redis tier.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    /// `redis://host:port/database`.
    pub url: String,
    /// The largest blob that is kept there.
    #[serde(default = "blob_max")]
    pub blob_max: ByteSize,
    /// How long a blob is kept after it was put or found.
    #[serde(default = "ttl", with = "humantime_serde")]
    pub ttl: Duration,
}

fn blob_max() -> ByteSize {
    ByteSize::kib(64)
}

fn ttl() -> Duration {
    Duration::from_secs(7 * 24 * 3600)
}

/// Opens the tier; the connection is made when it is needed and again when it breaks.
///
/// # Errors
/// `Invalid` when the URL cannot be right.
pub fn open(config: &Config) -> Result<Arc<dyn Store>> {
    let _ = config;
    Err(Error::new(Kind::Unsupported, "redis"))
}
