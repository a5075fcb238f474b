//! How much of a machine the worker has.

use std::fs;
use std::path::{Path, PathBuf};

use super::sandbox::directory_of;

/// The machine as far as this process may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    pub cores: u64,
    pub memory_bytes: u64,
}

/// What the actions leave to the worker and to the system: an eighth, within these bounds. A worker of its own needs some ten MiB;
/// the rest is for the system's services and for a store in the same process.
const RESERVE_MIN: u64 = 256 << 20;
const RESERVE_MAX: u64 = 4 << 30;

impl Machine {
    /// The cores and the memory of the machine, or of the control group that the worker is in, if that has less.
    pub fn measure() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        let system = rustix::system::sysinfo();
        // The kernel's `unsigned long` has as many bits as our addresses, at most 64.
        let memory_bytes = (system.totalram as u64).saturating_mul(u64::from(system.mem_unit));
        let limited = own_group().and_then(|group| smallest_limit(&group));
        Self { cores, memory_bytes: limited.map_or(memory_bytes, |limit| limit.min(memory_bytes)) }
    }

    /// The memory that all actions together may use.
    pub fn memory_of_actions(&self) -> u64 {
        let reserve = (self.memory_bytes / 8).clamp(RESERVE_MIN, RESERVE_MAX);
        // On a machine smaller than any that could run actions in earnest, half is a fair share.
        self.memory_bytes.saturating_sub(reserve).max(self.memory_bytes / 2)
    }
}

fn own_group() -> Option<PathBuf> {
    let read = |path| fs::read_to_string(path).ok();
    directory_of(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
}

/// The smallest memory limit of a group and those above it.
fn smallest_limit(group: &Path) -> Option<u64> {
    let limits = group.ancestors().filter_map(|group| fs::read_to_string(group.join("memory.max")).ok());
    // A group without a limit says `max`.
    limits.filter_map(|text| text.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_memory_is_left_to_the_system() {
        let of = |memory_bytes: u64| Machine { cores: 1, memory_bytes }.memory_of_actions();
        assert_eq!(of(1 << 30), (1 << 30) - RESERVE_MIN);
        assert_eq!(of(16 << 30), 14 << 30);
        assert_eq!(of(1 << 40), (1 << 40) - RESERVE_MAX);
        assert_eq!(of(300 << 20), 150 << 20);
    }

    #[test]
    fn the_smallest_limit_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("a/b");
        fs::create_dir_all(&leaf).unwrap();
        fs::write(root.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(smallest_limit(&leaf), None);
        fs::write(root.path().join("a/memory.max"), "1000\n").unwrap();
        fs::write(leaf.join("memory.max"), "2000\n").unwrap();
        assert_eq!(smallest_limit(&leaf), Some(1000));
    }
}
