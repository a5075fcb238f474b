//! The rules of the scheduler as scenarios: on the left what happens, on the right what the core says to it.

mod availability;
mod elsewhere;
mod hedging;
mod histories;
mod order;
mod packing;
mod report;
mod restoring;
mod script;
mod sessions;
mod warming;

use crate::scheduler::config::Config;
use script::{patient, play, play_with};

const LOST: &str = "a worker was lost while it ran the action";
const LEFT: &str = "the worker left before the action had ended";
const GONE: &str = "it did not come back";

#[test]
fn an_action_runs_is_settled_and_is_forgotten_in_the_end() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("w1 1/1 progress", "1 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
        ("settled 1/1", "1 done"),
        ("wait 119", ""),
        ("wait 1", "forget 1"),
    ]);
}

#[test]
fn what_waits_starts_when_a_worker_comes_or_has_room() {
    play(&[
        ("submit 1 a", "1 Queued"),
        ("submit 2 b", "2 Queued"),
        ("join w1 1", "w1 starts 1/1; 1 Executing"),
        ("w1 1/1 answers", "settle 1/1; w1 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn the_lower_priority_comes_first_then_the_older() {
    play(&[
        ("submit 1 a", "1 Queued"),
        ("submit 2 b", "2 Queued"),
        ("submit 3 c priority=-1", "3 Queued"),
        ("submit 4 d priority=1 ISA=x", "4 Queued"),
        ("join w1 1 ISA=x", "w1 starts 3/1; 3 Executing"),
        ("w1 3/1 answers", "settle 3/1; w1 starts 1/1; 1 Executing"),
        ("w1 1/1 answers", "settle 1/1; w1 starts 2/1; 2 Executing"),
        ("w1 2/1 answers", "settle 2/1; w1 starts 4/1; 4 Executing"),
    ]);
}

#[test]
fn the_worker_with_the_most_free_slots_is_taken() {
    play(&[
        ("join w1 2", ""),
        ("join w2 3", ""),
        ("submit 1 a", "1 Queued; w2 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w2 starts 2/1; 2 Executing"),
        ("submit 3 c", "3 Queued; w1 starts 3/1; 3 Executing"),
    ]);
}

#[test]
fn amounts_are_held_while_the_lease_runs() {
    play(&[
        ("join w1 4 cores=4", ""),
        ("submit 1 a cores=3", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b cores=2", "2 Queued"),
        ("submit 3 c cores=1", "3 Queued; w1 starts 3/1; 3 Executing"),
        ("w1 1/1 answers", "settle 1/1; w1 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn invocations_take_turns_by_rounds_and_one_start_in_sixteen_goes_by_age() {
    let mut farm = vec![("join w1 1".to_owned(), String::new())];
    let mut order: Vec<u32> = (1..=15).collect();
    // The sixteenth start is by age, which is the same here; then the round is over and it is the other one's turn.
    order.extend([16, 41, 42]);
    let submit = |number: u32, invocation: &str| {
        (format!("submit {number} a{number} invocation={invocation}"), format!("{number} Queued"))
    };
    let (line, queued) = submit(1, "x");
    farm.push((line, format!("{queued}; w1 starts 1/1; 1 Executing")));
    farm.extend((2..=40).map(|number| submit(number, "x")));
    farm.extend((41..=50).map(|number| submit(number, "y")));
    // The first one was never in line, so it was not counted.
    order.insert(16, 17);
    for pair in order.windows(2) {
        let (ended, next) = (pair[0], pair[1]);
        farm.push((
            format!("w1 {ended}/1 answers"),
            format!("settle {ended}/1; w1 starts {next}/1; {next} Executing"),
        ));
    }
    let farm: Vec<_> = farm.iter().map(|(line, said)| (line.as_str(), said.as_str())).collect();
    play(&farm);
}

#[test]
fn a_worker_is_kept_for_what_has_waited_longest() {
    let mut farm = vec![
        ("join w1 2 cores=2".to_owned(), String::new()),
        ("submit 1 a cores=1".to_owned(), "1 Queued; w1 starts 1/1; 1 Executing".to_owned()),
        ("submit 2 b cores=1".to_owned(), "2 Queued; w1 starts 2/1; 2 Executing".to_owned()),
        ("submit 3 c cores=2".to_owned(), "3 Queued".to_owned()),
    ];
    farm.extend((4..=20).map(|number| {
        (format!("submit {number} a{number} cores=1 priority=-1"), format!("{number} Queued"))
    }));
    // Thirteen more starts, and the next would be the sixteenth.
    for (ended, next) in [1, 2].into_iter().chain(4..).zip(4..=16) {
        farm.push((
            format!("w1 {ended}/1 answers"),
            format!("settle {ended}/1; w1 starts {next}/1; {next} Executing"),
        ));
    }
    let said = |line: &str, said: &str| (line.to_owned(), said.to_owned());
    farm.extend([
        said("reserved", ""),
        said("w1 15/1 answers", "settle 15/1"),
        said("reserved w1", ""),
        said("w1 16/1 answers", "settle 16/1; w1 starts 3/1; 3 Executing"),
        said("reserved", ""),
        said("w1 3/1 answers", "settle 3/1; w1 starts 17/1; 17 Executing; w1 starts 18/1; 18 Executing"),
    ]);
    let farm: Vec<_> = farm.iter().map(|(line, said)| (line.as_str(), said.as_str())).collect();
    play(&farm);
}

#[test]
fn the_worker_that_had_the_trees_is_taken_while_it_has_room() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a trees=7,8", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("join w2 3", ""),
        ("w1 1/1 answers", "settle 1/1"),
        ("submit 2 b trees=8,9", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("submit 3 c trees=8,9", "3 Queued; w2 starts 3/1; 3 Executing"),
    ]);
}

#[test]
fn equal_actions_run_once_and_both_clients_get_the_result() {
    play(&[
        ("join w1 2", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 a", "2 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
        ("submit 3 a", "3 Executing"),
        ("settled 1/1", "1 done; 2 done; 3 done"),
        ("submit 4 a", "4 Queued; w1 starts 4/1; 4 Executing"),
    ]);
}

#[test]
fn an_action_that_is_not_to_be_cached_is_not_shared() {
    play(&[
        ("join w1 2", ""),
        ("submit 1 a uncached", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 a uncached", "2 Queued; w1 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn an_equal_action_that_is_more_urgent_hastens_the_first() {
    play(&[
        ("submit 1 a", "1 Queued"),
        ("submit 2 b", "2 Queued"),
        ("submit 3 b priority=-5", "3 Queued"),
        ("join w1 1", "w1 starts 2/1; 2 Executing; 3 Executing"),
    ]);
}

#[test]
fn cancelling_one_of_two_operations_lets_the_action_run() {
    let cancelled = "1 ends 1: the client cancelled the operation";
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 a", "2 Executing"),
        ("cancel 1", cancelled),
        ("cancel 1", ""),
        ("cancel 2", &format!("{}; w1 kills 1/1", cancelled.replacen('1', "2", 1))),
    ]);
}

#[test]
fn a_queued_operation_that_is_cancelled_never_starts() {
    play(&[
        ("submit 1 a", "1 Queued"),
        ("cancel 1", "1 ends 1: the client cancelled the operation"),
        ("join w1 1", ""),
    ]);
}

#[test]
fn an_answer_that_is_cancelled_while_it_is_settled_reaches_nobody() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
        ("cancel 1", "1 ends 1: the client cancelled the operation"),
        ("settled 1/1", ""),
    ]);
}

#[test]
fn a_killed_lease_holds_its_slot_until_the_worker_confirms() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("cancel 1", "1 ends 1: the client cancelled the operation; w1 kills 1/1"),
        ("submit 2 b", "2 Queued"),
        ("w1 1/1 killed", "w1 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn a_worker_that_does_not_confirm_a_kill_is_dropped() {
    play(&[
        ("join w1 2", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("cancel 1", "1 ends 1: the client cancelled the operation; w1 kills 1/1"),
        ("wait 30", &format!("drop w1: it did not confirm a kill; 2/1 failed on w1: {LOST}; 2 Queued")),
        ("w1 1/1 killed", ""),
    ]);
}

#[test]
fn an_operation_that_nobody_watches_is_abandoned() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("leave 1", ""),
        ("wait 9", ""),
        ("watch 1", ""),
        ("wait 60", ""),
        ("leave 1", ""),
        ("wait 10", "1 ends 1: no client watched the operation; w1 kills 1/1"),
    ]);
}

#[test]
fn an_operation_is_watched_as_long_as_one_of_its_clients_stays() {
    play(&[("submit 1 a", "1 Queued"), ("watch 1", ""), ("leave 1", ""), ("wait 20", ""), ("leave 1", "")]);
}

#[test]
fn a_deleted_operation_runs_to_its_end_and_is_forgotten_at_once() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("delete 1", ""),
        ("w1 1/1 answers", "settle 1/1"),
        ("settled 1/1", "1 done; forget 1"),
        ("submit 2 a", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("cancel 2", "2 ends 1: the client cancelled the operation; w1 kills 2/1"),
        ("delete 2", "forget 2"),
    ]);
}

#[test]
fn the_oldest_finished_operation_makes_room() {
    let config = Config { finished_max: 1, ..patient() };
    play_with(
        config,
        &[
            ("submit 1 a", "1 Queued"),
            ("submit 2 b", "2 Queued"),
            ("cancel 2", "2 ends 1: the client cancelled the operation"),
            ("wait 1", ""),
            ("cancel 1", "1 ends 1: the client cancelled the operation; forget 2"),
        ],
    );
}

#[test]
fn a_fault_is_tried_again_elsewhere_three_times_in_all() {
    let each = [1, 2, 3].map(|number| format!("attempt {number}: the disk is full")).join("; ");
    let last = format!("1 ends 14: the farm failed to run the action in 3 attempts ({each})");
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("join w2 1", ""),
        ("w1 1/1 faults", "1/1 failed on w1: the disk is full; 1 Queued; w2 starts 1/2; 1 Executing"),
        ("w2 1/2 faults", "1/2 failed on w2: the disk is full; 1 Queued; w1 starts 1/3; 1 Executing"),
        ("w1 1/3 faults", &format!("1/3 failed on w1: the disk is full; {last}")),
    ]);
}

