//! How fast the whole farm is, beside what the machine can do in the same run.
//!
//! `cargo bench --bench farm` starts the real binary, drives it over loopback from this process, and prints for each figure the
//! machine's own limit: the same bytes over a raw socket, the same file written and synced, bare processes. `-- --quick` takes
//! fewer rounds, `-- reads writes` measures only these (also `actions`, `dispatch`, `overhead`, `batches`, `singles`, `streams`, `missing`, `results`). Client, server and worker share the machine's cores.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and one that cannot go on panics"
)]

#[path = "../../tests/it/client.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod client;
#[path = "../../tests/it/farm.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod farm;

mod actions;
mod blobs;
mod dispatch;
mod fleet;
mod limits;
mod lookups;
mod overhead;
mod relay;
mod streams;

use std::time::{Duration, Instant};

use streams::Wire;

// Our own clients use it too; the system's allocator gives large buffers back to the kernel each time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One line of the result.
struct Figure {
    name: String,
    /// Ours and the machine's, in `unit`.
    ours: f64,
    limit: f64,
    limit_name: &'static str,
    unit: &'static str,
    /// What is asked of us: a rate or a time of ours, or a part of the limit.
    goal: Goal,
}

enum Goal {
    /// It is only shown.
    Shown,
    Rate(f64),
    AtMost(f64),
    Ratio(f64),
}

/// How many times each thing is measured; the median counts.
#[derive(Clone, Copy)]
struct Rounds(usize);

/// Blobs that are read or written at the same time.
const STREAMS: [usize; 3] = [1, 4, 16];

/// Outputs of the results that are looked up.
const OUTPUTS: [usize; 3] = [1, 100, 10_000];

#[tokio::main]
async fn main() {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let rounds = Rounds(if is_quick { 3 } else { 9 });
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    // `dispatch` loads the machine for minutes, so it runs only when it is named.
    let is_wanted = |name: &str| match wanted.as_slice() {
        [] => name != "dispatch",
        some => some.iter().any(|part| name.contains(part.as_str())),
    };
    let figures = measure(rounds, is_wanted).await;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("\n{cores} cores, median of {} rounds, client and farm on the same machine\n", rounds.0);
    println!("{:<42} {:>18}  {:<44} {:>6}  goal", "", "croft", "the machine", "ratio");
    for figure in &figures {
        figure.print();
    }
}

async fn measure(rounds: Rounds, is_wanted: impl Fn(&str) -> bool) -> Vec<Figure> {
    let mut figures = Vec::new();
    for name in [
        "actions", "dispatch", "overhead", "reads", "writes", "batches", "singles", "streams", "missing",
        "results",
    ] {
        if is_wanted(name) {
            figures.extend(measure_one(name, rounds).await);
        }
    }
    figures
}

async fn measure_one(name: &str, rounds: Rounds) -> Vec<Figure> {
    let mut figures = Vec::new();
    match name {
        "actions" => figures.push(actions::no_ops(rounds).await),
        "dispatch" => figures.extend(dispatch::figures(rounds).await),
        "overhead" => figures.extend(overhead::figures(rounds).await),
        "reads" => figures.push(blobs::reads(rounds).await),
        "writes" => figures.push(blobs::durable_writes(rounds).await),
        "batches" => figures.push(blobs::batches(rounds).await),
        "singles" => figures.push(blobs::singles(rounds).await),
        "missing" => {
            figures.push(lookups::missing(rounds, true).await);
            figures.push(lookups::missing(rounds, false).await);
        }
        "results" => {
            for outputs in OUTPUTS {
                figures.push(lookups::results(rounds, outputs).await);
            }
        }
        _ => {
            for (wire, streams) in
                [Wire::Plain, Wire::Zstd].into_iter().flat_map(|wire| STREAMS.map(|streams| (wire, streams)))
            {
                figures.push(streams::reads(rounds, streams, wire).await);
                figures.push(streams::writes(rounds, streams, wire).await);
            }
        }
    }
    figures
}

impl Figure {
    fn print(&self) {
        let Self { name, ours, limit, limit_name, unit, goal } = self;
        let ratio = ours / limit;
        let mark = |is_met| if is_met { "met" } else { "MISSED" };
        let goal = match goal {
            Goal::Shown => "none".to_owned(),
            Goal::Rate(rate) => format!(">= {rate:.0} {unit}: {}", mark(ours >= rate)),
            Goal::AtMost(most) => format!("<= {most:.0} {unit}: {}", mark(ours <= most)),
            Goal::Ratio(part) => format!("ratio >= {part}: {}", mark(ratio >= *part)),
        };
        let limit = format!("{limit:.0} {unit} ({limit_name})");
        println!("{name:<42} {:>18}  {limit:<44} {ratio:>6.2}  {goal}", format!("{ours:.0} {unit}"));
    }
}

/// Times `work` and returns what it did per second, `amount` being what it did in all.
async fn rate<F: Future>(amount: f64, work: F) -> f64 {
    let start = Instant::now();
    work.await;
    amount / start.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
