//! How a command ended, for people: by itself, by a signal, or because it reached a limit; and what it has used.
//!
//! A limit that was reached makes no status of its own: the command ran and failed, which its exit code says. Clients try again what
//! carries RESOURCE_EXHAUSTED, and the same command would reach the same limit again. As every failure it is not cached.

use std::time::Duration;

use bytesize::ByteSize;

use super::sandbox::{End, Exit, Limits, Scratch, Spent, Usage};
use crate::proto;
use crate::proto::worker::ResourceUsage;

/// As shells report a command that a signal ended.
const SIGNAL_BASE: i32 = 128;
/// A file system with less than this part left is as good as full: the file that did not fit may be deleted already.
const FULL_PART: u64 = 64;

/// What is known of a command that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) end: End,
    pub(super) spent: Option<Spent>,
    pub(super) limits: Limits,
    /// Whether what it could write was used up.
    pub(super) is_disk_full: bool,
}

impl Facts {
    pub(super) fn of(exit: &Exit, limits: Limits, scratch: Scratch) -> Self {
        let is_disk_full = match scratch {
            Scratch::Memory => is_full(exit),
            Scratch::Disk => is_file_too_large(exit.end) && limits.disk_bytes.is_some(),
        };
        Self { end: exit.end, spent: exit.spent, limits, is_disk_full }
    }

    /// The exit code for the client, and a sentence if there is more to say.
    pub(super) fn told(&self) -> (i32, String) {
        let code = match self.end {
            End::Exited(0) => return (0, String::new()),
            End::Exited(code) => code,
            End::Signaled(signal) => SIGNAL_BASE + signal,
            End::Killed => SIGNAL_BASE + libc::SIGKILL,
        };
        (code, self.limit_reached().or_else(|| self.signal()).unwrap_or_default())
    }

    /// The sentence about the limit that made the command fail, as far as one can tell.
    fn limit_reached(&self) -> Option<String> {
        let spent = self.spent.unwrap_or_default();
        let Limits { memory_bytes, processes, .. } = self.limits;
        if spent.memory_kills > 0 && spent.memory_failures > 0 {
            let limit = shown(memory_bytes);
            return Some(format!(
                "the command was killed because it used more memory than its limit of {limit}"
            ));
        }
        if spent.memory_kills > 0 {
            let sentence = "the command was killed because the actions of its worker used more memory together than there is for them";
            return Some(sentence.to_owned());
        }
        if self.is_disk_full {
            return Some(disk_sentence(self.limits.disk_bytes));
        }
        (spent.refused_processes > 0)
            .then(|| format!("the command reached its limit of {processes} processes and threads"))
    }

    fn signal(&self) -> Option<String> {
        let End::Signaled(signal) = self.end else { return None };
        let name = SIGNALS.iter().find(|(number, _)| *number == signal).map(|(_, name)| format!(" ({name})"));
        let sentence = format!("the command was ended by signal {signal}{}", name.unwrap_or_default());
        let is_memory_unknown = self.spent.and_then(|spent| spent.memory_peak_bytes).is_none();
        if signal == libc::SIGKILL && is_memory_unknown {
            return Some(format!("{sentence}; perhaps the worker's machine ran out of memory"));
        }
        Some(sentence)
    }
}

/// The signals that end commands.
const SIGNALS: [(i32, &str); 12] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGSYS, "SIGSYS"),
];

/// The sentence about a command that has written all that it may.
pub(super) fn disk_sentence(limit: Option<u64>) -> String {
    let limit = limit.map(|bytes| format!(" of {}", shown(bytes))).unwrap_or_default();
    format!("the command used up its limit{limit} of what it may write")
}

