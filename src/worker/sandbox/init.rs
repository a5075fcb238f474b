//! An init: pid 1 of its own processes. It takes one order after the other, shows the action what it may see, starts its command,
//! reaps, and ends all of it.
//!
//! What two actions of one init share is its pid namespace, in which nothing is left of the first when the second begins, and its
//! network. Mounts, IPC and memory are each action's own.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::exchange;
use super::exec::{self, Beginning};
use super::launcher::{Fault, Rooms, Scratch, Step, network};
use super::order::{MEMORY_OPTIONS, Order, Plan, Purpose, Writable};
use super::seccomp::Filter;
use super::stage::{Bases, Stage};
use super::sys::{self, Stack, Usage, Wait};
use super::wire::{self, Account, End};

/// Where every action sees its inputs.
pub(super) const EXEC_ROOT: &str = "/build";

pub(super) const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Where the kernel is told which number it gave to the last process.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// What the launcher hands to an init.
pub(super) struct Init<'a> {
    /// All inits of a launcher take their orders from this.
    pub(super) orders: &'a OwnedFd,
    pub(super) network: &'a OwnedFd,
    pub(super) rooms: &'a Rooms,
    pub(super) scratch: Scratch,
    pub(super) filter: &'a Filter,
    /// Where the command is until it is executed.
    pub(super) stack: &'a mut Stack,
}

/// What the farm sends for one action.
struct Task {
    channel: OwnedFd,
    /// The control group that the command is started in.
    group: Option<OwnedFd>,
}

/// Takes orders until the farm closes its end.
pub(super) fn main(mut init: Init<'_>) -> ! {
    sys::exit_now(if init.serve().is_ok() { 0 } else { 1 })
}

impl Init<'_> {
    /// Makes of this process what it is for all actions; what tells of its children.
    fn begin(&self, bases: &mut Bases<'_>) -> Result<OwnedFd, Fault> {
        // Dies with the launcher, and with it (as pid 1 of its namespace) everything that the action started.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .step("bind the init to the launcher")?;
        let children = sys::watch_children().step("watch the children")?;
        move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))
            .step("enter the network")?;
        // The modes of what is made are what the command sees; it gets a umask of its own.
        rustix::process::umask(Mode::empty());
        bases.enter(0)?;
        Ok(children)
    }

    fn serve(&mut self) -> Result<(), Fault> {
        let mut bases = Bases::new(self.rooms);
        let mut buffer = vec![0; wire::PIECE_BYTES];
        let children = match self.begin(&mut bases) {
            Ok(children) => children,
            Err(fault) => {
                // Somebody must hear what the machine lacks; and who ended at once would be replaced at once.
                if let Some((_, task)) = self.receive(&mut buffer) {
                    let _ = wire::send_fault(&task.channel, &fault);
                }
                return Err(fault);
            }
        };
        let numbers = File::options().write(true).open(LAST_PID).ok();
        let memory = (self.scratch == Scratch::Memory).then(|| MEMORY_OPTIONS.to_owned());
        let mut next = (0, memory);
        loop {
            if is_network_used() {
                // Where there can be no other, because there are too many, the old one is better than none.
                let _ = network();
            }
            // What fails here fails again when there is an action, which is told then.
            let stage = Stage::make(&mut bases, next.0, next.1.clone()).ok();
            let Some((length, task)) = self.receive(&mut buffer) else { return Ok(()) };
            let done = plan(&buffer[..length], &task, self.scratch).and_then(|plan| {
                next.0 = plan.root;
                if let Writable::Memory(options) = &plan.writable {
                    next.1 = Some(options.clone());
                }
                let stage = match stage {
                    Some(stage) if stage.is_of(plan.root) => stage,
                    _ => Stage::make(&mut bases, plan.root, next.1.clone())?,
                };
                self.act(&plan, &task, (stage, &children))
            });
            if let Err(fault) = done {
                // A farm that has given up the action waits for no sentence.
                let _ = wire::send_fault(&task.channel, &fault);
            }
            drop(task);
            end_all(&mut Usage::default()).step("end the action")?;
            // The next command's number does not tell how many processes there were before. An init that cannot see to that ends.
            let is_renumbered = numbers.as_ref().is_some_and(|last| last.write_at(b"1", 0).is_ok());
            if !is_renumbered {
                return Ok(());
            }
        }
    }

    /// The length of an order's first datagram and what came with it; `None` when the farm is gone.
    fn receive(&self, buffer: &mut [u8]) -> Option<(usize, Task)> {
        loop {
            let (length, fds) = wire::receive(self.orders, buffer).ok()?;
            if length == 0 {
                return None;
            }
            let mut fds = fds.into_iter();
            if let Some(channel) = fds.next() {
                return Some((length, Task { channel, group: fds.next() }));
            }
        }
    }

    fn act(
        &mut self,
        plan: &Plan,
        Task { channel, group }: &Task,
        (stage, children): (Stage, &OwnedFd),
    ) -> Result<(), Fault> {
        let mut left = stage.finish(plan)?;
        let stdin = match plan.purpose {
            Purpose::Request => return exchange::hand_over(channel, &left),
            Purpose::Resident => Some(exchange::begin(channel, &mut left)?),
            Purpose::Command => {
                // A send fails only when the farm is gone.
                let _ = wire::send_begun(channel, &left);
                None
            }
        };
        let Plan { working_directory, program, ceilings, purpose, .. } = plan;
        let (filter, stdin_of) = (self.filter, stdin.as_ref());
        let beginning =
            Beginning { channel, filter, stdin: stdin_of, left: &left, working_directory, program, ceilings };
        let group = group.as_ref().map(AsFd::as_fd);
        let command = sys::fork_sharing(group, self.stack, exec::main, &beginning)
            .step("start a process for the command")?;
        // The pipe of a resident ends with it.
        drop(stdin);
        let left = exchange::without_pipe(left, *purpose)?;
        let account = supervise(channel, children, (command, *purpose)).step("wait for the command")?;
        let _ = wire::send_end(channel, &account, &left);
        Ok(())
    }
}

