//! Control groups (v2): they limit and count what an action uses, all its processes together, and kill all of it at once.
//!
//! The worker's part of the hierarchy, below the group that it was started in:
//!
//! ```text
//! croft.farm/           the worker itself, since a group that has processes can give its children no controllers
//! croft.<pid>.<n>/      one life of a worker; its memory is limited so that the actions together leave some to the machine
//!   launcher/           the launcher and the inits
//!   <number>/           one action
//! ```
//!
//! A group is made for each action instead of being used again: most kernels cannot set its peaks and counters back.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::limits::{Limits, SWAP_MAX, Spent};
use super::lock;

/// The group that the worker moves itself to.
const FARM: &str = "croft.farm";
/// How the groups of a worker's life begin.
const LIFE: &str = "croft.";
const LAUNCHER: &str = "launcher";
/// Groups that could not be deleted and are tried again when the next one is made: a few, so that no action waits for them.
const RETRIED_MAX: usize = 4;
/// How often, and with which pauses, the end of a worker's life tries to delete its groups: processes that are killed are gone in
/// milliseconds unless they hang in the kernel.
const ENDING_TRIES: u32 = 50;
const ENDING_PAUSE: Duration = Duration::from_millis(10);

/// Why a group gives its children nothing while it has processes.
const SHARED: &str = "the worker shares its control group with other processes; run it as a service of its own, with `Delegate=yes`";

/// What the kernel can limit in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Cpu,
    Memory,
    Pids,
}

impl Controller {
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

/// The groups of one worker's life. Cheap to clone; the last one that goes takes them away.
#[derive(Debug, Clone)]
pub struct Groups {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    controllers: Vec<Controller>,
    /// The user who starts processes in the groups, if that is not the worker's.
    owner: Option<(u32, u32)>,
    /// Numbers the actions.
    next: AtomicU64,
    /// What could not be deleted yet.
    left: Mutex<Vec<PathBuf>>,
}

/// What a worker gets of the control groups.
#[derive(Debug)]
pub struct Claim {
    pub groups: Option<Groups>,
    /// What cannot be limited, and why; empty if everything can.
    pub lacking: Vec<Controller>,
    pub reason: String,
}

/// The group of one action. Dropping it kills what is in it.
#[derive(Debug)]
pub(super) struct Group {
    directory: PathBuf,
    fd: OwnedFd,
    groups: Groups,
}

/// Takes a part of the hierarchy for a worker whose actions run as `owner` if it is not its own user. All its actions together get
/// `memory_bytes`. Blocks.
pub fn claim(owner: Option<(u32, u32)>, memory_bytes: u64) -> Claim {
    let place = place();
    let claimed = place.and_then(|place| claim_below(&place, owner, memory_bytes));
    claimed.unwrap_or_else(|reason| Claim { groups: None, lacking: Controller::ALL.into(), reason })
}

/// The directory of the group in which this process was started.
fn place() -> Result<PathBuf, String> {
    let read = |path| fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"));
    let (groups, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    let directory =
        directory_of(&groups, &mounts).ok_or("no control group hierarchy of version 2 is mounted")?;
    // A second worker of one process finds itself where the first one has moved it.
    let is_moved = directory.file_name().is_some_and(|name| name == FARM);
    Ok(if is_moved {
        directory.parent().map_or_else(|| directory.clone(), Path::to_owned)
    } else {
        directory
    })
}

/// Where the group of the process is whose files of `/proc` these are.
pub(in crate::worker) fn directory_of(groups: &str, mounts: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let is_groups = file_system.starts_with("cgroup2 ");
        let below = Path::new(path).strip_prefix(root).ok()?;
        is_groups.then(|| Path::new(point).join(below))
    })
}

