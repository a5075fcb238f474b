//! Walks the directories under a root digest.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use prost::Message;

use super::{Cas, MESSAGE_MAX, weight};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::{Directory, Tree};

/// Directories that are fetched at the same time: hides the latency of a store without flooding it.
const FETCHES_MAX: usize = 32;

/// Bytes of directories that are fetched at the same time: those of one wave are decoded side by side.
const WAVE_BYTES_MAX: u64 = 32 << 20;

/// The largest directory, in bytes: 150,000 files in one directory. Its nodes may take ten times as much when they are decoded.
pub const DIRECTORY_MAX: u64 = 16 << 20;

/// What a walk may cost. A client chooses the tree, so each walk has a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub directories_max: usize,
    /// The sum of the sizes of all directory messages.
    pub bytes_max: u64,
    /// The same for what they take in memory, where a million files with their names and digests take 300 MB.
    pub memory_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { directories_max: 1_000_000, bytes_max: 256 << 20, memory_max: 1 << 30 }
    }
}

/// The outcome of a walk: each directory once, the root first and parents before the children that only they name.
#[derive(Debug, Default)]
pub struct Walk {
    pub directories: Vec<(Digest, Directory)>,
    /// Directories that some directory names and the CAS does not have.
    pub missing: Vec<Digest>,
}

/// Fetches the directories under `root` level by level, each once; so a directory that names itself ends the walk too.
///
/// # Errors
/// `Exhausted` when the tree is over the limits, `Invalid` when a blob of it is no directory or names a child by no digest.
pub async fn directories(cas: &Cas, root: &Digest, limits: &Limits) -> Result<Walk> {
    let (mut walk, mut seen) = (Walk::default(), HashSet::from([*root]));
    let (mut bytes, mut memory) = (0_u64, 0_u64);
    let too_large = || Error::new(Kind::Exhausted, format!("the tree under {root} is too large"));
    let mut level = vec![*root];
    while !level.is_empty() {
        bytes = level.iter().map(Digest::size).fold(bytes, u64::saturating_add);
        if bytes > limits.bytes_max {
            return Err(too_large());
        }
        let first = walk.directories.len();
        for wave in waves(level) {
            let mut fetched = stream::iter(wave).map(|digest| fetch(cas, digest)).buffered(FETCHES_MAX);
            while let Some((digest, directory)) = fetched.try_next().await? {
                let Some((directory, weight)) = directory else {
                    walk.missing.push(digest);
                    continue;
                };
                memory += weight;
                if memory > limits.memory_max {
                    return Err(too_large());
                }
                walk.directories.push((digest, directory));
            }
        }
        level = Vec::new();
        for (digest, directory) in &walk.directories[first..] {
            let children =
                children(digest.function(), directory).map_err(|error| error.context(bad(digest)))?;
            level.extend(children.into_iter().filter(|child| seen.insert(*child)));
            // One level may name far more than a walk may visit.
            if seen.len() > limits.directories_max {
                return Err(too_large());
            }
        }
    }
    Ok(walk)
}

/// The digests of the files of `directory`.
///
/// # Errors
/// `Invalid` when a file has no digest.
pub fn files(function: Function, directory: &Directory) -> Result<Vec<Digest>> {
    let digests = directory.files.iter().map(|file| Digest::from_proto(function, file.digest.as_ref()));
    digests
        .collect::<Result<_, _>>()
        .map_err(|error| Error::invalid(format!("a file of a directory: {error}")))
}

fn children(function: Function, directory: &Directory) -> Result<Vec<Digest>> {
    let digests =
        directory.directories.iter().map(|child| Digest::from_proto(function, child.digest.as_ref()));
    digests.collect::<Result<_, _>>().map_err(|error| Error::invalid(error.to_string()))
}

fn bad(digest: &Digest) -> String {
    format!("directory {digest} names a child without a valid digest")
}

/// The same digests in their order, in groups that are fetched together.
fn waves(level: Vec<Digest>) -> Vec<Vec<Digest>> {
    let (mut waves, mut bytes) = (vec![Vec::new()], 0_u64);
    for digest in level {
        bytes = bytes.saturating_add(digest.size());
        if bytes > WAVE_BYTES_MAX {
            waves.push(Vec::new());
            bytes = digest.size();
        }
        waves.last_mut().expect("there is a first wave").push(digest);
    }
    waves
}

/// The directory, or `None` if it is absent.
///
/// # Errors
/// `Invalid` when the blob is no directory, `Exhausted` when it is over [`DIRECTORY_MAX`].
pub async fn directory(cas: &Cas, digest: &Digest) -> Result<Option<Directory>> {
    let (_, directory) = fetch(cas, *digest).await?;
    Ok(directory.map(|(directory, _)| directory))
}

/// A directory and the bytes that it takes in memory.
async fn fetch(cas: &Cas, digest: Digest) -> Result<(Digest, Option<(Directory, u64)>)> {
    let Some(bytes) = cas.read(&digest, DIRECTORY_MAX).await? else { return Ok((digest, None)) };
    let weight = weight::of_directory(&bytes).map_err(|error| error.context(no_directory(&digest)))?;
    let directory =
        Directory::decode(bytes).map_err(|error| Error::invalid(no_directory(&digest)).with_source(error))?;
    Ok((digest, Some((directory, weight))))
}

