//! What kind of world a seed makes: which troubles it knows, and how much of everything there is.
//!
//! Worlds differ on purpose. Where everything goes wrong all the time, nothing gets far enough to go wrong later.

use std::time::Duration;

use super::random::Random;
use crate::scheduler::config::Config;

pub(super) struct Plan {
    /// The scheduler dies and starts again from its journal.
    pub(super) has_restarts: bool,
    /// The journal takes its time, so that a power cut costs something.
    pub(super) has_slow_journal: bool,
    /// Connections break, of one worker or of many at once.
    pub(super) has_partitions: bool,
    /// Workers crash, hang and fail.
    pub(super) has_crashes: bool,
    /// Operators take workers out and let them in.
    pub(super) has_marks: bool,
    /// Hundreds of operations are submitted at once and cancelled at once.
    pub(super) has_storms: bool,
    /// One client and one build may have only a few operations at once.
    pub(super) has_small_shares: bool,
    /// A run that takes longer than earlier ones is started a second time.
    pub(super) has_hedges: bool,
    pub(super) workers_max: usize,
    /// The longest time between two deeds of clients, in milliseconds.
    pub(super) client_pause: u64,
    /// The longest time between two troubles, in milliseconds.
    pub(super) trouble_pause: u64,
}

impl Plan {
    pub(super) fn draw(random: &mut Random) -> Self {
        Self {
            has_restarts: random.chance(50),
            has_slow_journal: random.chance(50),
            has_partitions: random.chance(60),
            has_crashes: random.chance(70),
            has_marks: random.chance(40),
            has_storms: random.chance(5),
            has_small_shares: random.chance(25),
            has_hedges: random.chance(60),
            workers_max: 2 + usize::try_from(random.below(5)).unwrap(),
            client_pause: random.pick(&[200, 400, 400, 1200]).unwrap(),
            trouble_pause: random.pick(&[800, 2500, 2500, 6000]).unwrap(),
        }
    }

    /// Short times and small limits, so that all of them are reached within a world's life.
    pub(super) fn config(&self) -> Config {
        let (operations_max, finished_max) = if self.has_storms { (200, 120) } else { (24, 12) };
        let (of_identity, of_invocation) = if self.has_small_shares { (4, 6) } else { (1000, 1000) };
        Config {
            lease_slack: Duration::from_secs(8),
            kill_timeout: Duration::from_secs(4),
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(4),
            abandon_after: Duration::from_secs(3),
            reconnect_within: Duration::from_secs(5),
            recover_within: Duration::from_secs(6),
            health_failures_max: 2,
            health_probation: Duration::from_secs(4),
            unsatisfiable_after: Duration::from_secs(6),
            retention: Duration::from_secs(10),
            finished_max,
            operations_max,
            operations_per_identity_max: of_identity,
            operations_per_invocation_max: of_invocation,
            hedge: self.has_hedges,
            hedge_factor: 1,
            hedge_after_min: Duration::from_millis(300),
            hedges_max_percent: 50,
            ..Config::default()
        }
    }
}
