//! The files of a store: one per blob, named by its hash, complete and synced before it gets its name.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IoSlice};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::entry::Location;
use super::writeback;
use crate::error::{Context, Error, Kind, Result};
use crate::store::name::{Family, Name};

/// Nobody writes a blob again, whoever links or mounts it.
const MODE_BLOB: u32 = 0o444;
const MODE_TEMPORARY: u32 = 0o600;

/// Buffers in one system call; the kernel takes 1,024.
const BUFFERS_MAX: usize = 512;

/// Names files and gives them their place. All paths are below one directory, on one file system.
pub(super) struct Files {
    directory: PathBuf,
    temporary: PathBuf,
    next: AtomicU64,
    /// The numbers of files that are being written.
    live: Arc<Mutex<HashSet<u64>>>,
}

/// How a file holds a blob; its name tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Form {
    Plain,
    Compressed,
}

/// A blob's file: its form and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) form: Form,
    pub(super) bytes: u64,
}

/// A file without a name of its own yet; it is removed unless it is published.
pub(super) struct Temporary {
    path: PathBuf,
    file: File,
    size: u64,
    number: u64,
    live: Arc<Mutex<HashSet<u64>>>,
    /// The size of the content, if that is compressed.
    content_size: Option<u64>,
}

impl Form {
    pub(super) const ALL: [Self; 2] = [Self::Plain, Self::Compressed];

    /// What follows the hash in the name of a file.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Compressed => ".zst",
        }
    }
}

