//! The directories that must exist before a command runs: its working directory, and those that its outputs go into.
//!
//! They are not part of the shared tree. What is absent is made in a small layer of the action's own, on top.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, FileType, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec};
use rustix::io::Errno;

use super::files::times;
use super::staging::{OPAQUE, OPAQUE_VALUE};
use super::tree::{ENTRIES_MAX, Look, MODE_DIRECTORY};
use crate::error::{Context, Error, Result};
use crate::worker::command::{Command, Expected};
use crate::worker::sandbox::Ownership;

/// The layers of an input root as an overlay shows them.
pub(super) struct Ground {
    /// The uppermost first.
    layers: Vec<PathBuf>,
    /// What is known of the paths looked at: each is looked for below its parent, which was looked for before.
    known: BTreeMap<String, Place>,
    absent: HashSet<String>,
}

/// A directory of the overlay.
#[derive(Debug)]
struct Place {
    look: Look,
    /// What it is merged of, the uppermost first; nothing if it is yet to be made.
    parts: Vec<PathBuf>,
}

/// What is at a path.
#[derive(Debug)]
enum Found {
    Directory(Place),
    Leaf,
    Nothing,
}

impl Ground {
    pub(super) fn new(layers: Vec<PathBuf>) -> Self {
        Self { layers, known: BTreeMap::new(), absent: HashSet::new() }
    }

    /// Makes what `command` needs and the layers lack in the empty directory `top`; whether there is any such thing. Blocks.
    ///
    /// # Errors
    /// `Invalid` when the working directory is absent or an output lies below something that is no directory.
    pub(super) fn complete(mut self, command: &Command, top: &Path, ownership: Ownership) -> Result<bool> {
        self.check_working_directory(&command.working_directory)?;
        for output in &command.outputs {
            // Bazel before 5 relies on the directories that it names being there.
            let needed = match output.expected {
                Expected::Directory => output.path.as_str(),
                Expected::Any | Expected::File => {
                    output.path.rsplit_once('/').map_or("", |(parent, _)| parent)
                }
            };
            self.need(needed, &output.name)?;
        }
        if self.absent.is_empty() {
            return Ok(false);
        }
        self.make(top, ownership).context(|| "make the directories of the outputs")?;
        Ok(true)
    }

    fn check_working_directory(&mut self, name: &str) -> Result<()> {
        for path in prefixes(name) {
            match self.look(path).context(|| "look for the working directory")? {
                Found::Directory(place) => self.known.insert(path.to_owned(), place),
                Found::Leaf | Found::Nothing => {
                    return Err(Error::invalid(format!(
                        "working directory `{name}` is not in the input root"
                    )));
                }
            };
        }
        Ok(())
    }

    /// Notes which directories up to `needed` are there and which are not.
    fn need(&mut self, needed: &str, output: &str) -> Result<()> {
        let mut is_absent = false;
        for path in prefixes(needed) {
            if self.known.contains_key(path) {
                is_absent = self.absent.contains(path);
                continue;
            }
            let found = match is_absent {
                true => Found::Nothing,
                false => self.look(path).context(|| "look for the directories of the outputs")?,
            };
            let place = match found {
                Found::Directory(place) => place,
                Found::Leaf => {
                    return Err(Error::invalid(format!(
                        "output path `{output}` lies below `{path}`, an input that is no directory"
                    )));
                }
                Found::Nothing => {
                    is_absent = true;
                    self.absent.insert(path.to_owned());
                    Place { look: Look::usual(MODE_DIRECTORY), parts: Vec::new() }
                }
            };
            self.known.insert(path.to_owned(), place);
            if self.known.len() > ENTRIES_MAX {
                return Err(Error::invalid(format!("the outputs have more than {ENTRIES_MAX} directories")));
            }
        }
        Ok(())
    }

    /// What the overlay of the layers shows at `path`, whose parent is known. No link is followed.
    fn look(&self, path: &str) -> io::Result<Found> {
        let (parts, name) = match path.rsplit_once('/') {
            Some((parent, name)) => (self.known.get(parent).map_or(&[][..], |place| &place.parts), name),
            None => (&self.layers[..], path),
        };
        let mut look = None;
        let mut below = Vec::new();
        for part in parts.iter().map(|part| part.join(name)) {
            let metadata = match fs::symlink_metadata(&part) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if !metadata.is_dir() {
                if below.is_empty() && !is_whiteout(&metadata, metadata.file_type()) {
                    return Ok(Found::Leaf);
                }
                break;
            }
            look.get_or_insert_with(|| look_of(&metadata));
            let is_opaque = is_opaque(&part)?;
            below.push(part);
            if is_opaque {
                break;
            }
        }
        Ok(look.map_or(Found::Nothing, |look| Found::Directory(Place { look, parts: below })))
    }

