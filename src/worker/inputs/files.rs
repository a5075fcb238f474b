//! Files to link inputs from: blobs of the CAS where their inode will do, else one copy for each content, mode and time.
//!
//! A copy lives as long as a tree has a link to it. Nobody changes an inode once it has a name here or in a tree.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::TryStreamExt;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::staging::BATCHES_ALL_MAX;
use super::tree::{FileEntry, Look, MODE_FILE, TIME};
use crate::error::{Context, Result};
use crate::store::{Blob, Chunks};
use crate::tasks;
use crate::worker::sandbox::Ownership;

/// Folders that the copies are spread over by the first byte of their hash.
const FOLDERS: u16 = 256;

/// Copies are published beside one another if their hashes begin differently: as many as batches are placed at a time, twice.
const LOCKS: usize = 2 * BATCHES_ALL_MAX;

/// The copies of one cache.
pub(super) struct Files {
    directory: PathBuf,
    temporary: PathBuf,
    ownership: Ownership,
    next: AtomicU64,
    /// For batches of files, of all roots.
    pub(super) turns: Semaphore,
    /// Held while it is looked whether there is a copy and, if not, one is made.
    locks: [Mutex<()>; LOCKS],
}

/// A file that is being written. It goes when it is dropped, unless it got a name.
pub(super) struct Temporary {
    path: PathBuf,
    file: File,
}

impl Files {
    /// Copies are kept in `directory` and written in `temporary`, both of which exist. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub(super) fn open(directory: PathBuf, temporary: PathBuf, ownership: Ownership) -> io::Result<Self> {
        for number in 0..FOLDERS {
            match fs::create_dir(directory.join(format!("{number:02x}"))) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        let turns = Semaphore::new(BATCHES_ALL_MAX);
        Ok(Self {
            directory,
            temporary,
            ownership,
            next: AtomicU64::new(0),
            turns,
            locks: Default::default(),
        })
    }

    pub(super) fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Links `target` to the copy of `entry`; whether there is one that can be linked to.
    pub(super) fn link(&self, entry: &FileEntry, target: &Path) -> io::Result<bool> {
        linked(rustix::fs::link(self.path(entry), target))
    }

    /// Makes `target` a file with the content of `blob`, which is no stream: a link to the blob or to a new copy of it.
    pub(super) fn place(&self, entry: &FileEntry, target: &Path, blob: Blob) -> io::Result<()> {
        match blob {
            Blob::Whole(bytes) => {
                let mut temporary = self.create()?;
                temporary.file.write_all(&bytes)?;
                self.publish(temporary, entry, target)
            }
            Blob::File { file, offset, size } => {
                if self.may_share(entry) && link_blob(&file, (offset, size), target)? {
                    return Ok(());
                }
                let temporary = self.create()?;
                copy(&file, offset, size, &temporary.file)?;
                self.publish(temporary, entry, target)
            }
            Blob::Stream { .. } => unreachable!("streams are received"),
        }
    }

    /// Writes a blob that comes in pieces.
    ///
    /// # Errors
    /// What the stream and the file system report.
    pub(super) async fn receive(&self, mut chunks: Chunks) -> Result<Temporary> {
        let mut temporary = self.create().context(|| "make an input file")?;
        while let Some(chunk) = chunks.try_next().await? {
            temporary = tasks::blocking(move || {
                temporary.file.write_all(&chunk).context(|| "write an input file")?;
                Ok(temporary)
            })
            .await?;
        }
        Ok(temporary)
    }

    /// Gives a written file its look and its names: `target` and that of the copy. If there is a copy by now, `target` becomes a link to that:
    /// archivers tell links to one file from equal files, so whether equal inputs are one must not depend on what was there before.
    pub(super) fn publish(&self, temporary: Temporary, entry: &FileEntry, target: &Path) -> io::Result<()> {
        self.seal(&temporary.file, entry.look)?;
        let lock = usize::from(entry.digest.hash()[0]) % LOCKS;
        // What a lock guards is on the disk, and right between any two steps.
        let _alone = self.locks[lock].lock().unwrap_or_else(PoisonError::into_inner);
        if self.link(entry, target)? {
            return Ok(());
        }
        rustix::fs::link(&temporary.path, target)?;
        // One that is there already has too many links: those keep it.
        fs::rename(&temporary.path, self.path(entry))
    }

