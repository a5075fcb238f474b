//! What the scheduler's journal costs: actions through the scheduler with it and without it, by workers that answer at once.
//!
//! `cargo bench --bench journal`. There is no gRPC and no store in it, so the difference is the journal's alone.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot go on panics")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use croft::digest::Function;
use croft::error::Result;
use croft::metrics;
use croft::proto::rev2::{ActionResult, ExecuteResponse, OutputFile};
use croft::scheduler::{Command, Config, Handle, Offer, Outcome, Platform, Settle, Stage, Task, WorkerId};
use croft::tasks::{self, Shutdown};
use futures_util::stream::{self, StreamExt};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const WORKERS: u128 = 200;
const AT_ONCE: usize = 1000;
const ACTIONS: usize = 50_000;
const ROUNDS: usize = 3;

/// The unit of the processor times in `/proc/self/stat`, the same on every Linux.
const TICK: Duration = Duration::from_millis(10);

struct Settled;

#[async_trait]
impl Settle for Settled {
    async fn settle(&self, _: &Task, response: ExecuteResponse) -> Result<ExecuteResponse> {
        Ok(response)
    }
}

/// What one round took.
struct Cost {
    wall: Duration,
    cpu: Duration,
    records: u64,
    commits: u64,
    written: u64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // A directory of the working directory: `/tmp` is often memory, which does not take the time that a disk takes.
    let directory = tempfile::tempdir_in(".").unwrap();
    println!("{ACTIONS} actions, {AT_ONCE} at once, {WORKERS} workers that answer at once");
    for round in 0..ROUNDS {
        for has_journal in [false, true] {
            let cost = measure(&directory.path().join(round.to_string()), has_journal).await;
            show(has_journal, &cost);
        }
    }
}

async fn measure(path: &Path, has_journal: bool) -> Cost {
    let shutdown = Shutdown::new();
    let config = Config { journal: has_journal, ..Config::default() };
    let (handle, running) =
        Handle::resume(config, Arc::new(Settled), path.to_owned(), shutdown.clone()).await.unwrap();
    let workers: Vec<_> =
        (0..WORKERS).map(|worker| tasks::spawn("worker", work(handle.clone(), worker))).collect();
    let before = (Instant::now(), cpu(), written());
    let counted = (metrics::JOURNAL_RECORDS.get(), metrics::JOURNAL_COMMIT.get_sample_count());
    let run = |number| {
        let handle = handle.clone();
        tasks::spawn("client", async move { run(&handle, number).await })
    };
    stream::iter(0..ACTIONS)
        .map(run)
        .buffer_unordered(AT_ONCE)
        .for_each(|ended| async { ended.unwrap() })
        .await;
    let cost = Cost {
        wall: before.0.elapsed(),
        cpu: cpu() - before.1,
        records: metrics::JOURNAL_RECORDS.get() - counted.0,
        commits: metrics::JOURNAL_COMMIT.get_sample_count() - counted.1,
        written: written() - before.2,
    };
    shutdown.cancel();
    running.await.unwrap().unwrap();
    for worker in workers {
        worker.await.unwrap();
    }
    cost
}

async fn run(handle: &Handle, number: usize) {
    let mut watch = handle.submit(task(number)).await.unwrap();
    while watch.current().stage != Stage::Completed {
        watch.next().await.unwrap();
    }
}

async fn work(handle: Handle, worker: u128) {
    let (worker, name) = (WorkerId::new(worker), format!("worker {worker}"));
    let offer =
        Offer { worker, name, owner: "".into(), slots: 1, properties: BTreeMap::new(), leases: Vec::new() };
    let mut session = handle.join(offer).await.unwrap();
    while let Some(command) = session.next().await {
        if let Command::Start { lease, .. } = command
            && session.finished(lease, answer()).await.is_err()
        {
            return;
        }
    }
}

fn task(number: usize) -> Task {
    Task {
        instance: "main".into(),
        action_digest: Function::Sha256.hash(&number.to_le_bytes()),
        command: Function::Sha256.hash(b"command"),
        input_root: Function::Sha256.hash(b"root"),
        do_not_cache: false,
        timeout: Duration::from_secs(600),
        platform: Arc::new(Platform::default()),
        priority: 0,
        invocation: "0191f1f0-0000-7000-8000-000000000000".into(),
        identity: "".into(),
        neighbours: Box::default(),
        trace: None,
    }
}

/// Like that of a compiler: one output, and a digest for it.
fn answer() -> Outcome {
    let output = OutputFile {
        path: "bazel-out/k8-fastbuild/bin/some/package/_objs/library/source.o".into(),
        digest: Some(Function::Sha256.hash(b"output").to_proto()),
        ..OutputFile::default()
    };
    let result = ActionResult { output_files: vec![output], ..ActionResult::default() };
    Outcome::Response(Box::new(ExecuteResponse { result: Some(result), ..ExecuteResponse::default() }))
}

fn show(has_journal: bool, cost: &Cost) {
    let each = |amount: f64| amount / ACTIONS as f64;
    let seconds = cost.wall.as_secs_f64();
    println!(
        "journal {:>3}: {:>7.0} actions/s {:>6.1} us cpu/action {:>8.0} records/s {:>6.2} records/action {:>6.0} commits/s {:>6.0} bytes written/action",
        if has_journal { "on" } else { "off" },
        ACTIONS as f64 / seconds,
        each(cost.cpu.as_secs_f64() * 1e6),
        cost.records as f64 / seconds,
        each(cost.records as f64),
        cost.commits as f64 / seconds,
        each(cost.written as f64),
    );
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u32 = fields[11..13].iter().map(|field| field.parse::<u32>().unwrap()).sum();
    TICK * ticks
}

/// Bytes that this process has sent to disks so far.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    line.parse().unwrap()
}
