//! An input root as a list: read from the CAS, checked, and completed by the directories that the outputs need.

use std::collections::{BTreeSet, HashMap, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::command::{Command, Expected, digest, join};
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::proto::rev2;
use crate::store::{Cas, tree};

/// Directory messages that are fetched at the same time.
const FETCHES_MAX: usize = 32;
/// Entries of an input root. A few small messages can name astronomically many.
const ENTRIES_MAX: usize = 1_000_000;
/// Bytes of a path, as Linux has it (`PATH_MAX`), with room for where we put the tree.
pub(super) const PATH_BYTES_MAX: usize = 3_500;
/// Bytes of one name, as Linux has it (`NAME_MAX`).
pub(super) const NAME_BYTES_MAX: usize = 255;

/// All entries of an input root, by path. Parents come before their children.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) directories: Vec<String>,
    pub(super) files: Vec<FileEntry>,
    /// Path and target.
    pub(super) symlinks: Vec<(String, String)>,
}

#[derive(Debug)]
pub(super) struct FileEntry {
    pub(super) path: String,
    pub(super) digest: Digest,
    pub(super) is_executable: bool,
}

impl Tree {
    /// Reads the input root `root`.
    ///
    /// # Errors
    /// `MissingInput` with all blobs that are absent, as far as present directories name them; `Invalid` for a malformed tree.
    pub(super) async fn fetch(cas: &Cas, root: Digest) -> Result<Self> {
        let mut tree = Self { directories: vec![String::new()], ..Self::default() };
        let mut known = HashMap::new();
        let mut missing = BTreeSet::new();
        let mut level = vec![(String::new(), root)];
        while !level.is_empty() {
            fetch_level(cas, &level, &mut known, &mut missing).await?;
            let mut next = Vec::new();
            for place in &level {
                if let Some(directory) = known.get(&place.1) {
                    tree.add(place, directory, &mut next)?;
                }
            }
            level = next;
        }
        let distinct: HashSet<Digest> = tree.files.iter().map(|file| file.digest).collect();
        let distinct: Vec<Digest> = distinct.into_iter().collect();
        missing.extend(cas.missing(&distinct).await.context(|| "look for the inputs in the CAS")?);
        if missing.is_empty() { Ok(tree) } else { Err(Error::missing_input(missing.into_iter().collect())) }
    }

    /// Adds the entries of one directory; its subdirectories go into `next` too.
    fn add(
        &mut self,
        (path, parent): &(String, Digest),
        directory: &rev2::Directory,
        next: &mut Vec<(String, Digest)>,
    ) -> Result<()> {
        check_names(directory).map_err(|why| Error::invalid(format!("directory {parent}: {why}")))?;
        let function = parent.function();
        for node in &directory.files {
            let digest =
                digest(function, node.digest.as_ref(), &format!("file `{}`", join(path, &node.name)))?;
            let path = child(path, &node.name)?;
            self.files.push(FileEntry { path, digest, is_executable: node.is_executable });
        }
        for node in &directory.symlinks {
            let path = child(path, &node.name)?;
            if node.target.is_empty() || node.target.contains('\0') {
                return Err(Error::invalid(format!("the target of symbolic link `{path}` is not a path")));
            }
            self.symlinks.push((path, node.target.clone()));
        }
        for node in &directory.directories {
            let what = format!("directory `{}`", join(path, &node.name));
            let digest = digest(function, node.digest.as_ref(), &what)?;
            let path = child(path, &node.name)?;
            self.directories.push(path.clone());
            next.push((path, digest));
        }
        let count = self.files.len() + self.symlinks.len() + self.directories.len();
        if count > ENTRIES_MAX {
            return Err(Error::invalid(format!("the input root has more than {ENTRIES_MAX} entries")));
        }
        Ok(())
    }

    /// Adds the directories that must exist before the command runs.
    ///
    /// # Errors
    /// `Invalid` when the working directory is absent or an output lies below something that is no directory.
    pub(super) fn complete(&mut self, command: &Command) -> Result<()> {
        let mut known: HashSet<String> = self.directories.iter().cloned().collect();
        let files = self.files.iter().map(|file| file.path.clone());
        let taken: HashSet<String> =
            files.chain(self.symlinks.iter().map(|(path, _)| path.clone())).collect();
        if !known.contains(&command.working_directory) {
            let name = &command.working_directory;
            return Err(Error::invalid(format!("working directory `{name}` is not in the input root")));
        }
        for output in &command.outputs {
            // Bazel before 5 relies on the directories that it names being there.
            let needed = match output.expected {
                Expected::Directory => output.path.as_str(),
                Expected::Any | Expected::File => {
                    output.path.rsplit_once('/').map_or("", |(parent, _)| parent)
                }
            };
            let ends = needed.match_indices('/').map(|(index, _)| index).chain([needed.len()]);
            for directory in ends.map(|end| &needed[..end]) {
                if !known.contains(directory) {
                    check_free(&taken, directory, &output.name)?;
                    known.insert(directory.to_owned());
                    self.add_directory(directory)?;
                }
            }
        }
        Ok(())
    }

