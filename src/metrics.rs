//! Every metric, by name. Six names are a contract with existing dashboards and keep their prefix `nativelink_`; ours begin with `croft_`.
//!
//! No label has values that a client chooses, so the number of series is bounded. The one exception is the label `property_set`, whose
//! series are replaced as a whole ([`replace`]) and are few by the care of who sets them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder, histogram_opts, opts,
};

/// A number that only grows.
pub type Counter = IntCounter;

/// A number that goes up and down.
pub type Gauge = IntGauge;

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// Seconds a request took, by method and gRPC code.
pub static REQUEST_DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    let buckets = vec![0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];
    let options = histogram_opts!("nativelink_request_duration_seconds", "time to answer a request", buckets);
    register(HistogramVec::new(options, &["method", "code"]))
});

/// Operations that wait for a worker.
pub static QUEUE_LENGTH: LazyLock<IntGauge> =
    LazyLock::new(|| register(IntGauge::new("nativelink_scheduler_queue_length", "queued operations")));

/// The same by set of platform properties; `other` for the small ones together.
pub static SCHEDULER_QUEUE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let options = opts!("croft_scheduler_queue_length", "queued executions by platform properties");
    register(IntGaugeVec::new(options, &["property_set"]))
});

/// How long the execution that waits longest has waited.
pub static SCHEDULER_OLDEST: LazyLock<IntGauge> = LazyLock::new(|| {
    let help = "seconds that the longest waiting execution has waited";
    register(IntGauge::new("croft_scheduler_oldest_queued_seconds", help))
});

/// Attempts that workers were told to run, second leases included.
pub static SCHEDULER_STARTS: LazyLock<IntCounter> =
    LazyLock::new(|| register(IntCounter::new("croft_scheduler_starts_total", "attempts given to workers")));

/// Executions that run or are being settled.
pub static SCHEDULER_RUNNING: LazyLock<IntGauge> =
    LazyLock::new(|| register(IntGauge::new("croft_scheduler_running", "executions that run")));

/// Workers by state (`open`, `cordoned`, `draining`, `away`).
pub static WORKERS_BY_STATE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register(IntGaugeVec::new(opts!("croft_workers", "workers by what may be expected of them"), &["state"]))
});

/// The workers that it would take to run at once all that is queued and runs, by set of platform properties.
pub static WORKERS_WANTED: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let options = opts!("croft_workers_wanted", "workers to run at once all that is queued and runs");
    register(IntGaugeVec::new(options, &["property_set"]))
});

/// Workers that are connected and not draining.
pub static WORKERS: LazyLock<IntGauge> = LazyLock::new(|| {
    register(IntGauge::new("nativelink_worker_active_count", "connected workers that do not drain"))
});

/// Attempts that ended by the worker's fault.
pub static EXECUTION_FAILURES: LazyLock<IntCounter> = LazyLock::new(|| {
    register(IntCounter::new("nativelink_worker_execution_failures", "attempts that a worker failed"))
});

/// Second leases of executions that took far longer than earlier runs, by outcome (`started`, `won`, `lost`).
pub static HEDGES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_scheduler_hedges_total", "second leases of executions that took too long");
    register(IntCounterVec::new(options, &["outcome"]))
});

/// Seconds that a commit of the scheduler's journal took.
pub static JOURNAL_COMMIT: LazyLock<Histogram> = LazyLock::new(|| {
    let buckets = vec![0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
    let name = "croft_scheduler_journal_commit_seconds";
    register(Histogram::with_opts(histogram_opts!(name, "time to commit a group of records", buckets)))
});

/// Records that the scheduler's journal has written or erased.
pub static JOURNAL_RECORDS: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "records that the journal has written or erased";
    register(IntCounter::new("croft_scheduler_journal_records_total", help))
});

/// Records that could not be read at a start.
pub static JOURNAL_DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "records of the journal that could not be read";
    register(IntCounter::new("croft_scheduler_journal_dropped_total", help))
});

/// What the last start took over from the journal, by state (`queued`, `running`, `finished`).
pub static JOURNAL_RESTORED: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let options = opts!("croft_scheduler_journal_restored", "what the last start took over from the journal");
    register(IntGaugeVec::new(options, &["state"]))
});

/// Actions that were run again to see whether they give the same outputs, by outcome (`same`, `differs`, `failed`).
pub static AUDITS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_audit_actions_total", "actions that were run again and compared");
    register(IntCounterVec::new(options, &["outcome"]))
});

