//! A run that takes far longer than earlier ones is made a second time on another worker.

use super::script::{Line, patient, play, play_with};
use super::{GONE, LOST};
use crate::scheduler::config::Config;

/// Three runs of action `a` that took 100 s each, so that 300 s are far too long.
const PAST: [Line<'_>; 10] = [
    ("join w1 1", ""),
    ("submit 91 a", "91 Queued; w1 starts 91/1; 91 Executing"),
    ("w1 91/1 answers", "settle 91/1"),
    ("settled 91/1 took=100", "91 done"),
    ("submit 92 a", "92 Queued; w1 starts 92/1; 92 Executing"),
    ("w1 92/1 answers", "settle 92/1"),
    ("settled 92/1 took=100", "92 done"),
    ("submit 93 a", "93 Queued; w1 starts 93/1; 93 Executing"),
    ("w1 93/1 answers", "settle 93/1"),
    ("settled 93/1 took=100", "93 done"),
];

/// Another run has become far too long: it runs on `w1` and, since now, on `w2`.
const HEDGED: [Line<'_>; 5] = [
    ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
    ("join w2 1", ""),
    ("wait 120", "forget 91; forget 92; forget 93"),
    ("wait 179", ""),
    ("wait 1", "w2 starts 1/2; hedge 1/2 started"),
];