fn claim_below(place: &Path, owner: Option<(u32, u32)>, memory_bytes: u64) -> Result<Claim, String> {
    sweep(place);
    let (controllers, reason) = enable(place)?;
    let groups =
        Groups::create(place, (controllers, owner), memory_bytes).map_err(|error| refusal(&error))?;
    let lacking = Controller::ALL.into_iter().filter(|controller| !groups.has(*controller)).collect();
    Ok(Claim { groups: Some(groups), lacking, reason })
}

fn refusal(error: &io::Error) -> String {
    format!(
        "the worker may not make control groups below its own ({error}); give its service `Delegate=yes`, or run it as root \
         with a writable /sys/fs/cgroup"
    )
}

/// Lets groups below `place` have what the kernel offers; which controllers those are, and why not the others.
fn enable(place: &Path) -> Result<(Vec<Controller>, String), String> {
    let names = |file| fs::read_to_string(place.join(file)).unwrap_or_default();
    let has =
        |names: &str, controller: Controller| names.split_whitespace().any(|name| name == controller.name());
    let offered = names("cgroup.controllers");
    let offered: Vec<_> =
        Controller::ALL.into_iter().filter(|controller| has(&offered, *controller)).collect();
    let mut reason = "the kernel has them in no control group of version 2, or gives the worker's group none of them; boot with \
                      `systemd.unified_cgroup_hierarchy=1`, or give the worker's service `Delegate=yes`"
        .to_owned();
    let given = names("cgroup.subtree_control");
    if offered.iter().all(|controller| has(&given, *controller)) {
        return Ok((offered, reason));
    }
    // Only the root of the hierarchy may have processes and give controllers to its children; it alone has no type.
    if place.join("cgroup.type").exists() {
        move_away(place).map_err(|error| refusal(&error))?;
    }
    for controller in &offered {
        if let Err(error) = set(place, "cgroup.subtree_control", &format!("+{}", controller.name())) {
            reason =
                if error.kind() == ErrorKind::ResourceBusy { SHARED.to_owned() } else { refusal(&error) };
        }
    }
    let given = names("cgroup.subtree_control");
    Ok((offered.into_iter().filter(|controller| has(&given, *controller)).collect(), reason))
}

/// Moves this process to a group of its own below `place`.
fn move_away(place: &Path) -> io::Result<()> {
    let farm = place.join(FARM);
    make_directory(&farm)?;
    set(&farm, "cgroup.procs", "0")
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Writes one of the kernel's files, which take a value in one write and are never created.
fn set(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(directory.join(file))?.write_all(value.as_bytes())
}

/// Deletes what workers left below `place` that were killed.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix(LIFE)?.split_once('.')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_life(&entry.path());
        }
    }
}

/// Kills all in the groups of a life and deletes those that are empty then.
fn remove_life(life: &Path) {
    let _ = set(life, "cgroup.kill", "1");
    for _ in 0..ENDING_TRIES {
        let below = fs::read_dir(life).into_iter().flatten().flatten();
        for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let _ = fs::remove_dir(entry.path());
        }
        match fs::remove_dir(life) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => std::thread::sleep(ENDING_PAUSE),
            Ok(()) | Err(_) => return,
        }
    }
}

type Grant = (Vec<Controller>, Option<(u32, u32)>);

impl Groups {
    fn create(place: &Path, (controllers, owner): Grant, memory_bytes: u64) -> io::Result<Self> {
        static LIVES: AtomicU64 = AtomicU64::new(0);
        let (pid, life) = (std::process::id(), LIVES.fetch_add(1, Ordering::Relaxed));
        let directory = place.join(format!("{LIFE}{pid}.{life}"));
        fs::create_dir(&directory)?;
        let (next, left) = (AtomicU64::new(0), Mutex::default());
        // From here on, dropping this takes the directory away.
        let groups = Self { inner: Arc::new(Inner { directory, controllers, owner, next, left }) };
        let directory = &groups.inner.directory;
        for controller in &groups.inner.controllers {
            set(directory, "cgroup.subtree_control", &format!("+{}", controller.name()))?;
        }
        if groups.has(Controller::Memory) {
            set(directory, "memory.max", &memory_bytes.to_string())?;
        }
        fs::create_dir(directory.join(LAUNCHER))?;
        groups.hand_over(directory)?;
        Ok(groups)
    }

