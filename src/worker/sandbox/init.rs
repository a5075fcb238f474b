//! Pid 1 of an action: mounts what only this action sees, starts the command, reaps, and ends all of it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Signal, WaitOptions, WaitStatus};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::exchange;
use super::exec::{self, Beginning, Program};
use super::launcher::{Fault, Rooms, Scratch, Step};
use super::limits::Ceilings;
use super::seccomp::Filter;
use super::skeleton::{HIDDEN, LOWER, MEMORY, SCRATCH, enter_namespace};
use super::sys::{self, Stack};
use super::wire::{self, Account, End, Left};
use crate::error::Error;

/// Where every action sees its inputs.
pub(super) const EXEC_ROOT: &str = "/build";
/// Of the action's directory, in which its overlay and `/tmp` are when they are on disk.
pub(in crate::worker) const DISK_DIRECTORY: &str = "scratch";
/// What one action may write into memory if nothing else is said, as a part of the machine's.
const SCRATCH_SIZE: &str = "50%";
/// Memory that a command may put into `/dev/shm`.
const SHM_OPTIONS: &CStr = c"mode=1777,size=512m";
const PTS_OPTIONS: &CStr = c"newinstance,ptmxmode=0666,mode=0620";

pub(super) const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// What the launcher hands to an init.
pub(super) struct Init<'a> {
    pub(super) channel: OwnedFd,
    /// The control group that the command is started in.
    pub(super) group: Option<OwnedFd>,
    pub(super) rooms: &'a Rooms,
    pub(super) filter: &'a Filter,
    pub(super) plan: Plan,
    /// Where the command is until it is executed.
    pub(super) stack: &'a mut Stack,
}

/// An order as system calls take it. The launcher makes it because its memory is warm: all that an init touches is copied or mapped
/// first, a page at a time.
pub(super) struct Plan {
    network: usize,
    root: usize,
    /// The options of the memory that it writes into, unless that is on disk.
    memory: Option<CString>,
    /// To be made, with their modes.
    directories: [(CString, Mode); 3],
    stdout: CString,
    stderr: CString,
    /// The options of the overlay.
    overlay: CString,
    /// What becomes `/tmp`.
    temporary: CString,
    working_directory: CString,
    program: Program,
    ceilings: Ceilings,
    purpose: Purpose,
}

/// The command as it crosses the channel.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) network: usize,
    pub(super) root: usize,
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
    pub(super) purpose: Purpose,
}

/// What an init is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// To run a command on its inputs.
    Command,
    /// To make the exec root of a request to a resident and hand it over; nothing is run.
    Request,
    /// To run a command that answers one request after the other; it has no inputs of its own.
    Resident,
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

impl Plan {
    /// # Errors
    /// When a string has a NUL, of which the farm lets none pass.
    pub(super) fn new(order: Order, scratch: Scratch) -> Result<Self, Fault> {
        let string = |text: String| CString::new(text).step("read the command");
        let directory = match scratch {
            Scratch::Memory => MEMORY.to_owned(),
            Scratch::Disk => format!("{SCRATCH}/{}/{DISK_DIRECTORY}", order.directory),
        };
        let below = |name: &str| string(format!("{directory}/{name}"));
        let mode = Mode::from_raw_mode;
        let size = order.memory_scratch.map_or_else(|| SCRATCH_SIZE.to_owned(), |bytes| bytes.to_string());
        let memory = || string(format!("mode=0755,size={size}"));
        let layers: Vec<String> = order.layers.iter().map(|layer| format!("{LOWER}/{layer}")).collect();
        Ok(Self {
            network: order.network,
            root: order.root,
            memory: (scratch == Scratch::Memory).then(memory).transpose()?,
            directories: [
                (below("upper")?, mode(0o755)),
                (below("work")?, mode(0o700)),
                (below("tmp")?, mode(0o1777)),
            ],
            stdout: below("stdout")?,
            stderr: below("stderr")?,
            // volatile: unmounting would sync the whole file system below, for files that are thrown away.
            overlay: string(format!(
                "lowerdir={},upperdir={directory}/upper,workdir={directory}/work,userxattr,volatile",
                layers.join(":")
            ))?,
            temporary: below("tmp")?,
            working_directory: string(format!("{EXEC_ROOT}/{}", order.working_directory))?,
            program: Program::new(order.arguments, order.environment)?,
            ceilings: order.ceilings,
            purpose: order.purpose,
        })
    }
}

