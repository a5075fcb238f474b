//! The system calls that neither std nor rustix offers safely. All `unsafe` code of the crate is in this file.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// Which side of a fork the caller is on.
pub(super) enum Side {
    Child,
    Parent(libc::pid_t),
}

/// `struct clone_args` of linux/sched.h, up to its third version.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Of `clone3` alone, which is why it has no place among the flags of 32 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What `mount_setattr` can set, from linux/mount.h.
pub(super) const MOUNT_RDONLY: u64 = 0x1;
pub(super) const MOUNT_NOSUID: u64 = 0x2;
pub(super) const MOUNT_NODEV: u64 = 0x4;
const MOUNT_IDMAP: u64 = 0x10_0000;

/// CPU time and memory of all children that were waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, in microseconds.
    pub user_us: u64,
    /// CPU time in the kernel, in microseconds.
    pub system_us: u64,
    /// The largest resident set of any one process, in bytes.
    pub resident_bytes: u64,
}

/// Forks into the new namespaces that `flags` (`CLONE_NEW…`) name.
///
/// The caller must have called [`assert_single_threaded`]: the child has one thread only, and a lock of another one would stay
/// locked for ever.
pub(super) fn fork(flags: libc::c_int) -> io::Result<Side> {
    clone(CloneArgs { flags: u64::from(flags.cast_unsigned()), ..CloneArgs::default() })
}

fn clone(arguments: CloneArgs) -> io::Result<Side> {
    let arguments = CloneArgs { exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()), ..arguments };
    // SAFETY: without CLONE_VM the child gets a copy of the whole address space, so both sides go on with valid memory; no
    // other thread exists whose state the child could miss. The structure is valid for the size that is passed.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArgs>()) };
    match check(result)? {
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(libc::pid_t::try_from(pid).expect("the kernel returns a pid"))),
    }
}

/// The stack of a process that shares its parent's memory, above memory that nobody may touch: one that grows too far is killed.
/// It is never given back, since the launcher needs it as long as it lives.
pub(super) struct Stack {
    guard: *mut libc::c_void,
}

impl Stack {
    /// Far more than what comes before an `execve` takes, which calls little and does not recurse.
    const BYTES: usize = 256 * 1024;
    /// A page on every machine that we build for.
    const GUARD_BYTES: usize = 64 * 1024;

    /// # Errors
    /// When there is no memory.
    pub(super) fn new() -> io::Result<Self> {
        let (length, protection) = (Self::GUARD_BYTES + Self::BYTES, libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: the kernel chooses a place where nothing is.
        let guard = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if guard == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: these are the first bytes of what was just mapped, which nobody uses.
        check(unsafe { libc::mprotect(guard, Self::GUARD_BYTES, libc::PROT_NONE) }.into())?;
        Ok(Self { guard })
    }

    /// Where it ends: the kernel begins at the other end.
    fn lowest(&self) -> u64 {
        self.guard as u64 + Self::GUARD_BYTES as u64
    }
}

/// What a process that shares its parent's memory begins with.
struct Start<'a, T> {
    run: fn(&T) -> !,
    argument: &'a T,
}

/// Starts a process in the control group `group` that shares this one's memory until it executes a program or ends; this one stands
/// still until then. Copying the memory, and the faults on each page of the copy, would be much of what an action costs.
pub(super) fn fork_sharing<T>(
    group: Option<BorrowedFd<'_>>,
    stack: &mut Stack,
    run: fn(&T) -> !,
    argument: &T,
) -> io::Result<libc::pid_t> {
    let into_group = group.map_or(0, |_| CLONE_INTO_CGROUP);
    let arguments = CloneArgs {
        flags: SHARING | into_group,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        cgroup: group.map_or(0, |group| u64::from(group.as_raw_fd().cast_unsigned())),
        ..CloneArgs::default()
    };
    let pid = clone_and_call(arguments, stack, &Start { run, argument })?;
    Ok(libc::pid_t::try_from(pid).expect("the kernel returns a pid"))
}

#[cfg(target_arch = "x86_64")]
const SHARING: u64 = (libc::CLONE_VM | libc::CLONE_VFORK).cast_unsigned() as u64;
#[cfg(not(target_arch = "x86_64"))]
const SHARING: u64 = 0;

