//! What a store on disk costs at rest: its start, its memory, its bytes, beside what the machine must do at least.
//!
//! `cargo bench --bench store` fills a store with 1 million blobs and opens it again, and fills another with 2 million blobs of 1 KiB and
//! 2,000 of 8 MiB, which takes 25 GB of disk and some minutes. `-- --quick` is a fortieth of that; `-- start` or `-- footprint` measures
//! only this. The stores lie in the directory named by `CROFT_BENCH_DIRECTORY`, else in that of temporary files. Each step
//! is a process of its own, so that the memory of one is not that of another.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and one that cannot go on panics"
)]

mod fill;
mod process;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::fill::Load;
use self::process::{Usage, disk_bytes};

// As the program itself has it: memory is what it takes from the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A start that is ready within this is not noticed.
const START_MAX: Duration = Duration::from_secs(2);

/// Memory of a store with all its blobs; there is no memory tier in this benchmark.
const MEMORY_MAX: u64 = 600 << 20;

/// How far the account may be from what the disk says.
const ACCOUNT_PERCENT: f64 = 10.0;

const MIB: f64 = (1 << 20) as f64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((step, rest)) = process::step(&arguments) {
        return run_step(step, rest);
    }
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let (start, footprint) =
        if is_quick { (Load::START_QUICK, Load::FOOTPRINT_QUICK) } else { (Load::START, Load::FOOTPRINT) };
    if is_wanted("start") {
        measure_start(start);
    }
    if is_wanted("footprint") {
        measure_footprint(footprint);
    }
}

/// What a process of its own does.
fn run_step(step: &str, rest: &[String]) {
    let directory = Path::new(&rest[0]);
    match step {
        "fill" => fill::fill(directory, Load::parse(&rest[1..])),
        "open" => fill::open(directory, Load::parse(&rest[1..])),
        "read" => process::read_all(&directory.join("index/db")),
        step => panic!("no such step: {step}"),
    }
}

fn directory() -> tempfile::TempDir {
    let parent = std::env::var_os("CROFT_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(parent).unwrap()
}

fn mark(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

/// The time from a process' first step until the store answers, and the memory that it has then.
fn measure_start(load: Load) {
    let directory = directory();
    process::run("fill", directory.path(), &load.arguments());
    // The first start reads all that was written since the last one; what it leaves makes the next one short.
    let opened = process::run("open", directory.path(), &load.arguments());
    let again = process::run("open", directory.path(), &load.arguments());
    let empty = process::run("open", &directory.path().join("empty"), &Load::NONE.arguments());
    let raw = process::run("read", directory.path(), &[]);
    let millions = load.blobs() as f64 / 1e6;
    let per_million = opened.resident_bytes.saturating_sub(empty.resident_bytes) as f64 / millions / MIB;
    println!(
        "start with {} blobs: {:?} after they were put, {:?} the next time (reading the index's file alone: {:?}; \
         goal <= {START_MAX:?}: {}, {})",
        load.blobs(),
        opened.elapsed,
        again.elapsed,
        raw.elapsed,
        mark(opened.elapsed <= START_MAX),
        mark(again.elapsed <= START_MAX)
    );
    println!(
        "memory after that start: {:.0} MiB, {per_million:.0} MiB more per million blobs than an empty store",
        opened.resident_bytes as f64 / MIB
    );
}

/// Memory while and after a store is filled, and its bytes on the disk against those that it accounts for.
fn measure_footprint(load: Load) {
    let directory = directory();
    let start = Instant::now();
    let Usage { resident_bytes, peak_bytes, accounted_bytes, .. } =
        process::run("fill", directory.path(), &load.arguments());
    let megabytes = |bytes: u64| bytes as f64 / MIB;
    println!("footprint of {load}, filled in {:.0?}:", start.elapsed());
    println!(
        "  memory: {:.0} MiB resident, {:.0} MiB at its peak (goal <= {:.0} MiB: {})",
        megabytes(resident_bytes),
        megabytes(peak_bytes),
        megabytes(MEMORY_MAX),
        mark(peak_bytes <= MEMORY_MAX)
    );
    let on_disk = disk_bytes(directory.path());
    let off = (accounted_bytes as f64 / on_disk as f64 - 1.0) * 100.0;
    println!(
        "  disk: {:.0} MiB by du, {:.0} MiB accounted, {:.0} MiB of content: {off:+.1} % (goal within {ACCOUNT_PERCENT} %: {})",
        megabytes(on_disk),
        megabytes(accounted_bytes),
        megabytes(load.bytes()),
        mark(off.abs() <= ACCOUNT_PERCENT)
    );
}
