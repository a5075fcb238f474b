//! The bucket's rules by age, and what follows from an object's age for us.
//!
//! A bucket deletes by age, not by use. So that it never takes a blob in use, what is used after `refresh_after` is copied onto
//! itself, which makes it young again, and what is about to be deleted counts as absent, so that a client sends it again.

use std::fmt;
use std::time::Duration;

use humantime_serde::re::humantime;
use serde::{Deserialize, Serialize};

use super::config::Provider;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Before the bucket may delete an object, it counts as absent for this long: providers run their rules once a day, clocks differ,
/// and what was reported present must stay for a lease.
const EXPIRY_MARGIN: Duration = DAY;

/// S3 moves nothing to STANDARD_IA that is younger.
const S3_COLDER_MIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// When the bucket's rules act, by the age of an object in whole days. `croft lifecycle` prints the rules that follow.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lifecycle {
    /// The age at which an object moves to a colder class, or `never`.
    pub colder_after: Age,
    /// The age at which an object is deleted, or `never`.
    pub expire_after: Age,
    /// The age from which an object that is used is made young again.
    #[serde(with = "humantime_serde")]
    pub refresh_after: Duration,
    /// The age at which the parts of an upload that was never completed are deleted.
    #[serde(with = "humantime_serde")]
    pub abort_incomplete_after: Duration,
}

/// An age, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Age {
    Never,
    Of(Duration),
}

/// What a bucket's rules mean for an object of some age; times are seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    refresh_seconds: Option<u64>,
    /// From this age on an object counts as absent.
    absent_seconds: Option<u64>,
    remember_seconds: u64,
}

/// What is to be done about an object that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is there, at least until then.
    Present { until: u64 },
    /// It is there at least until then, and must be refreshed because it is in use.
    Ageing { until: u64 },
    /// The bucket may delete it at any moment.
    Expiring,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            colder_after: Age::Of(90 * DAY),
            expire_after: Age::Of(365 * DAY),
            refresh_after: 60 * DAY,
            abort_incomplete_after: 7 * DAY,
        }
    }
}

impl Lifecycle {
    /// What is wrong for this provider, one sentence each.
    pub(super) fn problems(&self, provider: Provider<'_>) -> Vec<String> {
        let mut problems = Vec::new();
        let ages = [self.colder_after, self.expire_after, Age::Of(self.abort_incomplete_after)];
        if ages.into_iter().filter_map(Age::days).any(|days| days == 0) {
            problems.push("lifecycle: an age is at least one day".to_owned());
        }
        if self.colder_after.is_before(S3_COLDER_MIN) && matches!(provider, Provider::S3(_)) {
            problems.push("lifecycle.colder_after must be at least 30 days on S3".to_owned());
        }
        if !self.colder_after.is_before_or_never(self.expire_after) {
            problems.push("lifecycle.colder_after must be before expire_after".to_owned());
        }
        if self.colder_after.is_before(self.refresh_after + Duration::from_secs(1)) {
            problems.push(
                "lifecycle.refresh_after must be before colder_after: what is used would become colder"
                    .to_owned(),
            );
        }
        let ttl = provider.requests().existence_ttl;
        let refresh_latest = self.refresh_after + ttl + EXPIRY_MARGIN;
        if self.counted_expiry(provider).is_some_and(|expiry| expiry <= refresh_latest) {
            problems.push(
                "lifecycle.refresh_after and existence_ttl and a day must be before expire_after: what is used would be deleted"
                    .to_owned(),
            );
        }
        problems
    }

    /// The age at which the bucket deletes, counted from the time of change that the service tells.
    ///
    /// Google counts an object's age from its creation, but the time that it tells us is set anew when a rule moves the object
    /// to another class.
    fn counted_expiry(&self, provider: Provider<'_>) -> Option<Duration> {
        let Age::Of(expiry) = self.expire_after else { return None };
        Some(match (provider, self.colder_after) {
            (Provider::Gcs(_), Age::Of(colder)) => expiry.saturating_sub(colder),
            (Provider::Gcs(_) | Provider::S3(_) | Provider::Azure(_) | Provider::Fs(_), _) => expiry,
        })
    }
}

impl Age {
    /// Whole days, rounded up, so that the bucket never acts before we think it may.
    pub(super) fn days(self) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::Of(age) => Some(age.as_secs().div_ceil(DAY.as_secs())),
        }
    }

    fn is_before(self, other: Duration) -> bool {
        matches!(self, Self::Of(age) if age < other)
    }

    fn is_before_or_never(self, other: Self) -> bool {
        match other {
            Self::Never => true,
            Self::Of(other) => self == Self::Never || self.is_before(other),
        }
    }
}

impl TryFrom<String> for Age {
    type Error = humantime::DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "never" { Ok(Self::Never) } else { Ok(Self::Of(humantime::parse_duration(&text)?)) }
    }
}