/// `clone3` whose child calls `start` on `stack`. By hand because the C library's wrapper knows no control groups, and because its
/// plain system call would return twice on one stack.
#[cfg(target_arch = "x86_64")]
fn clone_and_call<T>(
    arguments: CloneArgs,
    stack: &mut Stack,
    start: &Start<'_, T>,
) -> io::Result<libc::c_long> {
    extern "C" fn begin<T>(start: &Start<'_, T>) -> ! {
        (start.run)(start.argument)
    }
    let arguments = CloneArgs { stack: stack.lowest(), stack_size: Stack::BYTES as u64, ..arguments };
    let begin: extern "C" fn(&Start<'_, T>) -> ! = begin::<T>;
    let result: libc::c_long;
    // SAFETY: the child begins behind the instruction on its own stack, which is aligned and exclusively borrowed, and never leaves
    // `begin`; this side goes on only when the child has given up the memory (CLONE_VFORK), so nothing that it reads changes under
    // it, and the registers are as they were but for those named here.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const arguments,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") std::ptr::from_ref(start),
            in("r13") begin,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    match i32::try_from(-result) {
        Ok(errno) if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(result),
    }
}

/// Elsewhere the child has a copy of the memory, stack included.
#[cfg(not(target_arch = "x86_64"))]
fn clone_and_call<T>(
    arguments: CloneArgs,
    _stack: &mut Stack,
    start: &Start<'_, T>,
) -> io::Result<libc::c_long> {
    match clone(arguments)? {
        Side::Child => (start.run)(start.argument),
        Side::Parent(pid) => Ok(pid.into()),
    }
}

/// Panics if this process has more than one thread: one that forks with several hangs sooner or later.
pub(super) fn assert_single_threaded() {
    let tasks = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    assert!(tasks.is_ok_and(|count| count == 1), "the launcher has one thread and sees /proc");
}

/// Registers `socket` with the runtime that this is called in.
pub(super) fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `OwnedFd` keeps the descriptor open and the same, and `AsyncFd` gives out only shared references to it here.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Leaves the namespaces that `flags` name for new ones.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: none of the flags used here (no FILES, no FS alone) invalidates descriptors that safe code holds.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Sets attributes of the mount at `tree` and of those below it.
pub(super) fn set_mount(tree: impl AsFd, attributes: u64) -> io::Result<()> {
    mount_setattr(tree, &private(attributes), libc::AT_RECURSIVE)
}

/// Sets attributes of the mount at `tree` alone.
pub(super) fn set_one_mount(tree: impl AsFd, attributes: u64) -> io::Result<()> {
    mount_setattr(tree, &private(attributes), 0)
}

/// Mounts that the host makes later must not show up in the sandbox.
fn private(attr_set: u64) -> MountAttr {
    MountAttr { attr_set, propagation: libc::MS_PRIVATE, ..MountAttr::default() }
}

/// Shows the files of the detached mount `tree` under the ids that the user namespace `map` gives them.
pub(super) fn map_mount(tree: impl AsFd, map: impl AsFd) -> io::Result<()> {
    let userns_fd = u64::from(map.as_fd().as_raw_fd().cast_unsigned());
    mount_setattr(tree, &MountAttr { attr_set: MOUNT_IDMAP, userns_fd, ..MountAttr::default() }, 0)
}

fn mount_setattr(tree: impl AsFd, attributes: &MountAttr, flags: libc::c_int) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | flags;
    let fd = tree.as_fd().as_raw_fd();
    // SAFETY: the path is a C string, the structure is valid for the size that is passed, and the kernel keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}

/// Brings up the loopback interface of the network namespace that this process is in.
pub(super) fn loopback_up(socket: impl AsFd) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `ifreq`: it holds integers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes_with_nul()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).expect("IFF_UP is 1");
    // SAFETY: SIOCSIFFLAGS reads an `ifreq` of which name and flags are set, and the descriptor is open.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(libc::c_long::from(result)).map(drop)
}

