//! The filter of system calls that every command runs under: what no build needs and what namespaces do not confine.
//!
//! It names what is refused, because what compilers, linkers and test runners call is without end. The weakness of such a list is
//! the call that is added tomorrow; therefore numbers that are newer than this table do not exist for a command.
//! `docs/sandbox.md` has the table for people.

use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{self, Eq, MaskedEq, Ne};
use seccompiler::{BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, sock_filter};

use super::launcher::Fault;
use super::sys;

/// `listns` of Linux 6.19. From 424 on, a call has the same number on every architecture; those of x32 are far above.
const FIRST_UNKNOWN: u32 = 470;

/// What answers as on a kernel without it, so that libraries use what they used before it existed.
const ABSENT: &[libc::c_long] = &[
    // Its flags are in memory, where no filter can look.
    libc::SYS_clone3,
    // What is submitted to a ring runs past this filter.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// What is refused with any arguments. Much of it needs capabilities that no command has: the filter stands where a fault of the
/// kernel would give them.
const REFUSED: &[&[libc::c_long]] = &[NAMESPACES, MOUNTS, KEYS, PROGRAMS, HOST, FORGOTTEN, ARCHITECTURE];

/// Entering other namespaces; making them is a matter of flags, see [`conditional`].
const NAMESPACES: &[libc::c_long] = &[libc::SYS_setns];

const MOUNTS: &[libc::c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Opens any file of a file system by number, past all directories.
    libc::SYS_open_by_handle_at,
];
const OPEN_TREE_ATTR: libc::c_long = 467;

/// Keyrings belong to users and sessions, not to namespaces.
const KEYS: &[libc::c_long] = &[libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl];

/// Programs in the kernel, faults under a command's control, and counters of the processor: what exploits are made of.
const PROGRAMS: &[libc::c_long] = &[libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd];

/// What changes or reads the machine as a whole.
const HOST: &[libc::c_long] = &[
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_vhangup,
    // The kernel's log tells of the host and of other actions.
    libc::SYS_syslog,
];

/// What is left of old interfaces.
const FORGOTTEN: &[libc::c_long] = &[libc::SYS_lookup_dcookie, libc::SYS_nfsservctl];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &[libc::c_long] = &[
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURE: &[libc::c_long] = &[KEXEC_FILE_LOAD];
/// The number that architectures without a history share.
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: libc::c_long = 294;

/// linux/sched.h; as a flag of `clone`, this bit is a part of the signal's number.
const CLONE_NEWTIME: libc::c_int = 0x80;
const NEW_NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Families of sockets, netlink only for interfaces and addresses. Others load modules or, as vsock, are confined by no namespace.
const FAMILIES: &[libc::c_int] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Internet protocols that the kernel would load a module for and that builds do not speak.
const PROTOCOLS: &[libc::c_int] = &[libc::IPPROTO_DCCP, libc::IPPROTO_SCTP];

/// Types text at the terminal of whoever started the farm, and what pastes a selection of a console.
const TERMINAL_INPUT: &[u64] = &[0x5412, 0x541C];

/// 0, the same for 32 bits, either with an old version number, with fixed addresses (debuggers, bootstraps of compilers), and
/// the question what it is. The others undo protections, such as addresses that are not executable.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, 0x4_0008, 0xffff_ffff];

/// The init, which is the command's user to the kernel and hands its limits on to the next action.
const INIT: u64 = 1;

/// The filter as the kernel wants it. Children inherit it and cannot take it off.
pub(super) struct Filter(BpfProgram);

impl Filter {
    /// Compiles it, and finds out whether the kernel has filters at all.
    pub(super) fn compile() -> Result<Self, Fault> {
        if !sys::has_filters() {
            return Err(
                "filter system calls: the kernel cannot; it must be built with CONFIG_SECCOMP_FILTER"
                    .to_owned(),
            );
        }
        let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let architecture = std::env::consts::ARCH.try_into().map_err(|_| no_table())?;
        let filter = SeccompFilter::new(conditional(), SeccompAction::Allow, refused, architecture);
        let judge: Result<BpfProgram, _> = filter.and_then(TryInto::try_into);
        let mut program = numbers();
        program.extend(judge.map_err(|error| format!("compile the filter of system calls: {error}"))?);
        Ok(Self(program))
    }

    /// Puts this thread, and what it executes, under the filter.
    pub(super) fn install(&self) -> Result<(), Fault> {
        seccompiler::apply_filter(&self.0).map_err(|error| format!("filter system calls: {error}"))
    }
}

fn no_table() -> Fault {
    format!("filter system calls: there is no table for the architecture {}", std::env::consts::ARCH)
}

/// What the number of a call says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Refused,
    Absent,
    /// Its arguments are looked at.
    Judged,
}

impl Verdict {
    fn of(call: u32, judged: &BTreeMap<i64, Vec<SeccompRule>>) -> Self {
        let is_among = |calls: &[libc::c_long]| calls.contains(&libc::c_long::from(call));
        match call {
            // A tracer that skips a call sets its number to -1 and answers itself.
            u32::MAX => Self::Allowed,
            FIRST_UNKNOWN.. => Self::Absent,
            _ if is_among(ABSENT) => Self::Absent,
            _ if REFUSED.iter().any(|calls| is_among(calls)) => Self::Refused,
            _ if judged.contains_key(&i64::from(call)) => Self::Judged,
            _ => Self::Allowed,
        }
    }

    fn instruction(self) -> sock_filter {
        let answer = libc::BPF_RET | libc::BPF_K;
        match self {
            Self::Allowed => instruction(answer, 0, libc::SECCOMP_RET_ALLOW),
            Self::Refused => instruction(answer, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
            Self::Absent => instruction(answer, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()),
            // To the end of this part; `numbers` knows where that is.
            Self::Judged => instruction(JUMP, 0, 0),
        }
    }
}

const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
/// Of `struct seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;

/// The filter's own architecture, from linux/audit.h.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const AUDIT_ARCHITECTURE: u32 = 0xC000_00F3;

fn instruction(code: u32, jt: usize, k: u32) -> sock_filter {
    let code = u16::try_from(code).expect("codes have 16 bits");
    sock_filter { code, jt: u8::try_from(jt).expect("half of the ranges have few instructions"), jf: 0, k }
}

/// The beginning of the program: what the numbers alone decide, in a few comparisons. The kernel runs every number through a new filter,
/// so a list would cost each action more than any mount. What needs a look at its arguments goes on behind the end.
fn numbers() -> BpfProgram {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut program = vec![
        instruction(load, 0, ARCHITECTURE_OFFSET),
        instruction(equal, 1, AUDIT_ARCHITECTURE),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(load, 0, NUMBER_OFFSET),
    ];
    let calls = (0..=FIRST_UNKNOWN).chain([u32::MAX]);
    let judged = conditional();
    let mut ranges: Vec<(u32, Verdict)> = calls.map(|call| (call, Verdict::of(call, &judged))).collect();
    ranges.dedup_by_key(|(_, verdict)| *verdict);
    decide(&ranges, &mut program);
    let length = program.len();
    for (at, jump) in program.iter_mut().enumerate().filter(|(_, one)| u32::from(one.code) == JUMP) {
        jump.k = u32::try_from(length - at - 1).expect("programs have at most 4096 instructions");
    }
    program
}

/// Finds by halves the range that a number is in. Each is given by its first number.
fn decide(ranges: &[(u32, Verdict)], program: &mut BpfProgram) {
    if let [(_, verdict)] = ranges {
        program.push(verdict.instruction());
        return;
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let branch = program.len();
    program.push(instruction(0, 0, 0));
    decide(lower, program);
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    program[branch] = instruction(at_least, program.len() - branch - 1, upper[0].0);
    decide(upper, program);
}

/// For each call that is refused with some arguments: those.
fn conditional() -> BTreeMap<i64, Vec<SeccompRule>> {
    let namespace = |flag: &libc::c_int| {
        let flag = u64::from(flag.cast_unsigned());
        rule([argument(0, MaskedEq(flag), flag)])
    };
    let on_terminals = TERMINAL_INPUT.iter().map(|request| rule([argument(1, Eq, *request)]));
    let personality = PERSONALITIES.iter().map(|value| argument(0, Ne, *value));
    let unshare = NEW_NAMESPACES.iter().chain(&[CLONE_NEWTIME]);
    BTreeMap::from([
        (libc::SYS_clone, NEW_NAMESPACES.iter().map(namespace).collect()),
        (libc::SYS_unshare, unshare.map(namespace).collect()),
        (libc::SYS_socket, sockets()),
        (libc::SYS_socketpair, vec![rule([argument(0, Ne, family(libc::AF_UNIX))])]),
        (libc::SYS_ioctl, on_terminals.collect()),
        (libc::SYS_personality, vec![rule(personality)]),
        (libc::SYS_prlimit64, vec![rule([argument(0, Eq, INIT)])]),
    ])
}

/// With which arguments a socket is refused.
fn sockets() -> Vec<SeccompRule> {
    let unknown = rule(FAMILIES.iter().map(|known| argument(0, Ne, family(*known))));
    let netlink =
        rule([argument(0, Eq, family(libc::AF_NETLINK)), argument(2, Ne, family(libc::NETLINK_ROUTE))]);
    let internet = [libc::AF_INET, libc::AF_INET6].into_iter().flat_map(|internet| {
        let refused = move |protocol: &libc::c_int| {
            rule([argument(0, Eq, family(internet)), argument(2, Eq, family(*protocol))])
        };
        PROTOCOLS.iter().map(refused)
    });
    [unknown, netlink].into_iter().chain(internet).collect()
}

fn family(number: libc::c_int) -> u64 {
    u64::from(number.cast_unsigned())
}

fn rule(conditions: impl IntoIterator<Item = SeccompCondition>) -> SeccompRule {
    SeccompRule::new(conditions.into_iter().collect()).expect("every rule here has a condition")
}

/// A condition on the lower half of an argument: all arguments above are ints to the kernel, which ignores the rest.
fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(index, Dword, operator, value).expect("a call has six arguments")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
    const DENIED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

    fn verdict(call: u32, arguments: &[u32]) -> u32 {
        let program = Filter::compile().expect("a filter").0;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => 0xC000_003E,
            "aarch64" => 0xC000_00B7,
            _ => 0xC000_00F3,
        };
        let mut data = [call, architecture, 0, 0].to_vec();
        data.extend((0..6).flat_map(|index| [arguments.get(index).copied().unwrap_or(0), 0]));
        run(&program, &data)
    }

    /// What the kernel would answer: a machine for the few instructions that filters consist of.
    fn run(program: &[sock_filter], data: &[u32]) -> u32 {
        let (mut at, mut register) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            let branch = |is_taken: bool| usize::from(if is_taken { jt } else { jf });
            at += 1 + match code {
                0x20 => {
                    register = data[k as usize / 4];
                    0
                }
                0x54 => {
                    register &= k;
                    0
                }
                0x05 => k as usize,
                0x15 => branch(register == k),
                0x25 => branch(register > k),
                0x35 => branch(register >= k),
                0x06 => return k,
                other => panic!("an instruction {other:#x}"),
            };
        }
    }

    fn on(call: libc::c_long, arguments: &[u32]) -> u32 {
        verdict(u32::try_from(call).expect("a number"), arguments)
    }

    #[test]
    fn what_builds_do_is_allowed() {
        let calls = [libc::SYS_execve, libc::SYS_openat, libc::SYS_ptrace, libc::SYS_kcmp, libc::SYS_clone];
        for call in calls {
            assert_eq!(on(call, &[]), ALLOWED, "{call}");
        }
        // A thread of the C library's, and a shell that leaves its table of descriptors.
        assert_eq!(on(libc::SYS_clone, &[0x003D_0F00]), ALLOWED);
        assert_eq!(on(libc::SYS_unshare, &[0x400]), ALLOWED);
        assert_eq!(on(libc::SYS_personality, &[0x4_0000]), ALLOWED);
        assert_eq!(on(libc::SYS_ioctl, &[1, 0x5413]), ALLOWED);
    }

    #[test]
    fn a_command_changes_its_own_limits_and_not_its_inits() {
        assert_eq!(on(libc::SYS_prlimit64, &[0, 7]), ALLOWED);
        assert_eq!(on(libc::SYS_prlimit64, &[2, 7]), ALLOWED);
        assert_eq!(on(libc::SYS_prlimit64, &[1, 7]), DENIED);
    }

    #[test]
    fn each_new_namespace_is_refused() {
        for flag in [0x1000_0000, 0x2_0000, 0x2000_0000, 0x4000_0000, 0x800_0000, 0x400_0000, 0x200_0000] {
            assert_eq!(on(libc::SYS_clone, &[flag | 17]), DENIED, "{flag:x}");
            assert_eq!(on(libc::SYS_unshare, &[flag]), DENIED, "{flag:x}");
        }
        assert_eq!(on(libc::SYS_unshare, &[0x80]), DENIED, "time");
        assert_eq!(on(libc::SYS_setns, &[3, 0]), DENIED);
    }

    #[test]
    fn only_local_sockets_and_internet_ones_can_be_made() {
        for family in [1, 2, 10, 16] {
            assert_eq!(on(libc::SYS_socket, &[family, 1, 0]), ALLOWED, "{family}");
        }
        for family in (0..64).filter(|family| ![1, 2, 10, 16].contains(family)) {
            assert_eq!(on(libc::SYS_socket, &[family, 1, 0]), DENIED, "{family}");
        }
        assert_eq!(on(libc::SYS_socket, &[16, 3, 12]), DENIED, "netfilter");
        assert_eq!(on(libc::SYS_socket, &[10, 1, 132]), DENIED, "SCTP");
        assert_eq!(on(libc::SYS_socket, &[2, 1, 262]), ALLOWED, "multipath TCP");
        assert_eq!(on(libc::SYS_socketpair, &[1, 1, 0]), ALLOWED);
        assert_eq!(on(libc::SYS_socketpair, &[40, 1, 0]), DENIED);
    }

    #[test]
    fn what_runs_past_the_filter_or_is_newer_does_not_exist() {
        for call in ABSENT {
            assert_eq!(on(*call, &[]), UNKNOWN, "{call}");
        }
        assert_eq!(verdict(FIRST_UNKNOWN - 1, &[]), ALLOWED);
        assert_eq!(verdict(FIRST_UNKNOWN, &[]), UNKNOWN);
        assert_eq!(verdict(0x4000_0000 | 165, &[]), UNKNOWN, "mount by the x32 table");
        assert_eq!(verdict(u32::MAX, &[]), ALLOWED, "skipped by a tracer");
    }

    #[test]
    fn terminals_get_no_input_and_protections_stay() {
        assert_eq!(on(libc::SYS_ioctl, &[0, 0x5412]), DENIED);
        assert_eq!(on(libc::SYS_ioctl, &[0, 0x541C]), DENIED);
        assert_eq!(on(libc::SYS_personality, &[0x40_0000]), DENIED, "READ_IMPLIES_EXEC");
        for call in REFUSED.iter().copied().flatten() {
            assert_eq!(on(*call, &[]), DENIED, "{call}");
        }
    }

    #[test]
    fn every_call_of_another_architecture_kills() {
        let program = Filter::compile().expect("a filter").0;
        for call in [0, 1, FIRST_UNKNOWN, u32::MAX] {
            assert_eq!(run(&program, &[call, 0x4000_0003, 0, 0]), libc::SECCOMP_RET_KILL_PROCESS, "{call}");
        }
    }
}