    fn add_directory(&mut self, path: &str) -> Result<()> {
        if self.directories.len() >= ENTRIES_MAX {
            return Err(Error::invalid(format!(
                "inputs and outputs have more than {ENTRIES_MAX} directories"
            )));
        }
        self.directories.push(path.to_owned());
        Ok(())
    }
}

fn check_free(taken: &HashSet<String>, directory: &str, output: &str) -> Result<()> {
    if taken.contains(directory) {
        return Err(Error::invalid(format!(
            "output path `{output}` lies below `{directory}`, an input that is no directory"
        )));
    }
    Ok(())
}

/// Fetches the directories of `level` that are not known yet.
async fn fetch_level(
    cas: &Cas,
    level: &[(String, Digest)],
    known: &mut HashMap<Digest, rev2::Directory>,
    missing: &mut BTreeSet<Digest>,
) -> Result<()> {
    let wanted: HashSet<Digest> = level.iter().map(|(_, digest)| *digest).collect();
    let wanted: Vec<Digest> = wanted.into_iter().filter(|digest| !known.contains_key(digest)).collect();
    let mut fetches = stream::iter(wanted)
        .map(|digest| async move {
            let message = tree::directory(cas, &digest).await;
            message.context(|| format!("read directory {digest}")).map(|directory| (digest, directory))
        })
        .buffer_unordered(FETCHES_MAX);
    while let Some((digest, directory)) = fetches.try_next().await? {
        match directory {
            Some(directory) => {
                known.insert(digest, directory);
            }
            None => {
                missing.insert(digest);
            }
        }
    }
    Ok(())
}

fn check_names(directory: &rev2::Directory) -> Result<(), String> {
    let files = directory.files.iter().map(|node| &node.name);
    let directories = directory.directories.iter().map(|node| &node.name);
    let symlinks = directory.symlinks.iter().map(|node| &node.name);
    let mut seen = HashSet::new();
    for name in files.chain(directories).chain(symlinks) {
        let is_bad = matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']);
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
    use crate::worker::shelf::Shelf;

    fn file(name: &str, digest: Digest) -> rev2::FileNode {
        rev2::FileNode { name: name.into(), digest: Some(digest.to_proto()), ..rev2::FileNode::default() }
    }

    fn folder(name: &str, digest: Digest) -> rev2::DirectoryNode {
        rev2::DirectoryNode { name: name.into(), digest: Some(digest.to_proto()) }
    }

    async fn put(cas: &Cas, directory: &rev2::Directory) -> Digest {
        cas.put_bytes(Function::Sha256, directory.encode_to_vec().into()).await.expect("stored")
    }

    fn command(command: rev2::Command) -> Command {
        Command::check(rev2::Command { arguments: vec!["x".into()], ..command }).expect("a good command")
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
        let error = Tree::fetch(&cas, root).await.expect_err("blobs are missing");
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
            let error = Tree::fetch(&cas, root).await.expect_err(sentence);
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
        let error = Tree::fetch(&cas, digest).await.expect_err("10 to the power of 30 directories");
        assert!(error.to_string().contains("more than 1000000 entries"), "{error}");
    }

    #[test]
    fn parents_of_outputs_are_added_and_old_output_directories_themselves() {
        let mut tree = Tree { directories: vec![String::new(), "a".into()], ..Tree::default() };
        tree.complete(&command(rev2::Command {
            output_paths: vec!["a/b/c/d".into(), "e".into()],
            ..rev2::Command::default()
        }))
        .expect("complete");
        assert_eq!(tree.directories, ["", "a", "a/b", "a/b/c"]);
        #[expect(deprecated, reason = "clients of REv2 2.0 send this field")]
        let old = rev2::Command { output_directories: vec!["x/y".into()], ..rev2::Command::default() };
        tree.complete(&command(old)).expect("complete");
        assert_eq!(tree.directories[4..], ["x", "x/y"]);
    }

    #[test]
    fn what_cannot_hold_an_output_is_refused() {
        let symlinks = vec![("link".to_owned(), "/etc".to_owned())];
        let mut tree = Tree { directories: vec![String::new()], symlinks, ..Tree::default() };
        let below = rev2::Command { output_paths: vec!["link/x/y".into()], ..rev2::Command::default() };
        let error = tree.complete(&command(below)).expect_err("below a link");
        assert!(error.to_string().contains("`link/x/y` lies below `link`"), "{error}");
        let elsewhere = rev2::Command { working_directory: "nowhere".into(), ..rev2::Command::default() };
        let error = tree.complete(&command(elsewhere)).expect_err("no such directory");
        assert!(error.to_string().contains("working directory `nowhere` is not in"), "{error}");
    }
}
