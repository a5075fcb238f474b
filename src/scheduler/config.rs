//! The scheduler's numbers, their defaults and what they must satisfy.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

/// How the values of a platform property are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PropertyKind {
    /// The worker offers exactly this value, perhaps among others.
    Exact,
    /// A whole number: the worker has at least this much, and the action holds it while it runs.
    Minimum,
    /// Any value will do, on any worker: the property is allowed but decides nothing.
    Any,
}

/// How actions are queued, matched, retried and forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The platform properties that actions may demand and workers may offer; any other name is refused.
    /// What a configuration says comes on top of the default ones and may change their kind.
    #[serde(deserialize_with = "on_top_of_the_default")]
    pub properties: BTreeMap<String, PropertyKind>,
    /// How many attempts an execution gets when workers fail it.
    pub attempts_max: u32,
    /// An action during which this many workers were lost is not tried again.
    pub quarantine_after: u32,
    /// How much longer than its command's timeout a lease may last: for fetching inputs and uploading outputs.
    #[serde(with = "humantime_serde")]
    pub lease_slack: Duration,
    /// A worker that has not confirmed a kill after this time is lost.
    #[serde(with = "humantime_serde")]
    pub kill_timeout: Duration,
    /// How often workers are asked to say that they live.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// A worker that was silent for this time is lost.
    #[serde(with = "humantime_serde")]
    pub heartbeat_timeout: Duration,
    /// How long checking the outputs and writing the action cache may take before the attempt counts as failed.
    #[serde(with = "humantime_serde")]
    pub settle_timeout: Duration,
    /// A worker whose connection broke is lost if it is not back within this time. What it runs goes on meanwhile.
    #[serde(with = "humantime_serde")]
    pub reconnect_within: Duration,
    /// How long clients have after a restart of the farm to ask for their operations again, before those are cancelled.
    #[serde(with = "humantime_serde")]
    pub recover_within: Duration,
    /// A worker that fails this many different actions in a row for its own reasons is taken out.
    pub health_failures_max: u32,
    /// After this time it gets another chance; each time it fails again at once the time doubles, up to an hour.
    #[serde(with = "humantime_serde")]
    pub health_probation: Duration,
    /// An operation that no client has watched for this time is cancelled. Clients reconnect within it.
    #[serde(with = "humantime_serde")]
    pub abandon_after: Duration,
    /// A queued action that no connected worker could ever run fails after this time. Workers reconnect within it.
    #[serde(with = "humantime_serde")]
    pub unsatisfiable_after: Duration,
    /// How long a finished operation can still be asked for.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// How many finished operations are kept at most; the oldest goes first.
    pub finished_max: usize,
    /// How many operations may be queued or running at once; more are refused.
    pub operations_max: usize,
    /// How many of them may be of one identity. Clients whose identity is not known count together only in `operations_max`.
    pub operations_per_identity_max: usize,
    /// How many of them may be of one invocation, if the client names it.
    pub operations_per_invocation_max: usize,
    /// Whether operations survive a restart of the farm.
    pub journal: bool,
    /// Of how many commands what their runs have taken is remembered, at about 70 bytes each; with 0, of none.
    pub history_max: usize,
    /// Whether a run that takes far longer than earlier ones is started a second time on another worker.
    pub hedge: bool,
    /// How many times as long as a long run of the past a run takes before it is started a second time.
    pub hedge_factor: u32,
    /// No run is started a second time before this time.
    #[serde(with = "humantime_serde")]
    pub hedge_after_min: Duration,
    /// How many of 100 running leases may be second ones.
    pub hedges_max_percent: u32,
}

/// What is remembered of this many commands takes 16 MiB.
const HISTORY_DEFAULT: usize = 200_000;
/// What is remembered of this many takes 1 GiB; more is a slip of the pen.
const HISTORY_MAX: usize = 13_000_000;

/// A network that is cut for 30 s ends no lease: the end of the connection is found out 8 s after the cut at the earliest, and the worker is
/// back within 10 s of its end (an attempt to connect of 5 s and the longest pause before the next), which makes 32 s. The rest is for
/// slow machines. What a worker ran that is gone for good waits so long for another one.
const RECONNECT_DEFAULT: Duration = Duration::from_secs(45);

impl Default for Config {
    fn default() -> Self {
        Self {
            properties: default_properties(),
            attempts_max: 3,
            quarantine_after: 3,
            lease_slack: Duration::from_secs(600),
            kill_timeout: Duration::from_secs(30),
            heartbeat_interval: Duration::from_secs(5),
            heartbeat_timeout: Duration::from_secs(30),
            settle_timeout: Duration::from_secs(300),
            reconnect_within: RECONNECT_DEFAULT,
            recover_within: Duration::from_secs(60),
            health_failures_max: 3,
            health_probation: Duration::from_secs(300),
            abandon_after: Duration::from_secs(10),
            unsatisfiable_after: Duration::from_secs(30),
            retention: Duration::from_secs(120),
            finished_max: 10_000,
            operations_max: 1_000_000,
            operations_per_identity_max: 500_000,
            operations_per_invocation_max: 200_000,
            journal: true,
            history_max: HISTORY_DEFAULT,
            hedge: true,
            hedge_factor: 3,
            hedge_after_min: Duration::from_secs(60),
            hedges_max_percent: 5,
        }
    }
}

