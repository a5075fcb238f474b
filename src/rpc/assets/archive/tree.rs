//! The names of an archive: what may stand in a tree of directories, and the tree itself.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;
use prost::Message;

use super::outbox::Outbox;
use super::refused;
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::proto::rev2;
use crate::store::tree::DIRECTORY_MAX;

/// Files, directories and links of one archive: several times those of a browser's sources.
const ENTRIES_MAX: usize = 1_000_000;

/// Directories within each other. The functions below call themselves once for each.
const DEPTH_MAX: usize = 128;

/// Bytes of all names and targets of links of one archive; this and the number of entries bound the memory.
const NAME_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of one path or target, as Linux has it.
pub(super) const PATH_BYTES_MAX: usize = 4096;

/// The tree that an archive describes.
#[derive(Debug, Default)]
pub(super) struct Tree {
    root: Folder,
    budget: Budget,
}

/// What may still be added.
#[derive(Debug)]
struct Budget {
    entries: usize,
    name_bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { entries: ENTRIES_MAX, name_bytes: NAME_BYTES_MAX }
    }
}

impl Budget {
    fn spend(&mut self, name: &str) -> Result<()> {
        self.entries = self.entries.checked_sub(1).ok_or_else(too_many)?;
        self.name_bytes = self.name_bytes.checked_sub(name.len()).ok_or_else(too_many)?;
        Ok(())
    }
}

/// The order of the map is that of REv2's canonical directories: by bytes.
#[derive(Debug, Default)]
struct Folder {
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug)]
enum Node {
    File(File),
    Symlink(String),
    Folder(Folder),
}

/// A file of the tree, whose content is on its way to the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct File {
    pub(super) digest: Digest,
    pub(super) is_executable: bool,
}

impl Tree {
    /// Adds a directory and those above it. One that is there already stays.
    pub(super) fn add_folder(&mut self, path: &[u8]) -> Result<()> {
        let path = parse(path)?;
        self.folder(&path).map(|_| ())
    }

    /// Adds a file. As with tar, a later one of the same name takes the place of an earlier one.
    pub(super) fn add_file(&mut self, path: &[u8], file: File) -> Result<()> {
        self.add(path, Node::File(file))
    }

    /// Adds a symbolic link. Where it may lead is known when the root is.
    pub(super) fn add_symlink(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let target = text(target)?;
        self.budget.spend(target)?;
        self.add(path, Node::Symlink(target.to_owned()))
    }

    /// Adds a second name of a file that stands before it in the archive.
    pub(super) fn add_hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let target = parse(target)?;
        let missing =
            || refused(format!("a hard link of the archive leads to no file: `{}`", target.join("/")));
        let (name, above) = target.split_last().ok_or_else(missing)?;
        let folder = self.root.find(above).ok_or_else(missing)?;
        let Some(Node::File(file)) = folder.nodes.get(*name) else { return Err(missing()) };
        let file = *file;
        self.add_file(path, file)
    }

    fn add(&mut self, path: &[u8], node: Node) -> Result<()> {
        let path = parse(path)?;
        let (name, above) =
            path.split_last().ok_or_else(|| refused("an entry of the archive has no name"))?;
        self.budget.spend(name)?;
        let nodes = &mut self.folder(above)?.nodes;
        match nodes.entry((*name).to_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(node);
            }
            Entry::Occupied(taken) if matches!(taken.get(), Node::Folder(_)) => return Err(conflict(&path)),
            Entry::Occupied(mut taken) => {
                taken.insert(node);
            }
        }
        Ok(())
    }

    /// The directory at `path`, made where it is not there. What goes through a link would land elsewhere, so it is refused.
    fn folder(&mut self, path: &[&str]) -> Result<&mut Folder> {
        if path.len() > DEPTH_MAX {
            return Err(refused(format!(
                "the archive has more than {DEPTH_MAX} directories within each other"
            )));
        }
        let Self { root, budget } = self;
        let mut folder = root;
        for name in path {
            let node = match folder.nodes.entry((*name).to_owned()) {
                Entry::Occupied(taken) => taken.into_mut(),
                Entry::Vacant(vacant) => {
                    budget.spend(name)?;
                    vacant.insert(Node::Folder(Folder::default()))
                }
            };
            let Node::Folder(next) = node else { return Err(conflict(path)) };
            folder = next;
        }
        Ok(folder)
    }

    /// Hands over the messages of all directories under `directory` (none: of the whole tree), and returns the digest of the topmost.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory, `Aborted` when a link leads out of it.
    pub(super) fn store(&self, directory: Option<&str>, outbox: &mut Outbox) -> Result<Digest> {
        let path = parse(directory.unwrap_or_default().as_bytes())?;
        let absent =
            || Error::new(Kind::NotFound, "the archive does not have the directory that is asked for");
        self.root.find(&path).ok_or_else(absent)?.store(0, outbox)
    }
}

