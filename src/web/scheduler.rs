//! The scheduler as an operator sees it: what waits and why, what runs where, workers taken out and put back, and its gauges.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, shown};
use crate::metrics;
use crate::scheduler::view;
use crate::scheduler::{
    Availability, Demand, Handle, Load, OperationId, Overview, Why, WorkerId, WorkerView, whole_workers,
};

use super::Pages;
use super::answer::{elsewhere, json_or as answer};

/// Bytes that a reason may have: it is kept, journalled, and shown in one line.
const REASON_BYTES_MAX: usize = 256;

/// Bytes of a request's body: a reason in JSON, each of its characters escaped.
const BODY_BYTES_MAX: usize = 4096;

/// How long the scheduler may take to answer. A page that waits longer says so, and a scrape shows what was last known.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const SCRAPE_MAX: Duration = Duration::from_secs(1);

/// Property sets that have series of their own. They are texts of clients, and every series costs the monitoring.
const SETS_NAMED_MAX: usize = 64;

/// Characters of a property set in a label.
const LABEL_CHARS_MAX: usize = 200;

/// The label of everything that asks for no property, and of everything that has no series of its own. Sets of properties have a
/// `=` in them, so no client can write either.
const NO_PROPERTIES: &str = "none";
const OTHER: &str = "other";

/// Workers that a refusal names.
const NAMES_SHOWN_MAX: usize = 20;

/// What is asked of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Open,
    Cordon,
    Drain,
}

/// The body of a request that marks a worker; it may be absent.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarkRequest {
    /// At most 256 bytes; shown wherever the worker is.
    pub reason: String,
}

/// The pages about the scheduler.
pub(super) fn routes() -> Router<Pages> {
    Router::new()
        .route("/workers/{key}", get(worker))
        .route("/workers/{key}/open", post(|pages, key, body| mark(pages, key, body, Mark::Open)))
        .route("/workers/{key}/cordon", post(|pages, key, body| mark(pages, key, body, Mark::Cordon)))
        .route("/workers/{key}/drain", post(|pages, key, body| mark(pages, key, body, Mark::Drain)))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// Where an operation stands: `/operations/{id}/why`, and `/operations/{name}/why` with the name that clients have.
pub(super) async fn explanation(pages: &Pages, name: &str) -> Response {
    answer(explain(pages, name).await)
}

async fn explain(pages: &Pages, name: &str) -> Result<Why> {
    let shown = shown(name);
    let id = OperationId::parse(name.rsplit_once('/').map_or(name, |(_, id)| id)).ok_or_else(|| {
        let form = "one is 32 hexadecimal digits, or a name that ends in them";
        Error::invalid(format!("`{shown}` is no operation; {form}"))
    })?;
    let unknown = || {
        let message = format!("operation `{shown}` is unknown: it ended long ago, or never was");
        Error::new(Kind::NotFound, message)
    };
    why(pages, id).await?.ok_or_else(unknown)
}

async fn worker(State(pages): State<Pages>, Path(key): Path<String>) -> Response {
    let found = async { find(pages.scheduler()?, key).await };
    answer(found.await.map(|(_, worker)| worker))
}

/// Says whether a worker takes new work, and answers with the worker as it is then.
async fn mark(State(pages): State<Pages>, Path(key): Path<String>, body: Bytes, mark: Mark) -> Response {
    let applied = async { apply(pages.scheduler()?, key, &body, mark).await };
    answer(applied.await)
}

async fn apply(scheduler: &Handle, key: String, body: &[u8], mark: Mark) -> Result<WorkerView> {
    let availability = mark.availability(reason(body)?)?;
    let (id, worker) = find(scheduler, key).await?;
    tracing::info!(worker = %id, name = worker.name, ?availability, "an operator marked a worker");
    scheduler.mark(id, availability).await?;
    // The mark and this question are handled in their order. A worker that left in between is shown as it was.
    let after = in_time(ANSWER_MAX, scheduler.find_workers(id.to_string())).await?;
    Ok(after.into_iter().next().map_or(worker, |(_, worker)| worker))
}

fn reason(body: &[u8]) -> Result<String> {
    if body.is_empty() {
        return Ok(String::new());
    }
    let malformed = |error| Error::invalid("the body is not {\"reason\": \"…\"}").with_source(error);
    let reason = serde_json::from_slice::<MarkRequest>(body).map_err(malformed)?.reason;
    if reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        return Err(Error::invalid(format!("a reason is one line of at most {REASON_BYTES_MAX} bytes")));
    }
    Ok(reason)
}

