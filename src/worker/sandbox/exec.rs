//! The last steps of a child before it becomes the command: its session, its descriptors, its limits, no privileges.

use std::ffi::{CStr, CString};
use std::io::{self, IoSlice, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::launcher::{Fault, Step};
use super::limits::Ceilings;
use super::seccomp::Filter;
use super::sys::{self, Strings};
use super::wire::{self, Left};

/// As a shell: the program is not there.
const NOT_FOUND: i32 = 127;
/// As a shell: the program is there and cannot be executed.
const NOT_EXECUTABLE: i32 = 126;
/// Room for what the kernel says of a program that cannot be executed.
const SENTENCE_BYTES: usize = 256;
/// Searched when the command's environment has no PATH.
const DEFAULT_PATH: &str = "/usr/bin:/bin";

/// The soft and the hard limits of a command, the same on every host that allows as much. What has no hard limit here keeps
/// the host's, which for stacks is none nearly everywhere.
const LIMITS: &[(Resource, u64, Option<u64>)] = &[
    (Resource::Core, 0, Some(0)),
    (Resource::Stack, 8 << 20, None),
    // The host's own depend on its memory.
    (Resource::Sigpending, 4096, Some(4096)),
    (Resource::Memlock, 8 << 20, Some(8 << 20)),
    (Resource::Msgqueue, 800 << 10, Some(800 << 10)),
    // No command gets in front of others.
    (Resource::Nice, 0, Some(0)),
    (Resource::Rtprio, 0, Some(0)),
];

/// What the kernel takes as a path, with the NUL.
const PATH_BYTES: usize = 4096;
/// Directories of a command's PATH that are searched, far more than any has: each is a try that nobody can cut short, and a
/// path in the init's memory.
const DIRECTORIES_MAX: usize = 1024;
/// Descriptors of a command. The launcher and its inits have one for each network.
const DESCRIPTORS: (u64, u64) = (1024, 65_536);

/// A program with what it gets, as `execve` wants it.
pub(super) struct Program {
    /// Where it may be.
    places: Vec<CString>,
    arguments: Strings,
    environment: Strings,
}

impl Program {
    /// # Errors
    /// When a string has a NUL or there are no arguments.
    pub(super) fn new(arguments: Vec<String>, environment: Vec<String>) -> Result<Self, Fault> {
        let strings = |list: Vec<String>| -> Result<Strings, Fault> {
            let strings: Result<Vec<_>, _> = list.into_iter().map(CString::new).collect();
            Ok(Strings::new(strings.step("read the command")?))
        };
        let (arguments, environment) = (strings(arguments)?, strings(environment)?);
        let name = arguments.list().first().ok_or("read the command: it has no arguments")?;
        let places = places(name, environment.list());
        Ok(Self { places, arguments, environment })
    }
}

/// What a command begins with.
pub(super) struct Beginning<'a> {
    pub(super) channel: &'a OwnedFd,
    pub(super) filter: &'a Filter,
    /// What the command reads, which is nothing if there is none.
    pub(super) stdin: Option<&'a OwnedFd>,
    pub(super) left: &'a Left,
    pub(super) working_directory: &'a CStr,
    pub(super) program: &'a Program,
    pub(super) ceilings: &'a Ceilings,
}

/// Becomes the command, or ends with a shell's exit code and a sentence on stderr. Its memory may be the init's, which waits.
pub(super) fn main(beginning: &Beginning<'_>) -> ! {
    let Beginning { channel, stdin, left, program, .. } = beginning;
    let channel = connect((*stdin, left), channel).unwrap_or_else(|fault| give_up(channel, &fault));
    if let Err(fault) = prepare(beginning) {
        give_up(&channel, &fault);
    }
    let error = execute(program);
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    let name = program.arguments.list().first().map_or(&[][..], |name| name.as_bytes());
    say_why(name, &error);
    sys::exit_now(code)
}

/// Without memory that would stay allocated in the init: nobody gives back what this process allocates.
fn say_why(name: &[u8], error: &io::Error) {
    let mut other = [0; SENTENCE_BYTES];
    let reason = match error.raw_os_error() {
        Some(libc::ENOENT) => "not found".as_bytes(),
        Some(libc::EACCES) => "permission denied".as_bytes(),
        _ => {
            let mut rest = &mut other[..];
            // What does not fit is left out.
            let _ = write!(rest, "cannot be executed: {error}");
            let length = SENTENCE_BYTES - rest.len();
            &other[..length]
        }
    };
    let sentence = [&b"croft: "[..], name, b": ", reason, b"\n"].map(IoSlice::new);
    let _ = rustix::io::writev(rustix::stdio::stderr(), &sentence);
}

fn give_up(channel: &OwnedFd, fault: &str) -> ! {
    // The farm takes the first message, so the code of this process does not matter any more.
    let _ = wire::send_fault(channel, fault);
    sys::exit_now(NOT_EXECUTABLE)
}