impl From<Age> for String {
    fn from(age: Age) -> Self {
        age.to_string()
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Of(age) if age.as_secs() % DAY.as_secs() == 0 => {
                write!(f, "{} days", age.as_secs() / DAY.as_secs())
            }
            Self::Of(age) => humantime::format_duration(*age).fmt(f),
        }
    }
}

impl Policy {
    pub(super) fn new(provider: Provider<'_>) -> Self {
        let remember_seconds = provider.requests().existence_ttl.as_secs();
        let Some(lifecycle) = provider.lifecycle() else {
            return Self { refresh_seconds: None, absent_seconds: None, remember_seconds };
        };
        let has_rules = (lifecycle.colder_after, lifecycle.expire_after) != (Age::Never, Age::Never);
        let absent = lifecycle.counted_expiry(provider).map(|expiry| expiry.saturating_sub(EXPIRY_MARGIN));
        Self {
            refresh_seconds: has_rules.then_some(lifecycle.refresh_after.as_secs()),
            absent_seconds: absent.map(|age| age.as_secs()),
            remember_seconds,
        }
    }

    /// What follows for an object that was changed at `modified`. One of unknown age is taken to be new, because a service that
    /// tells no age has no rules by age.
    pub(super) fn judge(&self, modified: Option<u64>, now: u64) -> Verdict {
        let modified = modified.unwrap_or(now);
        let age = now.saturating_sub(modified);
        if self.absent_seconds.is_some_and(|absent| age >= absent) {
            return Verdict::Expiring;
        }
        let absent_at = self.absent_seconds.map_or(u64::MAX, |absent| modified + absent);
        let until = absent_at.min(now + self.remember_seconds);
        if self.refresh_seconds.is_some_and(|refresh| age >= refresh) {
            return Verdict::Ageing { until };
        }
        Verdict::Present { until }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::{Azure, Gcs, S3};
    use super::*;

    const NOW: u64 = 2_000_000_000;

    fn days(count: u64) -> u64 {
        count * DAY.as_secs()
    }

    fn judge(provider: Provider<'_>, age: u64) -> Verdict {
        Policy::new(provider).judge(Some(NOW - days(age)), NOW)
    }

    #[test]
    fn what_is_old_is_refreshed_and_what_is_about_to_go_is_absent() {
        let s3 = S3::default();
        let until = NOW + days(1);
        assert_eq!(judge(Provider::S3(&s3), 0), Verdict::Present { until });
        assert_eq!(judge(Provider::S3(&s3), 59), Verdict::Present { until });
        assert_eq!(judge(Provider::S3(&s3), 60), Verdict::Ageing { until });
        assert_eq!(judge(Provider::S3(&s3), 363), Verdict::Ageing { until });
        assert_eq!(judge(Provider::S3(&s3), 364), Verdict::Expiring);
        assert_eq!(Policy::new(Provider::S3(&s3)).judge(None, NOW), Verdict::Present { until });
    }

    #[test]
    fn nothing_is_remembered_beyond_its_expiry() {
        let s3 = S3::default();
        let modified = NOW - days(364) + 7;
        let verdict = Policy::new(Provider::S3(&s3)).judge(Some(modified), NOW);
        assert_eq!(verdict, Verdict::Ageing { until: NOW + 7 });
    }

    #[test]
    fn on_gcs_the_age_counts_anew_after_the_move_to_a_colder_class() {
        let (gcs, azure) = (Gcs::default(), Azure::default());
        assert_eq!(judge(Provider::Gcs(&gcs), 365 - 90 - 1), Verdict::Expiring);
        assert!(matches!(judge(Provider::Azure(&azure), 365 - 90 - 1), Verdict::Ageing { .. }));
    }

    #[test]
    fn without_rules_nothing_ages() {
        let lifecycle =
            Lifecycle { colder_after: Age::Never, expire_after: Age::Never, ..Lifecycle::default() };
        let s3 = S3 { lifecycle, ..S3::default() };
        assert!(matches!(judge(Provider::S3(&s3), 10_000), Verdict::Present { .. }));
    }

    #[test]
    fn what_is_used_must_be_refreshed_before_a_rule_takes_it() {
        let problems = |refresh, colder, expire| {
            let lifecycle = Lifecycle {
                refresh_after: refresh * DAY,
                colder_after: colder,
                expire_after: expire,
                ..Lifecycle::default()
            };
            lifecycle.problems(Provider::S3(&S3::default()))
        };
        let of = |days| Age::Of(days * DAY);
        assert_eq!(problems(60, of(90), of(365)), Vec::<String>::new());
        assert_eq!(problems(60, Age::Never, of(63)), Vec::<String>::new());
        assert_eq!(problems(60, Age::Never, of(62)).len(), 1);
        assert_eq!(problems(90, of(90), Age::Never).len(), 1);
        assert_eq!(problems(10, of(20), Age::Never).len(), 1);
        assert_eq!(problems(10, of(100), of(50)).len(), 1);
    }
}