impl Mark {
    fn availability(self, reason: String) -> Result<Availability> {
        match self {
            Self::Open => Ok(Availability::Open),
            Self::Cordon if reason.is_empty() => {
                Err(Error::invalid("a cordon needs a reason, so that others know when it may end"))
            }
            Self::Cordon => Ok(Availability::Cordoned { reason }),
            Self::Drain => Ok(Availability::Draining { reason }),
        }
    }
}

/// The one worker of this name or identifier.
async fn find(scheduler: &Handle, key: String) -> Result<(WorkerId, WorkerView)> {
    let shown = shown(&key);
    let mut found = in_time(ANSWER_MAX, scheduler.find_workers(key)).await?;
    if found.len() > 1 {
        let ids: Vec<String> = found.iter().map(|(id, _)| id.to_string()).collect();
        let message =
            format!("{} workers have the name `{shown}`; take an id of {}", ids.len(), ids.join(", "));
        return Err(Error::new(Kind::Exists, message));
    }
    if let Some(one) = found.pop() {
        return Ok(one);
    }
    let known = names(&in_time(ANSWER_MAX, scheduler.overview()).await?);
    Err(Error::new(Kind::NotFound, format!("there is no worker `{shown}`; {known}")))
}

fn names(overview: &Overview) -> String {
    let mut names: Vec<&str> = overview.workers.iter().map(|worker| worker.name.as_str()).collect();
    names.dedup();
    let more = names.len() > NAMES_SHOWN_MAX || overview.workers_unlisted > 0;
    names.truncate(NAMES_SHOWN_MAX);
    if names.is_empty() {
        return "no worker is connected".to_owned();
    }
    format!("there are {}{}", names.join(", "), if more { " and more" } else { "" })
}

/// What the scheduler answers, if it does within `limit`.
async fn in_time<T>(limit: Duration, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::new(Kind::Timeout, "the scheduler did not answer in time");
    tokio::time::timeout(limit, answer).await.map_err(late)?
}

/// None where this process schedules nothing.
pub(super) async fn overview(pages: &Pages) -> Result<Option<Overview>> {
    let Some(scheduler) = &pages.scheduler else { return Ok(None) };
    in_time(ANSWER_MAX, scheduler.overview()).await.map(Some)
}

/// What the scheduler has in hand.
///
/// # Errors
/// `Unsupported` where this process schedules nothing, `Timeout` when the scheduler is too busy.
pub(super) async fn load(pages: &Pages) -> Result<Load> {
    in_time(SCRAPE_MAX, pages.scheduler()?.load()).await
}

/// Where an operation stands, and why; `None` if the scheduler does not know it.
///
/// # Errors
/// As for [`load`].
pub(super) async fn why(pages: &Pages, operation: OperationId) -> Result<Option<Why>> {
    in_time(ANSWER_MAX, pages.scheduler()?.why(operation)).await
}

impl Pages {
    fn scheduler(&self) -> Result<&Handle> {
        self.scheduler.as_ref().ok_or_else(elsewhere)
    }
}

/// Brings the scheduler's gauges up to date, for a scrape. One that gets no answer shows what was last known.
pub(super) async fn measure(pages: &Pages) {
    let Some(scheduler) = &pages.scheduler else { return };
    metrics::promise_scheduler();
    match in_time(SCRAPE_MAX, scheduler.load()).await {
        Ok(load) => publish(&load),
        Err(error) => tracing::debug!(error = error.chain(), "the scheduler's gauges are not up to date"),
    }
}

fn publish(load: &Load) {
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    metrics::QUEUE_LENGTH.set(number(load.queued));
    metrics::SCHEDULER_RUNNING.set(number(load.running));
    metrics::SCHEDULER_OLDEST.set(load.oldest_seconds as i64);
    let fleet = load.fleet;
    let states = [
        ("open", fleet.open),
        ("cordoned", fleet.cordoned),
        ("draining", fleet.draining),
        ("away", fleet.away),
    ];
    for (state, count) in states {
        metrics::WORKERS_BY_STATE.with_label_values(&[state]).set(number(count));
    }
    metrics::WORKERS.set(number(fleet.open + fleet.cordoned));
    let sets = by_label(&load.demands);
    let lengths = sets.iter().map(|(label, set)| (label.clone(), number(set.queued))).collect();
    let whole = |set: &Set| i64::try_from(whole_workers(set.wanted)).unwrap_or(i64::MAX);
    let wanted = sets.iter().map(|(label, set)| (label.clone(), whole(set))).collect();
    metrics::replace(&metrics::SCHEDULER_QUEUE, &lengths);
    metrics::replace(&metrics::WORKERS_WANTED, &wanted);
}

