//! The launcher: a process of one thread that enters the namespaces all actions share and keeps a number of inits.
//!
//! The farm's own process has many threads and much memory, which makes forking it slow and wrong; the launcher is small, and
//! what is the same for every action (user namespace, root, networks) is made once.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, Timespec, UnshareFlags};
use serde::{Deserialize, Serialize};

use super::exec;
use super::init;
use super::seccomp::Filter;
use super::skeleton::{self, System};
use super::sys::{self, Side, Stack, Wait};
use super::wire;

/// The id of user and group inside the sandbox: the same on every host, and not root's.
pub(super) const INSIDE_ID: u32 = 1000;
const HOSTNAME: &[u8] = b"croft";
/// As on a machine that has none.
const DOMAIN_NAME: &[u8] = b"(none)";

const NAMESPACES: UnshareFlags = UnshareFlags::NEWUSER
    .union(UnshareFlags::NEWNS)
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS);

/// How long the place of an init that has ended stays empty, so that one that ends at once does not take a processor.
const REPLACEMENT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// How long a place stays empty that the kernel has given no process for.
const REFUSAL_PAUSE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A sentence for people: what could not be done, why, and what to change.
pub(super) type Fault = String;

/// Says at which step a system call failed.
pub(super) trait Step<T> {
    fn step(self, what: &str) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: &str) -> Result<T, Fault> {
        self.map_err(|error| format!("{what}: {}", error.into()))
    }
}

/// What the farm tells the launcher at start.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setting {
    /// Where the actions' directories are.
    pub(super) directory: PathBuf,
    /// What actions may see of a system.
    pub(super) roots: Vec<System>,
    /// The ids on the host that actions run under, if the farm is root.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Inits to keep, each with a network of its own.
    pub(super) inits: u32,
    pub(super) scratch: Scratch,
}

/// Where what an action writes is kept until its outputs are uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scratch {
    /// In memory (tmpfs), up to half of the machine's for each action by default. Disk file systems take several times as long to create
    /// and delete the overlay's own files as a small action takes to run.
    #[default]
    Memory,
    /// On the disk of the worker's directory: for actions that write more than memory holds.
    Disk,
}

/// How the owner of the inputs relates to the user that actions run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The farm is no root: actions run as its own user on the host.
    Same,
    /// The farm is root and the kernel shows the inputs as the actions' user's; only what actions write needs its owner set.
    Mapped { uid: u32, gid: u32 },
    /// The farm is root and every input needs its owner set, so nothing can be shared by links.
    Foreign { uid: u32, gid: u32 },
}

/// Runs the launcher on the socket that is its standard input. Ends with the farm, which closes the other end.
pub fn main() -> ExitCode {
    sys::assert_single_threaded();
    let Ok(socket) = take_socket() else { return ExitCode::FAILURE };
    let Ok(Some(setting)) = wire::receive_value::<Setting>(&socket) else { return ExitCode::FAILURE };
    match serve(&socket, &setting) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // The farm may be gone already; then nobody waits for the sentence.
            let _ = wire::send_fault(&socket, &fault);
            ExitCode::FAILURE
        }
    }
}

fn serve(socket: &OwnedFd, setting: &Setting) -> Result<(), Fault> {
    let (ownership, rooms) = enter(setting)?;
    let filter = Filter::compile()?;
    let stack = Stack::new().step("make room for the start of commands")?;
    let children = sys::watch_children().step("watch the inits")?;
    let inits = rooms.networks.iter().map(|_| None).collect();
    let scratch = setting.scratch;
    let mut keeper = Keeper { orders: socket, rooms: &rooms, scratch, filter: &filter, stack, inits };
    keeper.fill()?;
    let name = match ownership {
        Ownership::Same => "Rsame",
        Ownership::Mapped { .. } => "Rmapped",
        Ownership::Foreign { .. } => "Rforeign",
    };
    if wire::send(socket, name.as_bytes(), &[]).is_ok() {
        keeper.keep(&children);
    }
    Ok(())
}

/// Moves the socket away from descriptor 0, so that no action can inherit it.
fn take_socket() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
    let null = fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    sys::close_on_exec_from(3)?;
    Ok(socket)
}

/// The namespaces that inits enter: what is made once and used by one action after the other.
pub(super) struct Rooms {
    /// Mount namespaces, one for each of [`Setting::roots`].
    pub(super) roots: Vec<OwnedFd>,
    /// One for each init.
    networks: Vec<OwnedFd>,
}

/// Enters the shared namespaces; makes the roots and the networks.
fn enter(setting: &Setting) -> Result<(Ownership, Rooms), Fault> {
    // A session of its own: Ctrl-C at the terminal is for the farm, which then ends the actions in order.
    let _ = rustix::process::setsid();
    // One for all actions: the filter of system calls lets none of them use it.
    sys::leave_keyring().step("leave the keyring of the farm's session")?;
    // If the machine runs out of memory all the same, what an action has started goes first. A container may forbid to say so.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let (ids, ownership, parts) = if rustix::process::geteuid().is_root() {
        enter_as_root(setting)?
    } else {
        let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        (ids, Ownership::Same, None)
    };
    unshare(ids)?;
    rustix::system::sethostname(HOSTNAME).step("set the host name")?;
    rustix::system::setdomainname(DOMAIN_NAME).step("set the domain name")?;
    let networks = (0..setting.inits).map(|_| network()).collect::<Result<_, _>>()?;
    let parts = match parts {
        Some(parts) => parts,
        None => skeleton::collect(setting, None)?,
    };
    let roots = skeleton::enter(parts)?;
    // Not dumpable means that no action can look at an init through /proc or trace it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("protect the launcher")?;
    drop_bounding_set().step("drop the bounding set of capabilities")?;
    // Once for all inits and their commands, which inherit both: dozens of calls that would be much of an action's.
    sys::reset_signals().step("reset the signals")?;
    exec::set_limits().step("limit the commands")?;
    Ok((ownership, Rooms { roots, networks }))
}

