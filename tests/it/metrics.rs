//! What `/metrics` says: exactly what `docs/metrics.md` lists, and the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use croft::metrics::Described;
use croft::proto::rev2::{Platform, platform};
use tonic::Code;

use crate::client::{Client, Inputs, code, shell};
use crate::farm::Farm;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the farm of these tests does not show: nothing of that kind happens there.
const ELSEWHERE: [&str; 21] = [
    "croft_access_refusals_total",
    "croft_build_events_total",
    "croft_cloud_errors_total",
    "croft_cloud_requests_total",
    "croft_connections_refused_total",
    "croft_reload_failures_total",
    "croft_scheduler_queue_length",
    "croft_store_fills_total",
    "croft_store_pending_bytes",
    "croft_store_pending_lost_total",
    "croft_store_pending_oldest_seconds",
    "croft_store_pending_writes",
    "croft_store_replica_repairs_total",
    "croft_store_scrub_findings_total",
    "croft_store_write_through_total",
    "croft_tls_certificate_expiry_timestamp_seconds",
    "croft_tls_handshake_failures_total",
    "croft_trace_spans_total",
    "croft_worker_persistent_processes",
    "croft_worker_persistent_requests_total",
    "croft_workers_wanted",
];

/// The rows of `docs/metrics.md`.
fn documented() -> Vec<Described> {
    let page = include_str!("../../docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `") && line.matches('|').count() == 6);
    let words = |cell: &str| {
        cell.split(',')
            .map(|word| word.trim().trim_matches('`').to_owned())
            .filter(|word| !word.is_empty())
            .collect()
    };
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        Described {
            name: cells[1].trim_matches('`').to_owned(),
            kind: cells[2].to_owned(),
            labels: words(cells[3]),
            help: cells[4].to_owned(),
        }
    })
    .collect()
}

/// What a scrape shows.
#[derive(Debug)]
struct Scrape {
    /// Labels are those of the series, sorted.
    families: BTreeMap<String, Described>,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    async fn of(farm: &Farm) -> Self {
        let (status, text) = farm.page("/metrics").await;
        assert_eq!(status, 200);
        let mut scrape = Self { families: BTreeMap::new(), series: BTreeMap::new() };
        for line in text.lines() {
            scrape.take(line);
        }
        scrape
    }

    fn take(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            let family =
                Described { name: name.into(), kind: String::new(), labels: Vec::new(), help: help.into() };
            self.families.insert(name.into(), family);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            self.families.get_mut(name).unwrap().kind = kind.into();
        } else if let Some((series, value)) = line.rsplit_once(' ') {
            self.series.insert(series.to_owned(), value.parse().unwrap());
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| self.families.get(name.strip_suffix(suffix)?))
                .map_or(name, |family| family.name.as_str())
                .to_owned();
            let labels = labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once('='));
            let labels: BTreeSet<String> =
                labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le").collect();
            self.families.get_mut(&family).unwrap().labels = labels.into_iter().collect();
        }
    }

    fn value(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }
}

#[test]
fn the_page_lists_every_metric_that_there_is() {
    let mut declared = croft::metrics::described();
    declared.sort();
    let is_ours = |metric: &Described| !metric.name.starts_with("process_");
    let mut page: Vec<Described> = documented().into_iter().filter(is_ours).collect();
    page.sort();
    assert_eq!(page, declared);
    let has_prefix = |name: &str| name.starts_with("croft_") || name.starts_with("nativelink_");
    assert!(declared.iter().all(|metric| has_prefix(&metric.name)));
    let contract = declared.iter().filter(|metric| metric.name.starts_with("nativelink_")).count();
    assert_eq!(contract, 6);
}

#[tokio::test]
async fn a_running_farm_shows_what_the_page_says() {
    let farm = Farm::start_with(&[(
        "CROFT_STORAGE__TIER",
        "[{kind=\"memory\",size=\"64 MiB\"},{kind=\"disk\",size=\"1 GiB\"}]",
    )]);
    let client = Client::new(&farm).await;
    assert_eq!(code(&client.run("echo out > out", &Inputs::default(), &["out"]).await), 0);
    let absent = client.function.hash(b"absent");
    assert_eq!(client.read_blob(&absent).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.look_up(&absent, "CppCompile").await.unwrap_err().code(), Code::NotFound);

    let scrape = Scrape::of(&farm).await;
    let page: BTreeMap<String, Described> =
        documented().into_iter().map(|metric| (metric.name.clone(), metric)).collect();
    for (name, shown) in &scrape.families {
        let mut documented = page.get(name).unwrap_or_else(|| panic!("`{name}` is not documented")).clone();
        documented.labels.sort();
        assert_eq!(*shown, documented);
    }
    let absent: Vec<&str> =
        page.keys().map(String::as_str).filter(|name| !scrape.families.contains_key(*name)).collect();
    assert_eq!(absent, ELSEWHERE);
    for series in [
        "croft_action_cache_lookups_total{method=\"GetActionResult\",mnemonic=\"CppCompile\",outcome=\"miss\"}",
        "croft_action_cache_lookups_total{method=\"Execute\",mnemonic=\"none\",outcome=\"miss\"}",
        "croft_actions_total{outcome=\"ok\"}",
        "croft_action_stage_seconds_count{stage=\"queued\"}",
        "croft_action_stage_seconds_count{stage=\"inputs\"}",
        "croft_action_stage_seconds_count{stage=\"execution\"}",
        "croft_action_stage_seconds_count{stage=\"outputs\"}",
        "croft_worker_connections_total",
    ] {
        assert_eq!(scrape.value(series), Some(1.0), "{series}");
    }
    assert!(scrape.value("croft_disk_free_bytes{place=\"disk\"}").unwrap() > 0.0);
    assert_eq!(scrape.value("croft_store_max_bytes{tier=\"disk\"}"), Some(f64::from(1 << 30)));
}