    /// Whether the kernel limits this in the groups.
    pub fn has(&self, controller: Controller) -> bool {
        self.inner.controllers.contains(&controller)
    }

    /// Where they are, for people.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// Lets the actions' user start processes in `directory`. The kernel asks for the right to the common parent of the old and the
    /// new group, too. No action sees the hierarchy.
    fn hand_over(&self, directory: &Path) -> io::Result<()> {
        let Some((uid, gid)) = self.inner.owner else { return Ok(()) };
        chown(directory.join("cgroup.procs"), Some(uid), Some(gid))
    }

    /// Moves the launcher to where it may start processes in the actions' groups.
    pub(super) fn adopt(&self, launcher: u32) -> io::Result<()> {
        set(&self.inner.directory.join(LAUNCHER), "cgroup.procs", &launcher.to_string())
    }

    /// Makes the group of an action. Blocks.
    pub(super) fn make(&self, limits: &Limits) -> io::Result<Group> {
        self.retry();
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let directory = self.inner.directory.join(number.to_string());
        fs::create_dir(&directory)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(&directory, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(errno) => {
                self.remove(&directory);
                return Err(errno.into());
            }
        };
        let group = Group { directory, fd, groups: self.clone() };
        for (controller, file, value) in limits.settings() {
            if !self.has(controller) {
                continue;
            }
            match group.set(file, &value) {
                // A kernel that does not count what is swapped has no file for its limit.
                Err(error) if error.kind() == ErrorKind::NotFound && file == SWAP_MAX => {}
                result => result?,
            }
        }
        self.hand_over(&group.directory)?;
        Ok(group)
    }

    /// Tries some of those again that could not be deleted.
    fn retry(&self) {
        let left = {
            let mut left = lock(&self.inner.left);
            let count = left.len().min(RETRIED_MAX);
            left.drain(..count).collect::<Vec<_>>()
        };
        for directory in left {
            self.remove(&directory);
        }
    }

    /// Deletes a group that nothing runs in any more, as far as one knows.
    fn remove(&self, directory: &Path) {
        if fs::remove_dir(directory).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy) {
            lock(&self.inner.left).push(directory.to_owned());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        remove_life(&self.directory);
    }
}

impl Group {
    /// For `CLONE_INTO_CGROUP`.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// What the processes in it have used, and which limits they have reached.
    pub(super) fn spent(&self) -> Spent {
        Spent::read(|file| fs::read_to_string(self.directory.join(file)).ok())
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        match set(&self.directory, file, value) {
            // Without swap in the kernel there is nothing to forbid.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel takes the file away when it is older than 5.14; then the end of the init ends them all.
        let _ = set(&self.directory, "cgroup.kill", "1");
        self.groups.remove(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "29 28 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
                          30 29 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                          31 29 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_own_group_is_found_below_its_mount() {
        let groups = "4:memory:/x\n0::/system.slice/croft.service\n";
        let expected = PathBuf::from("/sys/fs/cgroup/unified/system.slice/croft.service");
        assert_eq!(directory_of(groups, MOUNTS), Some(expected));
        assert_eq!(directory_of("0::/\n", MOUNTS), Some("/sys/fs/cgroup/unified/".into()));
        assert_eq!(directory_of("4:memory:/x\n", MOUNTS), None, "version 1 alone");
        let of_a_container = "31 29 0:28 /a/b /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(directory_of("0::/a/b/c\n", of_a_container), Some("/sys/fs/cgroup/c".into()));
        assert_eq!(directory_of("0::/a/c\n", of_a_container), None, "the mount does not show it");
    }
}
