//! An input root as a list: read from the CAS and checked, whole or as what differs from another one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::Timespec;

use super::directories::Directories;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::proto::rev2::{self, FileNode, NodeProperties, SymlinkNode};
use crate::worker::command::{digest, join};

/// Directory messages that are fetched at the same time.
const FETCHES_MAX: usize = 32;
/// Entries of an input root. A few small messages can name astronomically many.
pub(super) const ENTRIES_MAX: usize = 1_000_000;
/// Bytes of a path, as Linux has it (`PATH_MAX`), with room for where we put the tree.
pub(in crate::worker) const PATH_BYTES_MAX: usize = 3_500;
/// Bytes of one name, as Linux has it (`NAME_MAX`).
pub(in crate::worker) const NAME_BYTES_MAX: usize = 255;

/// The time of all inputs that name none: 2000-01-01. Any will do that is the same everywhere and not zero, which
/// old archivers and make take for "absent".
pub(super) const TIME: Timespec = Timespec { tv_sec: 946_684_800, tv_nsec: 0 };

pub(super) const MODE_DIRECTORY: u32 = 0o755;
pub(super) const MODE_FILE: u32 = 0o444;
const MODE_EXECUTABLE: u32 = 0o555;
/// The bits of a mode that an input may have: inside a sandbox nothing gains rights by the others.
const MODE_BITS: u32 = 0o777;
const MODE_EXECUTE: u32 = 0o111;

/// Entries of an input root, or of what differs from another one, by path. Parents come before their children.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// The root, with an empty path, is the first.
    pub(super) directories: Vec<DirectoryEntry>,
    pub(super) files: Vec<FileEntry>,
    pub(super) symlinks: Vec<SymlinkEntry>,
    /// What the other root has and this one has not.
    pub(super) whiteouts: Vec<String>,
}

#[derive(Debug)]
pub(super) struct DirectoryEntry {
    pub(super) path: String,
    pub(super) digest: Digest,
    pub(super) look: Look,
    /// Whether it hides what the other root has at this path.
    pub(super) is_opaque: bool,
}

#[derive(Debug)]
pub(super) struct FileEntry {
    pub(super) path: String,
    pub(super) digest: Digest,
    pub(super) look: Look,
}

#[derive(Debug)]
pub(super) struct SymlinkEntry {
    pub(super) path: String,
    pub(super) target: String,
    pub(super) time: Timespec,
}

/// What an entry shows beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) mode: u32,
    pub(super) time: Timespec,
}

/// What there was to read of a root.
#[derive(Debug)]
pub(super) enum Reading {
    Tree(Tree),
    /// It has more entries than asked for.
    TooLarge,
    /// The other root cannot be read any more.
    NoBase,
}

/// A directory to read and what it lies over.
struct Place {
    path: String,
    digest: Digest,
    over: Over,
}

/// What a directory lies over in the other root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Nothing,
    /// A file or a symbolic link.
    Leaf,
    Directory(Digest),
}

/// What differs between two directories.
struct Changes<'a> {
    files: Vec<&'a FileNode>,
    symlinks: Vec<&'a SymlinkNode>,
    /// With what the other root has under the same name.
    directories: Vec<(&'a rev2::DirectoryNode, Option<Node<'a>>)>,
    gone: Vec<&'a str>,
}

