//! The journal: what it is told, and how a scheduler starts from it.

use super::script::{patient, play, play_acknowledged, play_recorded, play_with};
use super::{GONE, LOST};
use crate::scheduler::config::Config;

const RESTARTED: &str = "the worker did not come back after a restart of the farm";

#[test]
fn the_journal_is_told_of_everything_that_must_survive() {
    play_recorded(&[
        ("join w1 1", ""),
        (
            "submit 1 a priority=3",
            "keep execution 1; keep operation 1; 1 Queued; keep lease 1/1; w1 starts 1/1; 1 Executing",
        ),
        ("submit 2 a priority=1", "keep operation 2; 2 Executing; keep execution 1"),
        (
            "w1 1/1 faults",
            "erase lease 1/1; 1/1 failed on w1: the disk is full; keep execution 1; 1 Queued; 2 Queued; \
             w1 may forget 1/1; keep lease 1/2; w1 starts 1/2; 1 Executing; 2 Executing",
        ),
        ("delete 2", ""),
        ("w1 1/2 answers", "settle 1/2"),
        (
            "settled 1/2",
            "keep finished operation 1; erase operation 2; 1 done; 2 done; forget 2; \
             erase execution 1; erase lease 1/2; w1 may forget 1/2",
        ),
        ("wait 120", "erase operation 1; forget 1"),
    ]);
}

#[test]
fn every_end_is_kept_before_any_is_told() {
    play_recorded(&[
        ("submit 1 a", "keep execution 1; keep operation 1; 1 Queued"),
        ("submit 2 a", "keep operation 2; 2 Queued"),
        ("submit 3 a", "keep operation 3; 3 Queued"),
        ("delete 3", ""),
        ("join w1 1", "keep lease 1/1; w1 starts 1/1; 1 Executing; 2 Executing; 3 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
        (
            "settled 1/1",
            "keep finished operation 1; keep finished operation 2; erase operation 3; \
             1 done; 2 done; 3 done; forget 3; erase execution 1; erase lease 1/1; w1 may forget 1/1",
        ),
    ]);
}

#[test]
fn an_execution_that_nobody_waits_for_is_erased_with_its_lease() {
    let cancelled = |operation| {
        format!("keep finished operation {operation}; {operation} ends 1: the client cancelled the operation")
    };
    play_recorded(&[
        ("submit 1 a", "keep execution 1; keep operation 1; 1 Queued"),
        ("cancel 1", &format!("{}; erase execution 1", cancelled(1))),
        ("join w1 1", ""),
        (
            "submit 2 b",
            "keep execution 2; keep operation 2; 2 Queued; keep lease 2/1; w1 starts 2/1; 2 Executing",
        ),
        ("cancel 2", &format!("{}; w1 kills 2/1; erase execution 2; erase lease 2/1", cancelled(2))),
    ]);
}

#[test]
fn without_a_journal_nothing_is_recorded() {
    let config = Config { journal: false, ..patient() };
    play_with(
        config,
        &[("join w1 1", ""), ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"), ("restart", "")],
    );
}

#[test]
fn what_was_queued_is_queued_in_its_old_order() {
    play(&[
        ("submit 1 a", "1 Queued"),
        ("submit 2 b priority=-1", "2 Queued"),
        ("submit 3 c", "3 Queued"),
        ("submit 4 c priority=-2", "4 Queued"),
        ("restart", "1 Queued; 2 Queued; 3 Queued; 4 Queued"),
        ("submit 5 d", "5 Queued"),
        ("join w1 1", "w1 starts 3/2; 3 Executing; 4 Executing"),
        ("w1 3/2 answers", "settle 3/2; w1 starts 2/2; 2 Executing"),
        ("w1 2/2 answers", "settle 2/2; w1 starts 1/2; 1 Executing"),
        ("w1 1/2 answers", "settle 1/2; w1 starts 5/1; 5 Executing"),
        ("submit 6 a", "6 Executing"),
    ]);
}

#[test]
fn what_ran_is_taken_over_from_its_worker() {
    play_acknowledged(&[
        ("join w1 2", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("submit 3 c", "3 Queued"),
        ("w1 2/1 answers", "settle 2/1; w1 starts 3/1; 3 Executing"),
        ("restart", "1 Executing; 2 Executing; 3 Executing"),
        ("watch 1", ""),
        ("watch 2", ""),
        ("join w2 1", ""),
        ("wait 19", ""),
        ("join w1 2 holds=1/1 holds=2/1 holds=3/1", ""),
        ("w1 2/1 answers", "settle 2/1"),
        ("settled 2/1", "2 done; w1 may forget 2/1"),
        ("w1 1/1 answers", "settle 1/1"),
        ("submit 4 d", "4 Queued; w2 starts 4/1; 4 Executing"),
    ]);
}

#[test]
fn what_ran_on_a_worker_that_does_not_come_back_runs_again_and_is_held_against_nobody() {
    play_with(
        Config { quarantine_after: 1, attempts_max: 1, ..patient() },
        &[
            ("join w1 1", ""),
            ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
            ("restart", "1 Executing"),
            ("watch 1", ""),
            ("join w2 1", ""),
            (
                "wait 20",
                &format!(
                    "drop w1: {GONE}; 1/1 failed on w1: {RESTARTED}; 1 Queued; w2 starts 1/3; 1 Executing"
                ),
            ),
        ],
    );
}

#[test]
fn the_next_life_of_a_worker_does_not_run_what_the_last_one_ran() {
    play(&[
        ("join w1 1 name=n", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("restart", "1 Executing"),
        (
            "join w2 1 name=n",
            &format!(
                "drop w1: another worker came under its name; 1/1 failed on n: {RESTARTED}; 1 Queued; \
                 w2 starts 1/3; 1 Executing"
            ),
        ),
    ]);
}

#[test]
fn a_worker_that_comes_back_without_its_lease_gets_another() {
    let lost = "the action did not reach its worker";
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("restart", "1 Executing"),
        ("join w1 1", &format!("1/1 failed on w1: {lost}; 1 Queued; w1 starts 1/3; 1 Executing")),
    ]);
}

#[test]
fn what_is_finished_can_be_asked_for_and_is_forgotten_in_its_time() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
        ("settled 1/1", "1 done"),
        ("wait 100", ""),
        ("restart", "1 done"),
        ("wait 119", ""),
        ("wait 1", "forget 1"),
        ("restart", ""),
    ]);
}

