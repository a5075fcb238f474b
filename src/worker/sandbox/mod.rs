//! Runs commands where they see their inputs, a read-only system and nothing else of the host.
//!
//! Three processes stand behind a command: the farm's, the [`launcher`] that all actions share, and one of its inits. An init does one
//! action after the other and prepares the next one's surroundings while there is none. The farm sends an order to all inits, of which
//! the one that has waited longest takes it, and talks to that over the order's own channel; closing it kills the action, so nothing
//! can outlive a dropped [`Running`].

mod cgroup;
mod exchange;
mod exec;
mod init;
pub mod launcher;
mod limits;
mod order;
mod resident;
mod seccomp;
mod skeleton;
mod stage;
mod sys;
mod wire;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) use cgroup::directory_of;
pub use cgroup::{Claim, Controller, Groups, claim};
pub use launcher::{Ownership, Scratch};
pub use limits::{Limits, Spent};
pub(super) use order::DISK_DIRECTORY;
pub use resident::{Pipes, Request, Resident};
pub use skeleton::System;
pub(super) use skeleton::is_taken;
pub use sys::Usage;
pub use wire::End;

use crate::error::{Context, Error, Kind, Result};
use crate::tasks;
use cgroup::Group;
use launcher::Setting;
use limits::Ceilings;
use order::{Order, Purpose};
use wire::{Account, Event, Left};

/// The hidden command that the binary runs as the launcher.
pub const LAUNCHER_COMMAND: &str = "launcher";
/// A message of an init is one line.
const EVENT_BYTES: usize = 64 * 1024;
/// Inits beyond one for each action that runs at a time: they are ready while others clear away what an action has left.
const SPARE_INITS: u32 = 2;

/// What the sandbox needs to know of the machine.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the actions' directories and their inputs are.
    pub directory: PathBuf,
    /// What actions may see of a system; not empty.
    pub roots: Vec<System>,
    /// The ids on the host that actions run under, if the farm is root.
    pub uid: u32,
    pub gid: u32,
    /// How many actions run at a time.
    pub networks: u32,
    pub scratch: Scratch,
    /// What limits and counts the actions together with all their processes, where the machine has it.
    pub groups: Option<Groups>,
}

/// A command to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The action's directory below [`Config::directory`]; for [`Scratch::Disk`] it holds an empty directory `scratch` that
    /// belongs to the actions' user.
    pub directory: String,
    /// The inputs: directories below [`Config::directory`] without `:`, `,` and `\\` in their names. Each covers those that follow.
    pub layers: Vec<String>,
    /// The program and its arguments; not empty.
    pub arguments: Vec<String>,
    /// The whole environment, `NAME=value` each.
    pub environment: Vec<String>,
    /// Relative to the input root; it exists.
    pub working_directory: String,
    /// Which of [`Config::roots`] it sees.
    pub root: usize,
    pub limits: Limits,
}

/// How a command ended, what it used, and what it left.
#[derive(Debug)]
pub struct Exit {
    pub end: End,
    pub usage: Usage,
    /// What its control group knows, where it has one.
    pub spent: Option<Spent>,
    /// The input root with all that the command changed, as an `O_PATH` directory. It stays readable until it is closed.
    pub view: OwnedFd,
    /// What the command printed. Their positions are at the end.
    pub stdout: File,
    pub stderr: File,
}

/// Starts commands in the sandbox. Cheap to clone.
#[derive(Clone)]
pub struct Launcher {
    inner: Arc<Inner>,
}

struct Inner {
    executable: PathBuf,
    config: Config,
    ownership: Ownership,
    process: Mutex<Arc<Process>>,
    free: Arc<Semaphore>,
}

/// The launcher's process, which ends when its socket is closed.
struct Process {
    socket: AsyncFd<OwnedFd>,
    child: Mutex<Child>,
}

/// A command that runs. Dropping it kills the command and all that it started.
pub struct Running {
    channel: AsyncFd<OwnedFd>,
    group: Option<Group>,
    /// Set while [`Running::wait`] waits, as soon as the command begins.
    printed: OnceLock<Arc<Printed>>,
    _permit: OwnedSemaphorePermit,
}

/// The files that a running command prints into.
#[derive(Debug)]
pub struct Printed {
    pub stdout: File,
    pub stderr: File,
}

impl Launcher {
    /// Starts the launcher: `executable` is this program, whose hidden command `launcher` it runs. Blocks until it is ready.
    ///
    /// # Errors
    /// `Unavailable` with a sentence that says what the machine lacks and what to change.
    pub fn start(executable: &Path, config: Config) -> Result<Self> {
        let (process, ownership) = Process::start(executable, &config)?;
        let free = Arc::new(Semaphore::new(config.networks as usize));
        Ok(Self {
            inner: Arc::new(Inner {
                executable: executable.to_owned(),
                ownership,
                process: Mutex::new(Arc::new(process)),
                free,
                config,
            }),
        })
    }

