//! What an operator says about storage: an ordered list of tiers, fast to slow.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::{farm, object, redis};

/// Below this the index alone would fill the store.
const SIZE_MIN: ByteSize = ByteSize::mib(64);

/// Where blobs are kept and how many.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The directory of the one disk tier when no tier is listed; by default `cas` in the farm's state directory.
    pub path: Option<PathBuf>,
    /// The bytes that it may take on the disk; by default half of what the disk has to give.
    pub size: Option<ByteSize>,
    /// How long a blob stays that was reported present.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// When a write is acknowledged.
    pub write: Write,
    /// The tiers, fast to slow.
    #[serde(rename = "tier")]
    pub tiers: Vec<Tier>,
}

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Write {
    /// When it is in every durable tier.
    #[default]
    Through,
    /// When it is in the first durable tier; a journal that survives a crash brings it to the others.
    Back,
}

/// One tier.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Tier {
    Memory(Memory),
    Disk(Disk),
    Redis(redis::Config),
    S3(object::S3),
    Gcs(object::Gcs),
    Azure(object::Azure),
    Fs(object::Fs),
    Farm(farm::Config),
}

/// A tier in memory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    /// The bytes that it may hold.
    pub size: ByteSize,
}

/// A tier on the local disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// The tier's label in metrics and logs.
    pub name: Option<String>,
    /// The directory of the blobs; by default `cas` in the farm's state directory.
    pub path: Option<PathBuf>,
    /// The bytes that it may take on the disk; by default half of what the disk has to give.
    pub size: Option<ByteSize>,
    /// Whether blobs are compressed where that saves space.
    pub compression: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: None,
            size: None,
            lease: Duration::from_secs(3 * 3600),
            write: Write::default(),
            tiers: Vec::new(),
        }
    }
}

impl Config {
    /// Every problem of the configuration, as sentences for the operator.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.path.as_ref().is_some_and(|path| !path.is_absolute()) {
            problems.push("storage.path must be an absolute path".to_owned());
        }
        if self.size.is_some_and(|size| size < SIZE_MIN) {
            problems.push(format!("storage.size must be at least {SIZE_MIN}"));
        }
        let named = self.object_tiers().into_iter().flat_map(|tier| {
            tier.check().into_iter().map(move |problem| format!("storage tier {}: {problem}", tier.label()))
        });
        problems.extend(named);
        problems
    }

    /// The tiers in object storage.
    pub fn object_tiers(&self) -> Vec<object::Provider<'_>> {
        let provider = |tier| match tier {
            &Tier::Memory(_) | &Tier::Disk(_) | &Tier::Redis(_) | &Tier::Farm(_) => None,
            Tier::S3(config) => Some(object::Provider::S3(config)),
            Tier::Gcs(config) => Some(object::Provider::Gcs(config)),
            Tier::Azure(config) => Some(object::Provider::Azure(config)),
            Tier::Fs(config) => Some(object::Provider::Fs(config)),
        };
        self.tiers.iter().filter_map(provider).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_told_at_once() {
        let config = Config { path: Some("cas".into()), size: Some(ByteSize::kib(1)), ..Config::default() };
        assert_eq!(config.check().len(), 2);
        assert_eq!(Config::default().check(), Vec::<String>::new());
    }
}
