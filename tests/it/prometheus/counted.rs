//! What a real Prometheus makes of rules and rates, beside what the test itself has counted: a false zero is a value, too.

use std::time::Instant;

use super::{PATIENCE, POLL, Prometheus, impatient};
use crate::client::{Client, Inputs, code, shell};
use crate::farm::Farm;

/// How far a ratio may be off: Prometheus guesses what was counted between the scrapes and the ends of its window.
const TOLERANCE: f64 = 0.02;

const HITS: usize = 30;
const MISSES: usize = 10;
const FAILURES: usize = 3;

impl Prometheus {
    /// Waits until `expression` has one value, which is `part / all` as nearly as can be.
    async fn until_ratio(&self, expression: &str, part: usize, all: usize) {
        let (start, wanted) = (Instant::now(), part as f64 / all as f64);
        loop {
            let values = self.values(expression).await;
            if matches!(values[..], [value] if (value - wanted).abs() < TOLERANCE) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{expression} is {values:?} instead of {part} / {all}");
            tokio::time::sleep(POLL).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_hit_rate_of_the_action_cache_is_that_of_the_actions() {
    const RESULTS: &str = "croft_action_cache_results_total{method=\"GetActionResult\",outcome=\"miss\"}";
    const LOOKUPS: &str = "croft_action_cache_lookups_total\
        {mnemonic=\"CppCompile\",method=\"GetActionResult\",outcome=\"miss\"}";
    let farm = Farm::start();
    let Some(prometheus) = Prometheus::start(&[&farm.admin], &impatient()) else { return };
    prometheus.until_value(RESULTS, 0.0).await;
    let client = Client::new(&farm).await;
    // A mnemonic is counted from the first scrape on that has seen it.
    client.look_up(&client.function.hash(b"absent"), "CppCompile").await.unwrap_err();
    prometheus.until_value(LOOKUPS, 1.0).await;

    let mut found = None;
    for number in 0..MISSES {
        let action = client.action(&shell(&format!(": {number}"), &[]), &Inputs::default(), |_| {}).await;
        client.look_up(&action, "CppCompile").await.unwrap_err();
        assert_eq!(code(&client.execute(client.request(&action)).await.unwrap()), 0);
        found = Some(action);
    }
    for _ in 0..HITS {
        client.look_up(&found.unwrap(), "CppCompile").await.unwrap();
    }
    for number in 0..FAILURES {
        let response = client.run(&format!("exit 3 # {number}"), &Inputs::default(), &[]).await;
        assert_eq!(response.result.unwrap().exit_code, 3);
    }

    // Executed were those that failed, too, which nobody had looked up.
    let actions = HITS + MISSES + FAILURES;
    prometheus.until_ratio("instance:croft_action_cache_hits:ratio_rate5m", HITS, actions).await;
    let recorded = "instance_mnemonic:croft_action_cache_hits:ratio_rate1h{mnemonic=\"CppCompile\"}";
    prometheus.until_ratio(recorded, HITS, HITS + MISSES).await;
    let rate = |outcome: &str| format!("sum(instance_outcome:croft_actions:rate5m{{outcome=\"{outcome}\"}})");
    let failed = format!("{} / ({} + {})", rate("failed"), rate("failed"), rate("ok"));
    prometheus.until_ratio(&failed, FAILURES, FAILURES + MISSES).await;
    let requests = |code: &str| {
        let labels = format!("method=\"ActionCache/GetActionResult\",code=\"{code}\"");
        format!("sum(rate(nativelink_request_duration_seconds_count{{{labels}}}[5m]))")
    };
    let not_found = format!("{} / {}", requests("NotFound"), requests("Ok"));
    prometheus.until_ratio(&not_found, MISSES + 1, HITS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_hit_rate_of_a_tier_is_that_of_the_reads() {
    let farm = Farm::start_with(&[("CROFT_ROLES", "[\"cas\"]")]);
    let Some(prometheus) = Prometheus::start(&[&farm.admin], &impatient()) else { return };
    let reads = "croft_store_calls_total{store=\"disk\",operation=\"get\",outcome=\"hit\"}";
    prometheus.until_value(reads, 0.0).await;
    let client = Client::new(&farm).await;
    let digest = client.put(vec![7; 1000]).await;
    for _ in 0..HITS {
        client.read_blob(&digest).await.unwrap();
    }
    for number in 0..MISSES {
        client.read_blob(&client.function.hash(&number.to_le_bytes())).await.unwrap_err();
    }
    prometheus.until_value(reads, HITS as f64).await;
    let recorded = "instance_store:croft_store_hits:ratio_rate5m{store=\"disk\"}";
    prometheus.until_ratio(recorded, HITS, HITS + MISSES).await;
    let calls = |code: &str| {
        let labels = format!("method=\"ByteStream/Read\",code=\"{code}\"");
        format!("sum(rate(nativelink_request_duration_seconds_count{{{labels}}}[5m]))")
    };
    prometheus.until_ratio(&format!("{} / {}", calls("NotFound"), calls("Ok")), MISSES, HITS).await;
}