impl Folder {
    fn find(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |folder, name| match folder.nodes.get(*name)? {
            Node::Folder(folder) => Some(folder),
            Node::File(_) | Node::Symlink(_) => None,
        })
    }

    /// `depth` is the number of directories between this one and the topmost.
    fn store(&self, depth: usize, outbox: &mut Outbox) -> Result<Digest> {
        let mut message = rev2::Directory::default();
        for (name, node) in &self.nodes {
            let name = name.clone();
            match node {
                Node::File(File { digest, is_executable }) => message.files.push(rev2::FileNode {
                    name,
                    digest: Some(digest.to_proto()),
                    is_executable: *is_executable,
                    node_properties: None,
                }),
                Node::Symlink(target) => {
                    check_target(target, depth)?;
                    let target = target.clone();
                    message.symlinks.push(rev2::SymlinkNode { name, target, node_properties: None });
                }
                Node::Folder(folder) => {
                    let digest = Some(folder.store(depth + 1, outbox)?.to_proto());
                    message.directories.push(rev2::DirectoryNode { name, digest });
                }
            }
        }
        if message.encoded_len() as u64 > DIRECTORY_MAX {
            return Err(too_many());
        }
        outbox.message(Bytes::from(message.encode_to_vec()))
    }
}

/// The names of a path, without those that mean nothing.
///
/// # Errors
/// `Aborted` for a path that is absolute, climbs, is too long or is not UTF-8.
fn parse(path: &[u8]) -> Result<Vec<&str>> {
    let path = text(path)?;
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if path.starts_with('/') || names.contains(&"..") {
        return Err(refused(format!("a path of the archive leads out of it: `{path}`")));
    }
    Ok(names)
}

fn text(bytes: &[u8]) -> Result<&str> {
    if bytes.len() > PATH_BYTES_MAX || bytes.contains(&0) {
        return Err(refused(format!(
            "a name of the archive has a zero byte or more than {PATH_BYTES_MAX} bytes"
        )));
    }
    std::str::from_utf8(bytes).map_err(|_| refused("a name of the archive is not UTF-8"))
}

/// A link must stay inside. Its `..` may only stand at the beginning: the directories above a link are real ones, but what it goes down
/// into may be links themselves, and a `..` behind one leads who knows where.
fn check_target(target: &str, depth: usize) -> Result<()> {
    let names: Vec<&str> = target.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    let climbs = names.iter().take_while(|name| **name == "..").count();
    let is_inside = climbs <= depth && !names[climbs..].contains(&"..");
    if target.is_empty() || target.starts_with('/') || !is_inside {
        return Err(refused(format!("a symbolic link of the archive leads out of it: `{target}`")));
    }
    Ok(())
}

fn conflict(path: &[&str]) -> Error {
    refused(format!("the archive has a directory and something else under one name: `{}`", path.join("/")))
}

fn too_many() -> Error {
    Error::new(Kind::Exhausted, "the archive has more entries than are taken")
}
