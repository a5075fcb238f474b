//! A disk whose power can be cut: ext4 on a loop device over a file.
//!
//! What has not reached that file when it is copied is lost for whoever mounts the copy, as after a real cut. The copy is a
//! point in time because nothing is written meanwhile, which two equal copies in a row show.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const IMAGE_BYTES: u64 = 384 << 20;

/// Copies until two are equal; what the kernel still had to write is written by then.
const COPIES_MAX: u32 = 20;

/// Room for an image and two copies of it.
const ROOM_BYTES: u64 = 3 * IMAGE_BYTES;

/// A file system in a file, in a directory of its own.
pub(crate) struct Image {
    directory: TempDir,
}

/// An image that is mounted. Dropping it unmounts it.
pub(crate) struct Power {
    /// `None` only after the power is off.
    image: Option<Image>,
    mounted: PathBuf,
}

/// A copy of the image at the time of the cut, beside it.
pub(crate) struct Cut(PathBuf);

impl Image {
    /// A fresh file system.
    ///
    /// # Errors
    /// Why this machine cannot do it.
    pub(crate) fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root can mount a file system".into());
        }
        let directory = TempDir::new_in(place()).map_err(|error| error.to_string())?;
        let image = Self { directory };
        std::fs::File::create(image.path()).unwrap().set_len(IMAGE_BYTES).unwrap();
        std::fs::create_dir(image.mount_point()).unwrap();
        let options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        run(Command::new("mkfs.ext4").args(options).arg(image.path()))?;
        let trial = image.mount()?;
        Ok(trial.off_cleanly())
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn mount_point(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// The loop device goes with the mount.
    fn mount(self) -> Result<Power, String> {
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .arg(self.path())
            .arg(self.mount_point()))?;
        Ok(Power { mounted: self.mount_point(), image: Some(self) })
    }
}

/// In memory if there is room, because it is faster and wears nothing out.
pub(crate) fn place() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let room = rustix::fs::statvfs(&memory).map_or(0, |it| it.f_bavail.saturating_mul(it.f_frsize));
    if room > ROOM_BYTES { memory } else { std::env::temp_dir() }
}

impl Power {
    pub(crate) fn on(image: Image) -> Self {
        image.mount().unwrap()
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.mounted.clone()
    }

    /// What is on the disk at this time. Whoever writes must have been stopped.
    pub(crate) fn cut(&self) -> Cut {
        let (cut, again) = (self.beside("cut"), self.beside("again"));
        copy(&self.image_path(), &cut);
        for _ in 0..COPIES_MAX {
            copy(&self.image_path(), &again);
            let are_equal = Command::new("cmp").arg("-s").args([&cut, &again]).status().unwrap().success();
            if are_equal {
                std::fs::remove_file(again).unwrap();
                return Cut(cut);
            }
            std::fs::rename(&again, &cut).unwrap();
        }
        panic!("the image changes although nobody writes");
    }

    /// Leaves only what was on the disk at the cut.
    pub(crate) fn off(self, cut: Cut) -> Image {
        let image = self.off_cleanly();
        std::fs::rename(cut.0, image.path()).unwrap();
        image
    }

    pub(crate) fn off_cleanly(mut self) -> Image {
        run(Command::new("umount").arg(&self.mounted)).unwrap();
        self.image.take().expect("it is taken only here")
    }

    fn image_path(&self) -> PathBuf {
        self.beside("image")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.mounted.with_file_name(name)
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        if self.image.is_some() {
            // A test has failed while the store may still have files open: the mount goes when they are closed.
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.mounted));
        }
    }
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").args([from, to])).unwrap();
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {errors}")) }
}

/// Whether no thread of a process can run its own code: each is stopped, or in a call of the kernel that ends in a stop.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().all(|thread| {
        let status = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = status.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        matches!(state, Some('T' | 't' | 'D' | 'Z') | None)
    })
}