/// The `Tree` message under `digest`, or `None` if it is absent.
///
/// # Errors
/// `Invalid` when the blob is no tree, `Exhausted` when it would take too much memory.
pub async fn message(cas: &Cas, digest: &Digest) -> Result<Option<Tree>> {
    let Some(bytes) = cas.read(digest, MESSAGE_MAX).await? else { return Ok(None) };
    if weight::of_tree(&bytes)? > Limits::default().memory_max {
        return Err(Error::new(Kind::Exhausted, format!("the tree {digest} is too large")));
    }
    let tree = Tree::decode(bytes)
        .map_err(|error| Error::invalid(format!("blob {digest} is no tree")).with_source(error))?;
    Ok(Some(tree))
}

fn no_directory(digest: &Digest) -> String {
    format!("blob {digest} is no directory")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use prost::Message;

    use super::super::{Blob, Key, Memory, Store};
    use super::*;
    use crate::proto::rev2::DirectoryNode;

    fn directory(children: &[Digest]) -> Directory {
        let node = |(i, child): (usize, &Digest)| DirectoryNode {
            name: format!("child{i}"),
            digest: Some(child.to_proto()),
        };
        Directory { directories: children.iter().enumerate().map(node).collect(), ..Directory::default() }
    }

    async fn put(cas: &Cas, children: &[Digest]) -> Digest {
        let bytes = Bytes::from(directory(children).encode_to_vec());
        cas.put_bytes(Function::Sha256, bytes).await.unwrap()
    }

    fn cas() -> (Arc<Memory>, Cas) {
        let memory = Arc::new(Memory::new(1 << 20));
        (memory.clone(), Cas::new(memory))
    }

    #[tokio::test]
    async fn shared_directories_come_once_and_missing_ones_are_named() {
        let (_, cas) = cas();
        let absent = Function::Sha256.hash(b"absent");
        let leaf = put(&cas, &[absent]).await;
        let left = put(&cas, &[leaf]).await;
        let root = put(&cas, &[left, leaf, absent]).await;
        let walk = directories(&cas, &root, &Limits::default()).await.unwrap();
        let digests: Vec<Digest> = walk.directories.iter().map(|(digest, _)| *digest).collect();
        assert_eq!(digests, [root, left, leaf]);
        assert_eq!(walk.missing, [absent]);
        let walk = directories(&cas, &absent, &Limits::default()).await.unwrap();
        assert_eq!((walk.directories.len(), walk.missing), (0, vec![absent]));
    }

    #[tokio::test]
    async fn a_directory_that_names_itself_ends_the_walk() {
        let (memory, cas) = cas();
        // No content has its own digest, so it is stored under a made-up one, in a store that does not verify.
        let size = directory(&[Digest::new(Function::Sha256, &[1; 32], 99)]).encoded_len() as u64;
        let itself = Digest::new(Function::Sha256, &[1; 32], size);
        let bytes = Bytes::from(directory(&[itself]).encode_to_vec());
        memory.put(&Key::Blob(itself), Blob::Whole(bytes)).await.unwrap();
        let walk = directories(&cas, &itself, &Limits::default()).await.unwrap();
        assert_eq!(walk.directories.len(), 1);
    }

    #[tokio::test]
    async fn a_directory_that_would_take_gigabytes_is_refused_before_it_is_decoded() {
        let memory = Arc::new(Memory::new(256 << 20));
        let cas = Cas::new(memory);
        // Two bytes a node, and more bytes than a directory has.
        for content in [b"\x0a\x00".repeat(1 << 20), vec![0; DIRECTORY_MAX as usize + 1]] {
            let digest = cas.put_bytes(Function::Sha256, content.into()).await.unwrap();
            let error = directories(&cas, &digest, &Limits::default()).await.unwrap_err();
            assert!(matches!(error.kind(), Kind::Invalid | Kind::Exhausted), "{error}");
        }
    }

    #[test]
    fn a_wave_has_a_bound_of_bytes_and_all_come_in_order() {
        let sized = |size| Digest::new(Function::Sha256, &[7; 32], size);
        let level = [1, WAVE_BYTES_MAX - 1, 1, WAVE_BYTES_MAX + 5, 2, 3].map(sized).to_vec();
        let waves = waves(level.clone());
        assert_eq!(waves.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1, 2]);
        assert_eq!(waves.concat(), level);
    }

    #[tokio::test]
    async fn a_tree_over_the_limits_is_refused() {
        let (_, cas) = cas();
        let a = put(&cas, &[]).await;
        let b = put(&cas, &[a]).await;
        let root = put(&cas, &[b]).await;
        for limits in [
            Limits { directories_max: 2, ..Limits::default() },
            Limits { bytes_max: root.size() + b.size() - 1, ..Limits::default() },
            Limits { memory_max: root.size() + b.size() + 300, ..Limits::default() },
        ] {
            let error = directories(&cas, &root, &limits).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Exhausted);
        }
    }
}