#[test]
fn clients_have_a_while_to_ask_for_their_operations() {
    play(&[
        ("submit 1 a", "1 Queued"),
        ("submit 2 b", "2 Queued"),
        ("restart", "1 Queued; 2 Queued"),
        ("join w1 1 ISA=x", "w1 starts 1/2; 1 Executing"),
        ("wait 59", ""),
        ("watch 1", ""),
        ("wait 1", "2 ends 1: no client watched the operation"),
    ]);
}

#[test]
fn losses_and_failures_are_not_forgotten() {
    let lost = |attempt| format!("attempt {attempt}: {LOST}");
    play_with(
        Config { quarantine_after: 2, ..patient() },
        &[
            ("join w1 1", ""),
            ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
            ("away w1", ""),
            ("wait 20", &format!("drop w1: {GONE}; 1/1 failed on w1: {LOST}; 1 Queued")),
            ("restart", "1 Queued"),
            ("watch 1", ""),
            ("join w2 1", "w2 starts 1/3; 1 Executing"),
            ("away w2", ""),
            (
                "wait 20",
                &format!(
                    "drop w2: {GONE}; 1/3 failed on w2: {LOST}; 1 ends 9: the action is quarantined: \
                     2 workers were lost while they ran it ({})",
                    lost(3)
                ),
            ),
        ],
    );
}

#[test]
fn an_attempt_that_was_started_without_a_record_is_taken_over() {
    play_recorded(&[
        ("submit 1 a", "keep execution 1; keep operation 1; 1 Queued"),
        ("restart", "1 Queued"),
        ("join w1 1 holds=1/1", "keep lease 1/1; 1 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
    ]);
}

#[test]
fn its_number_is_not_given_out_twice() {
    play(&[
        ("submit 1 a", "1 Queued"),
        ("restart", "1 Queued"),
        ("join w2 1", "w2 starts 1/2; 1 Executing"),
        ("join w1 1 holds=1/1", "w1 kills 1/1"),
        ("w1 1/1 answers", ""),
        ("w2 1/2 answers", "settle 1/2"),
    ]);
}

#[test]
fn a_number_that_is_in_use_on_a_worker_is_not_given_out_there() {
    play(&[
        ("submit 1 a", "1 Queued"),
        ("restart", "1 Queued"),
        ("join w2 1", "w2 starts 1/2; 1 Executing"),
        ("join w1 2 holds=1/3", "w1 kills 1/3"),
        (
            "leaves w2",
            "1/2 failed on w2: the worker left before the action had ended; 1 Queued; w1 starts 1/4; 1 Executing",
        ),
        ("w1 1/3 killed", ""),
        ("w1 1/4 answers", "settle 1/4"),
    ]);
}

#[test]
fn cancelled_work_is_killed_when_its_worker_is_back() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("cancel 1", "1 ends 1: the client cancelled the operation; w1 kills 1/1"),
        ("restart", "1 ends 1: the client cancelled the operation"),
        ("submit 2 b", "2 Queued"),
        ("join w1 1 holds=1/1", "w1 kills 1/1"),
        ("w1 1/1 killed", "w1 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn adrift_work_that_is_cancelled_is_killed_when_its_worker_is_back() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("restart", "1 Executing"),
        ("cancel 1", "1 ends 1: the client cancelled the operation"),
        ("join w1 1 holds=1/1", "w1 kills 1/1"),
    ]);
}

#[test]
fn the_attempts_of_a_restarted_farm_still_end() {
    let late = "the worker did not answer in time";
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("restart", "1 Executing"),
        ("watch 1", ""),
        ("join w1 1 holds=1/1", ""),
        ("wait 659", ""),
        ("wait 1", &format!("w1 kills 1/1; 1/1 failed on w1: {late}; 1 Queued")),
    ]);
}

#[test]
fn what_a_changed_configuration_does_not_know_ends_with_the_property() {
    let end = "1 ends 9: the action cannot run: platform property `ISA` is not declared by this farm";
    play(&[
        ("join w1 2 ISA=x", ""),
        ("submit 1 a ISA=x", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("restart undeclare=ISA", &format!("{end}; 2 Executing")),
        ("join w1 2 holds=1/1 holds=2/1", "w1 kills 1/1"),
    ]);
}
