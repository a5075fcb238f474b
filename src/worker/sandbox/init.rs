//! Pid 1 of an action: mounts what only this action sees, starts the command, reaps, and ends all of it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Signal, WaitOptions, WaitStatus};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::exec;
use super::launcher::{Fault, Scratch, Step};
use super::limits::Ceilings;
use super::seccomp::Filter;
use super::skeleton::{HIDDEN, LOWER, MEMORY, SCRATCH};
use super::sys::{self, Side};
use super::wire::{self, Account, End, Left};
use crate::error::Error;

/// Where every action sees its inputs.
const EXEC_ROOT: &str = "/build";
/// Of the action's directory, in which its overlay and `/tmp` are when they are on disk.
pub(in crate::worker) const DISK_DIRECTORY: &str = "scratch";
/// What one action may write into memory if nothing else is said, as a part of the machine's.
const SCRATCH_SIZE: &str = "50%";
/// Memory that a command may put into `/dev/shm`.
const SHM_OPTIONS: &std::ffi::CStr = c"mode=1777,size=512m";
const PTS_OPTIONS: &std::ffi::CStr = c"newinstance,ptmxmode=0666,mode=0620";

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// What the launcher hands to an init.
pub(super) struct Init<'a> {
    pub(super) channel: OwnedFd,
    /// The control group that the command is started in.
    pub(super) group: Option<OwnedFd>,
    pub(super) networks: &'a [OwnedFd],
    pub(super) scratch: Scratch,
    pub(super) filter: &'a Filter,
}

/// The command as it crosses the channel.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) network: usize,
    /// The action's directory, below the one that the launcher serves.
    pub(super) directory: String,
    /// The lower layers, below the same one, the uppermost first.
    pub(super) layers: Vec<String>,
    /// Relative to the exec root.
    pub(super) working_directory: String,
    pub(super) arguments: Vec<String>,
    /// `NAME=value`, each.
    pub(super) environment: Vec<String>,
    /// What it may write, in bytes, if that is kept in memory.
    pub(super) memory_scratch: Option<u64>,
    pub(super) ceilings: Ceilings,
}

impl Order {
    /// Refuses what no program can be started with.
    pub(super) fn check(&self) -> crate::error::Result<()> {
        let mut strings = self.arguments.iter().chain(&self.environment).chain([&self.working_directory]);
        if strings.any(|text| text.contains('\0')) {
            return Err(Error::invalid("the command cannot be run: a string contains a NUL character"));
        }
        Ok(())
    }
}

/// Runs one action and ends.
pub(super) fn main(init: &Init<'_>) -> ! {
    let code = match run(init) {
        Ok(()) => 0,
        Err(fault) => {
            // A farm that is gone waits for no sentence.
            let _ = wire::send_fault(&init.channel, &fault);
            1
        }
    };
    sys::exit_now(code)
}

fn run(init: &Init<'_>) -> Result<(), Fault> {
    // Dies with the launcher, and with it (as pid 1 of its namespace) everything that the action started.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step("bind the init to the launcher")?;
    let children = sys::watch_children().step("watch the children")?;
    let order = wire::receive_value::<Order>(&init.channel).step("read the command")?;
    let order = order.ok_or("read the command: it is cut short")?;
    let network = init.networks.get(order.network).ok_or("the command names no network of the launcher's")?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).step("enter the network")?;
    let left = prepare(init.scratch, &order)?;
    // A send fails only when the farm is gone.
    let _ = wire::send_begun(&init.channel, &left);
    let working_directory = format!("{EXEC_ROOT}/{}", order.working_directory);
    rustix::process::chdir(&working_directory).step("enter the working directory")?;
    let forked = init.group.as_ref().map_or_else(|| sys::fork(0), sys::fork_into);
    let command = match forked.step("start a process for the command")? {
        Side::Child => exec::main(init, &left, &order),
        Side::Parent(pid) => pid,
    };
    let end = supervise(&init.channel, &children, command).step("wait for the command")?;
    let _ = wire::send_end(&init.channel, &Account { end, usage: sys::children_usage() }, &left);
    Ok(())
}