/// Blocks `SIGCHLD` alone, and returns a descriptor that tells of them.
pub(super) fn watch_children() -> io::Result<OwnedFd> {
    // SAFETY: SIG_DFL is no handler, so no code runs in a signal's context.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // SAFETY: an all-zero set is valid storage, and sigemptyset makes it a valid set before anything reads it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is owned by this frame; the calls write it or read it and keep nothing.
    let fd = unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    check(libc::c_long::from(fd))?;
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Blocks no signal. Ignored ones stay ignored over an `execve`, so [`reset_signals`] must have been called.
pub(super) fn unblock_signals() {
    // SAFETY: as in `watch_children`.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Gives every signal its default action, in this process and in those that it forks.
pub(super) fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        let is_fixed = matches!(signal, libc::SIGKILL | libc::SIGSTOP);
        // The C library keeps 32 and 33 for itself and refuses them; nothing sets them before threads exist.
        if is_fixed || (32..libc::SIGRTMIN()).contains(&signal) {
            continue;
        }
        // SAFETY: SIG_DFL is no handler, so no code runs in a signal's context.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Kills every process of this pid namespace but the caller, its pid 1.
pub(super) fn kill_all() {
    // SAFETY: kill has no memory effects; as pid 1 of a namespace, -1 means all others of that namespace.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Closes all descriptors but the first three and `kept`, and returns that under another number. For a process that is about to execute a
/// program and uses nothing else: the path of what it executes may lead through `/proc/self/fd`.
pub(super) fn close_all_but(kept: &OwnedFd) -> io::Result<OwnedFd> {
    const KEPT: libc::c_int = 3;
    if kept.as_raw_fd() != KEPT {
        // SAFETY: the call has no memory effects; what has had the number belongs to nobody who goes on using it.
        check(unsafe { libc::dup3(kept.as_raw_fd(), KEPT, libc::O_CLOEXEC) }.into())?;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_close_range, KEPT + 1, libc::c_uint::MAX, 0) })?;
    // SAFETY: it is open, and whoever has had the number has lost it.
    Ok(unsafe { OwnedFd::from_raw_fd(KEPT) })
}

/// Marks all descriptors from `first` on to be closed by `execve`.
pub(super) fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: with CLOEXEC the call closes nothing; it changes a flag of descriptors.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    check(result).map(drop)
}

/// Replaces the program of this process; returns only on failure. Both lists end with a null pointer.
pub(super) fn execute(path: &CStr, arguments: &Strings, environment: &Strings) -> io::Error {
    // SAFETY: the path is a C string; `Strings` guarantees lists of C strings that end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// A list of C strings as `execve` wants it.
pub(super) struct Strings {
    strings: Vec<CString>,
    /// To each of them, which stay where they are, and a null one.
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    pub(super) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect();
        Self { strings, pointers }
    }

    pub(super) fn list(&self) -> &[CString] {
        &self.strings
    }
}

/// Leaves the session keyring that was inherited for a new, empty one, so that no action sees what the farm's session holds.
pub(super) fn leave_keyring() -> io::Result<()> {
    // SAFETY: the call takes a number and a null name.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    let is_absent = || io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS);
    if joined < 0 && !is_absent() { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the kernel can filter system calls by programs: then it misses the program that this does not give it.
pub(super) fn has_filters() -> bool {
    // SAFETY: the call reads no memory but at the null pointer, which the kernel answers with an error.
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::null::<libc::sock_fprog>())
    };
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// What has become of the children of this process.
pub(super) enum Wait {
    /// One has ended and is reaped; what it has used, and what those that it has waited for.
    Ended {
        pid: libc::pid_t,
        status: libc::c_int,
        used: Usage,
    },
    /// There are some, all of which run.
    Running,
    Nobody,
}

/// Reaps a child of any kind; if `is_patient`, waits until there is one that has ended.
pub(super) fn wait(is_patient: bool) -> io::Result<Wait> {
    let options = libc::__WALL | if is_patient { 0 } else { libc::WNOHANG };
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid `rusage`: it holds integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are valid for writes, and the kernel keeps neither.
        match unsafe { libc::wait4(-1, &raw mut status, options, &raw mut usage) } {
            0 => return Ok(Wait::Running),
            // It has asked to be traced by its parent, as which the kernel tells of each signal that it gets.
            pid if pid > 0 && libc::WIFSTOPPED(status) => continue,
            pid if pid > 0 => return Ok(Wait::Ended { pid, status, used: Usage::from(&usage) }),
            _ => {}
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return Ok(Wait::Nobody),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

impl Usage {
    /// With what another process has used.
    pub(super) fn add(&mut self, other: Self) {
        self.user_us = self.user_us.saturating_add(other.user_us);
        self.system_us = self.system_us.saturating_add(other.system_us);
        self.resident_bytes = self.resident_bytes.max(other.resident_bytes);
    }
}

impl From<&libc::rusage> for Usage {
    fn from(usage: &libc::rusage) -> Self {
        let microseconds = |time: libc::timeval| {
            time.tv_sec.unsigned_abs().saturating_mul(1_000_000).saturating_add(time.tv_usec.unsigned_abs())
        };
        Self {
            user_us: microseconds(usage.ru_utime),
            system_us: microseconds(usage.ru_stime),
            resident_bytes: usage.ru_maxrss.unsigned_abs().saturating_mul(1024),
        }
    }
}

/// Ends a forked child without running what the parent registered for its own end.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and runs no handlers.
    unsafe { libc::_exit(code) }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
