//! Puts the inputs of an action where its overlay expects them: links to the CAS where that is safe, copies where not.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::sandbox::Ownership;
use super::tree::{FileEntry, Tree};
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::store::{Blob, Cas, Chunks};
use crate::tasks;

/// Files that are opened together; each may hold a descriptor, and several actions are staged at a time.
const BATCH_FILES: usize = 32;
/// Batches of one action on their way at a time: one is opened while another is placed.
const BATCHES_MAX: usize = 2;

/// The time of all inputs that are not links: 2000-01-01. Any will do that is the same everywhere and not zero, which
/// old archivers and make take for "absent".
const TIME: Timespec = Timespec { tv_sec: 946_684_800, tv_nsec: 0 };

const MODE_DIRECTORY: u32 = 0o755;
const MODE_FILE: u32 = 0o444;
const MODE_EXECUTABLE: u32 = 0o555;

/// Where inputs go and whose they have to be.
#[derive(Debug, Clone)]
pub(super) struct Staging {
    pub(super) directory: PathBuf,
    pub(super) ownership: Ownership,
}

/// A file with the blob that it shall hold.
struct Placement {
    path: String,
    is_executable: bool,
    blob: Blob,
}

impl Staging {
    /// Stages `tree`.
    ///
    /// # Errors
    /// `MissingInput` for blobs that went since the tree was checked; whatever the CAS and the file system report.
    pub(super) async fn stage(&self, cas: &Cas, tree: Tree) -> Result<()> {
        let Tree { directories, files, symlinks } = tree;
        let directories = Arc::new(directories);
        let (staging, made) = (self.clone(), directories.clone());
        tasks::blocking(move || staging.make_directories(&made).context(|| "make the input directories"))
            .await?;
        self.place_all(cas, files).await?;
        let staging = self.clone();
        tasks::blocking(move || {
            staging.make_symlinks(&symlinks).context(|| "make the symbolic links of the inputs")?;
            staging.finish_directories(&directories).context(|| "finish the input directories")
        })
        .await
    }

    /// Makes all but the root, which exists.
    fn make_directories(&self, directories: &[String]) -> io::Result<()> {
        directories
            .iter()
            .filter(|path| !path.is_empty())
            .try_for_each(|path| fs::create_dir(self.directory.join(path)))
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
        let opened: Vec<_> = stream::iter(batch)
            .map(|entry| async move {
                let blob = cas.open(&entry.digest, 0).await;
                blob.context(|| format!("open input {}", entry.digest)).map(|blob| (entry, blob))
            })
            .buffer_unordered(BATCH_FILES)
            .try_collect()
            .await?;
        let mut missing = Vec::new();
        let mut ready = Vec::new();
        for (FileEntry { path, digest, is_executable }, blob) in opened {
            match blob {
                None => missing.push(digest),
                Some(Blob::Stream { chunks, .. }) => self.receive(&path, is_executable, chunks).await?,
                Some(blob) => ready.push(Placement { path, is_executable, blob }),
            }
        }
        let staging = self.clone();
        tasks::blocking(move || {
            ready
                .into_iter()
                .try_for_each(|placement| staging.place(placement))
                .context(|| "place the input files")
        })
        .await?;
        Ok(missing)
    }

    /// Writes a blob that comes in pieces.
    async fn receive(&self, path: &str, is_executable: bool, mut chunks: Chunks) -> Result<()> {
        let (staging, path) = (self.clone(), self.directory.join(path));
        let mut file =
            tasks::blocking(move || staging.create(&path, is_executable).context(|| "make an input file"))
                .await?;
        while let Some(chunk) = chunks.try_next().await? {
            file = tasks::blocking(move || {
                file.write_all(&chunk).context(|| "write an input file")?;
                Ok(file)
            })
            .await?;
        }
        let staging = self.clone();
        tasks::blocking(move || staging.seal(&file, is_executable).context(|| "finish an input file")).await
    }

    fn place(&self, placement: Placement) -> io::Result<()> {
        let Placement { path, is_executable, blob } = placement;
        let path = self.directory.join(path);
        match blob {
            Blob::Whole(bytes) => {
                let mut file = self.create(&path, is_executable)?;
                file.write_all(&bytes)?;
                self.seal(&file, is_executable)
            }
            Blob::File { file, offset, size } => {
                if self.may_link(is_executable) && link(&file, offset, size, &path)? {
                    return Ok(());
                }
                let target = self.create(&path, is_executable)?;
                copy(&file, offset, size, &target)?;
                self.seal(&target, is_executable)
            }
            Blob::Stream { .. } => unreachable!("streams are received before"),
        }
    }

    /// Whether a file may be a link to the CAS: its mode and owner are those of the shared inode, which nobody may change.
    fn may_link(&self, is_executable: bool) -> bool {
        let is_readable = match self.ownership {
            Ownership::Same | Ownership::Mapped { .. } => true,
            Ownership::Foreign { .. } => false,
        };
        is_readable && !is_executable
    }

    fn create(&self, path: &Path, is_executable: bool) -> io::Result<File> {
        File::options().write(true).create_new(true).mode(mode(is_executable)).open(path)
    }

    /// Gives a written file its mode, whatever our umask is, its time and its owner.
    fn seal(&self, file: &File, is_executable: bool) -> io::Result<()> {
        if let Ownership::Foreign { uid, gid } = self.ownership {
            fchown(file, Some(uid), Some(gid))?;
        }
        file.set_permissions(Permissions::from_mode(mode(is_executable)))?;
        Ok(rustix::fs::futimens(file, &TIMES)?)
    }