/// One entry of a directory.
#[derive(PartialEq)]
enum Node<'a> {
    File(&'a FileNode),
    Symlink(&'a SymlinkNode),
    Directory(&'a rev2::DirectoryNode),
}

impl Tree {
    /// Reads the input root `root`.
    ///
    /// # Errors
    /// `MissingInput` with all blobs that are absent, as far as present directories name them; `Invalid` for a malformed tree.
    pub(super) async fn whole(source: &Directories, root: Digest) -> Result<Self> {
        match Self::read(source, root, (Over::Nothing, ENTRIES_MAX)).await? {
            Reading::Tree(tree) => Ok(tree),
            Reading::TooLarge | Reading::NoBase => {
                Err(Error::invalid(format!("the input root has more than {ENTRIES_MAX} entries")))
            }
        }
    }

    /// Reads what of `root` differs from `base`, if that is not more than `entries_max`. What both have is not looked at.
    ///
    /// # Errors
    /// As [`Tree::whole`], for what differs.
    pub(super) async fn difference(
        source: &Directories,
        root: Digest,
        base: Digest,
        entries_max: usize,
    ) -> Result<Reading> {
        Self::read(source, root, (Over::Directory(base), entries_max)).await
    }

    async fn read(source: &Directories, root: Digest, (over, most): (Over, usize)) -> Result<Reading> {
        let mut tree = Self::default();
        let mut known = HashMap::new();
        let mut missing = BTreeSet::new();
        let mut level = vec![Place { path: String::new(), digest: root, over }];
        while !level.is_empty() {
            let mut gone = BTreeSet::new();
            // Both at once: a deep tree costs a wait for each of its levels.
            let (bases, own) = tokio::join!(
                fetch(source, level.iter().filter_map(|place| place.over.directory()), &known),
                fetch(source, level.iter().map(|place| place.digest), &known),
            );
            for (fetched, absent) in [(bases?, &mut gone), (own?, &mut missing)] {
                for (digest, directory) in fetched {
                    match directory {
                        Some(directory) => drop(known.insert(digest, directory)),
                        None => drop(absent.insert(digest)),
                    }
                }
            }
            if !gone.is_empty() {
                return Ok(Reading::NoBase);
            }
            let mut next = Vec::new();
            for place in level {
                if let Some(directory) = known.get(&place.digest) {
                    let base = place.over.directory().and_then(|digest| known.get(&digest));
                    tree.add(place, (directory, base), &mut next)?;
                    if tree.len() > most {
                        return Ok(Reading::TooLarge);
                    }
                }
            }
            level = next;
        }
        let distinct: HashSet<Digest> = tree.files.iter().map(|file| file.digest).collect();
        let distinct: Vec<Digest> = distinct.into_iter().collect();
        missing.extend(source.cas().missing(&distinct).await.context(|| "look for the inputs in the CAS")?);
        match missing.is_empty() {
            true => Ok(Reading::Tree(tree)),
            false => Err(Error::missing_input(missing.into_iter().collect())),
        }
    }

    /// How many entries there are, whiteouts among them.
    pub(super) fn len(&self) -> usize {
        self.files.len() + self.symlinks.len() + self.directories.len() + self.whiteouts.len()
    }

    /// Adds what `directory` has and `base` has not; its subdirectories go into `next`.
    fn add(
        &mut self,
        place: Place,
        (directory, base): (&rev2::Directory, Option<&Arc<rev2::Directory>>),
        next: &mut Vec<Place>,
    ) -> Result<()> {
        let Place { path, digest: own, over } = place;
        let function = own.function();
        check_names(directory).map_err(|why| Error::invalid(format!("directory {own}: {why}")))?;
        let changes = Changes::between(directory, base.map(Arc::as_ref));
        for node in changes.files {
            let path = child(&path, &node.name)?;
            let digest = digest(function, node.digest.as_ref(), &format!("file `{path}`"))?;
            let usual = if node.is_executable { MODE_EXECUTABLE } else { MODE_FILE };
            let look = Look::of(node.node_properties.as_ref(), usual, &path)?;
            self.files.push(FileEntry { path, digest, look });
        }
        for node in changes.symlinks {
            self.symlinks.push(symlink(&path, node)?);
        }
        for (node, old) in changes.directories {
            let path = child(&path, &node.name)?;
            let what = format!("directory `{path}`");
            let over = match old {
                None => Over::Nothing,
                Some(Node::File(_) | Node::Symlink(_)) => Over::Leaf,
                Some(Node::Directory(old)) => Over::Directory(digest(function, old.digest.as_ref(), &what)?),
            };
            next.push(Place { digest: digest(function, node.digest.as_ref(), &what)?, path, over });
        }
        for name in changes.gone {
            self.whiteouts.push(child(&path, name)?);
        }
        // What the root of an overlay shows is the action's own upper layer, not ours.
        let properties = directory.node_properties.as_ref().filter(|_| !path.is_empty());
        let look = Look::of(properties, MODE_DIRECTORY, &path)?;
        self.directories.push(DirectoryEntry { path, digest: own, look, is_opaque: over == Over::Leaf });
        // Directories to come are entries, too, and a few messages may name very many.
        if self.len() + next.len() > ENTRIES_MAX {
            return Err(Error::invalid(format!("the input root has more than {ENTRIES_MAX} entries")));
        }
        Ok(())
    }
}

impl Over {
    fn directory(self) -> Option<Digest> {
        match self {
            Self::Directory(digest) => Some(digest),
            Self::Nothing | Self::Leaf => None,
        }
    }
}

impl Look {
    /// How an entry without properties looks.
    pub(super) fn usual(mode: u32) -> Self {
        Self { mode, time: TIME }
    }

    fn of(properties: Option<&NodeProperties>, usual: u32, path: &str) -> Result<Self> {
        let Some(properties) = properties else { return Ok(Self::usual(usual)) };
        // What the client calls executable is that, whatever the mode says, and a directory can be entered.
        let mode = properties.unix_mode.map(|mode| (mode.value & MODE_BITS) | (usual & MODE_EXECUTE));
        Ok(Self { mode: mode.unwrap_or(usual), time: time(properties, path)? })
    }
}

fn time(properties: &NodeProperties, path: &str) -> Result<Timespec> {
    let Some(time) = &properties.mtime else { return Ok(TIME) };
    if !(0..1_000_000_000).contains(&time.nanos) {
        return Err(Error::invalid(format!("the time of `{path}` is none")));
    }
    Ok(Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() })
}

fn symlink(parent: &str, node: &SymlinkNode) -> Result<SymlinkEntry> {
    let path = child(parent, &node.name)?;
    if node.target.is_empty() || node.target.contains('\0') {
        return Err(Error::invalid(format!("the target of symbolic link `{path}` is not a path")));
    }
    let time = node.node_properties.as_ref().map_or(Ok(TIME), |properties| time(properties, &path))?;
    Ok(SymlinkEntry { path, target: node.target.clone(), time })
}

impl<'a> Changes<'a> {
    fn between(directory: &'a rev2::Directory, base: Option<&'a rev2::Directory>) -> Self {
        let mut before: HashMap<&str, Node<'a>> = base.map(nodes).into_iter().flatten().collect();
        let mut changes =
            Self { files: Vec::new(), symlinks: Vec::new(), directories: Vec::new(), gone: Vec::new() };
        for (name, node) in nodes(directory) {
            let old = before.remove(name);
            if old.as_ref() == Some(&node) {
                continue;
            }
            match node {
                Node::File(node) => changes.files.push(node),
                Node::Symlink(node) => changes.symlinks.push(node),
                Node::Directory(node) => changes.directories.push((node, old)),
            }
        }
        // In the order of the message: what a layer looks like does not depend on a hash map.
        let left = base.map(nodes).into_iter().flatten().map(|(name, _)| name);
        changes.gone = left.filter(|name| before.contains_key(name)).collect();
        changes
    }
}

fn nodes(directory: &rev2::Directory) -> impl Iterator<Item = (&str, Node<'_>)> {
    let files = directory.files.iter().map(|node| (node.name.as_str(), Node::File(node)));
    let symlinks = directory.symlinks.iter().map(|node| (node.name.as_str(), Node::Symlink(node)));
    let directories = directory.directories.iter().map(|node| (node.name.as_str(), Node::Directory(node)));
    files.chain(symlinks).chain(directories)
}

/// A directory that was asked for, or that it is absent.
type Fetched = (Digest, Option<Arc<rev2::Directory>>);

/// Fetches the directories of `wanted` that are not known yet.
async fn fetch(
    source: &Directories,
    wanted: impl Iterator<Item = Digest>,
    known: &HashMap<Digest, Arc<rev2::Directory>>,
) -> Result<Vec<Fetched>> {
    let wanted: HashSet<Digest> = wanted.filter(|digest| !known.contains_key(digest)).collect();
    let fetches = stream::iter(wanted).map(|digest| async move {
        let message = source.get(&digest).await;
        message.context(|| format!("read directory {digest}")).map(|directory| (digest, directory))
    });
    fetches.buffer_unordered(FETCHES_MAX).try_collect().await
}

/// That every name is one, and there once.
pub(in crate::worker) fn check_names(directory: &rev2::Directory) -> Result<(), String> {
    let mut seen = HashSet::with_capacity(directory.files.len());
    for (name, _) in nodes(directory) {
        let is_bad = matches!(name, "" | "." | "..") || name.contains(['/', '\0']);
        if is_bad || name.len() > NAME_BYTES_MAX {
            return Err(format!("`{}` is not a file name", name.escape_default()));
        }
        if !seen.insert(name) {
            return Err(format!("name `{name}` is there twice"));
        }
    }
    Ok(())
}

fn child(directory: &str, name: &str) -> Result<String> {
    let path = join(directory, name);
    if path.len() > PATH_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a path of the input root is longer than {PATH_BYTES_MAX} bytes"
        )));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::digest::Function;
    use crate::error::Kind;
    use crate::store::Cas;
    use crate::worker::shelf::Shelf;

    fn file(name: &str, digest: Digest) -> FileNode {
        FileNode { name: name.into(), digest: Some(digest.to_proto()), ..FileNode::default() }
    }

    fn folder(name: &str, digest: Digest) -> rev2::DirectoryNode {
        rev2::DirectoryNode { name: name.into(), digest: Some(digest.to_proto()) }
    }

    async fn put(cas: &Cas, directory: &rev2::Directory) -> Digest {
        cas.put_bytes(Function::Sha256, directory.encode_to_vec().into()).await.expect("stored")
    }

    async fn whole(cas: &Cas, root: Digest) -> Result<Tree> {
        Tree::whole(&Directories::new(cas.clone()), root).await
    }

    #[tokio::test]
    async fn every_missing_blob_is_named() {
        let cas = Shelf::cas();
        let [one, two, three] = [b"1", b"2", b"3"].map(|bytes| Function::Sha256.hash(bytes));
        let inner = rev2::Directory { files: vec![file("one", one)], ..rev2::Directory::default() };
        let inner = put(&cas, &inner).await;
        let root = rev2::Directory {
            files: vec![file("two", two)],
            directories: vec![folder("gone", three), folder("inner", inner)],
            ..rev2::Directory::default()
        };
        let root = put(&cas, &root).await;
        let error = whole(&cas, root).await.expect_err("blobs are missing");
        assert_eq!(error.kind(), Kind::MissingInput);
        let mut expected = [one, two, three];
        expected.sort();
        assert_eq!(error.missing(), expected);
    }

    #[tokio::test]
    async fn bad_names_are_refused() {
        let cas = Shelf::cas();
        let blob = cas.put_bytes(Function::Sha256, "x".into()).await.expect("stored");
        for (names, sentence) in [
            (vec![".."], "`..` is not a file name"),
            (vec!["a/b"], "`a/b` is not"),
            (vec![""], "`` is not"),
            (vec!["a", "a"], "`a` is there twice"),
        ] {
            let files = names.into_iter().map(|name| file(name, blob)).collect();
            let root = put(&cas, &rev2::Directory { files, ..rev2::Directory::default() }).await;
            let error = whole(&cas, root).await.expect_err(sentence);
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(sentence), "{error}");
        }
    }

    #[tokio::test]
    async fn a_tree_that_multiplies_is_refused_early() {
        let cas = Shelf::cas();
        let mut digest = put(&cas, &rev2::Directory::default()).await;
        for _ in 0..30 {
            let directories = (0..10).map(|number| folder(&number.to_string(), digest)).collect();
            digest = put(&cas, &rev2::Directory { directories, ..rev2::Directory::default() }).await;
        }
        let error = whole(&cas, digest).await.expect_err("10 to the power of 30 directories");
        assert!(error.to_string().contains("more than 1000000 entries"), "{error}");
    }

    #[tokio::test]
    async fn a_difference_names_what_changed_and_reads_nothing_else() {
        let cas = Shelf::cas();
        let [old, new, absent] = [b"o", b"n", b"a"].map(|bytes| Function::Sha256.hash(bytes));
        cas.put_bytes(Function::Sha256, "n".into()).await.expect("stored");
        let with = |files, directories| rev2::Directory { files, directories, ..rev2::Directory::default() };
        let old_inner = put(&cas, &with(vec![file("x", old), file("y", old)], vec![])).await;
        let new_inner = put(&cas, &with(vec![file("x", new), file("y", old)], vec![])).await;
        // Neither `absent` nor the blob of `old` is in the store.
        let base = with(
            vec![file("gone", old), file("kept", old)],
            vec![folder("d", old_inner), folder("e", absent)],
        );
        let root = with(vec![file("kept", old)], vec![folder("d", new_inner), folder("e", absent)]);
        let (base, root) = (put(&cas, &base).await, put(&cas, &root).await);
        let source = Directories::new(cas.clone());
        let reading = Tree::difference(&source, root, base, 9).await.expect("all that is needed is there");
        let Reading::Tree(tree) = reading else { panic!("{reading:?}") };
        let files: Vec<&str> = tree.files.iter().map(|entry| entry.path.as_str()).collect();
        let directories: Vec<&str> = tree.directories.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!((files, directories), (vec!["d/x"], vec!["", "d"]));
        assert_eq!(tree.whiteouts, ["gone"]);
        let reading = Tree::difference(&source, root, base, 3).await.expect("readable");
        assert!(matches!(reading, Reading::TooLarge), "{reading:?}");
        let reading = Tree::difference(&source, root, absent, 9).await.expect("readable");
        assert!(matches!(reading, Reading::NoBase), "{reading:?}");
    }
}