type Ids = (u32, u32);

/// As root: collects the mounts while root's rights last, then becomes the unprivileged user.
fn enter_as_root(setting: &Setting) -> Result<(Ids, Ownership, Option<Vec<skeleton::Parts>>), Fault> {
    let (uid, gid) = (setting.uid, setting.gid);
    let mapped = id_map(uid, gid).and_then(|map| skeleton::collect(setting, Some(&map)));
    let (ownership, parts) = match mapped {
        Ok(parts) => (Ownership::Mapped { uid, gid }, Some(parts)),
        // File systems without mapped mounts are common (overlayfs, NFS), and so is root without its rights (containers).
        Err(_) => (Ownership::Foreign { uid, gid }, skeleton::collect(setting, None).ok()),
    };
    become_user(uid, gid).step("become the unprivileged user of the sandbox")?;
    Ok(((uid, gid), ownership, parts))
}

fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    // Changing the user makes /proc/self root's; the id maps are written there.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    Ok(())
}

/// A user namespace in which root's files are those of `uid` and `gid`, for mounts that show them so.
fn id_map(uid: u32, gid: u32) -> Result<OwnedFd, Fault> {
    match sys::fork(libc::CLONE_NEWUSER).step("create a user namespace")? {
        Side::Child => loop {
            let _ = rustix::thread::nanosleep(&rustix::thread::Timespec { tv_sec: 60, tv_nsec: 0 });
        },
        Side::Parent(pid) => {
            let map = write_id_map(pid, uid, gid).step("write an id map");
            let child = rustix::process::Pid::from_raw(pid).expect("a child's pid is positive");
            let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
            map
        }
    }
}

fn write_id_map(pid: libc::pid_t, uid: u32, gid: u32) -> io::Result<OwnedFd> {
    fs::write(format!("/proc/{pid}/uid_map"), format!("0 {uid} 1"))?;
    fs::write(format!("/proc/{pid}/gid_map"), format!("0 {gid} 1"))?;
    Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
}

fn unshare((uid, gid): Ids) -> Result<(), Fault> {
    sys::unshare(NAMESPACES).step(
        "create the sandbox's namespaces; user namespaces must be allowed (sysctl user.max_user_namespaces above 0, \
         kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), and not from inside a chroot",
    )?;
    // A group map may be written without privilege only by who gives up changing its groups.
    fs::write("/proc/self/setgroups", "deny").step("give up supplementary groups")?;
    fs::write("/proc/self/uid_map", format!("{INSIDE_ID} {uid} 1")).step("map the user")?;
    fs::write("/proc/self/gid_map", format!("{INSIDE_ID} {gid} 1")).step("map the group")
}

/// Enters a new network with nothing but a loopback interface. Making one takes longer than all else of an action, so one in which
/// nothing was sent is used again.
pub(super) fn network() -> Result<OwnedFd, Fault> {
    sys::unshare(UnshareFlags::NEWNET).step("create a network namespace")?;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).step("open a socket")?;
    sys::loopback_up(&socket).step("bring up the loopback interface")?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/ns/net", flags, Mode::empty()).step("open a network namespace")
}

/// Without the bounding set, no program that is executed can get one of the launcher's capabilities back. The launcher and its
/// inits execute nothing themselves and keep theirs.
fn drop_bounding_set() -> Result<(), Errno> {
    for capability in CapabilitySet::all() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel is older than this capability.
            Err(Errno::INVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

/// Keeps as many inits as there are networks until the farm closes its end.
struct Keeper<'a> {
    orders: &'a OwnedFd,
    rooms: &'a Rooms,
    scratch: Scratch,
    filter: &'a Filter,
    stack: Stack,
    /// The init of each network.
    inits: Vec<Option<libc::pid_t>>,
}

impl Keeper<'_> {
    /// Forks an init for each network that has none.
    fn fill(&mut self) -> Result<(), Fault> {
        for (network, init) in self.rooms.networks.iter().zip(&mut self.inits) {
            if init.is_some() {
                continue;
            }
            match sys::fork(libc::CLONE_NEWPID).step("start an init")? {
                Side::Child => init::main(init::Init {
                    orders: self.orders,
                    network,
                    rooms: self.rooms,
                    scratch: self.scratch,
                    filter: self.filter,
                    stack: &mut self.stack,
                }),
                Side::Parent(pid) => *init = Some(pid),
            }
        }
        Ok(())
    }

    /// Replaces inits that end. Returns when the farm is gone, or there can be no inits any more.
    fn keep(&mut self, children: &OwnedFd) {
        loop {
            // Nothing is expected of the socket: what comes is for the inits, and its end is told in any case.
            let mut fds =
                [PollFd::new(children, PollFlags::IN), PollFd::new(self.orders, PollFlags::empty())];
            let is_full = self.inits.iter().all(Option::is_some);
            match poll(&mut fds, (!is_full).then_some(&REFUSAL_PAUSE)) {
                Err(Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            let _ = rustix::io::read(children, &mut [0; 1024]);
            while let Ok(Wait::Ended { pid, .. }) = sys::wait(false) {
                self.inits.iter_mut().filter(|init| **init == Some(pid)).for_each(|init| *init = None);
            }
            let _ = rustix::thread::nanosleep(&REPLACEMENT_PAUSE);
            if self.fill().is_err() && self.inits.iter().all(Option::is_none) {
                return;
            }
        }
    }
}
