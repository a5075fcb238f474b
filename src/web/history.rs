//! The last half hour in memory, for the charts of the overview.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::builds::hit_rate;
use crate::metrics;
use crate::tasks::Shutdown;

use super::Pages;
use super::scheduler;

/// How often the farm is looked at: a chart moves while one watches it, and a look takes a millisecond.
const INTERVAL: Duration = Duration::from_secs(5);

/// Looks that are kept: half an hour.
const SAMPLES_MAX: usize = 360;

/// What one look has seen. Counts are since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sample {
    /// Seconds between this look and the one before.
    seconds: f64,
    actions: i64,
    hits: i64,
    misses: Misses,
    queued: Option<usize>,
    running: Option<usize>,
}

/// Look-ups in the action cache that found nothing, by method. Who executes an action may have looked it up before, or may not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Misses {
    looked_up: i64,
    executed: i64,
}

/// Looks that [`Lately`] is about: a minute of them.
const LATELY: usize = 12;

/// What the farm has done in the last minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Lately {
    /// Actions that workers have answered.
    pub actions_per_second: f64,
    /// The part of the actions that were looked up in the action cache whose result was there, as docs/metrics.md has it; `None` without
    /// look-ups.
    pub action_cache_hit_rate: Option<f64>,
}

/// What the charts show; the oldest look first.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Curves {
    /// Actions that workers have answered, a second.
    pub(super) actions: Vec<Option<f64>>,
    /// As in [`Lately`].
    pub(super) hit_rate: Vec<Option<f64>>,
    pub(super) queued: Vec<Option<f64>>,
    pub(super) running: Vec<Option<f64>>,
}

impl Sample {
    /// The hit rate between two looks.
    fn hit_rate_since(&self, before: &Self) -> Option<f64> {
        let since = |now: i64, before: i64| u64::try_from(now - before).unwrap_or_default();
        let (now, then) = (self.misses, before.misses);
        let misses = (since(now.looked_up, then.looked_up), since(now.executed, then.executed));
        hit_rate(since(self.hits, before.hits), misses)
    }
}

/// The looks. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<VecDeque<Sample>>>);

impl History {
    fn add(&self, sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push_back(sample);
        while samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
    }

    /// None before the second look.
    pub(super) fn lately(&self) -> Option<Lately> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = samples.back()?;
        let first = samples.get(samples.len().saturating_sub(LATELY + 1)).filter(|_| samples.len() > 1)?;
        let seconds: f64 =
            samples.iter().rev().take(LATELY.min(samples.len() - 1)).map(|one| one.seconds).sum();
        Some(Lately {
            actions_per_second: (last.actions - first.actions) as f64 / seconds.max(0.001),
            action_cache_hit_rate: last.hit_rate_since(first),
        })
    }

    /// The time that the curves are of.
    pub(super) fn span(&self) -> Duration {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = samples.iter().skip(1).map(|one| one.seconds).sum();
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    pub(super) fn curves(&self) -> Curves {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut curves, mut before) = (Curves::default(), None::<Sample>);
        for sample in samples.iter() {
            if let Some(before) = before {
                curves
                    .actions
                    .push(Some((sample.actions - before.actions) as f64 / sample.seconds.max(0.001)));
                curves.hit_rate.push(sample.hit_rate_since(&before));
                curves.queued.push(sample.queued.map(|count| count as f64));
                curves.running.push(sample.running.map(|count| count as f64));
            }
            before = Some(*sample);
        }
        curves
    }
}

/// Looks at the farm until `shutdown`.
pub(super) async fn keep(pages: Pages, shutdown: Shutdown) {
    let mut last = Instant::now();
    loop {
        let load = scheduler::load(&pages).await.ok();
        let results = &*metrics::ACTION_CACHE_RESULTS;
        let missed = |method| metrics::sum(results, &[("method", method), ("outcome", "miss")]);
        let sample = Sample {
            seconds: last.elapsed().as_secs_f64(),
            actions: metrics::sum(&*metrics::ACTIONS, &[]),
            hits: metrics::sum(results, &[("outcome", "hit")]),
            misses: Misses { looked_up: missed("GetActionResult"), executed: missed("Execute") },
            queued: load.as_ref().map(|load| load.queued),
            running: load.as_ref().map(|load| load.running),
        };
        last = Instant::now();
        pages.history.add(sample);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let history = History::default();
        assert_eq!((history.curves(), history.lately()), (Curves::default(), None));
        let sample = |actions, (hits, misses), queued| Sample {
            seconds: 5.0,
            actions,
            hits,
            misses: Misses { looked_up: misses, executed: 0 },
            queued,
            running: None,
        };
        for one in [sample(0, (0, 0), Some(1)), sample(10, (3, 1), Some(2)), sample(10, (3, 1), None)] {
            history.add(one);
        }
        assert_eq!(history.span(), Duration::from_secs(10));
        let curves = history.curves();
        assert_eq!(curves.actions, [Some(2.0), Some(0.0)]);
        assert_eq!(curves.hit_rate, [Some(0.75), None]);
        assert_eq!(curves.queued, [Some(2.0), None]);
        let lately = Lately { actions_per_second: 1.0, action_cache_hit_rate: Some(0.75) };
        assert_eq!(history.lately(), Some(lately));
        for _ in 0..LATELY {
            history.add(sample(10, (3, 1), None));
        }
        assert_eq!(history.lately(), Some(Lately::default()));
    }

    #[test]
    fn an_action_that_is_looked_up_and_then_executed_counts_once() {
        let rate = |hits, looked_up, executed| {
            let misses = Misses { looked_up, executed };
            Sample { hits, misses, ..Sample::default() }.hit_rate_since(&Sample::default())
        };
        assert_eq!(rate(10, 10, 10), Some(0.5));
        assert_eq!(rate(10, 10, 0), Some(0.5), "a client that executes by itself");
        assert_eq!(rate(10, 0, 10), Some(0.5), "a client that only executes");
        assert_eq!(rate(0, 0, 0), None);
    }

    #[test]
    fn old_looks_are_forgotten() {
        let history = History::default();
        for actions in 0..1000 {
            history.add(Sample { seconds: 1.0, actions, ..Sample::default() });
        }
        assert_eq!(history.curves().actions.len(), SAMPLES_MAX - 1);
    }
}
