//! Finds outputs below the exec root and says what they are. Blocks; reads no file's content.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};
use crate::worker::command::{Expected, Output, join};

/// Entries that one action may leave in its outputs.
const ENTRIES_MAX: usize = 1_000_000;

/// No path may lead out of the exec root, not even through a link that an action made.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An output that is there.
#[derive(Debug)]
pub(super) enum Found {
    File { name: String, index: usize, is_executable: bool },
    Folder { name: String, folder: Folder },
    Symlink { name: String, target: String, expected: Expected },
}

/// A directory with all that is in it, sorted by name as REv2 wants it.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// Name, number of the file, whether it is executable.
    pub(super) files: Vec<(String, usize, bool)>,
    pub(super) folders: Vec<(String, Folder)>,
    /// Name and target.
    pub(super) symlinks: Vec<(String, String)>,
}

/// A walk over outputs that numbers the files it meets.
pub(super) struct Scan {
    pub(super) view: Arc<OwnedFd>,
    /// Paths below the exec root, by number.
    pub(super) files: Vec<String>,
    entries: usize,
}

impl Scan {
    pub(super) fn new(view: Arc<OwnedFd>) -> Self {
        Self { view, files: Vec::new(), entries: 0 }
    }

    /// Looks for one output; `None` if it is not there, which is no error.
    pub(super) fn find(&mut self, output: Output) -> Result<Option<Found>> {
        let Output { name, path, expected } = output;
        let place = if path.is_empty() { "." } else { path.as_str() };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match openat2(&self.view, place, flags, Mode::empty(), BENEATH) {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(Errno::LOOP | Errno::XDEV) => return Err(refuse(&name, "lies behind a symbolic link")),
            Err(Errno::NAMETOOLONG) => return Err(refuse(&name, "is too long a path")),
            Err(errno) => return Err(Error::from(errno).context(format!("look for output `{name}`"))),
        };
        let stat = rustix::fs::fstat(&found).context(|| format!("look at output `{name}`"))?;
        match (FileType::from_raw_mode(stat.st_mode), expected) {
            (FileType::RegularFile, Expected::Any | Expected::File) => {
                let index = self.number(path)?;
                Ok(Some(Found::File { name, index, is_executable: is_executable(stat.st_mode) }))
            }
            (FileType::Directory, Expected::Any | Expected::Directory) => {
                Ok(Some(Found::Folder { folder: self.folder(&path)?, name }))
            }
            (FileType::Symlink, _) => {
                let target = target(&found, c"", &name)?;
                Ok(Some(Found::Symlink { name, target, expected }))
            }
            (FileType::RegularFile, Expected::Directory) => Err(refuse(&name, "is a file, not a directory")),
            (FileType::Directory, Expected::File) => Err(refuse(&name, "is a directory, not a file")),
            (other, _) => Err(refuse(&name, kind_name(other))),
        }
    }

    fn number(&mut self, path: String) -> Result<usize> {
        self.count()?;
        self.files.push(path);
        Ok(self.files.len() - 1)
    }

    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(Error::new(Kind::Precondition, format!("there are more than {ENTRIES_MAX} outputs")));
        }
        Ok(())
    }

    /// Reads a directory and all below it. The descriptor of a directory is closed before those in it are entered.
    fn folder(&mut self, path: &str) -> Result<Folder> {
        let mut folder = Folder::default();
        let mut names = Vec::new();
        for (name, stat, link) in entries(&self.view, path)? {
            let below = join(path, &name);
            match (FileType::from_raw_mode(stat.st_mode), link) {
                (FileType::RegularFile, _) => {
                    folder.files.push((name, self.number(below)?, is_executable(stat.st_mode)));
                }
                (FileType::Symlink, Some(target)) => {
                    self.count()?;
                    folder.symlinks.push((name, target));
                }
                (FileType::Directory, _) => {
                    self.count()?;
                    names.push((name, below));
                }
                (other, _) => return Err(refuse(&below, kind_name(other))),
            }
        }
        for (name, below) in names {
            folder.folders.push((name, self.folder(&below)?));
        }
        Ok(folder)
    }
}

/// The entries of a directory by name, links with their targets.
fn entries(view: &OwnedFd, path: &str) -> Result<Vec<(String, Stat, Option<String>)>> {
    let context = || format!("read output directory `{path}`");
    let directory = open(view, path, OFlags::DIRECTORY).context(context)?;
    let mut entries = Vec::new();
    for entry in Dir::read_from(&directory).context(context)? {
        let entry = entry.context(context)?;
        let bytes = entry.file_name();
        if matches!(bytes.to_bytes(), b"." | b"..") {
            continue;
        }
        let name = bytes.to_str().map_err(|_| {
            let lossy = join(path, &bytes.to_string_lossy());
            refuse(&lossy, "has a name that is not UTF-8")
        })?;
        let stat = rustix::fs::statat(&directory, bytes, AtFlags::SYMLINK_NOFOLLOW).context(context)?;
        let is_link = FileType::from_raw_mode(stat.st_mode).is_symlink();
        let link = is_link.then(|| target(&directory, bytes, &join(path, name))).transpose()?;
        entries.push((name.to_owned(), stat, link));
    }
    // REv2's canonical form: by the bytes of the name.
    entries.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(entries)
}

fn target(directory: impl AsFd, name: &CStr, output: &str) -> Result<String> {
    let target = rustix::fs::readlinkat(directory, name, Vec::new());
    let target = target.context(|| format!("read symbolic link `{output}`"))?;
    target.into_string().map_err(|_| refuse(output, "is a symbolic link whose target is not UTF-8"))
}

/// Opens an output for reading, even one whose mode forbids it to its owner.
pub(super) fn open(view: &OwnedFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let place = if path.is_empty() { "." } else { path };
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat2(view, place, flags, Mode::empty(), BENEATH) {
        Err(Errno::ACCESS) => {
            let handle = openat2(view, place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH)?;
            let mode = rustix::fs::fstat(&handle)?.st_mode & 0o7777;
            // An O_PATH descriptor cannot be changed itself, only what it stands for.
            let name = format!("/proc/self/fd/{}", handle.as_raw_fd());
            rustix::fs::chmodat(CWD, name, Mode::from_raw_mode(mode | 0o500), AtFlags::empty())?;
            Ok(openat2(view, place, flags, Mode::empty(), BENEATH)?)
        }
        result => Ok(result?),
    }
}

fn is_executable(mode: u32) -> bool {
    mode & 0o111 != 0
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "is a named pipe, which cannot be an output",
        FileType::Socket => "is a socket, which cannot be an output",
        FileType::CharacterDevice | FileType::BlockDevice => "is a device, which cannot be an output",
        FileType::RegularFile | FileType::Directory | FileType::Symlink | FileType::Unknown => {
            "is of a type that cannot be an output"
        }
    }
}

fn refuse(output: &str, why: &str) -> Error {
    Error::new(Kind::Precondition, format!("output `{output}` {why}"))
}
