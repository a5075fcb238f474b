//! The registry of metrics. Six names are a contract with existing dashboards and keep their prefix `nativelink_`; ours begin with
//! `croft_`, and those of the process have the names that Prometheus gives them everywhere.
//!
//! [`list`](self::list) has all of them, and what keeps the number of series bounded.

mod age;
mod list;
mod vocabulary;
mod window;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use self::age::Age;
pub use self::list::*;
pub use self::vocabulary::Vocabulary;
pub use self::window::WINDOW;

/// A number that only grows.
pub type Counter = IntCounter;

/// A number that goes up and down.
pub type Gauge = IntGauge;

/// How long things take.
pub type Timing = Histogram;

/// The same, by labels.
pub type Durations = HistogramVec;

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self())).expect("nothing else has these names");
    registry
});

static CAS_WINDOW: LazyLock<window::Window> = LazyLock::new(window::Window::new);

/// What there is to say of a metric. The help stands at `/metrics`.
#[derive(Debug, Clone, Copy)]
struct Declaration {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    /// Upper bounds, of a histogram.
    buckets: &'static [f64],
}

/// A metric as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Described {
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    pub labels: Vec<String>,
    pub help: String,
}

impl Declaration {
    const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, labels: &[], buckets: &[] }
    }

    const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }

    const fn in_buckets(self, buckets: &'static [f64]) -> Self {
        Self { buckets, ..self }
    }

    fn described(self, kind: &str) -> Described {
        Described {
            name: self.name.to_owned(),
            kind: kind.to_owned(),
            labels: self.labels.iter().map(|label| (*label).to_owned()).collect(),
            help: self.help.to_owned(),
        }
    }

    fn options(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn histogram(&self) -> HistogramOpts {
        HistogramOpts::new(self.name, self.help).buckets(self.buckets.to_vec())
    }
}

/// What can be made of a declaration.
trait Metric: Collector + Clone + 'static {
    /// As Prometheus calls it.
    const TYPE: &'static str;

    fn make(declaration: &Declaration) -> prometheus::Result<Self>;
}

macro_rules! metric {
    ($kind:ty, $name:literal, |$it:ident| $made:expr) => {
        impl Metric for $kind {
            const TYPE: &'static str = $name;

            fn make($it: &Declaration) -> prometheus::Result<Self> {
                $made
            }
        }
    };
}

metric!(IntCounter, "counter", |it| Self::with_opts(it.options()));
metric!(IntCounterVec, "counter", |it| Self::new(it.options(), it.labels));
metric!(IntGauge, "gauge", |it| Self::with_opts(it.options()));
metric!(Age, "gauge", |it| Ok(Self::new(IntGauge::with_opts(it.options())?)));
metric!(IntGaugeVec, "gauge", |it| Self::new(it.options(), it.labels));
metric!(GaugeVec, "gauge", |it| Self::new(it.options(), it.labels));
metric!(Histogram, "histogram", |it| Self::with_opts(it.histogram()));
metric!(HistogramVec, "histogram", |it| Self::new(it.histogram(), it.labels));

/// Makes a metric visible at `/metrics`.
fn register<M: Metric>(declaration: Declaration) -> M {
    let metric = M::make(&declaration).expect("names and labels are constants of the list");
    REGISTRY.register(Box::new(metric.clone())).expect("each name stands once in the list");
    metric
}

/// Counts a read of a blob; `None` is a failure, which says nothing of whether the blob is there.
pub fn count_cas_read(is_hit: Option<bool>) {
    let outcome = match is_hit {
        Some(true) => &CAS_READ_COUNTERS[0],
        Some(false) => &CAS_READ_COUNTERS[1],
        None => &CAS_READ_COUNTERS[2],
    };
    outcome.inc();
    if let Some(is_hit) = is_hit {
        CAS_WINDOW.count(is_hit);
    }
}

/// The counters of [`CAS_READS`], looked up once.
static CAS_READ_COUNTERS: LazyLock<[IntCounter; 3]> =
    LazyLock::new(|| ["hit", "miss", "error"].map(|outcome| CAS_READS.with_label_values(&[outcome])));

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

/// The sum of those of a family of counters or gauges that have these labels; 0 where nothing has touched any.
pub fn sum(family: &impl Collector, labels: &[(&str, &str)]) -> i64 {
    let families = family.collect();
    let all = families.iter().flat_map(|family| family.get_metric());
    let has = |pairs: &[prometheus::proto::LabelPair]| {
        labels.iter().all(|label| pairs.iter().any(|pair| (pair.name(), pair.value()) == *label))
    };
    let wanted = all.filter(|metric| has(metric.get_label()));
    // One of the two is absent and counts as zero; whole numbers far below 2^53.
    wanted.map(|metric| (metric.get_counter().get_value() + metric.get_gauge().get_value()) as i64).sum()
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
    match CAS_WINDOW.rate() {
        Some(rate) => CAS_HIT_RATE.with_label_values::<&str>(&[]).set(rate),
        None => CAS_HIT_RATE.reset(),
    }
    BUILD.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let mut text = Vec::new();
    TextEncoder::new().encode(&REGISTRY.gather(), &mut text).expect("writing into memory does not fail");
    String::from_utf8(text).expect("the text format is UTF-8")
}

/// A process that schedules shows these from its start, since an alert on an absent series never fires; others never show them, since one
/// on a farm without workers would.
pub fn promise_scheduler() {
    LazyLock::force(&QUEUE_LENGTH);
    LazyLock::force(&WORKERS);
    LazyLock::force(&EXECUTION_FAILURES);
    LazyLock::force(&WORKER_CONNECTIONS);
    LazyLock::force(&WORKER_RECONNECTIONS);
    LazyLock::force(&JOURNAL_PENDING);
    LazyLock::force(&JOURNAL_RECORDS);
    LazyLock::force(&AUDIT_DIFFERENCES);
    for stage in ["queued", "inputs", "execution", "outputs"] {
        ACTION_STAGES.with_label_values(&[stage]);
    }
    // A series that begins with its first event hides that event from every rate.
    for (counters, outcomes) in [
        (&ACTIONS, ["ok", "failed", "error"]),
        (&HEDGES, ["started", "won", "lost"]),
        (&AUDITS, ["same", "differs", "failed"]),
    ] {
        for outcome in outcomes {
            counters.with_label_values(&[outcome]);
        }
    }
}