    /// Whose the files are that an action gets.
    pub fn ownership(&self) -> Ownership {
        self.inner.ownership
    }

    /// The pid of the launcher's process, for the log.
    pub fn process_id(&self) -> u32 {
        let process = lock(&self.inner.process).clone();
        lock(&process.child).id()
    }

    /// Hands a command to the sandbox; waits while as many actions run as the configuration allows.
    ///
    /// # Errors
    /// `Invalid` for a string with a NUL; `Unavailable` when the launcher is gone and cannot be started again, or no control group can
    /// be made.
    pub async fn run(&self, spec: Spec) -> Result<Running> {
        self.begin(spec, Purpose::Command).await
    }

    async fn begin(&self, spec: Spec, purpose: Purpose) -> Result<Running> {
        let permit = self.inner.free.clone().acquire_owned().await.expect("nothing closes the semaphore");
        let order = Order {
            root: spec.root,
            directory: spec.directory,
            layers: spec.layers,
            working_directory: spec.working_directory,
            arguments: spec.arguments,
            environment: spec.environment,
            memory_scratch: spec.limits.disk_bytes,
            ceilings: self.ceilings(&spec.limits),
            purpose,
        };
        order.check()?;
        let pieces = wire::datagrams(&order).context(|| "write the command for the sandbox")?;
        let (first, rest) = pieces.split_first().expect("a value has at least one datagram");
        let (ours, theirs) = wire::pair().context(|| "open a channel to the sandbox")?;
        // Who runs nothing needs no limits.
        let group = if purpose == Purpose::Request { None } else { self.group(spec.limits).await? };
        let fds: Vec<_> =
            std::iter::once(theirs.as_fd()).chain(group.as_ref().map(|group| group.fd().as_fd())).collect();
        self.request(first, &fds).await?;
        drop(fds);
        drop(theirs);
        let channel = nonblocking(ours)?;
        for datagram in rest {
            // A launcher that could make nothing of it has left a message that says why.
            if send(&channel, datagram, &[]).await.is_err() {
                break;
            }
        }
        Ok(Running { channel, group, printed: OnceLock::new(), _permit: permit })
    }

    /// What stands in for the control groups that the machine does not have.
    fn ceilings(&self, limits: &Limits) -> Ceilings {
        let config = &self.inner.config;
        let is_counted = config.groups.as_ref().is_some_and(|groups| groups.has(Controller::Pids));
        // All actions are one user's, and so are the inits.
        let inits = u64::from(config.networks.saturating_add(SPARE_INITS));
        let together = limits.processes.saturating_mul(u64::from(config.networks)).saturating_add(inits);
        let is_on_disk = config.scratch == Scratch::Disk;
        Ceilings {
            processes: (!is_counted).then_some(together),
            file_bytes: limits.disk_bytes.filter(|_| is_on_disk),
        }
    }

    async fn group(&self, limits: Limits) -> Result<Option<Group>> {
        let Some(groups) = self.inner.config.groups.clone() else { return Ok(None) };
        let failed = |error| unavailable("make the action's control group").with_source(error);
        tasks::blocking(move || groups.make(&limits).map(Some).map_err(failed)).await
    }

    /// Hands the first datagram of an order to the inits; starts the launcher anew if it is gone.
    async fn request(&self, order: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let process = lock(&self.inner.process).clone();
        if process.runs() && send(&process.socket, order, fds).await.is_ok() {
            return Ok(());
        }
        tracing::warn!("the sandbox's launcher is gone and is started again");
        let process = self.restart(&process).await?;
        send(&process.socket, order, fds).await.map_err(|errno| {
            Error::new(Kind::Unavailable, "the sandbox's launcher does not take commands").with_source(errno)
        })
    }

    /// Replaces `old` unless somebody else has done so already.
    async fn restart(&self, old: &Arc<Process>) -> Result<Arc<Process>> {
        let (inner, old) = (self.inner.clone(), old.clone());
        let handle = tokio::runtime::Handle::current();
        tasks::blocking(move || {
            let _guard = handle.enter();
            let mut current = lock(&inner.process);
            if Arc::ptr_eq(&current, &old) {
                *current = Arc::new(Process::start(&inner.executable, &inner.config)?.0);
            }
            Ok(current.clone())
        })
        .await
    }
}