/// Sets the first three descriptors and closes all others but the channel, whose new number is returned: among them are some that
/// lead to the host, and the path of a program, or of what interprets it, may go through them.
fn connect((stdin, left): (Option<&OwnedFd>, &Left), channel: &OwnedFd) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).step("open /dev/null")?;
    rustix::stdio::dup2_stdin(stdin.unwrap_or(&null)).step("set stdin")?;
    rustix::stdio::dup2_stdout(&left.stdout).step("set stdout")?;
    rustix::stdio::dup2_stderr(&left.stderr).step("set stderr")?;
    drop(null);
    sys::close_all_but(channel).step("close all other descriptors")
}

fn prepare(Beginning { working_directory, ceilings, filter, .. }: &Beginning<'_>) -> Result<(), Fault> {
    rustix::process::setsid().step("start a session")?;
    // Here and not in the init, whose descriptors a link among the inputs could lead through.
    rustix::process::chdir(*working_directory).step("enter the working directory")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    limit(Resource::Nofile, DESCRIPTORS.0, Some(DESCRIPTORS.1)).step("limit descriptors")?;
    set_ceilings(ceilings).step("limit processes and files")?;
    // The command finds itself at the root of all control groups, whatever the host calls its own.
    sys::unshare(UnshareFlags::NEWCGROUP).step("create a control group namespace")?;
    drop_privileges().step("drop privileges")?;
    sys::unblock_signals();
    // Last: from here on this process does nothing but execute the command.
    filter.install()
}

/// Sets the limits that every command has, for this process and those that it forks.
pub(super) fn set_limits() -> Result<(), rustix::io::Errno> {
    LIMITS.iter().try_for_each(|(resource, soft, hard)| limit(*resource, *soft, *hard))
}

fn limit(resource: Resource, soft: u64, hard: Option<u64>) -> Result<(), rustix::io::Errno> {
    let hosts = rustix::process::getrlimit(resource).maximum;
    let maximum = [hosts, hard].into_iter().flatten().min();
    let current = maximum.map_or(soft, |maximum| soft.min(maximum));
    rustix::process::setrlimit(resource, Rlimit { current: Some(current), maximum })
}

/// Sets what the command must not raise again.
fn set_ceilings(ceilings: &Ceilings) -> Result<(), rustix::io::Errno> {
    let all = [(Resource::Nproc, ceilings.processes), (Resource::Fsize, ceilings.file_bytes)];
    for (resource, ceiling) in all {
        let Some(ceiling) = ceiling else { continue };
        let maximum = rustix::process::getrlimit(resource).maximum;
        let maximum = Some(maximum.map_or(ceiling, |maximum| ceiling.min(maximum)));
        rustix::process::setrlimit(resource, Rlimit { current: maximum, maximum })?;
    }
    Ok(())
}

fn drop_privileges() -> Result<(), rustix::io::Errno> {
    let none = CapabilitySet::empty();
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )?;
    rustix::thread::set_no_new_privs(true)
}

/// Tries the places where the program may be, as `execvp` does; the error of the one that tells most.
fn execute(program: &Program) -> io::Error {
    let mut worst = io::Error::from_raw_os_error(libc::ENOENT);
    for place in &program.places {
        let error = sys::execute(place, &program.arguments, &program.environment);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            // Another directory of PATH may have one that may be executed.
            Some(libc::EACCES) => worst = error,
            _ => return error,
        }
    }
    worst
}

/// The paths that `name` may mean: itself if it has a slash, else one in each directory of the command's own PATH.
fn places(name: &CStr, environment: &[CString]) -> Vec<CString> {
    if name.is_empty() {
        return Vec::new();
    }
    let length = name.to_bytes().len();
    if name.to_bytes().contains(&b'/') || length >= PATH_BYTES {
        return vec![name.to_owned()];
    }
    let path = environment.iter().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    path.unwrap_or(DEFAULT_PATH.as_bytes())
        .split(|byte| *byte == b':')
        .take(DIRECTORIES_MAX)
        .filter(|directory| directory.len() + length < PATH_BYTES - 1)
        .map(|directory| {
            // An empty entry means the working directory.
            let directory = if directory.is_empty() { b".".as_slice() } else { directory };
            CString::new([directory, b"/", name.to_bytes()].concat()).expect("parts of C strings have no NUL")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_slash_is_searched_in_the_commands_path() {
        let path = [c"HOME=/x".to_owned(), c"PATH=/a:/b:".to_owned()];
        assert_eq!(places(c"tool", &path), [c"/a/tool".to_owned(), c"/b/tool".into(), c"./tool".into()]);
        assert_eq!(places(c"bin/tool", &path), [c"bin/tool".to_owned()]);
        assert_eq!(places(c"tool", &[]), [c"/usr/bin/tool".to_owned(), c"/bin/tool".into()]);
        assert!(places(c"", &path).is_empty());
    }

    #[test]
    fn a_long_path_and_a_long_name_make_no_product() {
        let path = [CString::new(format!("PATH={}", ":".repeat(1 << 20))).expect("no NUL")];
        assert_eq!(places(c"tool", &path).len(), DIRECTORIES_MAX);
        let name = CString::new("x".repeat(1 << 20)).expect("no NUL");
        assert_eq!(places(&name, &path), [name], "the kernel says that it is too long");
    }
}
