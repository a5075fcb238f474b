//! What operators are told, sentence by sentence.

use super::script::core_after;
use crate::scheduler::core::*;
use crate::scheduler::view::{Demand, WorkerCounts};

/// Stage and reasons of an operation after `lines`.
fn why(lines: &[&str], operation: u128) -> (String, Vec<String>) {
    let (core, now) = core_after(lines);
    let why = core.why(now, OperationId::new(operation)).expect("it is live");
    assert_eq!(why.operation, format!("{operation:032x}"));
    (why.stage, why.reasons)
}

fn queued(lines: &[&str], operation: u128) -> Vec<String> {
    let (stage, reasons) = why(lines, operation);
    assert_eq!(stage, "queued");
    reasons
}

#[test]
fn what_no_worker_can_run_names_the_property_and_when_it_fails() {
    let waits = ["join w1 1 ISA=x", "submit 1 a Pool=gpu", "wait 12"];
    let expected = [
        "no connected worker offers platform property `Pool` = `gpu`",
        "it fails in 18s unless such a worker comes",
        "it has waited 12s",
    ];
    assert_eq!(queued(&waits, 1), expected);
    let alone = ["submit 1 a"];
    assert_eq!(
        queued(&alone, 1)[..2],
        ["no worker is connected", "it fails in 30s unless such a worker comes"]
    );
    let combined = ["join w1 1 ISA=x", "join w2 1 Pool=gpu", "submit 1 a Pool=gpu ISA=x"];
    let sentence = "no connected worker offers all of the platform properties `ISA` = `x`, `Pool` = `gpu`";
    assert_eq!(queued(&combined, 1)[0], sentence);
}

#[test]
fn what_waits_for_busy_workers_says_how_many_and_what_is_ahead() {
    let lines = [
        "join w1 1",
        "join w2 1",
        "submit 1 a invocation=other",
        "submit 2 b invocation=other",
        "submit 3 c invocation=mine",
        "submit 4 d invocation=mine",
        "submit 5 e invocation=other priority=-1",
        "submit 6 f invocation=mine priority=-3",
        "submit 7 g invocation=mine",
        "submit 8 h invocation=third",
        "wait 3",
    ];
    let expected = [
        "all 2 workers that could run it are busy",
        "more urgent work of priorities -3 to -1 waits: 2 actions",
        "2 ahead of it in its invocation",
        "1 other invocation waits for the same workers; they take turns",
        "its invocation has 0 running; 1 other invocation shares the workers",
        "it has waited 3s",
    ];
    assert_eq!(queued(&lines, 7), expected);
    assert_eq!(queued(&lines[..5], 3)[0], "all 2 workers that could run it are busy");
    let only = ["join w1 1", "submit 1 a", "submit 2 b"];
    assert_eq!(queued(&only, 2), ["the only worker that could run it is busy", "it has waited 0s"]);
}

#[test]
fn a_reservation_is_told() {
    let mut lines =
        vec!["join w1 2 cores=4".to_owned(), "submit 1 a cores=1".into(), "submit 2 b cores=1".into()];
    lines.extend(["submit 3 c cores=4".to_owned(), "submit 4 d cores=4".into()]);
    for n in 5..=25 {
        lines.push(format!("submit {n} x{n} cores=1"));
        lines.push(format!("w1 {}/1 answers", if n == 5 { 1 } else { n - 1 }));
    }
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let reserved =
        |of: &str| format!("worker `w1` is reserved for {of}: it starts nothing else until it has room");
    assert_eq!(queued(&lines, 3)[1], reserved("it"));
    assert_eq!(queued(&lines, 4)[1], reserved("what waits longest beside it"));
}

#[test]
fn what_waits_again_says_how_often_it_was_tried() {
    let lines = ["join w1 1", "submit 1 a", "submit 2 b", "w1 1/1 faults"];
    let (stage, reasons) = why(&lines, 1);
    assert_eq!(stage, "executing");
    assert_eq!(reasons[0], "attempt 2 runs on worker `w1` for 0s");
}