/// What one label stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Set {
    queued: usize,
    wanted: f64,
}

/// The demands by label: the largest have their own, the others share one.
fn by_label(demands: &[Demand]) -> BTreeMap<String, Set> {
    let mut largest: Vec<&Demand> = demands.iter().collect();
    // The sort is stable and the demands come in their order, so equal ones do not change places from scrape to scrape.
    largest.sort_by(|one, other| other.workers_wanted.total_cmp(&one.workers_wanted));
    let mut sets: BTreeMap<String, Set> = BTreeMap::new();
    for (rank, demand) in largest.into_iter().enumerate() {
        let label = if rank < SETS_NAMED_MAX { label(demand) } else { OTHER.to_owned() };
        let set = sets.entry(label).or_default();
        set.queued += demand.queued;
        set.wanted += demand.workers_wanted;
    }
    sets
}

fn label(demand: &Demand) -> String {
    if demand.properties.is_empty() {
        return NO_PROPERTIES.to_owned();
    }
    view::pairs(&demand.properties).chars().take(LABEL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(pool: &str, queued: usize) -> Demand {
        let properties = if pool.is_empty() { vec![] } else { vec![("Pool".to_owned(), pool.to_owned())] };
        Demand { properties, queued, running: 1, workers_wanted: (queued + 1) as f64 / 2.0 }
    }

    #[test]
    fn the_largest_sets_have_labels_and_the_rest_is_summed() {
        let mut demands: Vec<Demand> = (0..SETS_NAMED_MAX).map(|n| demand(&n.to_string(), 100)).collect();
        demands.insert(0, demand("", 500));
        demands.push(demand("small", 3));
        let sets = by_label(&demands);
        assert_eq!(sets.len(), SETS_NAMED_MAX + 1);
        assert_eq!(sets[NO_PROPERTIES], Set { queued: 500, wanted: 250.5 });
        assert_eq!(sets["Pool=0"], Set { queued: 100, wanted: 50.5 });
        assert_eq!(
            sets[OTHER],
            Set { queued: 103, wanted: 52.5 },
            "the last of the equal ones, and the small"
        );
    }

    #[test]
    fn a_label_is_cut_and_what_looks_alike_then_is_summed() {
        let long = "x".repeat(300);
        let sets = by_label(&[demand(&format!("{long}a"), 1), demand(&format!("{long}b"), 3)]);
        let (label, set) = sets.iter().next().unwrap();
        assert_eq!((sets.len(), label.chars().count()), (1, LABEL_CHARS_MAX));
        assert_eq!(*set, Set { queued: 4, wanted: 3.0 });
    }

    #[test]
    fn gauges_of_sets_that_are_gone_are_removed() {
        let load = |pool| Load { queued: 4, demands: vec![demand(pool, 4)], ..Load::default() };
        let series = |pool: &str| metrics::value("croft_workers_wanted", &[("property_set", pool)]);
        publish(&load("here"));
        assert_eq!((series("Pool=here"), series("Pool=there")), (Some(3), None));
        publish(&load("there"));
        assert_eq!((series("Pool=here"), series("Pool=there")), (None, Some(3)));
        assert_eq!(
            metrics::value("croft_scheduler_queue_length", &[("property_set", "Pool=there")]),
            Some(4)
        );
    }

    #[test]
    fn a_reason_is_one_short_line() {
        assert_eq!(reason(b"").unwrap(), "");
        assert_eq!(reason(br#"{"reason": "disk full"}"#).unwrap(), "disk full");
        let long = format!(r#"{{"reason": "{}"}}"#, "x".repeat(REASON_BYTES_MAX + 1));
        for body in [long.as_str(), r#"{"reason": "two\nlines"}"#, r#"{"why": "x"}"#, "disk full"] {
            assert_eq!(reason(body.as_bytes()).unwrap_err().kind(), Kind::Invalid, "{body}");
        }
        assert!(Mark::Cordon.availability(String::new()).is_err());
        assert_eq!(Mark::Open.availability("x".into()).unwrap(), Availability::Open);
    }
}