/// Whether anything was ever sent in this process' network. A connection keeps its port for a minute after both ends are gone.
fn is_network_used() -> bool {
    let interfaces = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let mut counts = interfaces.lines().filter_map(|line| line.trim_start().strip_prefix("lo:"));
    counts.any(|counts| counts.contains(|digit| matches!(digit, '1'..='9')))
}

/// What an order asks for, whose first datagram is `first`. A farm that does not send the rest closes the channel.
fn plan(first: &[u8], task: &Task, scratch: Scratch) -> Result<Plan, Fault> {
    let order = wire::receive_rest::<Order>(first, &task.channel).step("read the command")?;
    Plan::new(order.ok_or("read the command: it is cut short")?, scratch)
}

/// Waits for the command's end or the farm's word, then ends and reaps all other processes.
fn supervise(
    channel: &OwnedFd,
    children: &OwnedFd,
    (command, purpose): (libc::pid_t, Purpose),
) -> std::io::Result<Account> {
    let (mut end, mut usage) = (None, Usage::default());
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
        end = reap(command, &mut usage)?.or(is_killed.then_some(End::Killed));
    }
    end_all(&mut usage)?;
    Ok(Account { end: end.expect("the loop above ends with one"), usage })
}

/// Reaps what has ended; the command's end if that is among it.
fn reap(command: libc::pid_t, usage: &mut Usage) -> std::io::Result<Option<End>> {
    loop {
        match sys::wait(false)? {
            Wait::Ended { pid, status, used } => {
                usage.add(used);
                if pid == command {
                    return Ok(Some(end_of(status)));
                }
            }
            Wait::Running | Wait::Nobody => return Ok(None),
        }
    }
}

/// Kills and reaps all that runs but this init.
fn end_all(usage: &mut Usage) -> std::io::Result<()> {
    // To kill is to look at every process of the machine, and most commands leave none.
    let mut is_patient = false;
    loop {
        match sys::wait(is_patient)? {
            Wait::Ended { used, .. } => usage.add(used),
            // Whoever loses a parent becomes a child of this process, so nobody is left.
            Wait::Nobody => return Ok(()),
            Wait::Running => is_patient = true,
        }
        if is_patient {
            sys::kill_all();
        }
    }
}

fn end_of(status: libc::c_int) -> End {
    match libc::WIFSIGNALED(status) {
        true => End::Signaled(libc::WTERMSIG(status)),
        false => End::Exited(libc::WEXITSTATUS(status)),
    }
}
