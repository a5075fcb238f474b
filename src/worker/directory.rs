//! The directory of one attempt: its inputs and, if that is not in memory, what it writes. Never shared, never reused.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::sandbox::{DISK_DIRECTORY, Ownership, Scratch};
use crate::error::{self, Context, Error, Result};

/// Of the worker's directory: those of the actions.
const ACTIONS: &str = "actions";
/// Of an action's directory: a layer of its inputs that no other action has.
const LAYER: &str = "root";

/// Whose an action's files are and where they are.
pub(super) type Kind = (Ownership, Scratch);

/// The directory of one attempt at an action.
#[derive(Debug)]
pub(super) struct Directory {
    /// Below the worker's directory.
    pub(super) name: String,
    path: PathBuf,
}

impl Directory {
    /// Makes the directory of attempt `name` below `served`, the worker's. Blocks.
    ///
    /// # Errors
    /// When it exists already, or the file system fails.
    pub(super) fn create(served: &Path, name: &str, kind: Kind) -> Result<Self> {
        let name = format!("{ACTIONS}/{name}");
        let path = served.join(&name);
        fill(&path, kind).context(|| "make the action's directory")?;
        Ok(Self { name, path })
    }

    /// The layer for what this action alone needs among its inputs, below the worker's directory.
    pub(super) fn layer(&self) -> String {
        format!("{}/{LAYER}", self.name)
    }

    /// Where that layer is.
    pub(super) fn layer_path(&self) -> PathBuf {
        self.path.join(LAYER)
    }

    /// Where the sandbox writes, if that is on disk.
    pub(super) fn scratch(&self) -> PathBuf {
        self.path.join(DISK_DIRECTORY)
    }

    /// Deletes the directory with all that is in it. Blocks.
    ///
    /// # Errors
    /// When the file system fails; the next start of the worker tries again.
    pub(super) fn remove(self) -> Result<()> {
        remove_all(&self.path).context(|| "delete the action's directory")
    }
}

fn fill(path: &Path, (ownership, scratch): Kind) -> io::Result<()> {
    // The sandbox's user may have to pass, whatever umask the farm was started with; what keeps others out is the directory of all
    // actions.
    let create = |path: &Path| {
        fs::create_dir(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))
    };
    create(path)?;
    create(&path.join(LAYER))?;
    if scratch == Scratch::Disk {
        let path = path.join(DISK_DIRECTORY);
        create(&path)?;
        if let Some((uid, gid)) = owner(ownership) {
            chown(&path, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

/// The ids that what an action writes must have, where they are not the farm's own.
fn owner(ownership: Ownership) -> Option<(u32, u32)> {
    match ownership {
        Ownership::Same => None,
        Ownership::Mapped { uid, gid } | Ownership::Foreign { uid, gid } => Some((uid, gid)),
    }
}

/// Takes the directory `served` for this process, until the file is closed: another worker would delete what this one's actions use.
/// Makes it if it is not there. Blocks.
///
/// # Errors
/// `Unavailable` when another process has it.
pub(super) fn lock(served: &Path) -> Result<File> {
    fs::create_dir_all(served).context(|| "make the worker's directory")?;
    let file = File::create(served.join("lock")).context(|| "open the lock of the worker's directory")?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            let message = "the worker's directory is in use by another croft";
            Err(Error::new(error::Kind::Unavailable, message))
        }
        Err(errno) => Err(Error::from(errno).context("lock the worker's directory")),
    }
}

/// Makes the directory of all actions below `served`, empty: what is in it was left by a worker that was killed. Blocks.
///
/// # Errors
/// When the file system fails.
pub(super) fn sweep(served: &Path) -> Result<()> {
    let actions = &served.join(ACTIONS);
    // A tree too deep to be deleted must not keep the farm from starting.
    if let Err(error) = remove_all(actions) {
        tracing::warn!(%error, "some of what an earlier worker left could not be deleted");
        let aside = actions.with_extension(format!("left-{}", std::process::id()));
        fs::rename(actions, aside).context(|| "move aside what an earlier worker left")?;
    }
    fs::create_dir_all(actions).context(|| "make the directory of the actions")?;
    // Closed to all but those who can pass its parents: the sandbox enters it by a mount of its own.
    fs::set_permissions(actions, Permissions::from_mode(0o711))
        .context(|| "restrict the directory of the actions")
}

/// Deletes `path` and all below it; nothing there is fine.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Makes all directories below `path` writable: actions and the overlay leave some that not even their owner may enter.
fn open_up(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = (Ownership::Same, Scratch::Disk);

    fn served() -> tempfile::TempDir {
        let served = tempfile::tempdir().expect("a directory");
        sweep(served.path()).expect("made");
        served
    }

    fn count(served: &tempfile::TempDir) -> usize {
        fs::read_dir(served.path().join(ACTIONS)).expect("list").count()
    }

    #[test]
    fn a_directory_that_an_action_locked_is_deleted() {
        let served = served();
        let directory = Directory::create(served.path(), "a-1", KIND).expect("created");
        let locked = served.path().join("actions/a-1/scratch/x/y");
        fs::create_dir_all(&locked).expect("mkdir");
        fs::write(locked.join("file"), "x").expect("write");
        fs::set_permissions(&locked, Permissions::from_mode(0o000)).expect("chmod");
        directory.remove().expect("removed");
        assert_eq!(count(&served), 0);
    }

    #[test]
    fn a_sweep_leaves_an_empty_directory() {
        let served = served();
        Directory::create(served.path(), "a-1", KIND).expect("created");
        sweep(served.path()).expect("swept");
        assert_eq!(count(&served), 0);
    }

    #[test]
    fn an_attempt_never_gets_the_directory_of_another() {
        let served = served();
        Directory::create(served.path(), "a-1", KIND).expect("created");
        assert!(Directory::create(served.path(), "a-1", KIND).is_err());
    }
}