#[test]
fn a_retry_keeps_its_place_in_line() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued"),
        ("w1 1/1 faults", "1/1 failed on w1: the disk is full; 1 Queued; w1 starts 1/2; 1 Executing"),
    ]);
}

#[test]
fn an_answer_that_cannot_be_settled_is_tried_again() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
        ("unsettled 1/1", "1/1 failed on w1: output x is missing; 1 Queued; w1 starts 1/2; 1 Executing"),
        ("settled 1/1", ""),
        ("w1 1/2 answers", "settle 1/2"),
        ("settled 1/2", "1 done"),
    ]);
}

#[test]
fn an_action_that_loses_three_workers_is_quarantined() {
    let each = [1, 2, 3].map(|number| format!("attempt {number}: {LOST}")).join("; ");
    let end = format!("1 ends 9: the action is quarantined: 3 workers were lost while they ran it ({each})");
    play(&[
        ("submit 1 a", "1 Queued"),
        ("join w1 1", "w1 starts 1/1; 1 Executing"),
        ("away w1", ""),
        ("wait 20", &format!("drop w1: {GONE}; 1/1 failed on w1: {LOST}; 1 Queued")),
        ("join w2 1", "w2 starts 1/2; 1 Executing"),
        ("away w2", ""),
        ("wait 20", &format!("drop w2: {GONE}; 1/2 failed on w2: {LOST}; 1 Queued")),
        ("join w3 1", "w3 starts 1/3; 1 Executing"),
        ("away w3", ""),
        ("wait 20", &format!("drop w3: {GONE}; 1/3 failed on w3: {LOST}; {end}")),
    ]);
}