#[test]
fn what_failed_says_how_it_failed() {
    let lines = ["join w1 1", "submit 1 a", "w1 1/1 faults"];
    let expected = [
        "attempt 2 runs on worker `w1` for 0s",
        "1 of at most 3 attempts failed",
        "attempt 1 ended so: the disk is full",
    ];
    assert_eq!(why(&lines, 1).1, expected);
}

#[test]
fn what_runs_twice_says_so_and_what_is_usual() {
    let mut lines = vec!["join w1 1"];
    for run in [
        ["submit 91 a", "w1 91/1 answers", "settled 91/1 took=100"],
        ["submit 92 a", "w1 92/1 answers", "settled 92/1 took=100"],
        ["submit 93 a", "w1 93/1 answers", "settled 93/1 took=100"],
    ] {
        lines.extend(run);
    }
    lines.extend(["submit 1 a", "join w2 1", "wait 300", "wait 5"]);
    let expected = [
        "attempt 1 runs on worker `w1` for 5m 5s",
        "it takes far longer than earlier runs, so attempt 2 runs on worker `w2` beside it for 5s",
        "it usually takes 1m 40s",
    ];
    assert_eq!(why(&lines, 1).1, expected);
}

#[test]
fn what_runs_on_a_worker_that_is_away_says_how_long_that_is_waited_for() {
    let away = ["join w1 1", "submit 1 a", "away w1", "wait 5"];
    assert_eq!(why(&away, 1).1[1], "the connection to that worker broke; it is waited for 15s longer");
}

#[test]
fn what_waits_for_a_worker_that_failed_too_much_is_told_why_it_is_out() {
    let lines = [
        "join w1 1",
        "submit 1 a",
        "submit 2 b",
        "submit 3 c",
        "w1 1/1 faults",
        "w1 1/2 faults",
        "w1 1/3 faults",
        "w1 2/1 faults",
        "w1 2/2 faults",
        "w1 2/3 faults",
        "w1 3/1 faults",
    ];
    let out = "the only worker that could run it is cordoned (3 different actions failed in a row, the last: the disk is full)";
    assert_eq!(queued(&lines, 3)[0], out);
}

#[test]
fn what_runs_says_where_and_since_when() {
    let lines = ["join w1 1", "submit 1 a", "submit 2 a", "wait 65"];
    let expected = ("executing".to_owned(), vec!["attempt 1 runs on worker `w1` for 1m 5s".to_owned()]);
    assert_eq!(why(&lines, 1), expected);
    assert_eq!(why(&lines, 2), expected, "operations of one execution stand where it stands");
    let settling = ["join w1 1", "submit 1 a", "w1 1/1 answers"];
    let sentence = "attempt 1 on worker `w1` has ended; its outputs are checked and its result is stored";
    assert_eq!(why(&settling, 1).1, [sentence]);
}

#[test]
fn an_operation_that_is_not_live_is_not_explained_by_the_core() {
    let (core, now) = core_after(&["join w1 1", "submit 1 a", "cancel 1"]);
    assert_eq!(core.why(now, OperationId::new(1)), None);
    assert_eq!(core.why(now, OperationId::new(99)), None);
}