/// Mounts what no two actions share, makes the files for what the command prints, and hides the actions' directories.
fn prepare(scratch: Scratch, order: &Order) -> Result<Left, Fault> {
    let Order { directory, layers, .. } = order;
    sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWIPC).step("create the action's namespaces")?;
    // The modes below are what the command sees; it gets a umask of its own.
    rustix::process::umask(Mode::empty());
    let scratch = match scratch {
        Scratch::Memory => {
            mount("tmpfs", MEMORY, "tmpfs", PLAIN, Some(memory_options(order.memory_scratch).as_c_str()))
                .step("mount the action's memory")?;
            MEMORY.to_owned()
        }
        Scratch::Disk => format!("{SCRATCH}/{directory}/{DISK_DIRECTORY}"),
    };
    for (name, mode) in [("upper", 0o755), ("work", 0o700), ("tmp", 0o1777)] {
        rustix::fs::mkdir(format!("{scratch}/{name}"), Mode::from_raw_mode(mode))
            .step("make a directory for the action")?;
    }
    let (stdout, stderr) = (output(&format!("{scratch}/stdout"))?, output(&format!("{scratch}/stderr"))?);
    mount_all(&scratch, layers)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let view = rustix::fs::open(EXEC_ROOT, flags, Mode::empty()).step("open the exec root")?;
    Ok(Left { view, stdout, stderr })
}

fn memory_options(size_bytes: Option<u64>) -> CString {
    let size = size_bytes.map_or_else(|| SCRATCH_SIZE.to_owned(), |bytes| bytes.to_string());
    CString::new(format!("mode=0755,size={size}")).expect("a number has no NUL")
}

/// Makes a file for what the command prints. Appending, so that a descriptor that the command opens again through
/// `/dev/stdout` overwrites nothing.
fn output(path: &str) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).step("make a file for what the command prints")
}

fn mount_all(scratch: &str, layers: &[String]) -> Result<(), Fault> {
    let layers: Vec<String> = layers.iter().map(|layer| format!("{LOWER}/{layer}")).collect();
    let layers = layers.join(":");
    // volatile: unmounting would sync the whole file system below, for files that are thrown away.
    let options =
        format!("lowerdir={layers},upperdir={scratch}/upper,workdir={scratch}/work,userxattr,volatile");
    let options = CString::new(options).expect("the farm's own names have no NUL");
    mount("overlay", EXEC_ROOT, "overlay", PLAIN, Some(options.as_c_str())).step(
        "mount the overlay of inputs and outputs; the worker's directory must be on a file system that can be part of an \
         overlay (ext4, XFS, Btrfs or tmpfs; not an overlay and not NFS)",
    )?;
    mount_bind(format!("{scratch}/tmp"), "/tmp").step("mount /tmp")?;
    mount("proc", "/proc", "proc", PLAIN | MountFlags::NOEXEC, None)
        .step("mount /proc; in a container, the outer /proc must not be masked")?;
    mount("tmpfs", "/dev/shm", "tmpfs", PLAIN, Some(SHM_OPTIONS)).step("mount /dev/shm")?;
    mount("devpts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, Some(PTS_OPTIONS))
        .step("mount /dev/pts")?;
    unmount(HIDDEN, UnmountFlags::DETACH).step("hide the worker's directory")
}

/// Waits for the command's end or the farm's word, then ends and reaps all other processes.
fn supervise(channel: &OwnedFd, children: &OwnedFd, command: libc::pid_t) -> Result<End, Errno> {
    let mut end = None;
    while end.is_none() {
        let mut fds = [PollFd::new(children, PollFlags::IN), PollFd::new(channel, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        // Whatever comes through the channel means kill: a word of the farm's, or its end.
        let is_killed = !fds[1].revents().is_empty();
        // One signal may stand for many children, so what is read says only that there may be some.
        let _ = rustix::io::read(children, &mut [0; 1024]);
        end = reap(command, WaitOptions::NOHANG)?.or(is_killed.then_some(End::Killed));
    }
    loop {
        sys::kill_all();
        match rustix::process::wait(WaitOptions::empty()) {
            Err(Errno::CHILD) => return Ok(end.expect("the loop above ends with one")),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reaps what has ended; the command's end if that is among it.
fn reap(command: libc::pid_t, options: WaitOptions) -> Result<Option<End>, Errno> {
    loop {
        match rustix::process::wait(options) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == command => {
                return Ok(Some(end_of(status)));
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}

fn end_of(status: WaitStatus) -> End {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::Exited(code),
        (None, Some(signal)) => End::Signaled(signal),
        (None, None) => unreachable!("only ended children are waited for"),
    }
}
