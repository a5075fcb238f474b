//! A farm under load, and a real Prometheus that evaluates each query of the dashboards and each side of the rules: none is empty, or 0 where something happens.

use std::time::Instant;

use super::dashboards::{Dashboard, dashboards};
use super::{ALERTS, PATIENCE, Prometheus, action, begin, impatient};
use crate::client::{Client, Inputs, shell};
use crate::farm::Farm;
use crate::servers::Server;

/// What there is nothing of on this farm, and why. Where a panel falls back to 0, it must show that.
const EMPTY: [(&str, &str); 9] = [
    ("croft_access_refusals_total", "everybody may do everything"),
    ("croft_cloud_", "no tier is charged by requests"),
    ("croft_reload_failures_total", "no file that is looked at changes"),
    ("croft_store_pending_lost_total", "no tier loses a blob"),
    ("croft_store_replica_repairs_total", "no tier has replicas"),
    ("croft_store_scrub_findings_total", "nothing is damaged"),
    ("croft_store_write_through_total", "the queue of pending writes is never full"),
    ("croft_tls_", "without TLS there are neither certificates nor handshakes"),
    ("croft_worker_persistent_", "no action asks for a tool that stays running"),
];

/// What may be 0 on this farm at each look: nothing fails there, and what moves may have settled.
const QUIET: [&str; 18] = [
    "croft_audit_",
    "croft_scheduler_hedges_total",
    "croft_scheduler_journal_dropped_total",
    "croft_scheduler_journal_pending_records",
    "croft_scheduler_journal_restored",
    "croft_scheduler_running",
    "croft_store_lease_breaks_total",
    "croft_store_passed_over_total",
    "croft_store_pending_",
    "croft_store_scrubbed_bytes_total",
    "croft_worker_input_cache_bytes",
    "croft_worker_input_evictions_total",
    "croft_worker_input_roots_total",
    "croft_worker_reconnections_total",
    "nativelink_worker_execution_failures",
    "outcome=\"error\"",
    "state=~\"draining|away\"",
    "ALERTS",
];

/// How a query says that nothing is 0. It would hide that a query is wrong.
const FALLBACK: &str = " or on() vector(0)";

/// Something to evaluate, and where it stands.
struct Query {
    place: String,
    expression: String,
}

impl Query {
    fn is_about(&self, metrics: &str) -> bool {
        self.expression.contains(metrics)
    }

    /// Whether one of `values` answers it. A rate of a series that begins too late is 0.
    fn is_answered_by(&self, values: &[f64]) -> bool {
        let is_number = self.expression.parse::<f64>().is_ok();
        let may_be_zero =
            is_number || EMPTY.iter().map(|(metrics, _)| metrics).chain(&QUIET).any(|it| self.is_about(it));
        values.iter().any(|value| !value.is_nan() && (may_be_zero || *value != 0.0))
    }

    /// What must have a value; nothing when the query is rightly empty.
    fn strict(self) -> Option<Self> {
        if !EMPTY.iter().any(|(metrics, _)| self.is_about(metrics)) {
            return Some(Self { expression: self.expression.replace(FALLBACK, ""), ..self });
        }
        self.is_about(FALLBACK).then_some(self)
    }
}

/// With what Grafana would put for variables.
fn substituted(expression: &str) -> String {
    let mut text = expression.to_owned();
    for (variable, value) in [("$__rate_interval", "30s"), ("$__range", "1h"), ("$job", "croft")] {
        text = text.replace(variable, value);
    }
    for all in ["$instance", "$tier", "$mnemonic"] {
        text = text.replace(all, ".+");
    }
    assert!(!text.contains('$'), "{text}");
    text
}

fn queries_of(dashboard: &Dashboard) -> Vec<Query> {
    let panels = dashboard.panels().flat_map(|panel| {
        let query = |expression: String| Query { place: panel.name.clone(), expression };
        panel.expressions().map(query).collect::<Vec<Query>>()
    });
    let lists = dashboard.lists().map(|list| {
        let inside = list.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let (metric, label) = inside.rsplit_once(", ").unwrap();
        Query {
            place: format!("{}: {list}", dashboard.uid),
            expression: format!("count by ({label}) ({metric})"),
        }
    });
    panels.chain(lists).map(|query| Query { expression: substituted(&query.expression), ..query }).collect()
}