impl Files {
    /// Makes the folders, and empties the one of temporary files: what is in it was not acknowledged.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let temporary = directory.join("tmp");
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::from(error).context("empty the folder of temporary files"));
            }
            Ok(()) | Err(_) => {}
        }
        fs::create_dir_all(&temporary).context(|| "make the folder of temporary files")?;
        for family in Family::all() {
            let folder = directory.join(family.folder());
            fs::create_dir_all(&folder).context(|| "make the folders of the blobs")?;
            folder.ancestors().skip(1).take(2).try_for_each(sync_directory)?;
        }
        Ok(Self { directory: directory.to_owned(), temporary, next: AtomicU64::new(0), live: Arc::default() })
    }

    pub(super) fn path(&self, name: &Name, form: Form) -> PathBuf {
        self.directory.join(name.path() + form.suffix())
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new file to write into.
    pub(super) fn create(&self) -> Result<Temporary> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.temporary.join(number.to_string());
        lock(&self.live).insert(number);
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE_TEMPORARY).open(&path);
        if file.is_err() {
            lock(&self.live).remove(&number);
        }
        let live = Arc::clone(&self.live);
        let file = file.context(|| "make a temporary file")?;
        Ok(Temporary { file, path, size: 0, number, live, content_size: None })
    }

    /// Gives a finished file its name, in place of what had it before. The name is durable after [`sync_directory`] of the
    /// folder, which is returned.
    pub(super) fn publish(&self, temporary: Temporary, name: &Name) -> Result<PathBuf> {
        let path = self.path(name, temporary.form());
        let folder = path.parent().expect("a blob's file is in a folder");
        match fs::rename(&temporary.path, &path) {
            // The first blob of a folder makes it, so that a start does not have to look at hundreds of them.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_folder(folder).context(|| "make a folder of blobs")?;
                fs::rename(&temporary.path, &path).map_err(disk_error).context(|| "name a blob's file")?;
            }
            renamed => renamed.map_err(disk_error).context(|| "name a blob's file")?,
        }
        temporary.forget();
        Ok(folder.to_owned())
    }

    /// The blob's file and its length, or `None` if it is absent or of another length.
    ///
    /// A result's file may have any length: when a crash comes between a replacement and its commit, the file is already the
    /// new one, complete, while the index speaks of the old one. That is as good as a put whose answer was lost.
    pub(super) fn read(&self, name: &Name, stored: Stored) -> Result<Option<(File, u64)>> {
        let file = match File::open(self.path(name, stored.form)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::from(error).context("open a blob's file")),
        };
        let length = file.metadata().context(|| "read the size of a blob's file")?.len();
        let is_right = length == stored.bytes || !name.is_blob();
        Ok(is_right.then_some((file, length)))
    }

    /// What tells the file that has this name from others that had it or will.
    pub(super) fn inode(&self, name: &Name, form: Form) -> Option<u64> {
        fs::metadata(self.path(name, form)).ok().map(|metadata| metadata.ino())
    }

    /// Deletes temporary files that nobody writes, and gives their number. One that waits to be deleted may be among them.
    pub(super) fn sweep(&self) -> Result<u64> {
        let entries = fs::read_dir(&self.temporary).context(|| "list the temporary files")?;
        let mut swept = 0;
        for entry in entries.flatten() {
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if number.is_some_and(|number| lock(&self.live).contains(&number)) {
                continue;
            }
            swept += u64::from(fs::remove_file(entry.path()).is_ok());
        }
        Ok(swept)
    }

    /// Takes the name from a file at once; the file is left under a temporary path, for whoever has time to delete it.
    pub(super) fn discard(&self, name: &Name, form: Form) -> Option<PathBuf> {
        let path = self.temporary_path();
        fs::rename(self.path(name, form), &path).ok().map(|()| path)
    }

    fn temporary_path(&self) -> PathBuf {
        self.temporary.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Temporary {
    /// Bytes that are in the file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Says that the file is `content_size` bytes of content, compressed.
    pub(super) fn set_compressed(&mut self, content_size: u64) {
        self.content_size = Some(content_size);
    }

    fn form(&self) -> Form {
        if self.content_size.is_some() { Form::Compressed } else { Form::Plain }
    }

    /// What the index says of the file once it has its name.
    pub(super) fn location(&self) -> Location {
        match self.content_size {
            Some(size) => Location::Compressed { size, stored: self.size },
            None => Location::File { size: self.size },
        }
    }

    /// Appends all of `buffers`; blocks. After an error [`Temporary::size`] tells how many bytes were written.
    pub(super) fn write(&mut self, buffers: &[Bytes]) -> Result<()> {
        let start = self.size;
        let mut slices: Vec<IoSlice<'_>> = buffers.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(BUFFERS_MAX)];
            match rustix::io::pwritev(&self.file, some, self.size) {
                Ok(0) => return Err(Error::bug("a write wrote nothing")),
                Ok(written) => {
                    self.size += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(disk_error(errno.into()).context("write a blob's file")),
            }
        }
        // A length of zero would mean all that follows.
        if self.size > start {
            writeback::begin(&self.file, start, self.size - start);
        }
        Ok(())
    }

    /// Makes the content durable and read-only; blocks.
    pub(super) fn finish(&self) -> Result<()> {
        self.file
            .set_permissions(fs::Permissions::from_mode(MODE_BLOB))
            .context(|| "protect a blob's file")?;
        self.file.sync_data().map_err(disk_error).context(|| "sync a blob's file")
    }

    /// It has another name, which stays.
    fn forget(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() && fs::remove_file(&self.path).is_err() {
            tracing::warn!("a temporary file could not be removed; the next scrub or start removes it");
        }
        lock(&self.live).remove(&self.number);
    }
}

/// An error of the file system; the one that callers make room for has its own sentence.
pub(super) fn disk_error(error: std::io::Error) -> Error {
    let error = Error::from(error);
    if error.kind() == Kind::Exhausted { error.context("the disk is full") } else { error }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).context(|| "sync a directory")
}

/// The set is whole between any two steps that can panic.
fn lock(live: &Mutex<HashSet<u64>>) -> MutexGuard<'_, HashSet<u64>> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make_folder(folder: &Path) -> std::io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    folder.parent().map_or(Ok(()), |family| File::open(family)?.sync_all())
}