#[test]
fn the_overview_shows_the_longest_waiting_first_and_what_runs() {
    let lines = [
        "join w1 2 ISA=x cores=4",
        "submit 1 a ISA=x",
        "submit 2 b Pool=gpu",
        "submit 3 c cores=4",
        "wait 5",
        "submit 4 d cores=4",
        "submit 5 e cores=4",
        "cancel 1",
        "wait 2",
    ];
    let (core, now) = core_after(&lines);
    let overview = core.overview(now);
    assert_eq!((overview.queued, overview.running, overview.oldest_seconds), (3, 1, 7.0));
    assert_eq!(overview.fleet, WorkerCounts { open: 1, ..WorkerCounts::default() });
    let queues: Vec<_> =
        overview.queues.iter().map(|queue| (queue.properties[0].1.as_str(), queue.queued)).collect();
    assert_eq!(queues, [("gpu", 1), ("4", 2)]);
    let [gpu, cores] = &overview.queues[..] else { panic!("there are two") };
    assert_eq!((gpu.oldest_seconds, cores.oldest_seconds), (7.0, 2.0));
    assert_eq!((gpu.able_workers, cores.able_workers), (0, 1));
    assert_eq!(gpu.stranded.as_deref(), Some("no connected worker offers platform property `Pool` = `gpu`"));
    assert_eq!(
        (cores.stranded.as_deref(), cores.oldest_operation.clone()),
        (None, Some(format!("{:032x}", 4)))
    );

    let [worker] = &overview.workers[..] else { panic!("there is one") };
    assert_eq!((worker.name.as_str(), worker.slots, worker.slots_used), ("w1", 2, 2));
    assert_eq!(worker.properties, [("ISA".into(), "x".into()), ("cores".into(), "4".into())]);
    let [killed, runs] = &worker.running[..] else { panic!("there are two") };
    assert_eq!((killed.operation.as_deref(), killed.action.as_deref(), killed.seconds), (None, None, 2.0));
    assert_eq!((runs.operation.clone(), runs.attempt, runs.seconds), (Some(format!("{:032x}", 3)), 1, 7.0));
    assert!(runs.action.as_ref().is_some_and(|action| action.ends_with("/1")), "{runs:?}");
}

#[test]
fn the_overview_is_bounded_and_counts_the_rest() {
    let mut lines: Vec<String> = (1..=150).map(|n| format!("submit {n} a{n} Pool=p{n}")).collect();
    lines.extend((1..=1100).map(|n| format!("join w{n} 1")));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let (core, now) = core_after(&lines);
    let overview = core.overview(now);
    assert_eq!((overview.queues.len(), overview.queues_unlisted), (100, 50));
    assert_eq!((overview.workers.len(), overview.workers_unlisted), (1000, 100));
    assert_eq!((overview.queued, overview.fleet.open), (150, 1100));
}

#[test]
fn workers_are_found_by_name_and_by_identifier() {
    let (core, now) = core_after(&["join w1 1", "join w17 1"]);
    let found =
        |key: &str| -> Vec<WorkerId> { core.find_workers(now, key).into_iter().map(|(id, _)| id).collect() };
    assert_eq!(found("w17"), [WorkerId::new(17)]);
    assert_eq!(found(&format!("{:032x}", 1)), [WorkerId::new(1)]);
    assert_eq!(found("w2"), []);
}

fn demand(demands: &[Demand], property: &str) -> (usize, usize, f64) {
    let is_it = |demand: &&Demand| demand.properties.iter().any(|(name, _)| name == property);
    let demand = demands.iter().find(is_it).expect("something has that property");
    (demand.queued, demand.running, demand.workers_wanted)
}

#[test]
fn demand_counts_workers_by_what_one_action_takes_of_the_largest() {
    let lines = [
        "join w1 4 cores=8",
        "join w2 8 cores=16 memory=64",
        "submit 1 a cores=4",
        "submit 2 b cores=4",
        "submit 3 c Pool=gpu",
        "submit 4 d Pool=gpu",
        "submit 5 e memory=8",
        "submit 6 f memory=8",
    ];
    let (core, now) = core_after(&lines);
    let load = core.load(now);
    assert_eq!((load.queued, load.running), (2, 4));
    assert_eq!(demand(&load.demands, "cores"), (0, 2, 0.5), "4 of 16 cores each");
    assert_eq!(demand(&load.demands, "Pool"), (2, 0, 2.0), "no worker can, so each is taken to need one");
    assert_eq!(demand(&load.demands, "memory"), (0, 2, 0.25), "a slot of 8 each, and 8 of 64 bytes");
}

#[test]
fn a_killed_lease_is_no_demand() {
    let (core, now) = core_after(&["join w1 2", "submit 1 a", "cancel 1"]);
    assert_eq!(core.load(now).demands, []);
}