    fn make_symlinks(&self, symlinks: &[(String, String)]) -> io::Result<()> {
        symlinks.iter().try_for_each(|(path, target)| {
            let path = self.directory.join(path);
            std::os::unix::fs::symlink(target, &path)?;
            Ok(rustix::fs::utimensat(CWD, &path, &TIMES, AtFlags::SYMLINK_NOFOLLOW)?)
        })
    }

    /// Children first: making them changed the times of their parents.
    fn finish_directories(&self, directories: &[String]) -> io::Result<()> {
        directories.iter().rev().try_for_each(|path| {
            let path = self.directory.join(path);
            if let Ownership::Foreign { uid, gid } = self.ownership {
                chown(&path, Some(uid), Some(gid))?;
            }
            fs::set_permissions(&path, Permissions::from_mode(MODE_DIRECTORY))?;
            Ok(rustix::fs::utimensat(CWD, &path, &TIMES, AtFlags::empty())?)
        })
    }
}

const TIMES: Timestamps = Timestamps { last_access: TIME, last_modification: TIME };

fn mode(is_executable: bool) -> u32 {
    if is_executable { MODE_EXECUTABLE } else { MODE_FILE }
}

/// Links `path` to `file` if that is a whole file that can be linked there; whether it did.
fn link(file: &File, offset: u64, size: u64, path: &Path) -> io::Result<bool> {
    use rustix::io::Errno;
    let metadata = file.metadata()?;
    // A file that anybody could write to, or that is no file of its own, is not what an action may share.
    if offset != 0 || metadata.len() != size || metadata.mode() & 0o7777 != MODE_FILE {
        return Ok(false);
    }
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, name, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        // Too many links (ext4: 65,000), another file system, not allowed, or evicted since it was opened: a copy does.
        Err(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Copies `size` bytes of `from`, in the kernel if it can.
fn copy(from: &File, offset: u64, size: u64, to: &File) -> io::Result<()> {
    let (mut position, end) = (offset, offset + size);
    while position < end {
        let left = usize::try_from(end - position).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from.as_fd(), Some(&mut position), to.as_fd(), None, left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return copy_through_memory(from, position, end, to),
        }
    }
    Ok(())
}

/// Copies where the kernel cannot: between some kinds of file system.
fn copy_through_memory(from: &File, mut position: u64, end: u64, mut to: &File) -> io::Result<()> {
    const BUFFER_BYTES: usize = 256 * 1024;
    let mut buffer = vec![0; BUFFER_BYTES];
    while position < end {
        let wanted = usize::try_from(end - position).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        let read = std::os::unix::fs::FileExt::read_at(from, &mut buffer[..wanted], position)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&buffer[..read])?;
        position += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Function;
    use crate::worker::shelf::Shelf;

    fn staging(directory: &Path) -> Staging {
        Staging { directory: directory.to_owned(), ownership: Ownership::Same }
    }

    fn blob_file(directory: &Path, bytes: &[u8]) -> Arc<File> {
        let path = directory.join("blob");
        fs::write(&path, bytes).expect("write");
        fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("chmod");
        Arc::new(File::open(path).expect("open"))
    }

    #[tokio::test]
    async fn a_tree_is_staged_with_fixed_modes_and_times() {
        let cas = Shelf::cas();
        let digest = cas.put_bytes(Function::Sha256, "content".into()).await.expect("stored");
        let entry = |path: &str, is_executable| FileEntry { path: path.into(), digest, is_executable };
        let tree = Tree {
            directories: vec![String::new(), "d".into()],
            files: vec![entry("d/plain", false), entry("d/tool", true)],
            symlinks: vec![("link".into(), "/nowhere".into())],
        };
        let directory = tempfile::tempdir().expect("a directory");
        staging(directory.path()).stage(&cas, tree).await.expect("staged");
        let stat = |path: &str| fs::symlink_metadata(directory.path().join(path)).expect("stat");
        for (path, mode) in [("d", 0o755), ("d/plain", 0o444), ("d/tool", 0o555)] {
            assert_eq!((stat(path).mode() & 0o7777, stat(path).mtime()), (mode, TIME.tv_sec), "{path}");
        }
        assert_eq!(fs::read_link(directory.path().join("link")).expect("a link"), Path::new("/nowhere"));
        assert_eq!(fs::read_to_string(directory.path().join("d/tool")).expect("read"), "content");
    }

    #[test]
    fn a_plain_file_is_linked_and_an_executable_copied() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = blob_file(directory.path(), b"0123456789");
        let place = |path: &str, is_executable, offset, size| {
            let blob = Blob::File { file: file.clone(), offset, size };
            staging(directory.path())
                .place(Placement { path: path.into(), is_executable, blob })
                .expect("placed");
            fs::metadata(directory.path().join(path)).expect("stat")
        };
        let shared = file.metadata().expect("stat").ino();
        assert_eq!(place("plain", false, 0, 10).ino(), shared);
        let tool = place("tool", true, 0, 10);
        assert!(tool.ino() != shared && tool.mode() & 0o7777 == 0o555);
        assert!(place("part", false, 3, 4).ino() != shared);
        assert_eq!(fs::read(directory.path().join("part")).expect("read"), b"3456");
        assert_eq!(file.metadata().expect("stat").mode() & 0o7777, 0o444, "the shared inode is untouched");
    }

    #[tokio::test]
    async fn a_blob_that_went_meanwhile_is_reported_as_missing() {
        let digest = Function::Sha256.hash(b"gone");
        let files = vec![FileEntry { path: "x".into(), digest, is_executable: false }];
        let tree = Tree { directories: vec![String::new()], files, symlinks: Vec::new() };
        let directory = tempfile::tempdir().expect("a directory");
        let error = staging(directory.path()).stage(&Shelf::cas(), tree).await.expect_err("missing");
        assert_eq!(error.missing(), [digest]);
    }
}