/// The names of REv2's platform lexicon, and the few that builds written for other farms commonly carry.
///
/// * `OSFamily`, `ISA`: the lexicon. Values are compared as written; clients send both `linux` and `Linux`, so a worker offers both.
/// * `container-image`: exact, because an action that runs in another image than it asked for gives wrong results silently.
/// * `Pool`: a set of workers by name.
/// * `cores`, `memory`: a share of the worker, the latter in bytes.
/// * `cache-silo-key`: only there to make the action's digest differ.
/// * `persistentWorkerKey`, `persistentWorkerProtocol`: what Bazel says of tools that can stay running; the command is a whole one, so any worker is right.
fn default_properties() -> BTreeMap<String, PropertyKind> {
    let properties = [
        ("OSFamily", PropertyKind::Exact),
        ("ISA", PropertyKind::Exact),
        ("container-image", PropertyKind::Exact),
        ("Pool", PropertyKind::Exact),
        ("cores", PropertyKind::Minimum),
        ("memory", PropertyKind::Minimum),
        ("cache-silo-key", PropertyKind::Any),
        ("persistentWorkerKey", PropertyKind::Any),
        ("persistentWorkerProtocol", PropertyKind::Any),
    ];
    properties.map(|(name, kind)| (name.to_owned(), kind)).into()
}

fn on_top_of_the_default<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, PropertyKind>, D::Error> {
    let mut properties = default_properties();
    properties.extend(BTreeMap::<String, PropertyKind>::deserialize(deserializer)?);
    Ok(properties)
}

impl Config {
    /// Everything that is wrong with the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let counts = [
            ("attempts_max", u64::from(self.attempts_max)),
            ("quarantine_after", u64::from(self.quarantine_after)),
            ("finished_max", self.finished_max as u64),
            ("operations_max", self.operations_max as u64),
            ("operations_per_identity_max", self.operations_per_identity_max as u64),
            ("operations_per_invocation_max", self.operations_per_invocation_max as u64),
            ("hedge_factor", u64::from(self.hedge_factor)),
            ("hedges_max_percent", u64::from(self.hedges_max_percent)),
        ];
        let times = [
            ("kill_timeout", self.kill_timeout),
            ("heartbeat_interval", self.heartbeat_interval),
            ("settle_timeout", self.settle_timeout),
            ("reconnect_within", self.reconnect_within),
            ("recover_within", self.recover_within),
            ("health_probation", self.health_probation),
            ("abandon_after", self.abandon_after),
            ("retention", self.retention),
        ];
        let mut problems = Vec::new();
        problems
            .extend(counts.iter().filter(|(_, n)| *n == 0).map(|(name, _)| format!("{name} must not be 0")));
        problems.extend(
            times
                .iter()
                .filter(|(_, time)| time.is_zero())
                .map(|(name, _)| format!("{name} must not be 0 s")),
        );
        if self.heartbeat_timeout < self.heartbeat_interval * 2 {
            problems.push("heartbeat_timeout must be at least twice heartbeat_interval, or one late heartbeat loses a worker".into());
        }
        if self.health_failures_max < 2 {
            problems.push(
                "health_failures_max must be at least 2, or one bad action takes every worker out".into(),
            );
        }
        if self.hedges_max_percent > 100 {
            problems.push("hedges_max_percent must be at most 100".into());
        }
        if self.history_max > HISTORY_MAX {
            problems.push(format!("history_max must be at most {HISTORY_MAX}"));
        }
        if self.properties.contains_key("") {
            problems.push("properties must not contain an empty name".into());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, MapDeserializer};

    fn read<'de, V: IntoDeserializer<'de, Error>>(key: &'static str, value: V) -> Result<Config, Error> {
        Config::deserialize(MapDeserializer::new([(key, value)].into_iter()))
    }

    #[test]
    fn the_default_is_sound() {
        assert_eq!(Config::default().check(), Vec::<String>::new());
    }

    #[test]
    fn times_are_written_with_units() {
        let config = read("abandon_after", "1 min 5 s").unwrap();
        assert_eq!(config.abandon_after, Duration::from_secs(65));
        assert_eq!(config.kill_timeout, Config::default().kill_timeout);
    }

    #[test]
    fn properties_come_on_top_of_the_default_ones() {
        let config = read("properties", BTreeMap::from([("gpu", "minimum"), ("Pool", "any")])).unwrap();
        let kinds = ["gpu", "Pool", "ISA"].map(|name| config.properties[name]);
        assert_eq!(kinds, [PropertyKind::Minimum, PropertyKind::Any, PropertyKind::Exact]);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = read("abandon", "1 s").unwrap_err().to_string();
        assert!(error.contains("abandon"), "{error}");
    }

    #[test]
    fn every_problem_is_named() {
        let config = Config {
            attempts_max: 0,
            heartbeat_timeout: Duration::ZERO,
            reconnect_within: Duration::ZERO,
            health_failures_max: 1,
            operations_per_identity_max: 0,
            ..Config::default()
        };
        let problems = config.check().join("\n");
        let keys = [
            "attempts_max",
            "heartbeat_timeout",
            "reconnect_within",
            "health_failures_max",
            "operations_per_identity_max",
        ];
        for key in keys {
            assert!(problems.contains(key), "{key} is not named: {problems}");
        }
    }
}
