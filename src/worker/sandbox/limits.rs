//! What an action may use, and what it has used.

use serde::{Deserialize, Serialize};

use super::cgroup::Controller;

/// The period that the kernel measures processor time in, in microseconds: its own default.
const PERIOD_US: u64 = 100_000;
/// The weight of one core. Weights are from 1 to 10,000.
const CORE_WEIGHT: u64 = 100;
const WEIGHT_MAX: u64 = 10_000;

/// The file of a control group that limits what is swapped.
pub(super) const SWAP_MAX: &str = "memory.swap.max";

/// What one action may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all its processes together, with the files that it writes into memory.
    pub memory_bytes: u64,
    /// Processes and threads at a time.
    pub processes: u64,
    /// Cores that it gets when all are wanted.
    pub cores: u64,
    /// Whether it gets no more cores than that even if nobody else wants them.
    pub is_capped: bool,
    /// What it may write. With [`super::Scratch::Disk`] the kernel refuses only one file that is larger; the whole is measured.
    pub disk_bytes: Option<u64>,
}

/// What the kernel allows each process by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ceilings {
    /// Processes and threads of all actions together, since all belong to one user; where control groups cannot count them.
    pub(super) processes: Option<u64>,
    /// The largest file.
    pub(super) file_bytes: Option<u64>,
}

/// What the processes of an action have used together and which limits they have reached, as far as the kernel tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// With the files that the kernel has read or written for them.
    pub memory_peak_bytes: Option<u64>,
    pub processes_peak: Option<u64>,
    /// Time that processes were ready and held back by the limit of cores.
    pub throttled_us: Option<u64>,
    /// Time that at least one process waited for a core, for memory, for a disk.
    pub cpu_pressure_us: Option<u64>,
    pub memory_pressure_us: Option<u64>,
    pub io_pressure_us: Option<u64>,
    /// Processes that were killed for want of memory.
    pub memory_kills: u64,
    /// How often the action's own limit left no memory, not that of all actions together.
    pub memory_failures: u64,
    /// Processes and threads that were refused.
    pub refused_processes: u64,
}

impl Limits {
    /// More than a command uses that is run to try or to measure the sandbox itself.
    pub const AMPLE: Self =
        Self { memory_bytes: 1 << 40, processes: 4096, cores: 1, is_capped: false, disk_bytes: None };

    /// The files of a control group and what to write to them.
    pub(super) fn settings(&self) -> Vec<(Controller, &'static str, String)> {
        let weight = self.cores.saturating_mul(CORE_WEIGHT).clamp(1, WEIGHT_MAX);
        let mut settings = vec![
            (Controller::Memory, "memory.max", self.memory_bytes.to_string()),
            (Controller::Memory, SWAP_MAX, "0".to_owned()),
            // A command of which the kernel has killed one part gives wrong results; all of it goes.
            (Controller::Memory, "memory.oom.group", "1".to_owned()),
            (Controller::Pids, "pids.max", self.processes.to_string()),
            (Controller::Cpu, "cpu.weight", weight.to_string()),
        ];
        if self.is_capped {
            let quota = self.cores.saturating_mul(PERIOD_US);
            settings.push((Controller::Cpu, "cpu.max", format!("{quota} {PERIOD_US}")));
        }
        settings
    }
}

impl Spent {
    /// Reads the files of a control group; those that the kernel does not have are left out.
    pub(super) fn read(file: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| file(name)?.trim().parse().ok();
        let value = |name: &str, key: &str| field(&file(name)?, key);
        let pressure = |name: &str| {
            let text = file(name)?;
            text.lines().find(|line| line.starts_with("some"))?.rsplit_once("total=")?.1.trim().parse().ok()
        };
        Self {
            memory_peak_bytes: number("memory.peak"),
            processes_peak: number("pids.peak"),
            throttled_us: value("cpu.stat", "throttled_usec"),
            cpu_pressure_us: pressure("cpu.pressure"),
            memory_pressure_us: pressure("memory.pressure"),
            io_pressure_us: pressure("io.pressure"),
            memory_kills: value("memory.events", "oom_kill").unwrap_or(0),
            memory_failures: value("memory.events", "oom").unwrap_or(0),
            refused_processes: value("pids.events", "max").unwrap_or(0),
        }
    }
}

/// The number behind `key` in lines of `key number`.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_and_those_it_lacks_are_left_out() {
        let file = |name: &str| {
            let text = match name {
                "memory.peak" => "1048576\n",
                "memory.events" => "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 1\n",
                "pids.events" => "max 7\n",
                "cpu.stat" => "usage_usec 9\nnr_throttled 2\nthrottled_usec 500\n",
                "io.pressure" => {
                    "some avg10=0.00 avg60=0.00 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=41\n"
                }
                _ => return None,
            };
            Some(text.to_owned())
        };
        let expected = Spent {
            memory_peak_bytes: Some(1 << 20),
            throttled_us: Some(500),
            io_pressure_us: Some(42),
            memory_kills: 1,
            memory_failures: 2,
            refused_processes: 7,
            ..Spent::default()
        };
        assert_eq!(Spent::read(file), expected);
        assert_eq!(Spent::read(|_| None), Spent::default());
    }

    #[test]
    fn cores_are_a_weight_and_a_bound_only_where_one_is_wanted() {
        let limits =
            Limits { memory_bytes: 1 << 30, processes: 10, cores: 2, is_capped: false, disk_bytes: None };
        let files = |limits: Limits| -> Vec<String> {
            limits.settings().into_iter().map(|(_, file, value)| format!("{file}={value}")).collect()
        };
        let settings = files(limits);
        assert!(
            settings.contains(&"cpu.weight=200".to_owned()) && settings.contains(&"pids.max=10".to_owned())
        );
        assert!(
            settings.contains(&"memory.swap.max=0".to_owned()) && !settings.join(" ").contains("cpu.max")
        );
        let settings = files(Limits { cores: 1_000, is_capped: true, ..limits });
        assert!(settings.contains(&"cpu.weight=10000".to_owned()), "{settings:?}");
        assert!(settings.contains(&"cpu.max=100000000 100000".to_owned()), "{settings:?}");
    }
}