impl Running {
    /// Waits for the command's end. May be dropped and called again until it has answered.
    ///
    /// # Errors
    /// `Unavailable` when the sandbox could not be set up or broke; the command may or may not have run.
    pub async fn wait(&self) -> Result<Exit> {
        loop {
            match self.event().await? {
                Event::Begun { stdout, stderr } => {
                    let printed = Printed { stdout: stdout.into(), stderr: stderr.into() };
                    // An init says it once.
                    let _ = self.printed.set(Arc::new(printed));
                }
                Event::Ended { account, left: Left { view, stdout, stderr } } => {
                    let Account { end, usage } = account;
                    let spent = self.group.as_ref().map(Group::spent);
                    return Ok(Exit {
                        end,
                        usage,
                        spent,
                        view,
                        stdout: stdout.into(),
                        stderr: stderr.into(),
                    });
                }
                // The answer to an exchange that nobody waits for any more.
                Event::Exchanged => {}
                Event::Staged { .. } | Event::Piped { .. } | Event::Fault(_) => {
                    return Err(Error::bug("the sandbox's init sent a message at a wrong time"));
                }
            }
        }
    }

    /// The next that its init says, but for a fault. May be dropped and called again.
    async fn event(&self) -> Result<Event> {
        let (bytes, fds) = receive(&self.channel)
            .await
            .map_err(|error| unavailable("the sandbox does not answer").with_source(error))?;
        if bytes.is_empty() {
            return Err(unavailable("the sandbox's init ended before the command did"));
        }
        match wire::parse_event(&bytes, fds) {
            Some(Event::Fault(sentence)) => Err(unavailable(sentence)),
            Some(event) => Ok(event),
            None => Err(Error::bug("the sandbox's init sent a message that makes no sense")),
        }
    }

    /// What the command prints into; `None` until it begins, which is found out while somebody waits.
    pub fn printed(&self) -> Option<Arc<Printed>> {
        self.printed.get().cloned()
    }

    /// Kills the command and all that it started; [`Running::wait`] tells when nothing runs any more.
    pub fn kill(&self) {
        // A failure means that the init is gone, and everything with it; a full queue, that it has been told before.
        let _ = wire::send(self.channel.get_ref(), b"K", &[]);
    }
}

impl Process {
    fn start(executable: &Path, config: &Config) -> Result<(Self, Ownership)> {
        let (ours, theirs) = wire::pair().context(|| "open a channel to the sandbox's launcher")?;
        let child = Command::new(executable)
            .arg(LAUNCHER_COMMAND)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| unavailable("start the sandbox's launcher").with_source(error))?;
        // It does nothing before it is greeted, so nothing of it is in another group.
        if let Some(groups) = &config.groups {
            groups.adopt(child.id()).map_err(|error| {
                unavailable("move the sandbox's launcher to its control group").with_source(error)
            })?;
        }
        let ownership = greet(&ours, config)?;
        Ok((Self { socket: nonblocking(ours)?, child: Mutex::new(child) }, ownership))
    }

    /// Its inits end after it, and what is sent meanwhile is lost with them.
    fn runs(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Everything that runs dies with its parent; waiting only takes the zombie away.
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Tells a new launcher what it needs and waits until it is ready.
fn greet(socket: &OwnedFd, config: &Config) -> Result<Ownership> {
    let (uid, gid) = (config.uid, config.gid);
    let Config { directory, roots, scratch, .. } = config.clone();
    let inits = config.networks.saturating_add(SPARE_INITS);
    let setting = Setting { directory, roots, uid, gid, inits, scratch };
    let pieces = wire::datagrams(&setting).map_err(|error| {
        Error::invalid("the worker's directory or root cannot be used").with_source(error)
    })?;
    let dead = |errno: Errno| unavailable("the sandbox's launcher ended at its start").with_source(errno);
    for datagram in pieces {
        wire::send(socket, &datagram, &[]).map_err(dead)?;
    }
    let mut buffer = vec![0; EVENT_BYTES];
    let (length, _) = wire::receive(socket, &mut buffer).map_err(dead)?;
    match &buffer[..length] {
        b"Rsame" => Ok(Ownership::Same),
        b"Rmapped" => Ok(Ownership::Mapped { uid, gid }),
        b"Rforeign" => Ok(Ownership::Foreign { uid, gid }),
        [b'F', sentence @ ..] => {
            Err(unavailable(format!("the sandbox cannot be set up: {}", String::from_utf8_lossy(sentence))))
        }
        _ => Err(unavailable("the sandbox's launcher ended at its start")),
    }
}

fn unavailable(message: impl Into<String>) -> Error {
    Error::new(Kind::Unavailable, message)
}

fn nonblocking(socket: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&socket, true).context(|| "prepare a channel to the sandbox")?;
    sys::watch(socket).context(|| "watch a channel to the sandbox")
}

async fn send(socket: &AsyncFd<OwnedFd>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), io::Error> {
    socket.async_io(Interest::WRITABLE, |socket| Ok(wire::send(socket, bytes, fds)?)).await
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; EVENT_BYTES];
    let receive = |socket: &OwnedFd| Ok(wire::receive(socket, &mut buffer)?);
    let (length, fds) = socket.async_io(Interest::READABLE, receive).await?;
    buffer.truncate(length);
    Ok((buffer, fds))
}

/// Nothing panics while it holds one of these locks, and what they guard is valid at any time.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