    /// Makes the absent directories and, above them, those that they are in, which look as they do below.
    fn make(&self, top: &Path, ownership: Ownership) -> io::Result<()> {
        let mut needed: BTreeMap<&str, Look> = BTreeMap::new();
        for path in &self.absent {
            needed.extend(prefixes(path).filter_map(|path| Some((path, self.known.get(path)?.look))));
        }
        // A parent is before its children in the order of names.
        for path in needed.keys() {
            fs::create_dir(top.join(path))?;
        }
        for (path, look) in needed.iter().rev() {
            let path = top.join(path);
            if let Ownership::Foreign { uid, gid } = ownership {
                chown(&path, Some(uid), Some(gid))?;
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(look.mode))?;
            rustix::fs::utimensat(CWD, &path, &times(look.time), AtFlags::empty())?;
        }
        Ok(())
    }
}

/// The path's directories from the first to itself; none for the root.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(index, _)| index).chain([path.len()]);
    ends.map(|end| &path[..end]).filter(|prefix| !prefix.is_empty())
}

fn is_whiteout(metadata: &Metadata, kind: FileType) -> bool {
    kind.is_char_device() && metadata.rdev() == 0
}

fn look_of(metadata: &Metadata) -> Look {
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() };
    Look { mode: metadata.mode() & 0o7777, time }
}

fn is_opaque(directory: &Path) -> io::Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::getxattr(directory, OPAQUE, &mut value[..]) {
        Ok(length) => Ok(&value[..length] == OPAQUE_VALUE),
        // No such attribute, or a file system without any.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FileType as Kind, Mode, XattrFlags};

    use super::*;
    use crate::proto::rev2;

    struct Layers {
        directory: tempfile::TempDir,
    }

    impl Layers {
        /// Two layers: `upper` hides `base/gone`, replaces `base/opaque` and makes a directory of `base/leaf`.
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let path = |path: &str| directory.path().join(path);
            for name in ["base/a/b", "base/gone/x", "base/opaque/x", "upper/a", "upper/opaque", "upper/leaf"]
            {
                fs::create_dir_all(path(name)).expect("mkdir");
            }
            fs::create_dir(path("top")).expect("mkdir");
            for name in ["base/leaf", "base/a/file"] {
                fs::write(path(name), "x").expect("write");
            }
            std::os::unix::fs::symlink("/etc", path("upper/link")).expect("symlink");
            rustix::fs::mknodat(CWD, path("upper/gone"), Kind::CharacterDevice, Mode::empty(), 0)
                .expect("mknod");
            rustix::fs::setxattr(path("upper/opaque"), OPAQUE, OPAQUE_VALUE, XattrFlags::empty())
                .expect("setxattr");
            Self { directory }
        }

        fn complete(&self, command: rev2::Command) -> Result<Option<Vec<String>>> {
            let command = rev2::Command { arguments: vec!["x".into()], ..command };
            let command = Command::check(command).expect("a good command");
            let path = |path: &str| self.directory.path().join(path);
            let ground = Ground::new(vec![path("upper"), path("base")]);
            let is_there = ground.complete(&command, &path("top"), Ownership::Same)?;
            let made = is_there.then(|| listed(&path("top"), ""));
            fs::remove_dir_all(path("top")).and_then(|()| fs::create_dir(path("top"))).expect("emptied");
            Ok(made)
        }

        fn outputs(&self, outputs: &[&str]) -> Result<Option<Vec<String>>> {
            let output_paths = outputs.iter().map(|path| (*path).to_owned()).collect();
            self.complete(rev2::Command { output_paths, ..rev2::Command::default() })
        }
    }

    fn listed(directory: &Path, prefix: &str) -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory).expect("list") {
            let entry = entry.expect("list");
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            names.extend(listed(&entry.path(), &format!("{name}/")));
            names.push(name);
        }
        names.sort();
        names
    }

    #[test]
    fn parents_of_outputs_are_made_and_old_output_directories_themselves() {
        let layers = Layers::new();
        assert_eq!(layers.outputs(&["a/b/out", "out", "leaf/out"]).expect("fine"), None);
        let made = layers.outputs(&["a/b/c/d/out", "a/b/c/e", "gone/x/out", "opaque/x/out"]).expect("fine");
        let expected =
            ["a", "a/b", "a/b/c", "a/b/c/d", "gone", "gone/x", "opaque", "opaque/x"].map(str::to_owned);
        assert_eq!(made.expect("some"), expected);
        #[expect(deprecated, reason = "clients of REv2 2.0 send this field")]
        let old = rev2::Command { output_directories: vec!["x/y".into()], ..rev2::Command::default() };
        assert_eq!(layers.complete(old).expect("fine").expect("some"), ["x", "x/y"]);
    }

    #[test]
    fn what_cannot_hold_an_output_is_refused() {
        let layers = Layers::new();
        for (output, sentence) in
            [("link/x/y", "`link/x/y` lies below `link`"), ("a/file/x", "lies below `a/file`")]
        {
            let error = layers.outputs(&[output]).expect_err(sentence).to_string();
            assert!(error.contains(sentence), "{error}");
        }
        for name in ["nowhere", "gone", "opaque/x", "link", "a/file"] {
            let command = rev2::Command { working_directory: name.into(), ..rev2::Command::default() };
            let error = layers.complete(command).expect_err(name).to_string();
            assert!(error.contains(&format!("working directory `{name}` is not in")), "{error}");
        }
        let command = rev2::Command { working_directory: "a/b".into(), ..rev2::Command::default() };
        assert_eq!(layers.complete(command).expect("fine"), None);
    }
}
