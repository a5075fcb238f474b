//! Walks the directories under a root digest.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::Cas;
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::Directory;

/// Directories that are fetched at the same time: hides the latency of a store without flooding it.
const FETCHES_MAX: usize = 32;

/// What a walk may cost. A client chooses the tree, so each walk has a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub directories_max: usize,
    /// The sum of the sizes of all directory messages.
    pub bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { directories_max: 1_000_000, bytes_max: 256 * 1024 * 1024 }
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
    let (mut walk, mut seen, mut bytes) = (Walk::default(), HashSet::from([*root]), 0_u64);
    let mut level = vec![*root];
    while !level.is_empty() {
        bytes = level.iter().map(Digest::size).fold(bytes, u64::saturating_add);
        if bytes > limits.bytes_max || seen.len() > limits.directories_max {
            return Err(Error::new(Kind::Exhausted, format!("the tree under {root} is too large")));
        }
        let first = walk.directories.len();
        let mut fetched = stream::iter(level).map(|digest| fetch(cas, digest)).buffered(FETCHES_MAX);
        while let Some((digest, directory)) = fetched.try_next().await? {
            match directory {
                Some(directory) => walk.directories.push((digest, directory)),
                None => walk.missing.push(digest),
            }
        }
        level = Vec::new();
        for (digest, directory) in &walk.directories[first..] {
            let children =
                children(digest.function(), directory).map_err(|error| error.context(bad(digest)))?;
            level.extend(children.into_iter().filter(|child| seen.insert(*child)));
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

async fn fetch(cas: &Cas, digest: Digest) -> Result<(Digest, Option<Directory>)> {
    Ok((digest, cas.message(&digest).await?))
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
    async fn a_tree_over_the_limits_is_refused() {
        let (_, cas) = cas();
        let a = put(&cas, &[]).await;
        let b = put(&cas, &[a]).await;
        let root = put(&cas, &[b]).await;
        for limits in [
            Limits { directories_max: 2, ..Limits::default() },
            Limits { bytes_max: root.size() + b.size() - 1, ..Limits::default() },
        ] {
            let error = directories(&cas, &root, &limits).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Exhausted);
        }
    }
}
