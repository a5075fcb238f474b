//! One process, one directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};

/// Longest content of a lock file: a process id.
const PID_CHARACTERS_MAX: u64 = 20;

/// Takes the directory for this process, until the file is closed.
///
/// # Errors
/// `Unavailable` when another one has it.
pub(super) fn acquire(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .context(|| "open the lock of the data directory")?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(in_use(&mut file)),
        Err(errno) => return Err(Error::from(errno).context("lock the data directory")),
    }
    file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).context(|| "write the lock")?;
    Ok(file)
}

fn in_use(file: &mut File) -> Error {
    let mut owner = String::new();
    // Whoever has the lock may be about to write its id: then there is none to tell.
    let _ = file.take(PID_CHARACTERS_MAX).read_to_string(&mut owner);
    let message = format!("the data directory is in use by another croft (pid {owner})");
    Error::new(Kind::Unavailable, message)
}
