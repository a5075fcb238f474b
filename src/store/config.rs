//! What an operator says about storage.

use std::path::PathBuf;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Below this the index alone would fill the store.
const SIZE_MIN: ByteSize = ByteSize::mib(64);

/// Where blobs are kept and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory of the blobs; by default `cas` in the farm's state directory.
    pub path: Option<PathBuf>,
    /// The bytes that the blobs may take on the disk; by default half of what the disk has to give.
    pub size: Option<ByteSize>,
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
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_told_at_once() {
        let config = Config { path: Some("cas".into()), size: Some(ByteSize::kib(1)) };
        assert_eq!(config.check().len(), 2);
        assert_eq!(Config::default().check(), Vec::<String>::new());
    }
}
