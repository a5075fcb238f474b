//! Makes the directory that one layer of an action's overlay is.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags};

use super::files::{Files, Temporary, times};
use super::tree::{DirectoryEntry, FileEntry, SymlinkEntry, Tree};
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::store::{Blob, Cas};
use crate::tasks;
use crate::worker::sandbox::Ownership;

/// Files that are opened together; each may hold a descriptor, and several roots are staged at a time.
pub(super) const BATCH_FILES: usize = 32;
/// Batches of one root on their way at a time: one is opened while others are placed.
const BATCHES_MAX: usize = 4;
/// Batches of all roots on their way at a time. With two descriptors for a file they take at most half of 1,024.
pub(super) const BATCHES_ALL_MAX: usize = 8;

/// What tells the overlay that a directory hides those below it.
pub(super) const OPAQUE: &str = "user.overlay.opaque";
pub(super) const OPAQUE_VALUE: &[u8] = b"y";

/// Where a layer goes, and where its files come from.
#[derive(Clone)]
pub(super) struct Staging {
    pub(super) directory: PathBuf,
    pub(super) files: Arc<Files>,
}

/// The content of one file.
enum Opened {
    /// Which is no stream.
    AtHand(Blob),
    Received(Temporary),
}

impl Staging {
    /// Stages `tree` into the directory, which exists and is empty.
    ///
    /// # Errors
    /// `MissingInput` for blobs that went since the tree was checked; whatever the CAS and the file system report.
    pub(super) async fn stage(&self, cas: &Cas, tree: Tree) -> Result<()> {
        let Tree { directories, files, symlinks, whiteouts } = tree;
        let directories = Arc::new(directories);
        let (staging, made) = (self.clone(), directories.clone());
        tasks::blocking(move || staging.make_directories(&made).context(|| "make the input directories"))
            .await?;
        self.place_all(cas, files).await?;
        let staging = self.clone();
        tasks::blocking(move || {
            staging.make_symlinks(&symlinks).context(|| "make the symbolic links of the inputs")?;
            staging.make_whiteouts(&whiteouts).context(|| "hide inputs of another root")?;
            staging.finish_directories(&directories).context(|| "finish the input directories")
        })
        .await
    }

    /// Makes all but the root, which exists. What the client says of their mode comes last, since it may close them.
    fn make_directories(&self, directories: &[DirectoryEntry]) -> io::Result<()> {
        directories
            .iter()
            .filter(|entry| !entry.path.is_empty())
            .try_for_each(|entry| fs::create_dir(self.directory.join(&entry.path)))
    }

    async fn place_all(&self, cas: &Cas, files: Vec<FileEntry>) -> Result<()> {
        let mut batches = Vec::new();
        let mut files = files.into_iter().peekable();
        while files.peek().is_some() {
            batches.push(files.by_ref().take(BATCH_FILES).collect::<Vec<_>>());
        }
        let placed =
            stream::iter(batches).map(|batch| self.place_batch(cas, batch)).buffer_unordered(BATCHES_MAX);
        let missing: Vec<_> = placed.try_concat().await?;
        if missing.is_empty() { Ok(()) } else { Err(Error::missing_input(missing)) }
    }

    /// Places some files; answers with the digests of those whose blobs are gone.
    async fn place_batch(&self, cas: &Cas, batch: Vec<FileEntry>) -> Result<Vec<Digest>> {
        let staging = self.clone();
        let batch =
            tasks::blocking(move || staging.link_known(batch).context(|| "link the input files")).await?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        // Nothing is waited for with it but the store, which knows nothing of it.
        let _turn = self.files.turns.acquire().await.expect("nothing closes the semaphore");
        let opened: Vec<_> = stream::iter(batch)
            .map(|entry| async move {
                let opened = self.open(cas, &entry).await;
                opened.context(|| format!("open input {}", entry.digest)).map(|opened| (entry, opened))
            })
            .buffer_unordered(BATCH_FILES)
            .try_collect()
            .await?;
        let mut missing = Vec::new();
        let mut ready = Vec::new();
        for (entry, opened) in opened {
            match opened {
                None => missing.push(entry.digest),
                Some(opened) => ready.push((entry, opened)),
            }
        }
        let staging = self.clone();
        tasks::blocking(move || staging.place(ready).context(|| "place the input files")).await?;
        Ok(missing)
    }

    /// What is to be placed at `entry`. What comes in pieces is read at once: streams that nobody reads may share what bounds
    /// them with the one that is read, and hold it up for ever.
    async fn open(&self, cas: &Cas, entry: &FileEntry) -> Result<Option<Opened>> {
        Ok(match cas.open(&entry.digest, 0).await? {
            None => None,
            Some(Blob::Stream { chunks, .. }) => Some(Opened::Received(self.files.receive(chunks).await?)),
            Some(blob) => Some(Opened::AtHand(blob)),
        })
    }

    /// Links what there is a copy of; answers with the rest.
    fn link_known(&self, batch: Vec<FileEntry>) -> io::Result<Vec<FileEntry>> {
        let mut rest = Vec::new();
        for entry in batch {
            if !self.files.link(&entry, &self.directory.join(&entry.path))? {
                rest.push(entry);
            }
        }
        Ok(rest)
    }

