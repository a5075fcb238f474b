//! Where the cache of input trees keeps what: names that tell all there is to know, so that a start reads nothing else.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Function};
use crate::error::{Context, Result};
use crate::worker::sandbox::Ownership;

/// Changes with the meaning of what is in the directories.
const FORMAT: u32 = 1;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The directory of one cache, below the one that the sandbox serves.
pub(super) struct Place {
    directory: PathBuf,
}

impl Place {
    pub(super) fn of(served: &Path) -> Self {
        Self { directory: served.join("inputs") }
    }

    /// Makes the directories, and puts what must not be used again into the trash: what was not complete, and everything if the
    /// machine has started anew, since what was not synced may be gone, or if the files are to have another owner. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub(super) fn prepare(served: &Path, ownership: Ownership) -> Result<Self> {
        let place = Self::of(served);
        place.sweep(ownership).context(|| "prepare the input cache")?;
        Ok(place)
    }

    fn sweep(&self, ownership: Ownership) -> io::Result<()> {
        fs::create_dir_all(self.trash())?;
        // Closed to all but those who can pass its parents: the sandbox enters it by a mount of its own.
        fs::set_permissions(&self.directory, Permissions::from_mode(0o711))?;
        let marker = format!("{FORMAT} {} {ownership:?}", fs::read_to_string(BOOT_ID)?.trim());
        let path = self.directory.join("marker");
        let is_the_same = fs::read_to_string(&path).is_ok_and(|found| found == marker);
        let kept = if is_the_same { 2 } else { 0 };
        let all = [self.trees(), self.files(), self.layers(), self.temporary()];
        for (number, directory) in all.iter().enumerate() {
            if number >= kept {
                self.throw_away(directory)?;
            }
            match fs::create_dir(directory) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        // Written last: a start that is cut short throws everything away again.
        fs::write(path, marker)
    }

    fn throw_away(&self, directory: &Path) -> io::Result<()> {
        let mut number = 0;
        loop {
            let aside = self.trash().join(format!("start-{number}"));
            match fs::rename(directory, aside) {
                // A start that was killed may have left as much as there are starts. XFS says so in another way than most.
                Err(error)
                    if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) =>
                {
                    number += 1;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                result => return result,
            }
        }
    }

    /// Complete trees.
    fn trees(&self) -> PathBuf {
        self.directory.join("trees")
    }

    pub(super) fn files(&self) -> PathBuf {
        self.directory.join("files")
    }

    /// Trees that are not complete, and layers, which are of no use to another process: they need to know their base.
    fn layers(&self) -> PathBuf {
        self.directory.join("layers")
    }

    pub(super) fn temporary(&self) -> PathBuf {
        self.directory.join("temporary")
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.directory.join("trash")
    }

    pub(super) fn layer(&self, number: u64) -> PathBuf {
        self.layers().join(number.to_string())
    }

    pub(super) fn tree(&self, root: &Digest, entries: usize, bytes: u64) -> PathBuf {
        let function = root.function().to_proto() as i32;
        self.trees().join(format!("{function}-{}-{}-{entries}-{bytes}", root.hex(), root.size()))
    }

    /// The complete trees with their entries and bytes.
    ///
    /// # Errors
    /// When the file system fails.
    pub(super) fn listed(&self) -> Result<Vec<(Digest, usize, u64)>> {
        let mut trees = Vec::new();
        for entry in fs::read_dir(self.trees()).context(|| "list the input trees")? {
            let name = entry.context(|| "list the input trees")?.file_name();
            // What has another name was not made by us and is left alone.
            trees.extend(name.to_str().and_then(parse));
        }
        Ok(trees)
    }
}

fn parse(name: &str) -> Option<(Digest, usize, u64)> {
    let parts: Vec<&str> = name.split('-').collect();
    let [function, hash, size, entries, bytes] = parts.as_slice() else { return None };
    let function = Function::from_proto(function.parse().ok()?).ok().flatten()?;
    let root = Digest::parse(function, hash, size.parse().ok()?).ok()?;
    Some((root, entries.parse().ok()?, bytes.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_all_and_what_is_not_complete_or_of_another_owner_goes() {
        let served = tempfile::tempdir().expect("a directory");
        let place = Place::prepare(served.path(), Ownership::Same).expect("prepared");
        let root = Function::Blake3.hash(b"root");
        fs::create_dir(place.tree(&root, 3, 5000)).expect("mkdir");
        fs::create_dir(place.layer(7)).expect("mkdir");
        let place = Place::prepare(served.path(), Ownership::Same).expect("prepared");
        assert_eq!(place.listed().expect("listed"), [(root, 3, 5000)]);
        assert!(!place.layer(7).exists());
        let place = Place::prepare(served.path(), Ownership::Foreign { uid: 5, gid: 5 }).expect("prepared");
        assert_eq!(place.listed().expect("listed"), []);
        fs::write(place.directory.join("marker"), "of another boot").expect("written");
        fs::create_dir(place.tree(&root, 3, 5000)).expect("mkdir");
        let place = Place::prepare(served.path(), Ownership::Foreign { uid: 5, gid: 5 }).expect("prepared");
        assert_eq!(place.listed().expect("listed"), []);
    }
}
