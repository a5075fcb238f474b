//! The scheduler's tables of `croft status`: what waits, which workers there are, what they run.

use super::table;
use crate::scheduler::view;
use crate::scheduler::{Availability, Overview, QueueView, RunningView, WorkerCounts, WorkerView};

/// Rows of what runs that people are shown; `--json` has more.
const RUNNING_ROWS_MAX: usize = 50;

/// Digits of a hash that tell actions apart for people.
const HASH_DIGITS: usize = 12;

pub(super) fn render(overview: &Overview) -> String {
    let mut text = summary(overview);
    if !overview.queues.is_empty() {
        text +=
            &format!("\n{}{}", queues(&overview.queues), unlisted(overview.queues_unlisted, "property sets"));
    }
    if !overview.workers.is_empty() {
        text +=
            &format!("\n{}{}", workers(&overview.workers), unlisted(overview.workers_unlisted, "workers"));
    }
    let runs = running(&overview.workers);
    if !runs.is_empty() {
        text += &format!("\n{runs}");
    }
    text
}

fn summary(overview: &Overview) -> String {
    let oldest = match overview.queued {
        0 => String::new(),
        _ => format!(" (the oldest for {})", view::time(overview.oldest_seconds)),
    };
    let workers = counts(&overview.fleet);
    format!("queued: {}{oldest}   running: {}   workers: {workers}\n", overview.queued, overview.running)
}

fn counts(fleet: &WorkerCounts) -> String {
    let states = [
        (fleet.open, "open"),
        (fleet.cordoned, "cordoned"),
        (fleet.draining, "draining"),
        (fleet.away, "away"),
    ];
    let present = states.iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = present.map(|(count, state)| format!("{count} {state}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn queues(queues: &[QueueView]) -> String {
    let head = ["waits for", "queued", "oldest", "able workers", ""];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(queues.iter().map(|queue| {
        vec![
            properties(&queue.properties),
            queue.queued.to_string(),
            view::time(queue.oldest_seconds),
            queue.able_workers.to_string(),
            queue.stranded.clone().unwrap_or_default(),
        ]
    }));
    table::align(&rows)
}

pub(super) fn properties(properties: &[(String, String)]) -> String {
    if properties.is_empty() {
        return "any worker".to_owned();
    }
    view::pairs(properties)
}

fn workers(workers: &[WorkerView]) -> String {
    let head = ["worker", "state", "slots used", "id"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(workers.iter().map(|worker| {
        let used = format!("{} of {}", worker.slots_used, worker.slots);
        vec![worker.name.clone(), state(worker), used, worker.id.clone()]
    }));
    table::align(&rows)
}

/// As in `cordoned (disk full), away`.
pub(super) fn state(worker: &WorkerView) -> String {
    let because = |reason: &str| if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    let state = match &worker.availability {
        Availability::Open => "open".to_owned(),
        Availability::Cordoned { reason } => format!("cordoned{}", because(reason)),
        Availability::Draining { reason } => format!("draining{}", because(reason)),
    };
    match (worker.is_connected, &worker.availability) {
        (true, _) => state,
        (false, Availability::Open) => "away".to_owned(),
        (false, Availability::Cordoned { .. } | Availability::Draining { .. }) => format!("{state}, away"),
    }
}

/// What runs, the longest first.
fn running(workers: &[WorkerView]) -> String {
    let runs = |worker: &'_ WorkerView| {
        let name = worker.name.clone();
        worker.running.iter().map(move |running| (name.clone(), running.clone())).collect::<Vec<_>>()
    };
    let mut all: Vec<(String, RunningView)> = workers.iter().flat_map(runs).collect();
    if all.is_empty() {
        return String::new();
    }
    all.sort_by(|(_, one), (_, other)| other.seconds.total_cmp(&one.seconds));
    let more = all.len().saturating_sub(RUNNING_ROWS_MAX);
    all.truncate(RUNNING_ROWS_MAX);
    let head = ["runs on", "operation", "action", "attempt", "for"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(all.into_iter().map(|(name, running)| {
        vec![
            name,
            running.operation.unwrap_or_else(|| "(is being killed)".to_owned()),
            running.action.as_deref().map_or_else(|| "-".to_owned(), short),
            running.attempt.to_string(),
            view::time(running.seconds),
        ]
    }));
    table::align(&rows) + &unlisted(more, "actions")
}

/// The first digits of the hash in `function/hash/size` or `hash/size`.
fn short(digest: &str) -> String {
    let hash = digest.rsplit('/').nth(1).unwrap_or(digest);
    hash.chars().take(HASH_DIGITS).collect()
}

fn unlisted(count: usize, what: &str) -> String {
    if count == 0 { String::new() } else { format!("… and {count} more {what}\n") }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::commands) fn worker(name: &str, availability: Availability) -> WorkerView {
        WorkerView {
            id: "1".repeat(32),
            name: name.into(),
            availability,
            is_connected: true,
            slots: 8,
            slots_used: 0,
            properties: Vec::new(),
            running: Vec::new(),
        }
    }

    fn runs(operation: Option<&str>, seconds: f64) -> RunningView {
        let action = operation.map(|_| format!("{}/142", "3f2a".repeat(16)));
        RunningView { operation: operation.map(String::from), action, attempt: 2, seconds }
    }

    #[test]
    fn the_tables_show_what_waits_and_what_runs_where() {
        let gpu = QueueView {
            properties: vec![("Pool".into(), "gpu".into()), ("cores".into(), "4".into())],
            queued: 3,
            oldest_seconds: 65.9,
            stranded: Some("no worker is connected".into()),
            ..QueueView::default()
        };
        let plain = QueueView { queued: 1, able_workers: 2, ..QueueView::default() };
        let mut alpha = worker("alpha", Availability::Open);
        alpha.running = vec![runs(None, 3.0), runs(Some("abc"), 12.0)];
        alpha.slots_used = 2;
        let beta = WorkerView {
            is_connected: false,
            ..worker("beta", Availability::Cordoned { reason: "disk full".into() })
        };
        let overview = Overview {
            queued: 4,
            running: 1,
            oldest_seconds: 65.9,
            queues: vec![gpu, plain],
            queues_unlisted: 7,
            workers: vec![alpha, beta],
            workers_unlisted: 0,
            fleet: WorkerCounts { open: 1, away: 1, ..WorkerCounts::default() },
        };
        let id = "1".repeat(32);
        let expected = format!(
            "\
queued: 4 (the oldest for 1m 5s)   running: 1   workers: 1 open, 1 away

waits for         queued  oldest  able workers
Pool=gpu,cores=4  3       1m 5s   0             no worker is connected
any worker        1       0s      2
… and 7 more property sets

worker  state                       slots used  id
alpha   open                        2 of 8      {id}
beta    cordoned (disk full), away  0 of 8      {id}

runs on  operation          action        attempt  for
alpha    abc                3f2a3f2a3f2a  2        12s
alpha    (is being killed)  -             2        3s
"
        );
        assert_eq!(render(&overview), expected);
    }

    #[test]
    fn an_idle_farm_has_one_line() {
        assert_eq!(render(&Overview::default()), "queued: 0   running: 0   workers: none\n");
    }
}