#[test]
fn a_late_answer_is_ignored() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("away w1", ""),
        ("wait 20", &format!("drop w1: {GONE}; 1/1 failed on w1: {LOST}; 1 Queued")),
        ("w1 1/1 answers", ""),
        ("join w2 1", "w2 starts 1/2; 1 Executing"),
        ("w2 1/1 answers", ""),
        ("w1 1/2 answers", ""),
        ("w2 1/2 answers", "settle 1/2"),
        ("w2 1/2 answers", ""),
        ("settled 1/2", "1 done"),
        ("settled 1/2", ""),
    ]);
}

#[test]
fn a_lease_that_takes_too_long_is_killed_and_tried_again() {
    let late = "the worker did not answer in time";
    play(&[
        ("join w1 1", ""),
        ("join w2 1", ""),
        ("submit 1 a", "1 Queued; w2 starts 1/1; 1 Executing"),
        ("wait 659", ""),
        ("wait 1", &format!("w2 kills 1/1; 1/1 failed on w2: {late}; 1 Queued; w1 starts 1/2; 1 Executing")),
        ("w2 1/1 answers", ""),
    ]);
}

#[test]
fn a_silent_worker_is_dropped() {
    play_with(
        Config::default(),
        &[
            ("join w1 1", ""),
            ("wait 29", ""),
            ("heartbeat w1", ""),
            ("wait 29", ""),
            ("wait 1", "drop w1: it was silent"),
            ("heartbeat w1", ""),
            ("wait 100", ""),
        ],
    );
}