/// What a rule is made of: an alert that does not fire is empty, but nothing that it compares is.
async fn queries_of_rules(prometheus: &Prometheus) -> Vec<Query> {
    let rules = prometheus.rules().await;
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
    let alerts = rules.iter().filter(|rule| rule["type"] == "alerting").count();
    assert_eq!(alerts, ALERTS.matches("- alert: ").count());
    rules
        .iter()
        .flat_map(|rule| {
            let expression = rule["query"].as_str().unwrap();
            let comparisons =
                if rule["type"] == "alerting" { &[" > ", " < ", " == ", " and "][..] } else { &[] };
            let mut sides = vec![expression];
            for comparison in comparisons {
                sides = sides.into_iter().flat_map(|side| side.split(comparison)).collect();
            }
            let place = rule["name"].as_str().unwrap();
            let query = |side: &str| Query { place: place.to_owned(), expression: side.to_owned() };
            sides.into_iter().map(query).collect::<Vec<Query>>()
        })
        .collect()
}

/// A little of all that a build does: a miss, an execution, a hit, a command that fails, reads that hit and miss; and what it reads
/// last was written so long ago that the fastest tier has let it go.
async fn build(client: &Client, number: usize) {
    let inputs = Inputs::default().file("in", format!("{number}"));
    let fine = client.action(&shell("cat in in > out", &["out"]), &inputs, |_| {}).await;
    client.look_up(&fine, "CppCompile").await.unwrap_err();
    let response = client.execute(client.request(&fine)).await.unwrap();
    assert_eq!(response.result.unwrap().exit_code, 0);
    client.look_up(&fine, "CppCompile").await.unwrap();
    client.look_up(&client.function.hash(&number.to_le_bytes()), "Genrule").await.unwrap_err();
    let response = client.run(&format!("exit 3 # {number}"), &inputs, &[]).await;
    assert_eq!(response.result.unwrap().exit_code, 3);
    let blob = |number: usize| format!("{number} ").repeat(50_000);
    client.put(blob(number)).await;
    // Small enough for the fastest tier, and large enough that it must soon let others go.
    client.put(blob(number)[..48_000].to_owned()).await;
    let early = client.function.hash(blob(number / 4).as_bytes());
    client.read_blob(&early).await.unwrap();
    client.read_blob(&client.function.hash(&number.to_be_bytes())).await.unwrap_err();
}

/// The tiers of the farm under load; Redis among them if the machine has it.
fn tiers(redis: Option<&Server>, objects: &std::path::Path) -> String {
    let redis = redis.map(|server| format!("{{kind=\"redis\",url=\"{}\"}},", server.endpoint()));
    let objects = objects.display();
    format!(
        "[{{kind=\"memory\",size=\"1 MiB\"}},{}{{kind=\"disk\",size=\"1 GiB\"}},{{kind=\"fs\",path=\"{objects}\"}}]",
        redis.unwrap_or_default()
    )
}

/// Rounds of a build until each query has a value.
async fn until_all_are_answered(prometheus: &Prometheus, client: &Client, mut open: Vec<Query>) {
    let start = Instant::now();
    for round in 0.. {
        build(client, round).await;
        let mut rest = Vec::new();
        for query in open {
            if !query.is_answered_by(&prometheus.values(&query.expression).await) {
                rest.push(query);
            }
        }
        open = rest;
        if open.is_empty() {
            return;
        }
        let empty = open.iter().map(|query| format!("{}: {}\n", query.place, query.expression));
        assert!(start.elapsed() < PATIENCE, "nothing is found by\n{}", empty.collect::<String>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_panels_and_rules_finds_something_on_a_farm_under_load() {
    let (redis, objects) = (Server::redis(), tempfile::tempdir().unwrap());
    let farm = Farm::start_with(&[
        ("CROFT_STORAGE__TIER", &tiers(redis.as_ref(), objects.path())),
        ("CROFT_STORAGE__WRITE", "back"),
        ("CROFT_SCHEDULER__UNSATISFIABLE_AFTER", "10m"),
        ("CROFT_SCHEDULER__ABANDON_AFTER", "10m"),
    ]);
    let Some(prometheus) = Prometheus::start(&[&farm.admin], &impatient()) else { return };
    let client = Client::new(&farm).await;
    begin(&client, &action(&client, "true", "nowhere").await).await;

    let mut all: Vec<Query> = dashboards().iter().flat_map(queries_of).collect();
    all.extend(queries_of_rules(&prometheus).await);
    for (metrics, why) in EMPTY {
        assert!(all.iter().any(|query| query.is_about(metrics)), "nothing asks for {metrics}: {why}");
    }
    let open: Vec<Query> = all.into_iter().filter_map(Query::strict).collect();
    assert!(open.len() > 120, "{}", open.len());
    until_all_are_answered(&prometheus, &client, open).await;
}
