//! The face of the action cache that the rest of the program sees.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::tree::{self, Limits};
use super::{ActionKey, Blob, Cas, Key, Store, weight};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2;

/// The largest action result, in bytes: 100,000 outputs are smaller.
pub const RESULT_MAX: u64 = 32 * 1024 * 1024;

/// What a result may take in memory: 100,000 outputs take 60 MiB. A client chooses what is stored, and a reader pays for it.
const RESULT_MEMORY_MAX: u64 = 256 * 1024 * 1024;

/// The bytes of all trees of one result together: whoever asks for a result chooses how much we read to check it.
const TREES_MAX: u64 = 256 * 1024 * 1024;

/// Results of actions. A hit is complete: all that the result names is in the CAS.
#[derive(Clone)]
pub struct ActionCache {
    store: Arc<dyn Store>,
    cas: Cas,
}

impl ActionCache {
    pub fn new(store: Arc<dyn Store>, cas: Cas) -> Self {
        Self { store, cas }
    }

    /// The result, or `None` if it is absent, broken, or names a blob that is absent: Bazel treats a hit as a promise that
    /// all outputs exist, so an incomplete result must look absent.
    ///
    /// # Errors
    /// What the stores report.
    pub async fn get(&self, key: &ActionKey) -> Result<Option<rev2::ActionResult>> {
        match self.complete_result(key).await {
            Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Corrupt) => {
                tracing::warn!(action = %key.digest, "a stored action result is broken: {}", error.chain());
                Ok(None)
            }
            other => other,
        }
    }

    /// Stores or replaces the result.
    ///
    /// # Errors
    /// `Invalid` when the result is too large, `Exhausted` when there is no room.
    pub async fn put(&self, key: &ActionKey, result: &rev2::ActionResult) -> Result<()> {
        let size = result.encoded_len() as u64;
        if size > RESULT_MAX {
            let message = format!("the result of action {} has {size} bytes, over {RESULT_MAX}", key.digest);
            return Err(Error::invalid(message));
        }
        let bytes = Bytes::from(result.encode_to_vec());
        check_weight(&bytes)?;
        self.store.put(&Key::Action(key.clone()), Blob::Whole(bytes)).await
    }

    /// The bytes under `key` as they were put, whatever they are; `None` if they are absent.
    ///
    /// # Errors
    /// `Exhausted` when there are more than [`RESULT_MAX`], and what the store reports.
    pub async fn raw(&self, key: &ActionKey) -> Result<Option<Bytes>> {
        match self.store.get(&Key::Action(key.clone()), 0..).await? {
            Some(blob) => Ok(Some(blob.into_bytes(RESULT_MAX).await?)),
            None => Ok(None),
        }
    }

    /// Stores or replaces bytes that need be no result; `get` does not see those that are none.
    ///
    /// # Errors
    /// `Exhausted` when there is no room.
    pub async fn put_raw(&self, key: &ActionKey, bytes: Bytes) -> Result<()> {
        self.store.put(&Key::Action(key.clone()), Blob::Whole(bytes)).await
    }

    /// Forgets a result, for an operator.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn remove(&self, key: &ActionKey) -> Result<()> {
        self.store.remove(&Key::Action(key.clone())).await
    }

    async fn complete_result(&self, key: &ActionKey) -> Result<Option<rev2::ActionResult>> {
        let Some(blob) = self.store.get(&Key::Action(key.clone()), 0..).await? else { return Ok(None) };
        let bytes = blob.into_bytes(RESULT_MAX).await?;
        check_weight(&bytes)?;
        let result = rev2::ActionResult::decode(bytes)
            .map_err(|error| Error::new(Kind::Corrupt, "not an action result").with_source(error))?;
        let absent = absent_outputs(&self.cas, key.digest.function(), &result).await?;
        Ok(absent.is_empty().then_some(result))
    }
}

/// All blobs that `result` names, directly or through its trees, and the CAS does not have. `function` is the action's.
///
/// # Errors
/// `Invalid` when a digest or a tree of the result is wrong, `Exhausted` when its trees are too large.
pub async fn absent_outputs(
    cas: &Cas,
    function: Function,
    result: &rev2::ActionResult,
) -> Result<Vec<Digest>> {
    let mut named = outputs(function, result)?;
    let (mut absent, mut budget) = (Vec::new(), TREES_MAX);
    for directory in &result.output_directories {
        if let Some(tree) = &directory.tree_digest {
            let tree = parse(function, Some(tree), &directory.path)?;
            budget = charge(budget, tree.size())?;
            match files_of_tree(cas, &tree).await? {
                Some(files) => named.extend(files),
                None => absent.push(tree),
            }
        }
        if let Some(root) = &directory.root_directory_digest {
            let root = parse(function, Some(root), &directory.path)?;
            let walk =
                tree::directories(cas, &root, &Limits { bytes_max: budget, ..Limits::default() }).await?;
            for (digest, directory) in &walk.directories {
                budget = charge(budget, digest.size())?;
                named.extend(tree::files(function, directory)?);
            }
            absent.extend(walk.missing);
        }
    }
    absent.extend(cas.missing(&named).await?);
    Ok(absent)
}

/// # Errors
/// `Invalid` for a result that takes too much memory when it is decoded.
fn check_weight(result: &[u8]) -> Result<()> {
    if weight::of_result(result)? > RESULT_MEMORY_MAX {
        return Err(Error::invalid("an action result has more outputs than are taken"));
    }
    Ok(())
}

fn outputs(function: Function, result: &rev2::ActionResult) -> Result<Vec<Digest>> {
    let mut digests = Vec::with_capacity(result.output_files.len() + 2);
    for file in &result.output_files {
        digests.push(parse(function, file.digest.as_ref(), &file.path)?);
    }
    for (digest, name) in [(&result.stdout_digest, "stdout"), (&result.stderr_digest, "stderr")] {
        if digest.is_some() {
            digests.push(parse(function, digest.as_ref(), name)?);
        }
    }
    for directory in &result.output_directories {
        if directory.tree_digest.is_none() && directory.root_directory_digest.is_none() {
            return Err(Error::invalid(format!("output directory {:?} has no digest", directory.path)));
        }
    }
    Ok(digests)
}

fn parse(function: Function, digest: Option<&rev2::Digest>, path: &str) -> Result<Digest> {
    Digest::from_proto(function, digest).map_err(|error| Error::invalid(format!("output {path:?}: {error}")))
}

fn charge(budget: u64, size: u64) -> Result<u64> {
    let message = || format!("the trees of an action result have more than {TREES_MAX} bytes");
    budget.checked_sub(size).ok_or_else(|| Error::new(Kind::Exhausted, message()))
}

/// The files of all directories of a tree, or `None` if the tree is absent.
async fn files_of_tree(cas: &Cas, digest: &Digest) -> Result<Option<Vec<Digest>>> {
    let Some(tree) = tree::message(cas, digest).await? else { return Ok(None) };
    let mut named = Vec::new();
    for directory in tree.root.iter().chain(&tree.children) {
        named.extend(tree::files(digest.function(), directory)?);
    }
    Ok(Some(named))
}

#[cfg(test)]
#[path = "action_cache_tests.rs"]
mod tests;