    /// Deletes the copies that no tree has a link to. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for folder in fs::read_dir(&self.directory)? {
            for file in fs::read_dir(folder?.path())? {
                let file = file?;
                // Who links to it meanwhile has its link; who comes too late makes a new copy.
                if file.metadata()?.nlink() == 1 {
                    fs::remove_file(file.path())?;
                }
            }
        }
        Ok(())
    }

    /// Whether an input may be the blob's own file: its mode and owner are those of the shared inode, which nobody may change.
    fn may_share(&self, entry: &FileEntry) -> bool {
        let is_readable = match self.ownership {
            Ownership::Same | Ownership::Mapped { .. } => true,
            Ownership::Foreign { .. } => false,
        };
        is_readable && entry.look == Look::usual(MODE_FILE)
    }

    fn create(&self) -> io::Result<Temporary> {
        let path = self.temporary.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Temporary { path, file })
    }

    fn seal(&self, file: &File, look: Look) -> io::Result<()> {
        if let Ownership::Foreign { uid, gid } = self.ownership {
            fchown(file, Some(uid), Some(gid))?;
        }
        file.set_permissions(Permissions::from_mode(look.mode))?;
        Ok(rustix::fs::futimens(file, &times(look.time))?)
    }

    fn path(&self, entry: &FileEntry) -> PathBuf {
        let FileEntry { digest, look: Look { mode, time }, .. } = entry;
        let (hex, size) = (digest.hex(), digest.size());
        let function = digest.function().to_proto().as_str_name();
        let look = format!("{mode:o}-{}.{}", time.tv_sec, time.tv_nsec);
        self.directory.join(&hex[..2]).join(format!("{function}-{hex}-{size}-{look}"))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After `publish` it has another name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Access and modification at `time`.
pub(super) fn times(time: Timespec) -> Timestamps {
    Timestamps { last_access: time, last_modification: time }
}

/// Whether a link was made; `false` if a copy is needed for it.
fn linked(result: Result<(), Errno>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        // Too many links (ext4: 65,000), another file system, not allowed, or there is none (any more).
        Err(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Links `target` to a blob if that is a whole file that can be linked there; whether it did.
fn link_blob(file: &File, (offset, size): (u64, u64), target: &Path) -> io::Result<bool> {
    let metadata = file.metadata()?;
    // A file that anybody could write to, or that is no file of its own, is not what an action may share.
    if offset != 0 || metadata.len() != size || metadata.mode() & 0o7777 != MODE_FILE {
        return Ok(false);
    }
    // The time of a blob's file means nothing to the store, but an action could see it.
    let is_set = (metadata.mtime(), metadata.mtime_nsec()) == (TIME.tv_sec, TIME.tv_nsec);
    if !is_set && rustix::fs::futimens(file, &times(TIME)).is_err() {
        return Ok(false);
    }
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    linked(rustix::fs::linkat(CWD, name, CWD, target, AtFlags::SYMLINK_FOLLOW))
}

/// Copies `size` bytes of `from`, in the kernel if it can.
fn copy(from: &File, offset: u64, size: u64, to: &File) -> io::Result<()> {
    let (mut position, end) = (offset, offset + size);
    while position < end {
        let left = usize::try_from(end - position).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from.as_fd(), Some(&mut position), to.as_fd(), None, left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::INTR) => {}
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
    use std::sync::Arc;

    use super::*;
    use crate::digest::Function;

    struct Place {
        directory: tempfile::TempDir,
        files: Files,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            for name in ["files", "temporary"] {
                fs::create_dir(directory.path().join(name)).expect("mkdir");
            }
            let path = |name: &str| directory.path().join(name);
            let files = Files::open(path("files"), path("temporary"), Ownership::Same).expect("opened");
            Self { directory, files }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn blob(&self, bytes: &[u8]) -> Arc<File> {
            let path = self.path("blob");
            fs::write(&path, bytes).expect("write");
            fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("chmod");
            Arc::new(File::open(path).expect("open"))
        }

        fn place(&self, name: &str, mode: u32, blob: Blob) -> fs::Metadata {
            let digest = Function::Sha256.hash(b"any");
            let entry = FileEntry { path: name.into(), digest, look: Look::usual(mode) };
            self.files.place(&entry, &self.path(name), blob).expect("placed");
            fs::metadata(self.path(name)).expect("stat")
        }
    }

    #[test]
    fn a_plain_blob_is_linked_and_an_executable_copied_once() {
        let place = Place::new();
        let file = place.blob(b"0123456789");
        let blob = |offset, size| Blob::File { file: file.clone(), offset, size };
        let shared = file.metadata().expect("stat").ino();
        assert_eq!(place.place("plain", 0o444, blob(0, 10)).ino(), shared);
        let tool = place.place("tool", 0o555, blob(0, 10));
        assert!(tool.ino() != shared && tool.mode() & 0o7777 == 0o555 && tool.mtime() == TIME.tv_sec);
        let digest = Function::Sha256.hash(b"any");
        let entry = FileEntry { path: String::new(), digest, look: Look::usual(0o555) };
        assert!(place.files.link(&entry, &place.path("again")).expect("no error"));
        assert_eq!(fs::metadata(place.path("again")).expect("stat").ino(), tool.ino());
        assert!(place.place("part", 0o444, blob(3, 4)).ino() != shared);
        assert_eq!(fs::read(place.path("part")).expect("read"), b"3456");
        let metadata = file.metadata().expect("stat");
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o444, TIME.tv_sec));
        assert_eq!(fs::read_dir(place.path("temporary")).expect("list").count(), 0);
    }

    #[test]
    fn equal_inputs_are_one_file_although_none_was_there_when_they_were_fetched() {
        let place = Place::new();
        let inodes = ["one", "two"].map(|name| place.place(name, 0o555, Blob::Whole("x".into())).ino());
        assert_eq!(inodes[0], inodes[1]);
        assert_eq!(fs::read_dir(place.path("temporary")).expect("list").count(), 0);
    }

    #[test]
    fn a_copy_goes_with_the_last_link_to_it() {
        let place = Place::new();
        place.place("one", 0o555, Blob::Whole("x".into()));
        place.place("two", 0o444, Blob::Whole("x".into()));
        fs::remove_file(place.path("one")).expect("removed");
        place.files.sweep().expect("swept");
        let link = |mode| {
            let digest = Function::Sha256.hash(b"any");
            let entry = FileEntry { path: String::new(), digest, look: Look::usual(mode) };
            place.files.link(&entry, &place.path(&format!("again-{mode:o}"))).expect("no error")
        };
        assert!(!link(0o555) && link(0o444));
    }
}