fn hedged(lines: &[Line<'_>]) {
    play(&[&PAST[..], &HEDGED, lines].concat());
}

#[test]
fn the_second_worker_may_answer_first() {
    hedged(&[
        ("w2 1/2 answers", "settle 1/2"),
        ("submit 2 a", "2 Executing"),
        ("settled 1/2", "1 done; 2 done; hedge 1/2 won; w1 kills 1/1"),
        ("submit 3 b", "3 Queued; w2 starts 3/1; 3 Executing"),
        ("submit 4 c", "4 Queued"),
        ("w1 1/1 killed", "w1 starts 4/1; 4 Executing"),
    ]);
}

#[test]
fn the_first_worker_may_answer_first_after_all() {
    hedged(&[
        ("w1 1/1 answers", "settle 1/1"),
        ("settled 1/1", "1 done; hedge 1/2 lost; w2 kills 1/2"),
        ("w2 1/2 answers", ""),
        ("submit 2 b", "2 Queued; w2 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn two_answers_are_settled_and_the_first_good_one_counts() {
    hedged(&[
        ("w1 1/1 answers", "settle 1/1"),
        ("w2 1/2 answers", "settle 1/2"),
        ("settled 1/2", "1 done; hedge 1/2 won"),
        ("settled 1/1", ""),
    ]);
    hedged(&[
        ("w1 1/1 answers", "settle 1/1"),
        ("w2 1/2 answers", "settle 1/2"),
        ("unsettled 1/1", "1/1 failed on w1: output x is missing; 1 Executing"),
        ("settled 1/2", "1 done"),
    ]);
}

#[test]
fn an_answer_that_cannot_be_settled_lets_the_other_go_on() {
    hedged(&[
        ("w2 1/2 answers", "settle 1/2"),
        ("unsettled 1/2", "1/2 failed on w2: output x is missing; 1 Executing"),
        ("wait 300", ""),
        ("w1 1/1 answers", "settle 1/1"),
        ("settled 1/1", "1 done"),
    ]);
}

#[test]
fn a_fault_of_one_is_no_retry_and_a_fault_of_both_is_one() {
    hedged(&[
        ("w1 1/1 faults", "1/1 failed on w1: the disk is full; 1 Executing"),
        ("w2 1/2 progress", "1 Executing"),
        ("w2 1/2 faults", "1/2 failed on w2: the disk is full; 1 Queued; w1 starts 1/3; 1 Executing"),
        ("w1 1/1 answers", ""),
        ("w1 1/3 answers", "settle 1/3"),
        ("settled 1/3", "1 done"),
    ]);
}

#[test]
fn a_lost_worker_lets_the_other_go_on() {
    hedged(&[
        ("away w1", ""),
        ("wait 20", &format!("drop w1: {GONE}; 1/1 failed on w1: {LOST}; 1 Executing")),
        ("w2 1/2 answers", "settle 1/2"),
        ("settled 1/2", "1 done"),
    ]);
}

#[test]
fn a_cancelled_execution_is_killed_on_both() {
    hedged(&[("cancel 1", "1 ends 1: the client cancelled the operation; w1 kills 1/1; w2 kills 1/2")]);
    hedged(&[
        ("w2 1/2 answers", "settle 1/2"),
        ("cancel 1", "1 ends 1: the client cancelled the operation; w1 kills 1/1"),
        ("settled 1/2", ""),
    ]);
}

#[test]
fn progress_is_told_of_the_first_while_it_runs() {
    hedged(&[("w1 1/1 progress", "1 Executing"), ("w2 1/2 progress", "")]);
}

#[test]
fn a_run_is_hedged_when_there_is_room_and_never_on_its_own_worker() {
    let lines = [
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("wait 120", "forget 91; forget 92; forget 93"),
        ("wait 190", ""),
        ("join w2 1", ""),
        ("submit 2 b", "2 Queued; w2 starts 2/1; 2 Executing"),
        ("wait 15", ""),
        ("w2 2/1 answers", "settle 2/1"),
        ("wait 10", "w2 starts 1/2; hedge 1/2 started"),
    ];
    play(&[&PAST[..], &lines].concat());
    let own = [
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("wait 600", "forget 91; forget 92; forget 93"),
    ];
    play(&[&[("join w1 2", "")], &PAST[1..], &own].concat());
}

#[test]
fn a_short_past_and_a_short_run_are_never_hedged() {
    let run = [("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"), ("join w2 1", "")];
    let forget = ("wait 600", "forget 91; forget 92");
    play(&[&PAST[..7], &run, &[forget]].concat());
    let config = Config { hedge: false, ..patient() };
    play_with(config, &[&PAST[..], &run, &[("wait 600", "forget 91; forget 92; forget 93")]].concat());
    let config = Config { hedge_after_min: std::time::Duration::from_secs(500), ..patient() };
    let late =
        [("wait 499", "forget 91; forget 92; forget 93"), ("wait 1", "w2 starts 1/2; hedge 1/2 started")];
    play_with(config, &[&PAST[..], &run, &late].concat());
}

#[test]
fn few_of_many_leases_are_hedges() {
    let lines = [
        ("submit 1 a uncached", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("join w2 1", ""),
        ("submit 2 a uncached", "2 Queued; w2 starts 2/1; 2 Executing"),
        ("join w3 2", ""),
        ("wait 300", "forget 91; forget 92; forget 93; w3 starts 1/2; hedge 1/2 started"),
        ("wait 20", ""),
        ("w3 1/2 answers", "settle 1/2"),
        ("settled 1/2", "1 done; hedge 1/2 won; w1 kills 1/1"),
        ("wait 10", "w3 starts 2/2; hedge 2/2 started"),
    ];
    play(&[&PAST[..], &lines].concat());
}

#[test]
fn a_hedged_execution_is_taken_over_with_both_leases() {
    let restarted = [
        ("restart", "1 Executing"),
        ("join w2 1 holds=1/2", ""),
        ("join w1 1 holds=1/1", ""),
        ("w2 1/2 answers", "settle 1/2"),
        ("watch 1", ""),
        ("settled 1/2", "1 done; hedge 1/2 won; w1 kills 1/1"),
    ];
    hedged(&restarted);
    hedged(&[
        ("restart", "1 Executing"),
        ("join w1 1 holds=1/1", ""),
        ("watch 1", ""),
        (
            "wait 20",
            "drop w2: it did not come back; 1/2 failed on w2: the worker did not come back after a restart of the farm; 1 Executing",
        ),
        ("w1 1/1 faults", "1/1 failed on w1: the disk is full; 1 Queued; w1 starts 1/4; 1 Executing"),
    ]);
}
