//! A leaf in object storage: S3, Google Cloud Storage, Azure Blob Storage, or a directory that is shared, all through OpenDAL.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Store;
use crate::error::{Error, Kind, Result};

/// An S3 bucket, or one of a service that speaks S3.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    pub bucket: String,
}

/// A bucket of Google Cloud Storage.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Gcs {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    pub bucket: String,
}

/// A container of Azure Blob Storage.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Azure {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    pub container: String,
}

/// A directory on a file system that several machines mount.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fs {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    pub path: std::path::PathBuf,
}

/// One of the services.
#[derive(Debug, Clone, Copy)]
pub enum Provider<'a> {
    S3(&'a S3),
    Gcs(&'a Gcs),
    Azure(&'a Azure),
    Fs(&'a Fs),
}

/// Opens the tier. What it remembers of existence is kept in `state`, a directory of its own. No request is made.
///
/// # Errors
/// `Invalid` when the configuration cannot be right.
pub fn open(provider: Provider<'_>, state: &Path) -> Result<Arc<dyn Store>> {
    let _ = (provider, state);
    Err(Error::new(Kind::Unsupported, "object storage"))
}
