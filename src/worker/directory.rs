//! The directory of one attempt: its inputs, what it writes, its stdout and stderr. Never shared, never reused.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use super::sandbox::Ownership;
use crate::error::{Context, Result};

/// What the sandbox expects below an action's directory: the inputs, the overlay's two, and `/tmp`.
const INPUTS: &str = "root";
const WRITTEN: [&str; 3] = ["upper", "work", "tmp"];

/// The directory of one attempt at an action.
#[derive(Debug)]
pub(super) struct Directory {
    /// Below the worker's directory of actions.
    pub(super) name: String,
    pub(super) printed: Printed,
    path: PathBuf,
}

/// The files that take what a command prints.
#[derive(Debug)]
pub(super) struct Printed {
    pub(super) stdout: File,
    pub(super) stderr: File,
}

impl Directory {
    /// Makes the directory of attempt `name` below `actions`. Blocks.
    ///
    /// # Errors
    /// When it exists already, or the file system fails.
    pub(super) fn create(actions: &Path, name: String, ownership: Ownership) -> Result<Self> {
        let path = actions.join(&name);
        let printed = fill(&path, ownership).context(|| "make the action's directory")?;
        Ok(Self { name, printed, path })
    }

    /// Where the inputs are staged.
    pub(super) fn inputs(&self) -> PathBuf {
        self.path.join(INPUTS)
    }

    /// Deletes the directory with all that is in it. Blocks.
    ///
    /// # Errors
    /// When the file system fails; the next start of the worker tries again.
    pub(super) fn remove(self) -> Result<()> {
        remove_all(&self.path).context(|| "delete the action's directory")
    }
}

impl Printed {
    /// Handles on the same files for the command.
    pub(super) fn try_clone(&self) -> Result<Self> {
        let clone = |file: &File| file.try_clone().context(|| "duplicate a descriptor");
        Ok(Self { stdout: clone(&self.stdout)?, stderr: clone(&self.stderr)? })
    }
}

fn fill(path: &Path, ownership: Ownership) -> io::Result<Printed> {
    let mut builder = fs::DirBuilder::new();
    // The sandbox's user may have to pass; what keeps others out is the directory of all actions.
    builder.mode(0o755);
    builder.create(path)?;
    builder.create(path.join(INPUTS))?;
    for name in WRITTEN {
        let path = path.join(name);
        builder.create(&path)?;
        if let Some((uid, gid)) = owner(ownership) {
            chown(&path, Some(uid), Some(gid))?;
        }
    }
    // An action sees these modes, so they must not depend on our umask.
    fs::set_permissions(path.join("upper"), Permissions::from_mode(0o755))?;
    fs::set_permissions(path.join("tmp"), Permissions::from_mode(0o1777))?;
    Ok(Printed {
        stdout: output(&path.join("stdout"), ownership)?,
        stderr: output(&path.join("stderr"), ownership)?,
    })
}

/// Makes a file that a command may write to, also by opening it again through `/dev/stdout`.
fn output(path: &Path, ownership: Ownership) -> io::Result<File> {
    // Appending, so that two descriptors of one command do not overwrite each other.
    let file = File::options().read(true).append(true).create_new(true).mode(0o600).open(path)?;
    if let Some((uid, gid)) = owner(ownership) {
        fchown(&file, Some(uid), Some(gid))?;
    }
    Ok(file)
}

/// The ids that what an action writes must have, where they are not the farm's own.
fn owner(ownership: Ownership) -> Option<(u32, u32)> {
    match ownership {
        Ownership::Same => None,
        Ownership::Mapped { uid, gid } | Ownership::Foreign { uid, gid } => Some((uid, gid)),
    }
}

/// Makes the directory of all actions, empty: what is in it was left by a worker that was killed. Blocks.
///
/// # Errors
/// When the file system fails.
pub(super) fn sweep(actions: &Path) -> Result<()> {
    remove_all(actions).context(|| "delete what an earlier worker left")?;
    fs::create_dir_all(actions).context(|| "make the directory of the actions")?;
    // Closed to all but those who can pass its parents: the sandbox enters it by a mount of its own.
    fs::set_permissions(actions, Permissions::from_mode(0o711))
        .context(|| "restrict the directory of the actions")
}

/// Deletes `path` and all below it; nothing there is fine.
fn remove_all(path: &Path) -> io::Result<()> {
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

    #[test]
    fn a_directory_that_an_action_locked_is_deleted() {
        let actions = tempfile::tempdir().expect("a directory");
        let directory = Directory::create(actions.path(), "a-1".into(), Ownership::Same).expect("created");
        let locked = actions.path().join("a-1/upper/x/y");
        fs::create_dir_all(&locked).expect("mkdir");
        fs::write(locked.join("file"), "x").expect("write");
        fs::set_permissions(&locked, Permissions::from_mode(0o000)).expect("chmod");
        directory.remove().expect("removed");
        assert_eq!(fs::read_dir(actions.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_sweep_leaves_an_empty_directory() {
        let parent = tempfile::tempdir().expect("a directory");
        let actions = parent.path().join("actions");
        sweep(&actions).expect("made");
        Directory::create(&actions, "a-1".into(), Ownership::Same).expect("created");
        sweep(&actions).expect("swept");
        assert_eq!(fs::read_dir(&actions).expect("list").count(), 0);
    }

    #[test]
    fn an_attempt_never_gets_the_directory_of_another() {
        let actions = tempfile::tempdir().expect("a directory");
        Directory::create(actions.path(), "a-1".into(), Ownership::Same).expect("created");
        assert!(Directory::create(actions.path(), "a-1".into(), Ownership::Same).is_err());
    }
}
