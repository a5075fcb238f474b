//! What an action sees, in a mount namespace of its own. Nearly all of it is made before there is an action.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use rustix::thread::UnshareFlags;

use super::exchange;
use super::init::{EXEC_ROOT, PLAIN};
use super::launcher::{Fault, Rooms, Step};
use super::order::{Places, Plan, Purpose, Writable};
use super::skeleton::{HIDDEN, MEMORY, enter_namespace, namespace};
use super::sys;
use super::wire::Left;

/// Memory that a command may put into `/dev/shm`.
const SHM_OPTIONS: &CStr = c"mode=1777,size=512m";
/// Without the init, whose counts of time and memory tell of earlier actions.
const PROC_OPTIONS: &CStr = c"hidepid=2";
const PTS_OPTIONS: &CStr = c"newinstance,ptmxmode=0666,mode=0620";

/// The roots as one init has them: each with a `/proc` that shows its processes. All its stages are made from these.
pub(super) struct Bases<'a> {
    rooms: &'a Rooms,
    /// Mount namespaces, made when they are first needed.
    made: Vec<Option<OwnedFd>>,
}

impl<'a> Bases<'a> {
    pub(super) fn new(rooms: &'a Rooms) -> Self {
        Self { rooms, made: rooms.roots.iter().map(|_| None).collect() }
    }

    /// Goes to where nothing of any action is. The stage that this process has been on ends with its last user.
    pub(super) fn enter(&mut self, root: usize) -> Result<(), Fault> {
        let made = self.made.get_mut(root).ok_or("the command names no root of the launcher's")?;
        if let Some(base) = made {
            return enter_namespace(base);
        }
        enter_namespace(&self.rooms.roots[root])?;
        sys::unshare(UnshareFlags::NEWNS).step("create an init's namespaces")?;
        mount("proc", "/proc", "proc", PLAIN | MountFlags::NOEXEC, Some(PROC_OPTIONS))
            .step("mount /proc; in a container, the outer /proc must not be masked")?;
        *made = Some(namespace("/proc")?);
        Ok(())
    }
}

/// A mount namespace, with an IPC namespace, that no command has been in, and in which this process is.
pub(super) struct Stage {
    root: usize,
    memory: Option<Memory>,
}

/// What one action writes into.
struct Memory {
    options: CString,
    /// What the command prints into.
    printed: (OwnedFd, OwnedFd),
}

impl Stage {
    /// Makes one of `root`; with memory of these options, if what actions write is kept there.
    pub(super) fn make(bases: &mut Bases<'_>, root: usize, memory: Option<CString>) -> Result<Self, Fault> {
        bases.enter(root)?;
        sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWIPC).step("create the action's namespaces")?;
        let memory = memory.map(Memory::mount).transpose()?;
        mount("tmpfs", "/dev/shm", "tmpfs", PLAIN, Some(SHM_OPTIONS)).step("mount /dev/shm")?;
        mount("devpts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, Some(PTS_OPTIONS))
            .step("mount /dev/pts")?;
        Ok(Self { root, memory })
    }

    /// Whether an action of `root` can have it.
    pub(super) fn is_of(&self, root: usize) -> bool {
        self.root == root
    }

    /// Adds what the action alone decides, and hides the actions' directories.
    pub(super) fn finish(self, plan: &Plan) -> Result<Left, Fault> {
        let (stdout, stderr) = match (&plan.writable, self.memory) {
            (Writable::Memory(options), Some(memory)) => memory.with(options)?,
            (Writable::Memory(options), None) => Memory::mount(options.clone())?.printed,
            (Writable::Disk(places), _) => places.make()?,
        };
        match plan.purpose {
            Purpose::Command | Purpose::Request => mount_overlay(plan)?,
            Purpose::Resident => exchange::mount_ground()?,
        }
        unmount(HIDDEN, UnmountFlags::DETACH).step("hide the worker's directory")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let view = rustix::fs::open(EXEC_ROOT, flags, Mode::empty()).step("open the exec root")?;
        Ok(Left { view, stdout, stderr })
    }
}

impl Memory {
    fn mount(options: CString) -> Result<Self, Fault> {
        mount("tmpfs", MEMORY, "tmpfs", PLAIN, Some(options.as_c_str())).step("mount the action's memory")?;
        Ok(Self { printed: Places::below(MEMORY)?.make()?, options })
    }

    /// What the command prints into, with the size that its action may have.
    fn with(self, options: &CStr) -> Result<(OwnedFd, OwnedFd), Fault> {
        if self.options.as_c_str() != options {
            mount_remount(MEMORY, PLAIN, options).step("set the size of the action's memory")?;
        }
        Ok(self.printed)
    }
}

impl Places {
    /// Makes the directories, mounts `/tmp`, and makes the files for what the command prints.
    fn make(&self) -> Result<(OwnedFd, OwnedFd), Fault> {
        for (path, mode) in &self.directories {
            rustix::fs::mkdir(path, *mode).step("make a directory for the action")?;
        }
        mount_bind(&self.temporary, "/tmp").step("mount /tmp")?;
        Ok((output(&self.stdout)?, output(&self.stderr)?))
    }
}

/// Makes a file for what the command prints. Appending, so that a descriptor that the command opens again through
/// `/dev/stdout` overwrites nothing.
fn output(path: &CStr) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).step("make a file for what the command prints")
}

fn mount_overlay(plan: &Plan) -> Result<(), Fault> {
    mount("overlay", EXEC_ROOT, "overlay", PLAIN, Some(plan.overlay.as_c_str())).step(
        "mount the overlay of inputs and outputs; the worker's directory must be on a file system that can be part of an \
         overlay (ext4, XFS, Btrfs or tmpfs; not an overlay and not NFS)",
    )
}