/// The series of a fresh farm that rules and panels make rates and ratios of; a first event is in no rate when its series begins with it.
#[tokio::test]
async fn what_rates_are_made_of_begins_at_zero() {
    let farm = Farm::start();
    let scrape = Scrape::of(&farm).await;
    let mut series = vec!["croft_worker_reconnections_total".to_owned()];
    for method in ["GetActionResult", "Execute"] {
        series.extend(["hit", "miss", "error"].map(|outcome| {
            format!("croft_action_cache_results_total{{method=\"{method}\",outcome=\"{outcome}\"}}")
        }));
    }
    series.extend(
        ["queued", "inputs", "execution", "outputs"]
            .map(|stage| format!("croft_action_stage_seconds_count{{stage=\"{stage}\"}}")),
    );
    for (code, method) in [
        ("Ok", "ActionCache/GetActionResult"),
        ("NotFound", "ActionCache/GetActionResult"),
        ("Ok", "ByteStream/Write"),
        ("Ok", "ContentAddressableStorage/FindMissingBlobs"),
        ("Ok", "Execution/Execute"),
        ("Ok", "HTTP/ac"),
        ("NotFound", "HTTP/cas"),
    ] {
        let request = "nativelink_request_duration_seconds_count";
        series.push(format!("{request}{{code=\"{code}\",method=\"{method}\"}}"));
    }
    for series in series {
        assert_eq!(scrape.value(&series), Some(0.0), "{series}");
    }
}

#[tokio::test]
async fn all_outcomes_of_a_mnemonic_begin_together() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    client.look_up(&client.function.hash(b"absent"), "CppCompile").await.unwrap_err();
    let scrape = Scrape::of(&farm).await;
    for (method, outcome, count) in
        [("GetActionResult", "miss", 1.0), ("GetActionResult", "hit", 0.0), ("Execute", "miss", 0.0)]
    {
        let labels = format!("method=\"{method}\",mnemonic=\"CppCompile\",outcome=\"{outcome}\"");
        let series = format!("croft_action_cache_lookups_total{{{labels}}}");
        assert_eq!(scrape.value(&series), Some(count), "{series}");
    }
}

#[tokio::test]
async fn the_hit_rate_is_that_of_the_reads_and_absent_without() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let digest = client.put(vec![7; 1000]).await;
    assert_eq!(Scrape::of(&farm).await.value("nativelink_cas_hit_rate"), None);
    for _ in 0..7 {
        client.read_blob(&digest).await.unwrap();
    }
    for number in 0..3u8 {
        client.read_blob(&client.function.hash(&[number])).await.unwrap_err();
    }
    let scrape = Scrape::of(&farm).await;
    assert_eq!(scrape.value("nativelink_cas_hit_rate"), Some(0.7));
    assert_eq!(scrape.value("croft_cas_reads_total{outcome=\"hit\"}"), Some(7.0));
    assert_eq!(scrape.value("croft_cas_reads_total{outcome=\"miss\"}"), Some(3.0));
}

#[tokio::test]
async fn the_queue_is_counted_in_all_and_by_property_set() {
    const ACTIONS: usize = 150;
    let farm = Farm::start_with(&[("CROFT_SCHEDULER__UNSATISFIABLE_AFTER", "10m")]);
    let client = Client::new(&farm).await;
    let mut waiting = Vec::new();
    for number in 0..ACTIONS {
        let property = platform::Property { name: "Pool".into(), value: "nowhere".into() };
        let script = format!("echo {number}");
        let action = client
            .action(&shell(&script, &[]), &Inputs::default(), |action| {
                action.platform = Some(Platform { properties: vec![property] });
            })
            .await;
        waiting.push(client.execution.clone().execute(client.request(&action)).await.unwrap());
    }
    let scrape = Scrape::of(&farm).await;
    assert_eq!(scrape.value("nativelink_scheduler_queue_length"), Some(150.0));
    assert_eq!(scrape.value("croft_scheduler_queue_length{property_set=\"Pool=nowhere\"}"), Some(150.0));
    assert_eq!(scrape.value("nativelink_worker_active_count"), Some(1.0));
    // Clients that wait for hours do not make the farm look slow.
    let accepted = "nativelink_request_duration_seconds_count{code=\"Ok\",method=\"Execution/Execute\"}";
    assert_eq!(scrape.value(accepted), Some(150.0));
    let whole = "croft_stream_duration_seconds_count{code=\"Cancelled\",method=\"Execution/Execute\"}";
    assert_eq!(scrape.value(whole), None);
    drop(waiting);
    let start = Instant::now();
    while Scrape::of(&farm).await.value(whole) != Some(150.0) {
        assert!(start.elapsed() < PATIENCE, "the streams do not end");
    }
}