/// Runs one action and ends.
pub(super) fn main(mut init: Init<'_>) -> ! {
    let code = match run(&mut init) {
        Ok(()) => 0,
        Err(fault) => {
            // A farm that is gone waits for no sentence.
            let _ = wire::send_fault(&init.channel, &fault);
            1
        }
    };
    sys::exit_now(code)
}

fn run(init: &mut Init<'_>) -> Result<(), Fault> {
    let Init { channel, group, rooms, filter, plan, stack } = init;
    // Dies with the launcher, and with it (as pid 1 of its namespace) everything that the action started.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step("bind the init to the launcher")?;
    let children = sys::watch_children().step("watch the children")?;
    let network = rooms.networks.get(plan.network).ok_or("the command names no network of the launcher's")?;
    let root = rooms.roots.get(plan.root).ok_or("the command names no root of the launcher's")?;
    // The launcher is in the first, and with it all that it forks.
    if plan.root > 0 {
        enter_namespace(root)?;
    }
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).step("enter the network")?;
    let mut left = prepare(plan)?;
    let stdin = match plan.purpose {
        Purpose::Request => return exchange::hand_over(channel, &left),
        Purpose::Resident => Some(exchange::begin(channel, &mut left)?),
        Purpose::Command => {
            // A send fails only when the farm is gone.
            let _ = wire::send_begun(&*channel, &left);
            None
        }
    };
    rustix::process::chdir(&plan.working_directory).step("enter the working directory")?;
    let Plan { program, ceilings, purpose, .. } = &*plan;
    let beginning = Beginning { channel, filter, stdin: stdin.as_ref(), left: &left, program, ceilings };
    let group = group.as_ref().map(AsFd::as_fd);
    let command =
        sys::fork_sharing(group, stack, exec::main, &beginning).step("start a process for the command")?;
    // The pipe of a resident ends with it.
    drop(stdin);
    let left = exchange::without_pipe(left, *purpose)?;
    let end = supervise(channel, &children, (command, *purpose)).step("wait for the command")?;
    let _ = wire::send_end(&*channel, &Account { end, usage: sys::children_usage() }, &left);
    Ok(())
}

/// Mounts what no two actions share, makes the files for what the command prints, and hides the actions' directories.
fn prepare(plan: &Plan) -> Result<Left, Fault> {
    sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWIPC).step("create the action's namespaces")?;
    // The modes below are what the command sees; it gets a umask of its own.
    rustix::process::umask(Mode::empty());
    if let Some(options) = &plan.memory {
        mount("tmpfs", MEMORY, "tmpfs", PLAIN, Some(options.as_c_str())).step("mount the action's memory")?;
    }
    for (path, mode) in &plan.directories {
        rustix::fs::mkdir(path, *mode).step("make a directory for the action")?;
    }
    let (stdout, stderr) = (output(&plan.stdout)?, output(&plan.stderr)?);
    match plan.purpose {
        Purpose::Command | Purpose::Request => mount_overlay(plan)?,
        Purpose::Resident => exchange::mount_ground()?,
    }
    mount_others(plan)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let view = rustix::fs::open(EXEC_ROOT, flags, Mode::empty()).step("open the exec root")?;
    Ok(Left { view, stdout, stderr })
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

fn mount_others(plan: &Plan) -> Result<(), Fault> {
    mount_bind(&plan.temporary, "/tmp").step("mount /tmp")?;
    mount("proc", "/proc", "proc", PLAIN | MountFlags::NOEXEC, None)
        .step("mount /proc; in a container, the outer /proc must not be masked")?;
    mount("tmpfs", "/dev/shm", "tmpfs", PLAIN, Some(SHM_OPTIONS)).step("mount /dev/shm")?;
    mount("devpts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, Some(PTS_OPTIONS))
        .step("mount /dev/pts")?;
    unmount(HIDDEN, UnmountFlags::DETACH).step("hide the worker's directory")
}

/// Waits for the command's end or the farm's word, then ends and reaps all other processes.
fn supervise(
    channel: &OwnedFd,
    children: &OwnedFd,
    (command, purpose): (libc::pid_t, Purpose),
) -> Result<End, Errno> {
    let mut end = None;
    while end.is_none() {
        let mut fds = [PollFd::new(children, PollFlags::IN), PollFd::new(channel, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        // Whatever comes through the channel means kill: a word of the farm's, or its end; a resident may get a request, too.
        let is_spoken_to = !fds[1].revents().is_empty();
        let is_killed = is_spoken_to && !(purpose == Purpose::Resident && exchange::serve(channel));
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
