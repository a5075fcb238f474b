//! How a worker has done lately. One that fails several different actions in a row for its own reasons is taken out, and tried again
//! after a while.
//!
//! Different actions, because one action that fails everywhere says nothing about the workers that it fails on.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::digest::Digest;

use super::answers;
use super::config::Config;
use super::id::ExecutionId;

/// No worker stays out for longer without another try.
const OUT_MAX: Duration = Duration::from_secs(3600);

/// Failures since the last success, and what followed from them.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// What has failed; at most as many as it takes to be taken out.
    failed: BTreeSet<Culprit>,
    verdict: Verdict,
    /// How often it was taken out in a row.
    times: u32,
}

/// What a worker has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Culprit {
    Action(Digest),
    /// An action that nobody waits for any more, so that its digest is not known.
    Execution(ExecutionId),
}

#[derive(Debug, Default)]
enum Verdict {
    #[default]
    Trusted,
    /// It takes no new work, for the reason given.
    Out(String),
    /// One more failure takes it out again.
    Probation,
}

impl Health {
    /// The worker has failed an action. Returns whether it is to be taken out for that.
    pub(super) fn fail(&mut self, culprit: Culprit, sentence: &str, config: &Config) -> bool {
        self.failed.insert(culprit);
        let sentence = answers::shortened(sentence);
        let reason = match self.verdict {
            Verdict::Out(_) => return false,
            Verdict::Probation => format!("it failed again when it was tried again: {sentence}"),
            Verdict::Trusted if self.failed.len() < config.health_failures_max as usize => return false,
            Verdict::Trusted => {
                format!("{} different actions failed in a row, the last: {sentence}", self.failed.len())
            }
        };
        self.failed.clear();
        self.times += 1;
        self.verdict = Verdict::Out(reason);
        true
    }

    /// How long the worker stays out this time.
    pub(super) fn pause(&self, config: &Config) -> Duration {
        let doublings = self.times.saturating_sub(1).min(31);
        config.health_probation.saturating_mul(1 << doublings).min(OUT_MAX.max(config.health_probation))
    }

    /// The time is over: the worker is tried again. Returns whether it was out.
    pub(super) fn try_again(&mut self) -> bool {
        let was_out = self.reason().is_some();
        if was_out {
            self.verdict = Verdict::Probation;
        }
        was_out
    }

    /// Why the worker is out, if it is.
    pub(super) fn reason(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Out(reason) => Some(reason),
            Verdict::Trusted | Verdict::Probation => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(health: &mut Health, execution: u128) -> bool {
        health.fail(Culprit::Execution(ExecutionId::new(execution)), "the disk is full", &Config::default())
    }

    #[test]
    fn it_takes_different_actions() {
        let mut health = Health::default();
        let outs = [1, 1, 1, 2, 2, 3].map(|execution| fail(&mut health, execution));
        assert_eq!(outs, [false, false, false, false, false, true]);
        assert_eq!(health.reason(), Some("3 different actions failed in a row, the last: the disk is full"));
    }

    #[test]
    fn each_failure_on_probation_doubles_the_time_up_to_an_hour() {
        let mut health = Health::default();
        assert!([1, 2, 3].map(|execution| fail(&mut health, execution))[2]);
        let mut pauses = vec![health.pause(&Config::default()).as_secs()];
        for _ in 0..40 {
            assert!(health.try_again() && fail(&mut health, 1));
            pauses.push(health.pause(&Config::default()).as_secs());
        }
        assert_eq!(pauses[..5], [300, 600, 1200, 2400, 3600]);
        assert_eq!(pauses.last(), Some(&3600));
    }

    #[test]
    fn what_fails_while_it_is_out_changes_nothing() {
        let mut health = Health::default();
        let outs = (1..=9).filter(|execution| fail(&mut health, *execution)).count();
        assert_eq!(outs, 1);
    }
}