#[tokio::test]
async fn commands_that_fail_are_no_failures_of_workers() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let response = client.run("exit 3", &Inputs::default(), &[]).await;
    assert_eq!(response.result.unwrap().exit_code, 3);
    let scrape = Scrape::of(&farm).await;
    assert_eq!(scrape.value("croft_actions_total{outcome=\"failed\"}"), Some(1.0));
    assert_eq!(scrape.value("nativelink_worker_execution_failures"), Some(0.0));
}

#[tokio::test]
async fn a_part_of_a_farm_tells_nothing_of_what_it_does_not_do() {
    let farm = Farm::start_with(&[("CROFT_ROLES", "[\"cas\"]")]);
    let scrape = Scrape::of(&farm).await;
    for scheduling in [
        "nativelink_scheduler_queue_length",
        "nativelink_worker_active_count",
        "nativelink_worker_execution_failures",
    ] {
        assert_eq!(scrape.value(scheduling), None, "an alert on it would never end");
    }
    assert!(scrape.value("nativelink_store_size_bytes{tier=\"disk\"}").is_some());
    let served = |method| {
        let labels = format!("code=\"Ok\",method=\"{method}\"");
        scrape.value(&format!("nativelink_request_duration_seconds_count{{{labels}}}"))
    };
    assert_eq!((served("ByteStream/Read"), served("Execution/Execute")), (Some(0.0), None));
}

const ALERTS: &str = include_str!("../../monitoring/alerts.yml");
const RECORDING: &str = include_str!("../../monitoring/recording.yml");

/// The metrics and recorded names that rules ask for.
fn asked(rules: &str) -> BTreeSet<String> {
    let lines = rules.lines().filter(|line| !line.trim_start().starts_with('#'));
    let is_of_a_name = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    let words = lines.flat_map(|line| line.split(move |character| !is_of_a_name(character)));
    let is_metric = |word: &&str| word.contains("croft_") || word.contains("nativelink_");
    words.filter(is_metric).map(str::to_owned).collect()
}

#[test]
fn the_rules_ask_only_for_metrics_that_there_are() {
    let known: BTreeSet<String> = documented().into_iter().map(|metric| metric.name).collect();
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).map(str::to_owned)
    };
    for name in asked(ALERTS).union(&asked(RECORDING)) {
        let is_recorded = name.contains(':') && RECORDING.contains(&format!("record: {name}\n"));
        let is_histogram = base(name).is_some_and(|base| known.contains(&base));
        assert!(known.contains(name) || is_recorded || is_histogram, "`{name}` is not documented");
    }
}

#[test]
fn every_alert_is_tested_firing_and_not() {
    let tests = [
        include_str!("../../monitoring/tests/certificates.yml"),
        include_str!("../../monitoring/tests/contract.yml"),
        include_str!("../../monitoring/tests/processes.yml"),
        include_str!("../../monitoring/tests/scheduler.yml"),
        include_str!("../../monitoring/tests/storage.yml"),
    ]
    .concat();
    let alerts: Vec<&str> = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 13);
    for alert in alerts {
        for case in ["fires", "does not fire"] {
            assert!(tests.contains(&format!("- name: {alert} {case}\n")), "{alert} {case}");
        }
    }
}

#[test]
fn the_documented_thresholds_are_those_of_the_alerts() {
    for (metric, threshold) in [
        ("nativelink_scheduler_queue_length", "> 100"),
        ("nativelink_worker_active_count", "< 2"),
        ("nativelink_cas_hit_rate", "< 0.7"),
        ("nativelink_request_duration_seconds_bucket", "> 5"),
        ("nativelink_store_size_bytes", "> 0.9 * croft_store_max_bytes"),
        ("nativelink_worker_execution_failures", "> 5"),
    ] {
        let is_it = |line: &&str| line.contains(metric) && line.trim_start().starts_with("expr: ");
        let rule = ALERTS.lines().find(is_it).unwrap_or_else(|| panic!("nothing asks for {metric}"));
        assert!(rule.ends_with(threshold), "{rule}");
    }
}
