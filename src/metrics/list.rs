//! Every metric that there is, each declared once. `docs/metrics.md` has the same list for operators, and a test compares them.
//!
//! Labels have few values and no client chooses them, but for two: `property_set`, whose series are replaced as a whole by who sets
//! them, and `mnemonic`, which goes through a [`Vocabulary`](super::Vocabulary).

use std::sync::LazyLock;

use prometheus::{GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Age, Declaration, Described, Metric};

/// Seconds of what is answered from a disk, a network or a scheduler.
const CALL_SECONDS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];

/// Seconds of what waits for an action or is one.
const ACTION_SECONDS: &[f64] =
    &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

/// Seconds of a commit to a disk.
const COMMIT_SECONDS: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Makes a static of each declaration, registered when it is first touched: a process shows nothing of a role that it does not have.
macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $declaration:expr;)*) => {
        $($(#[$doc])* pub static $name: LazyLock<$kind> = LazyLock::new(|| super::register($declaration));)*

        /// All of them, touched or not.
        pub fn described() -> Vec<Described> {
            vec![$($declaration.described(<$kind>::TYPE)),*]
        }
    };
}

metrics! {
    /// Seconds a request took, by method and gRPC code. Of a call that lasts as long as what it waits for: until it was answered at first.
    REQUEST_DURATION: HistogramVec = Declaration::new(
        "nativelink_request_duration_seconds",
        "time to answer a request",
    )
    .by(&["method", "code"])
    .in_buckets(CALL_SECONDS);

    /// The whole time of calls that last as long as what they wait for, which [`REQUEST_DURATION`] has only up to the first answer.
    STREAM_DURATION: HistogramVec = Declaration::new("croft_stream_duration_seconds", "time that a call was followed")
        .by(&["method", "code"])
        .in_buckets(ACTION_SECONDS);

    /// Operations that wait for a worker.
    QUEUE_LENGTH: IntGauge = Declaration::new("nativelink_scheduler_queue_length", "queued operations");

    /// The same by set of platform properties; `other` for the small ones together.
    SCHEDULER_QUEUE: IntGaugeVec = Declaration::new(
        "croft_scheduler_queue_length",
        "queued executions by platform properties",
    )
    .by(&["property_set"]);

    /// How long the execution that waits longest has waited.
    SCHEDULER_OLDEST: IntGauge = Declaration::new(
        "croft_scheduler_oldest_queued_seconds",
        "seconds that the longest waiting execution has waited",
    );

    /// Attempts that workers were told to run, second leases included.
    SCHEDULER_STARTS: IntCounter =
        Declaration::new("croft_scheduler_starts_total", "attempts given to workers");

    /// Executions that run or are being settled.
    SCHEDULER_RUNNING: IntGauge = Declaration::new("croft_scheduler_running", "executions that run");

    /// Workers by state (`open`, `cordoned`, `draining`, `away`).
    WORKERS_BY_STATE: IntGaugeVec =
        Declaration::new("croft_workers", "workers by what may be expected of them").by(&["state"]);

    /// The workers that it would take to run at once all that is queued and runs, by set of platform properties.
    WORKERS_WANTED: IntGaugeVec = Declaration::new(
        "croft_workers_wanted",
        "workers to run at once all that is queued and runs",
    )
    .by(&["property_set"]);

    /// Workers that are connected and not draining.
    WORKERS: IntGauge =
        Declaration::new("nativelink_worker_active_count", "connected workers that do not drain");

    /// Connections of workers, those that came back included.
    WORKER_CONNECTIONS: IntCounter =
        Declaration::new("croft_worker_connections_total", "connections that workers have made");

    /// Those of workers that this process knew already, by their ids or as what came under the name of one that had died.
    WORKER_RECONNECTIONS: IntCounter =
        Declaration::new("croft_worker_reconnections_total", "connections of workers that came back");

    /// Attempts that ended by the worker's fault.
    EXECUTION_FAILURES: IntCounter =
        Declaration::new("nativelink_worker_execution_failures", "attempts that a worker failed");

    /// Attempts that workers answered, by what came of the command: `ok`, `failed` (by itself), `error` (it did not end properly).
    ACTIONS: IntCounterVec =
        Declaration::new("croft_actions_total", "attempts that workers answered").by(&["outcome"]);

    /// How long the stages of those took: `queued`, `inputs`, `execution`, `outputs`, as the worker's times say.
    ACTION_STAGES: HistogramVec = Declaration::new("croft_action_stage_seconds", "time that a stage of an action took")
        .by(&["stage"])
        .in_buckets(ACTION_SECONDS);

    /// Look-ups of action results by gRPC, by method (`GetActionResult`, `Execute`: Bazel asks by both for one action that misses) and
    /// outcome (`hit`, `miss`, `error`). All are there from the start.
    ACTION_CACHE_RESULTS: IntCounterVec =
        Declaration::new("croft_action_cache_results_total", "look-ups of action results")
            .by(&["method", "outcome"]);

    /// The same by what the client says that the action does. All of a mnemonic begin with its first.
    ACTION_CACHE_LOOKUPS: IntCounterVec = Declaration::new(
        "croft_action_cache_lookups_total",
        "look-ups of action results by the mnemonic of the action",
    )
    .by(&["mnemonic", "method", "outcome"]);

    /// Events that clients have told of their builds, by outcome (`kept`, `ignored`, `repeated`, `malformed`, `large`, `refused`).
    BUILD_EVENTS: IntCounterVec =
        Declaration::new("croft_build_events_total", "build events of clients by what became of them")
            .by(&["outcome"]);

    /// Second leases of executions that took far longer than earlier runs, by outcome (`started`, `won`, `lost`).
    HEDGES: IntCounterVec = Declaration::new(
        "croft_scheduler_hedges_total",
        "second leases of executions that took too long",
    )
    .by(&["outcome"]);

    /// Seconds that a commit of the scheduler's journal took.
    JOURNAL_COMMIT: Histogram = Declaration::new(
        "croft_scheduler_journal_commit_seconds",
        "time to commit a group of records",
    )
    .in_buckets(COMMIT_SECONDS);

    /// Records that the scheduler's journal has written or erased.
    JOURNAL_RECORDS: IntCounter = Declaration::new(
        "croft_scheduler_journal_records_total",
        "records that the journal has written or erased",
    );

    /// Changes that were handed to the journal and are not durable yet.
    JOURNAL_PENDING: IntGauge = Declaration::new(
        "croft_scheduler_journal_pending_records",
        "changes that the journal has not committed yet",
    );

    /// About the bytes of all records written.
    JOURNAL_BYTES: IntCounter =
        Declaration::new("croft_scheduler_journal_bytes_total", "bytes that the journal has committed");

    /// Records that could not be read at a start.
    JOURNAL_DROPPED: IntCounter = Declaration::new(
        "croft_scheduler_journal_dropped_total",
        "records of the journal that could not be read",
    );

    /// What the last start took over from the journal, by state (`queued`, `running`, `finished`).
    JOURNAL_RESTORED: IntGaugeVec = Declaration::new(
        "croft_scheduler_journal_restored",
        "what the last start took over from the journal",
    )
    .by(&["state"]);

    /// Actions that were run again to see whether they give the same outputs, by outcome (`same`, `differs`, `failed`).
    AUDITS: IntCounterVec = Declaration::new(
        "croft_audit_actions_total",
        "actions that were run again and compared",
    )
    .by(&["outcome"]);

    /// Outputs that differed when their action was run again.
    AUDIT_DIFFERENCES: IntCounter = Declaration::new(
        "croft_audit_differences_total",
        "outputs that differed when their action was run again",
    );

    /// Reads of blobs from the whole store, whoever asks: clients, the scheduler, a worker in this process. By outcome (`hit`, `miss`, `error`).
    CAS_READS: IntCounterVec = Declaration::new("croft_cas_reads_total", "reads of blobs").by(&["outcome"]);

    /// The hits among the reads of the last [`WINDOW`](super::WINDOW). It has no series while there were no reads, so that nobody is
    /// alerted by a farm that is idle.
    CAS_HIT_RATE: GaugeVec =
        Declaration::new("nativelink_cas_hit_rate", "share of the reads of the last 5 minutes that were hits");


    /// Calls of a store, by store (`memory`, `disk`, …), operation (`get`, `put`, `missing`) and outcome (`hit`, `miss`, `ok`, `error`).
    STORE_CALLS: IntCounterVec = Declaration::new("croft_store_calls_total", "calls of a store")
        .by(&["store", "operation", "outcome"]);

    /// Calls that were refused, by why: nobody said who calls, the proof was wrong, the right was lacking, a worker spoke for another.
    ACCESS_REFUSALS: IntCounterVec =
        Declaration::new("croft_access_refusals_total", "calls that were refused").by(&["reason"]);

    /// Bytes of blobs that went through a store, by store and direction (`read`, `written`).
    STORE_BYTES: IntCounterVec = Declaration::new(
        "croft_store_bytes_total",
        "bytes of blobs read and written",
    )
    .by(&["store", "direction"]);

    /// Bytes that a tier holds on its medium.
    STORE_SIZE: IntGaugeVec = Declaration::new("nativelink_store_size_bytes", "bytes held by a tier")
        .by(&["tier"]);

    /// Bytes that a tier may hold.
    STORE_MAX: IntGaugeVec = Declaration::new("croft_store_max_bytes", "bytes a tier may hold")
        .by(&["tier"]);

    /// Bytes that the file system has free where the farm keeps something: `data`, and the disk tiers by name.
    DISK_FREE: IntGaugeVec =
        Declaration::new("croft_disk_free_bytes", "bytes free on the file system").by(&["place"]);

    /// The bytes of that file system.
    DISK_SIZE: IntGaugeVec =
        Declaration::new("croft_disk_size_bytes", "size of the file system").by(&["place"]);

    /// Blobs that a tier let go to make room.
    EVICTIONS: IntCounterVec = Declaration::new("croft_store_evictions_total", "blobs evicted from a tier")
        .by(&["tier"]);

    /// Bytes of its medium that a tier won by that.
    EVICTED_BYTES: IntCounterVec = Declaration::new(
        "croft_store_evicted_bytes_total",
        "bytes won by evictions from a tier",
    )
    .by(&["tier"]);

    /// Blobs that were evicted although their lease had not ended, because a write would have been refused otherwise.
    LEASE_BREAKS: IntCounterVec = Declaration::new(
        "croft_store_lease_breaks_total",
        "blobs evicted before their lease ended",
    )
    .by(&["tier"]);

    /// What scrubs found wrong and put right, by tier and finding (`damaged`, `lost`, `adopted`, `temporary`).
    SCRUB_FINDINGS: IntCounterVec = Declaration::new(
        "croft_store_scrub_findings_total",
        "what scrubs of a tier put right",
    )
    .by(&["tier", "finding"]);

    /// Bytes that scrubs read and compared with their digests.
    SCRUBBED_BYTES: IntCounterVec = Declaration::new(
        "croft_store_scrubbed_bytes_total",
        "bytes that scrubs of a tier verified",
    )
    .by(&["tier"]);

    /// Copies to replicas of a farm tier that lacked what others had, by outcome (`ok`, `error`, `dropped` when too many waited).
    REPLICA_REPAIRS: IntCounterVec = Declaration::new(
        "croft_store_replica_repairs_total",
        "copies to replicas that lacked a blob",
    )
    .by(&["outcome"]);

    /// Requests to a cloud's object storage, by tier and kind (`put`, `get`, `head`, `copy`, `delete`, `part`), as they are charged.
    CLOUD_REQUESTS: IntCounterVec =
        Declaration::new("croft_cloud_requests_total", "requests to object storage").by(&["tier", "kind"]);

    /// Those that got no answer, or one that says that the service failed (5xx) or is asked too much (429); before they are tried again.
    CLOUD_ERRORS: IntCounterVec =
        Declaration::new("croft_cloud_errors_total", "requests to object storage that failed").by(&["tier"]);

    /// Failures of a tier that another tier made good, by tier.
    STORE_PASSED_OVER: IntCounterVec = Declaration::new(
        "croft_store_passed_over_total",
        "failures of a tier that another made good",
    )
    .by(&["tier"]);

    /// Fills of faster tiers, by outcome (`ok`, `error`).
    STORE_FILLS: IntCounterVec = Declaration::new(
        "croft_store_fills_total",
        "fills of faster tiers from slower ones",
    )
    .by(&["outcome"]);

    /// Acknowledged writes that slower tiers lack.
    STORE_PENDING_WRITES: IntGauge =
        Declaration::new("croft_store_pending_writes", "acknowledged writes that slower tiers lack");

    /// The bytes of those.
    STORE_PENDING_BYTES: IntGauge =
        Declaration::new("croft_store_pending_bytes", "bytes of the writes that slower tiers lack");

    /// How long the oldest of them has been pending, whether it is under way, due, or waits after a failure.
    STORE_PENDING_AGE: Age =
        Declaration::new("croft_store_pending_oldest_seconds", "age of the oldest pending write");

    /// Pending writes that were given up because no faster tier had the blob any more.
    STORE_PENDING_LOST: IntCounter =
        Declaration::new("croft_store_pending_lost_total", "pending writes whose blob was lost");

    /// Writes that went through because too much was pending.
    STORE_BACK_PRESSURE: IntCounter = Declaration::new(
        "croft_store_write_through_total",
        "writes that went through because the queue was full",
    );

    /// Input roots that actions asked for, by how they were had: `hit` (a cached tree), `delta` (a layer over a cached tree), `built` in
    /// full, `private` (built, and too large to be kept), `failed`.
    WORKER_INPUTS: IntCounterVec = Declaration::new(
        "croft_worker_input_roots_total",
        "input roots by how they were had",
    )
    .by(&["outcome"]);

    /// Bytes that the cache of input trees has reserved.
    WORKER_INPUT_BYTES: IntGauge =
        Declaration::new("croft_worker_input_cache_bytes", "bytes reserved by the cache of input trees");

    /// Trees that the cache of input trees let go to make room.
    WORKER_INPUT_EVICTIONS: IntCounter =
        Declaration::new("croft_worker_input_evictions_total", "trees evicted from the cache of input trees");

    /// When certificates end, in seconds since 1970, by whose they are (a listener or a client of the farm) and what they are for.
    TLS_EXPIRY: IntGaugeVec = Declaration::new(
        "croft_tls_certificate_expiry_timestamp_seconds",
        "end of the certificate's validity (Unix time)",
    )
    .by(&["listener", "of"]);

    /// Files that changed and were refused because they cannot be used, by kind (`certificates`, `passwords`, `keys`, `token`) and whose they are.
    RELOAD_FAILURES: IntCounterVec =
        Declaration::new("croft_reload_failures_total", "changes of files that were refused").by(&["kind", "of"]);

    /// Actions that asked for a persistent worker, by what came of it: `answered`, `timeout`, `killed`; and those that were run the
    /// ordinary way: `unfit` (such an action cannot be served), `busy`, `unstarted`, `ended`, `garbled` (the process), `failed` (the action).
    WORKER_RESIDENT_REQUESTS: IntCounterVec = Declaration::new(
        "croft_worker_persistent_requests_total",
        "requests to persistent workers by outcome",
    )
    .by(&["outcome"]);

    /// Processes of persistent workers, those that wait among them.
    WORKER_RESIDENTS: IntGauge =
        Declaration::new("croft_worker_persistent_processes", "processes of persistent workers");

    /// Connections that ended in the handshake, by why.
    TLS_HANDSHAKE_FAILURES: IntCounterVec = Declaration::new(
        "croft_tls_handshake_failures_total",
        "handshakes that did not come about",
    )
    .by(&["listener", "reason"]);

    /// Spans that were handed to whoever collects traces (`sent`), or would not be taken or found no room (`lost`).
    TRACE_SPANS: IntCounterVec =
        Declaration::new("croft_trace_spans_total", "spans of traces that were exported").by(&["outcome"]);

    /// Connections that were closed at once, since their address has as many as it may.
    CONNECTIONS_REFUSED: IntCounterVec = Declaration::new(
        "croft_connections_refused_total",
        "connections beyond those that an address may have",
    )
    .by(&["listener"]);

    /// Always 1; what runs is in the label.
    BUILD: IntGaugeVec = Declaration::new("croft_build_info", "the version that runs").by(&["version"]);
}