/// Outputs that differed when their action was run again.
pub static AUDIT_DIFFERENCES: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "outputs that differed when their action was run again";
    register(IntCounter::new("croft_audit_differences_total", help))
});

/// Calls of a store, by store (`memory`, `disk`, …), operation (`get`, `put`, `missing`) and outcome (`hit`, `miss`, `ok`, `error`).
pub static STORE_CALLS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_store_calls_total", "calls of a store");
    register(IntCounterVec::new(options, &["store", "operation", "outcome"]))
});

/// Calls that were refused, by why: nobody said who calls, the proof was wrong, the right was lacking, a worker spoke for another.
pub static ACCESS_REFUSALS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_access_refusals_total", "calls that were refused");
    register(IntCounterVec::new(options, &["reason"]))
});

/// Bytes of blobs that went through a store, by store and direction (`read`, `written`).
pub static STORE_BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_store_bytes_total", "bytes of blobs read and written");
    register(IntCounterVec::new(options, &["store", "direction"]))
});

/// Bytes that a tier holds on its medium.
pub static STORE_SIZE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register(IntGaugeVec::new(opts!("nativelink_store_size_bytes", "bytes held by a tier"), &["tier"]))
});

/// Bytes that a tier may hold.
pub static STORE_MAX: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register(IntGaugeVec::new(opts!("croft_store_max_bytes", "bytes a tier may hold"), &["tier"]))
});

/// Blobs that a tier let go to make room.
pub static EVICTIONS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register(IntCounterVec::new(opts!("croft_store_evictions_total", "blobs evicted from a tier"), &["tier"]))
});

/// Bytes of its medium that a tier won by that.
pub static EVICTED_BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_store_evicted_bytes_total", "bytes won by evictions from a tier");
    register(IntCounterVec::new(options, &["tier"]))
});

/// Blobs that were evicted although their lease had not ended, because a write would have been refused otherwise.
pub static LEASE_BREAKS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_store_lease_breaks_total", "blobs evicted before their lease ended");
    register(IntCounterVec::new(options, &["tier"]))
});

/// What scrubs found wrong and put right, by tier and finding (`damaged`, `lost`, `adopted`, `temporary`).
pub static SCRUB_FINDINGS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_store_scrub_findings_total", "what scrubs of a tier put right");
    register(IntCounterVec::new(options, &["tier", "finding"]))
});

/// Bytes that scrubs read and compared with their digests.
pub static SCRUBBED_BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_store_scrubbed_bytes_total", "bytes that scrubs of a tier verified");
    register(IntCounterVec::new(options, &["tier"]))
});

/// Copies to replicas of a farm tier that lacked what others had, by outcome (`ok`, `error`, `dropped` when too many waited).
pub static REPLICA_REPAIRS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_store_replica_repairs_total", "copies to replicas that lacked a blob");
    register(IntCounterVec::new(options, &["outcome"]))
});

/// Requests to a cloud's object storage, by tier and kind (`put`, `get`, `head`, `copy`, `delete`, `part`), as they are charged.
pub static CLOUD_REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_cloud_requests_total", "requests to object storage");
    register(IntCounterVec::new(options, &["tier", "kind"]))
});

/// Failures of a tier that another tier made good, by tier.
pub static STORE_PASSED_OVER: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_store_passed_over_total", "failures of a tier that another made good");
    register(IntCounterVec::new(options, &["tier"]))
});

/// Fills of faster tiers, by outcome (`ok`, `error`).
pub static STORE_FILLS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_store_fills_total", "fills of faster tiers from slower ones");
    register(IntCounterVec::new(options, &["outcome"]))
});

/// Acknowledged writes that slower tiers lack.
pub static STORE_PENDING_WRITES: LazyLock<IntGauge> = LazyLock::new(|| {
    register(IntGauge::new("croft_store_pending_writes", "acknowledged writes that slower tiers lack"))
});

/// The bytes of those.
pub static STORE_PENDING_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    register(IntGauge::new("croft_store_pending_bytes", "bytes of the writes that slower tiers lack"))
});

/// How long the write that is next has been pending.
pub static STORE_PENDING_AGE: LazyLock<IntGauge> = LazyLock::new(|| {
    register(IntGauge::new("croft_store_pending_oldest_seconds", "age of the oldest pending write"))
});

/// Pending writes that were given up because no faster tier had the blob any more.
pub static STORE_PENDING_LOST: LazyLock<IntCounter> = LazyLock::new(|| {
    register(IntCounter::new("croft_store_pending_lost_total", "pending writes whose blob was lost"))
});