#[test]
fn an_action_that_no_worker_could_run_fails_with_the_property() {
    let end = "ends 9: the action cannot run:";
    play(&[
        ("submit 1 a", "1 Queued"),
        ("wait 30", &format!("1 {end} no worker is connected")),
        ("join w1 1 ISA=x cores=2", ""),
        ("submit 2 b ISA=y", "2 Queued"),
        ("submit 3 c ISA=x cores=4", "3 Queued"),
        ("wait 29", ""),
        ("submit 4 d ISA=y", "4 Queued"),
        (
            "wait 1",
            &format!(
                "2 {end} no connected worker offers platform property `ISA` = `y`; \
                 3 {end} no connected worker offers platform property `cores` = `4`"
            ),
        ),
        ("wait 29", &format!("4 {end} no connected worker offers platform property `ISA` = `y`")),
    ]);
}

#[test]
fn properties_that_no_one_worker_has_together_are_named_together() {
    let reason = "no connected worker offers all of the platform properties `ISA` = `x`, `Pool` = `p`";
    play(&[
        ("join w1 1 ISA=x", ""),
        ("join w2 1 Pool=p", ""),
        ("submit 1 a ISA=x Pool=p", "1 Queued"),
        ("wait 30", &format!("1 ends 9: the action cannot run: {reason}")),
    ]);
}

#[test]
fn a_busy_worker_is_waited_for_and_one_that_left_for_a_while() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued"),
        ("wait 600", ""),
        ("w1 1/1 answers", "settle 1/1; w1 starts 2/1; 2 Executing"),
        ("submit 3 c", "3 Queued"),
        ("leaves w1", &format!("2/1 failed on w1: {LEFT}; 2 Queued")),
        ("wait 29", ""),
        ("join w2 1", "w2 starts 2/2; 2 Executing"),
        ("wait 600", ""),
    ]);
}

#[test]
fn a_full_scheduler_refuses() {
    let config = Config { operations_max: 1, ..patient() };
    play_with(config, &[("submit 1 a", "1 Queued"), ("submit 2 b", "refuse TooManyOperations")]);
}

#[test]
fn one_client_and_one_build_have_their_limits_and_who_is_unknown_has_none() {
    let config = Config { operations_per_identity_max: 2, operations_per_invocation_max: 1, ..patient() };
    play_with(
        config,
        &[
            ("submit 1 a identity=i invocation=x", "1 Queued"),
            ("submit 2 b identity=i invocation=x", "refuse TooManyOfInvocation"),
            ("submit 3 a identity=i invocation=y", "3 Queued"),
            ("submit 4 d identity=i", "refuse TooManyOfIdentity"),
            ("submit 5 e identity=j invocation=y", "refuse TooManyOfInvocation"),
            ("submit 6 f", "6 Queued"),
            ("submit 7 g", "7 Queued"),
            ("submit 8 h", "8 Queued"),
            ("cancel 3", "3 ends 1: the client cancelled the operation"),
            ("submit 9 e identity=i invocation=y", "9 Queued"),
        ],
    );
}

#[test]
fn stopping_kills_what_runs_unless_it_is_taken_over_at_the_next_start() {
    let lines = [
        ("join w1 2", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 starts 2/1; 2 Executing"),
    ];
    let stop = |said| [lines[0], lines[1], lines[2], ("stop", said)];
    play_with(Config { journal: false, ..patient() }, &stop("w1 kills 1/1; w1 kills 2/1"));
    play_with(patient(), &stop(""));
}
