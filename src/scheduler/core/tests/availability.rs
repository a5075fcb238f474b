//! Workers that take no new work, by word of an operator, their own, or for what they have failed.

use std::time::Duration;

use super::script::{patient, play, play_recorded, play_with};
use super::{GONE, LEFT, LOST};
use crate::scheduler::config::Config;

const FULL: &str = "the disk is full";

#[test]
fn a_cordoned_worker_finishes_what_it_runs_and_gets_nothing_new() {
    play(&[
        ("join w1 2", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("cordon w1 a new disk", ""),
        ("submit 2 b", "2 Queued"),
        ("w1 1/1 answers", "settle 1/1"),
        ("settled 1/1", "1 done"),
        ("open w1", "w1 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn what_only_a_cordoned_worker_could_run_waits() {
    play(&[
        ("join w1 1", ""),
        ("cordon w1 a new disk", ""),
        ("submit 1 a", "1 Queued"),
        ("wait 600", ""),
        ("away w1", ""),
        ("wait 20", &format!("drop w1: {GONE}")),
        ("wait 30", "1 ends 9: the action cannot run: no worker is connected"),
    ]);
}

#[test]
fn a_cordon_holds_for_the_next_life_of_the_worker_and_of_the_scheduler() {
    play(&[
        ("join w1 1 name=n", ""),
        ("cordon w1 a new disk", ""),
        ("leaves w1", ""),
        ("submit 1 a", "1 Queued"),
        ("join w2 1 name=n", ""),
        ("restart", "1 Queued"),
        ("join w3 1 name=n", ""),
        ("open w3", "w3 starts 1/2; 1 Executing"),
        ("restart", "1 Executing"),
        ("join w3 2 name=n holds=1/2", ""),
        ("submit 2 b", "2 Queued; w3 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn a_mark_is_kept_under_the_name_and_erased_when_the_worker_is_opened() {
    play_recorded(&[
        ("join w1 1 name=n", ""),
        ("cordon w1 a new disk", "keep worker n"),
        ("open w1", "erase worker n"),
        ("w1 drains", ""),
        ("drain w9", ""),
        ("cordon w9", ""),
    ]);
}

#[test]
fn an_operators_drain_is_over_when_the_worker_has_left() {
    play_recorded(&[
        ("join w1 1 name=n", ""),
        ("drain w1 maintenance", "keep worker n"),
        ("join w1 1 name=n", ""),
        ("leaves w1", "erase worker n"),
        ("submit 1 a", "keep execution 1; keep operation 1; 1 Queued"),
        ("join w2 1 name=n", "keep lease 1/1; w2 starts 1/1; 1 Executing"),
    ]);
}

#[test]
fn a_worker_that_drains_by_itself_does_so_for_this_life() {
    play(&[
        ("join w1 1 name=n", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("w1 drains", ""),
        ("submit 2 b", "2 Queued"),
        ("away w1", ""),
        ("join w1 1 name=n holds=1/1", ""),
        ("open w1", ""),
        ("w1 1/1 answers", "settle 1/1"),
        ("settled 1/1", "1 done"),
        ("leaves w1", ""),
        ("join w2 1 name=n", "w2 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn a_draining_worker_that_leaves_with_work_is_no_fault_of_the_action() {
    play_with(
        Config { quarantine_after: 1, ..patient() },
        &[
            ("join w1 1", ""),
            ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
            ("w1 drains", ""),
            ("leaves w1", &format!("1/1 failed on w1: {LEFT}; 1 Queued")),
        ],
    );
}

/// A worker that fails one action after the other, each of which nobody tries again.
fn failing(lines: &[(&str, &str)]) {
    let config = Config { attempts_max: 1, health_probation: Duration::from_secs(100), ..patient() };
    play_with(config, lines);
}

/// Plays `lines` after two different actions that w1 has failed in a row.
fn after_two_failures(lines: &[(&str, &str)]) {
    let [first, second] = [1, 2].map(|number| (starts(number), fails(number, 1)));
    let failures = [
        ("join w1 1", ""),
        ("submit 1 a", &first.0),
        ("w1 1/1 faults", &first.1),
        ("submit 2 b", &second.0),
        ("w1 2/1 faults", &second.1),
    ];
    failing(&[&failures, lines].concat());
}

fn fails(operation: u32, attempt: u32) -> String {
    let end = format!("{operation} ends 14: the farm failed to run the action in {attempt} attempt");
    format!("{operation}/{attempt} failed on w1: {FULL}; {end} (attempt {attempt}: {FULL})")
}

fn starts(operation: u32) -> String {
    format!("{operation} Queued; w1 starts {operation}/1; {operation} Executing")
}

const OUT: &str = "w1 is taken out: 3 different actions failed in a row, the last: the disk is full";
const OUT_AGAIN: &str = "w1 is taken out: it failed again when it was tried again: the disk is full";

#[test]
fn a_worker_that_fails_three_different_actions_in_a_row_is_taken_out_and_tried_again() {
    after_two_failures(&[
        ("submit 3 c", &starts(3)),
        ("w1 3/1 faults", &format!("{OUT}; {}", fails(3, 1))),
        ("submit 4 d", "4 Queued"),
        ("wait 99", ""),
        ("wait 1", "w1 opens; w1 starts 4/1; 4 Executing"),
        ("w1 4/1 faults", &format!("{OUT_AGAIN}; {}", fails(4, 1))),
        ("submit 5 e", "5 Queued"),
        ("wait 199", "forget 1; forget 2; forget 3; forget 4"),
        ("wait 1", "w1 opens; w1 starts 5/1; 5 Executing"),
        ("w1 5/1 answers", "settle 5/1"),
        ("submit 6 f", &starts(6)),
        ("w1 6/1 faults", &fails(6, 1)),
    ]);
}

#[test]
fn the_same_action_does_not_take_a_worker_out() {
    let lines: Vec<_> = (1..=5)
        .flat_map(|number| {
            let answer = (format!("w1 {number}/1 faults"), fails(number, 1));
            [(format!("submit {number} a"), starts(number)), answer]
        })
        .collect();
    let lines = lines.iter().map(|(line, said)| (line.as_str(), said.as_str()));
    failing(&[("join w1 1", "")].into_iter().chain(lines).collect::<Vec<_>>());
}

#[test]
fn a_success_between_failures_forgives_them() {
    after_two_failures(&[
        ("submit 3 c", &starts(3)),
        ("w1 3/1 answers", "settle 3/1"),
        ("submit 4 d", &starts(4)),
        ("w1 4/1 faults", &fails(4, 1)),
    ]);
}

#[test]
fn an_operator_who_opens_a_worker_knows_better() {
    after_two_failures(&[
        ("submit 3 c", &starts(3)),
        ("w1 3/1 faults", &format!("{OUT}; {}", fails(3, 1))),
        ("submit 4 d", "4 Queued"),
        ("open w1", "w1 starts 4/1; 4 Executing"),
        ("w1 4/1 faults", &fails(4, 1)),
        ("wait 100", ""),
    ]);
}

#[test]
fn kills_that_are_not_confirmed_and_leases_that_overrun_count_even_over_a_new_connection() {
    let cancelled = "1 ends 1: the client cancelled the operation";
    let late = "the worker did not answer in time";
    let out = format!("w1 is taken out: 2 different actions failed in a row, the last: {late}");
    play_with(
        Config { health_failures_max: 2, ..patient() },
        &[
            ("join w1 1", ""),
            ("submit 1 a", &starts(1)),
            ("cancel 1", &format!("{cancelled}; w1 kills 1/1")),
            ("wait 30", "drop w1: it did not confirm a kill"),
            ("submit 2 b", "2 Queued"),
            ("join w1 1", "w1 starts 2/1; 2 Executing"),
            ("wait 659", "forget 1"),
            ("wait 1", &format!("w1 kills 2/1; {out}; 2/1 failed on w1: {late}; 2 Queued")),
            ("w1 2/1 killed", ""),
            ("wait 300", "w1 opens; w1 starts 2/2; 2 Executing"),
        ],
    );
}

#[test]
fn a_lost_worker_is_given_up_with_its_failures_after_a_while() {
    failing(&[
        ("join w1 1", ""),
        ("submit 1 a", &starts(1)),
        ("w1 1/1 faults", &fails(1, 1)),
        ("submit 2 b", &starts(2)),
        ("away w1", ""),
        (
            "wait 20",
            &format!(
                "drop w1: {GONE}; 2/1 failed on w1: {LOST}; \
                 2 ends 14: the farm failed to run the action in 1 attempt (attempt 1: {LOST})"
            ),
        ),
        ("wait 100", "forget 1"),
        ("wait 20", "forget 2"),
    ]);
}