    fn place(&self, ready: Vec<(FileEntry, Opened)>) -> io::Result<()> {
        ready.into_iter().try_for_each(|(entry, opened)| {
            let target = self.directory.join(&entry.path);
            match opened {
                Opened::AtHand(blob) => self.files.place(&entry, &target, blob),
                Opened::Received(temporary) => self.files.publish(temporary, &entry, &target),
            }
        })
    }

    fn make_symlinks(&self, symlinks: &[SymlinkEntry]) -> io::Result<()> {
        symlinks.iter().try_for_each(|SymlinkEntry { path, target, time }| {
            let path = self.directory.join(path);
            std::os::unix::fs::symlink(target, &path)?;
            if let Ownership::Foreign { uid, gid } = self.files.ownership() {
                lchown(&path, Some(uid), Some(gid))?;
            }
            Ok(rustix::fs::utimensat(CWD, &path, &times(*time), AtFlags::SYMLINK_NOFOLLOW)?)
        })
    }

    /// The overlay takes a device with the number 0 for a name that is not there; making one needs no rights.
    fn make_whiteouts(&self, whiteouts: &[String]) -> io::Result<()> {
        whiteouts.iter().try_for_each(|path| {
            let path = self.directory.join(path);
            Ok(rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0)?)
        })
    }

    /// Children first: making them changed the times of their parents, which may be closed afterwards.
    fn finish_directories(&self, directories: &[DirectoryEntry]) -> io::Result<()> {
        directories.iter().rev().try_for_each(|entry| {
            let path = self.directory.join(&entry.path);
            if entry.is_opaque {
                rustix::fs::setxattr(&path, OPAQUE, OPAQUE_VALUE, XattrFlags::empty())?;
            }
            finish_directory(&path, entry, self.files.ownership())
        })
    }
}

fn finish_directory(path: &Path, entry: &DirectoryEntry, ownership: Ownership) -> io::Result<()> {
    if let Ownership::Foreign { uid, gid } = ownership {
        chown(path, Some(uid), Some(gid))?;
    }
    fs::set_permissions(path, Permissions::from_mode(entry.look.mode))?;
    Ok(rustix::fs::utimensat(CWD, path, &times(entry.look.time), AtFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::Timespec;

    use super::*;
    use crate::digest::Function;
    use crate::worker::inputs::tree::{Look, TIME};
    use crate::worker::shelf::Shelf;

    fn staging(directory: &Path) -> Staging {
        for name in ["files", "temporary", "layer"] {
            fs::create_dir(directory.join(name)).expect("mkdir");
        }
        let files = Files::open(directory.join("files"), directory.join("temporary"), Ownership::Same);
        Staging { directory: directory.join("layer"), files: Arc::new(files.expect("opened")) }
    }

    fn directory(path: &str, look: Look) -> DirectoryEntry {
        DirectoryEntry { path: path.into(), digest: Function::Sha256.hash(b""), look, is_opaque: false }
    }

    #[tokio::test]
    async fn a_tree_is_staged_with_its_modes_and_times() {
        let cas = Shelf::cas();
        let digest = cas.put_bytes(Function::Sha256, "content".into()).await.expect("stored");
        let other = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
        let file =
            |path: &str, mode, time| FileEntry { path: path.into(), digest, look: Look { mode, time } };
        let tree = Tree {
            directories: vec![
                directory("", Look::usual(0o755)),
                directory("d", Look { mode: 0o500, time: other }),
            ],
            files: vec![
                file("d/plain", 0o444, TIME),
                file("d/tool", 0o555, TIME),
                file("d/old", 0o640, other),
            ],
            symlinks: vec![SymlinkEntry { path: "link".into(), target: "/nowhere".into(), time: other }],
            whiteouts: Vec::new(),
        };
        let place = tempfile::tempdir().expect("a directory");
        staging(place.path()).stage(&cas, tree).await.expect("staged");
        let layer = place.path().join("layer");
        let stat = |path: &str| fs::symlink_metadata(layer.join(path)).expect("stat");
        for (path, mode, time) in [
            ("", 0o755, TIME),
            ("d", 0o500, other),
            ("d/plain", 0o444, TIME),
            ("d/tool", 0o555, TIME),
            ("d/old", 0o640, other),
        ] {
            let stat = stat(path);
            assert_eq!((stat.mode() & 0o7777, stat.mtime()), (mode, time.tv_sec), "{path}");
        }
        assert_eq!(fs::read_link(layer.join("link")).expect("a link"), Path::new("/nowhere"));
        assert_eq!(stat("link").mtime(), other.tv_sec);
        assert_eq!(fs::read_to_string(layer.join("d/tool")).expect("read"), "content");
    }

    #[tokio::test]
    async fn a_blob_that_went_meanwhile_is_reported_as_missing() {
        let digest = Function::Sha256.hash(b"gone");
        let files = vec![FileEntry { path: "x".into(), digest, look: Look::usual(0o444) }];
        let place = tempfile::tempdir().expect("a directory");
        let tree = Tree { files, ..Tree::default() };
        let error = staging(place.path()).stage(&Shelf::cas(), tree).await.expect_err("missing");
        assert_eq!(error.missing(), [digest]);
    }
}
