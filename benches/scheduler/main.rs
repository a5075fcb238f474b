//! What the scheduler's core takes for an action by itself: submit, match, finish and settle, on one thread without a runtime.
//!
//! `cargo bench --bench scheduler` queues a million actions of 100 invocations and 5 priorities for 10,000 workers, with 50 property sets and
//! then with 1,000. `-- --quick` is a tenth of that. Beside the figures stands what the machine needs for a part of the work that
//! no scheduler can do without: to keep a million entries under random keys. A figure is the median of many short stretches, so
//! that what else runs on the machine counts little.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and one that cannot go on panics"
)]

mod load;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use self::load::Load;

// As the program itself has it: memory is what it takes from the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Actions a second with the longest queue.
const RATE_MIN: f64 = 200_000.0;

/// How much more an action may take with the longest queue than with the shortest.
const GROWTH_MAX: f64 = 2.0;

/// Memory of a queued action.
const BYTES_MAX: f64 = 1024.0;

/// Queue lengths at which an action is timed; memory is measured over the last step.
const LENGTHS: [usize; 3] = [1_000, 100_000, 1_000_000];

/// Actions that are timed at each length.
const CYCLES: usize = 300_000;

fn main() {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let scale = if is_quick { 10 } else { 1 };
    for sets in [50, 1_000] {
        measure(sets, scale);
    }
}

fn measure(sets: usize, scale: usize) {
    let mut load = Load::new(10_000 / scale, sets);
    println!("{} workers, {} slots, {sets} property sets", load.workers(), load.slots());
    let mut costs = Vec::new();
    for length in LENGTHS.map(|length| length / scale) {
        let before = (resident_bytes(), load.queued());
        load.fill(length);
        let bytes = resident_bytes().saturating_sub(before.0) as f64 / (load.queued() - before.1) as f64;
        let cost = load.time(CYCLES / scale);
        println!(
            "  {length:>9} queued: {:>8.0} actions/s, {:>5} ns an action, {:>6} ns in the slowest stretch; {bytes:>5.0} bytes for each queued",
            rate(cost.median),
            cost.median.as_nanos(),
            cost.slowest.as_nanos(),
        );
        costs.push((cost.median, bytes));
    }
    let ((first, _), (last, bytes)) = (costs[0], costs[costs.len() - 1]);
    let growth = last.as_secs_f64() / first.as_secs_f64();
    println!("  rate {}, at least {RATE_MIN:.0}/s", mark(rate(last) >= RATE_MIN));
    println!("  growth {growth:.2} {}, at most {GROWTH_MAX}", mark(growth <= GROWTH_MAX));
    println!("  memory {bytes:.0} bytes {}, at most {BYTES_MAX}", mark(bytes <= BYTES_MAX));
    let floor = floor(LENGTHS[0] / scale, CYCLES / scale).as_nanos();
    let ceiling = floor_of_longest(scale).as_nanos();
    println!(
        "  the machine alone: three maps of random keys, {floor} ns an action at first, {ceiling} ns at last\n"
    );
}

fn floor_of_longest(scale: usize) -> Duration {
    floor(LENGTHS[LENGTHS.len() - 1] / scale, CYCLES / scale)
}

/// What it takes to put an entry of 64 bytes into three maps of `length` entries, to find another, and to take that out.
fn floor(length: usize, cycles: usize) -> Duration {
    let mut random = fastrand::Rng::with_seed(7);
    let mut maps: [HashMap<u128, [u64; 6]>; 3] = Default::default();
    let mut keys: Vec<u128> = (0..length).map(|_| random.u128(..)).collect();
    for map in &mut maps {
        map.extend(keys.iter().map(|key| (*key, [0; 6])));
    }
    let start = Instant::now();
    for cycle in 0..cycles {
        let (new, index) = (random.u128(..), cycle % length);
        let old = std::mem::replace(&mut keys[index], new);
        for map in &mut maps {
            map.insert(new, [1; 6]);
            assert!(map.get(&old).is_some());
            map.remove(&old);
        }
    }
    start.elapsed() / u32::try_from(cycles).unwrap()
}

fn rate(cost: Duration) -> f64 {
    1.0 / cost.as_secs_f64()
}

fn mark(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