fn shown(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Whether a file became larger than a file may: the command's own, or that of a program whose end its shell reports.
fn is_file_too_large(end: End) -> bool {
    [End::Signaled(libc::SIGXFSZ), End::Exited(SIGNAL_BASE + libc::SIGXFSZ)].contains(&end)
}

/// Whether the memory that the command could write its files to is used up; what it printed is there, too.
fn is_full(exit: &Exit) -> bool {
    rustix::fs::fstatvfs(&exit.stdout).is_ok_and(|of| of.f_bfree < of.f_blocks / FULL_PART || of.f_ffree == 0)
}

/// What the command has used, for the metadata.
pub(super) fn usage(usage: Usage, spent: Option<Spent>) -> ResourceUsage {
    let Usage { user_us, system_us, resident_bytes } = usage;
    let spent = spent.unwrap_or_default();
    let time = |microseconds: Option<u64>| Some(proto::duration(Duration::from_micros(microseconds?)));
    ResourceUsage {
        cpu_time: time(Some(user_us.saturating_add(system_us))),
        peak_memory_bytes: resident_bytes,
        peak_group_memory_bytes: spent.memory_peak_bytes.unwrap_or(0),
        peak_processes: spent.processes_peak.unwrap_or(0),
        throttled_time: time(spent.throttled_us),
        cpu_pressure: time(spent.cpu_pressure_us),
        memory_pressure: time(spent.memory_pressure_us),
        io_pressure: time(spent.io_pressure_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        memory_bytes: 2 << 30,
        processes: 100,
        cores: 1,
        is_capped: false,
        disk_bytes: Some(1 << 30),
    };

    fn told(end: End, spent: Spent, is_disk_full: bool) -> (i32, String) {
        Facts { end, spent: Some(spent), limits: LIMITS, is_disk_full }.told()
    }

    #[test]
    fn every_end_has_its_code_and_its_sentence() {
        let known = Spent { memory_peak_bytes: Some(1), ..Spent::default() };
        let own = Spent { memory_kills: 3, memory_failures: 1, refused_processes: 1, ..known };
        let all = Spent { memory_kills: 1, ..known };
        let refused = Spent { refused_processes: 4, ..known };
        let killed = End::Signaled(9);
        let table = [
            (End::Exited(0), own, true, 0, ""),
            (End::Exited(3), known, false, 3, ""),
            (End::Signaled(11), known, false, 139, "signal 11 (SIGSEGV)"),
            (End::Signaled(40), known, false, 168, "ended by signal 40"),
            (killed, known, false, 137, "signal 9 (SIGKILL)"),
            (killed, Spent::default(), false, 137, "perhaps the worker's machine ran out of memory"),
            (killed, own, true, 137, "more memory than its limit of 2.0 GiB"),
            (End::Exited(1), all, false, 1, "the actions of its worker used more memory together"),
            (End::Exited(254), refused, false, 254, "its limit of 100 processes and threads"),
            (End::Exited(1), refused, true, 1, "used up its limit of 1.0 GiB of what it may write"),
        ];
        for (end, spent, is_disk_full, code, sentence) in table {
            let (found, message) = told(end, spent, is_disk_full);
            assert!(found == code && message.contains(sentence), "{end:?}: {found} {message}");
            assert!(!sentence.is_empty() || message.is_empty(), "{end:?}: {message}");
        }
        assert!(!told(killed, known, false).1.contains("perhaps"), "its group would have counted it");
    }

    #[test]
    fn the_usage_has_what_the_machine_tells() {
        let used = Usage { user_us: 1_000_000, system_us: 500_000, resident_bytes: 7 };
        let message = usage(used, None);
        let cpu = message.cpu_time.expect("a time");
        assert_eq!((cpu.seconds, cpu.nanos, message.peak_memory_bytes), (1, 500_000_000, 7));
        assert_eq!((message.peak_group_memory_bytes, message.io_pressure), (0, None));
        let spent = Spent { memory_peak_bytes: Some(9), throttled_us: Some(2_000_000), ..Spent::default() };
        let message = usage(used, Some(spent));
        assert_eq!(
            (message.peak_group_memory_bytes, message.throttled_time.expect("a time").seconds),
            (9, 2)
        );
    }
}