/// Writes that went through because too much was pending.
pub static STORE_BACK_PRESSURE: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "writes that went through because the queue was full";
    register(IntCounter::new("croft_store_write_through_total", help))
});

/// Input roots that actions asked for, by how they were had: `hit` (a cached tree), `delta` (a layer over a cached tree), `built` in
/// full, `private` (built, and too large to be kept), `failed`.
pub static WORKER_INPUTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_worker_input_roots_total", "input roots by how they were had");
    register(IntCounterVec::new(options, &["outcome"]))
});

/// Bytes that the cache of input trees has reserved.
pub static WORKER_INPUT_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    register(IntGauge::new("croft_worker_input_cache_bytes", "bytes reserved by the cache of input trees"))
});

/// Trees that the cache of input trees let go to make room.
pub static WORKER_INPUT_EVICTIONS: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "trees evicted from the cache of input trees";
    register(IntCounter::new("croft_worker_input_evictions_total", help))
});

/// Actions that asked for a persistent worker, by what came of it: `answered`, `timeout`, `killed`; and those that were run the ordinary
/// way: `unfit` (such an action cannot be served), `busy`, `unstarted`, `ended`, `garbled` (the process), `failed` (the action).
pub static WORKER_RESIDENT_REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options =
        opts!("croft_worker_persistent_requests_total", "requests to persistent workers by outcome");
    register(IntCounterVec::new(options, &["outcome"]))
});

/// Processes of persistent workers, those that wait among them.
pub static WORKER_RESIDENTS: LazyLock<IntGauge> = LazyLock::new(|| {
    register(IntGauge::new("croft_worker_persistent_processes", "processes of persistent workers"))
});

/// When certificates end, in seconds since 1970, by whose they are (a listener or a client of the farm) and what they are for.
pub static TLS_EXPIRY: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let options = opts!(
        "croft_tls_certificate_expiry_timestamp_seconds",
        "end of the certificate's validity (Unix time)"
    );
    register(IntGaugeVec::new(options, &["listener", "of"]))
});

/// New certificates that were refused because they cannot be used.
pub static TLS_RELOAD_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_tls_reload_failures_total", "changes of certificate files that were refused");
    register(IntCounterVec::new(options, &["listener"]))
});

/// Connections that ended in the handshake, by why.
pub static TLS_HANDSHAKE_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = opts!("croft_tls_handshake_failures_total", "handshakes that did not come about");
    register(IntCounterVec::new(options, &["listener", "reason"]))
});

/// Makes `metric` visible at `/metrics`.
fn register<M: Collector + Clone + 'static>(metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("names and labels are constants of this file");
    REGISTRY.register(Box::new(metric.clone())).expect("each name stands once in this file");
    metric
}

/// Sets gauges that have one label to `values`, and removes those that are not in it.
pub fn replace(gauges: &IntGaugeVec, values: &BTreeMap<String, i64>) {
    let present = gauges.collect();
    let labels = present.iter().flat_map(|family| family.get_metric()).flat_map(|metric| metric.get_label());
    for gone in labels.map(|pair| pair.value()).filter(|label| !values.contains_key(*label)) {
        // It was there a moment ago; if another scrape has removed it, that is as good.
        let _ = gauges.remove_label_values(&[gone]);
    }
    for (label, value) in values {
        gauges.with_label_values(&[label.as_str()]).set(*value);
    }
}

/// The value of a counter or a gauge with these labels, or `None` if nothing has touched it.
pub fn value(name: &str, labels: &[(&str, &str)]) -> Option<u64> {
    let families = REGISTRY.gather();
    let family = families.iter().find(|family| family.name() == name)?;
    let metric = family.get_metric().iter().find(|metric| {
        let has = |label: &&(&str, &str)| {
            metric.get_label().iter().any(|pair| (pair.name(), pair.value()) == **label)
        };
        labels.iter().filter(has).count() == labels.len()
    })?;
    // One of the two is absent and counts as zero; both hold whole numbers far below 2^53, and none is negative for long.
    Some((metric.get_counter().get_value() + metric.get_gauge().get_value()) as u64)
}

/// All metrics in Prometheus' text format.
pub fn render() -> String {
    // Gauges that nothing has touched yet are part of the contract too: an alert on an absent series never fires.
    LazyLock::force(&QUEUE_LENGTH);
    LazyLock::force(&WORKERS);
    LazyLock::force(&EXECUTION_FAILURES);
    let mut text = Vec::new();
    TextEncoder::new().encode(&REGISTRY.gather(), &mut text).expect("writing into memory does not fail");
    String::from_utf8(text).expect("the text format is UTF-8")
}
