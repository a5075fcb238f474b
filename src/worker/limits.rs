//! What an operator says that one action may use, and whether this machine can hold actions to it.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::config::Config;
use super::machine::Machine;
use super::sandbox::{self, Claim, Controller, Groups};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::platform::Property;
use crate::proto::worker::{CORES, MEMORY};
use crate::tasks;

/// Far more than builds and their tests use, and far less than it takes to hang a machine.
const PROCESSES_DEFAULT: u32 = 4096;
/// The part of a disk's free space that one action gets.
const DISK_PART: u64 = 4;
/// No shell and compiler starts with less, so whoever demands less has meant another unit.
const SIZE_MIN: ByteSize = ByteSize::mib(32);

/// What one action may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory of an action that does not say itself how much it needs (platform property `memory`). By default all that the actions
    /// together may use: the machine's, or that of the worker's control group, less an eighth (256 MiB to 4 GiB).
    pub memory: Option<ByteSize>,
    /// Processes and threads of an action.
    pub processes: NonZeroU32,
    /// Cores that an action gets at most when it does not say itself how many it needs (platform property `cores`). By default
    /// it takes what nobody else wants.
    pub cores: Option<NonZeroU32>,
    /// What an action may write. By default half of the machine's memory with `scratch = "memory"`, and with `"disk"` a quarter of the
    /// space that is free when the worker starts.
    pub disk: Option<ByteSize>,
    /// Whether the worker refuses to start on a machine that cannot hold actions to all of this.
    pub required: bool,
}

impl Default for Limits {
    fn default() -> Self {
        let processes = NonZeroU32::new(PROCESSES_DEFAULT).expect("not zero");
        Self { memory: None, processes, cores: None, disk: None, required: false }
    }
}

impl Limits {
    /// All that is wrong with these values, one sentence each.
    pub(super) fn check(&self) -> Vec<String> {
        let sizes = [("memory", self.memory), ("disk", self.disk)];
        let small = sizes.into_iter().filter(|(_, size)| size.is_some_and(|size| size < SIZE_MIN));
        small.map(|(name, _)| format!("worker.limits.{name}: at least {SIZE_MIN} are needed")).collect()
    }

    /// What an action gets on `machine`. What it demands itself goes before the configuration.
    pub(super) fn of_action(&self, machine: &Machine, demanded: &[Property]) -> sandbox::Limits {
        let amount = |name: &str| -> Option<u64> {
            let property = demanded.iter().find(|property| property.name == name)?;
            property.value.parse::<NonZeroU64>().ok().map(NonZeroU64::get)
        };
        let all = machine.memory_of_actions();
        let memory = amount(MEMORY).or(self.memory.map(|size| size.as_u64())).unwrap_or(all);
        let configured = self.cores.map(|cores| u64::from(cores.get()));
        sandbox::Limits {
            memory_bytes: memory.max(SIZE_MIN.as_u64()).min(all),
            processes: u64::from(self.processes.get()),
            cores: amount(CORES).or(configured).unwrap_or(1),
            is_capped: configured.is_some(),
            disk_bytes: self.disk.map(|size| size.as_u64()),
        }
    }
}

/// What an action may write to the disk that `directory` is on if nothing else is said: a part of what is free, since others write
/// there, too.
pub(super) fn disk_default(directory: &Path) -> Option<ByteSize> {
    let of = rustix::fs::statvfs(directory).ok()?;
    let free = of.f_bavail.saturating_mul(of.f_frsize);
    Some(ByteSize(free / DISK_PART).max(SIZE_MIN))
}

/// Takes control groups for a worker. What cannot be enforced is said in one line of the log.
///
/// # Errors
/// `Unavailable` if the configuration demands that everything can be.
pub(super) async fn claim(config: &Config, machine: &Machine) -> Result<Option<Groups>> {
    let owner = rustix::process::geteuid().is_root().then_some((config.uid, config.gid));
    let memory_bytes = machine.memory_of_actions();
    let Claim { groups, lacking, reason } =
        tasks::blocking(move || Ok(sandbox::claim(owner, memory_bytes))).await?;
    if lacking.is_empty() {
        return Ok(groups);
    }
    let what = lacking.iter().map(|controller| noun(*controller)).collect::<Vec<_>>().join(", ");
    if config.limits.required {
        let message = format!(
            "worker.limits.required: this machine cannot limit what an action uses of {what}: {reason}; or set \
             worker.limits.required = false"
        );
        return Err(Error::new(Kind::Unavailable, message));
    }
    let instead = instead(&lacking);
    tracing::warn!("what an action uses of {what} cannot be limited: {reason}. Instead, {instead}");
    Ok(groups)
}

fn noun(controller: Controller) -> &'static str {
    match controller {
        Controller::Cpu => "processor time",
        Controller::Memory => "memory",
        Controller::Pids => "processes",
    }
}

/// What holds for actions where control groups limit nothing.
fn instead(lacking: &[Controller]) -> String {
    let all = lacking.iter().map(|controller| match controller {
        Controller::Cpu => "they share the processors as all processes do",
        Controller::Memory => "they are the first to be killed when the machine runs out of memory",
        Controller::Pids => "all of them together have a limit of processes",
    });
    all.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { cores: 8, memory_bytes: 16 << 30 };

    fn limits(toml: &str, demanded: &[(&str, &str)]) -> sandbox::Limits {
        let limits: Limits = toml::from_str(toml).unwrap();
        let property =
            |(name, value): &(&str, &str)| Property { name: (*name).into(), value: (*value).into() };
        let demanded: Vec<Property> = demanded.iter().map(property).collect();
        limits.of_action(&MACHINE, &demanded)
    }

    #[test]
    fn an_action_that_says_nothing_cannot_take_the_whole_machine() {
        let limits = limits("", &[]);
        assert_eq!((limits.memory_bytes, limits.processes), (14 << 30, 4096));
        assert!(limits.cores == 1 && !limits.is_capped && limits.disk_bytes.is_none());
    }

    #[test]
    fn what_an_action_demands_goes_before_the_configuration() {
        let configured = "memory = \"2 GiB\"\ncores = 2\ndisk = \"1 GiB\"";
        let limits_of = |demanded: &[(&str, &str)]| {
            let limits = limits(configured, demanded);
            (limits.memory_bytes, limits.cores, limits.is_capped)
        };
        assert_eq!(limits_of(&[]), (2 << 30, 2, true));
        assert_eq!(limits_of(&[("memory", "8589934592"), ("cores", "4")]), (8 << 30, 4, true));
        assert_eq!(limits_of(&[("memory", "99999999999999")]), (14 << 30, 2, true), "more than there is");
        assert_eq!(limits_of(&[("memory", "4096")]), (32 << 20, 2, true), "meant as MiB");
        assert_eq!(limits_of(&[("memory", "much"), ("cores", "0")]), (2 << 30, 2, true));
    }

    #[test]
    fn limits_that_nothing_could_run_in_are_refused() {
        let limits: Limits = toml::from_str("memory = \"1 MiB\"\ndisk = 0").unwrap();
        assert_eq!(limits.check().len(), 2, "{:?}", limits.check());
        assert!(toml::from_str::<Limits>("processes = 0").is_err());
        assert_eq!(Limits::default().check(), Vec::<String>::new());
    }
}
