//! Workers whose connections break, and who come back or do not.

use super::script::{core_after, patient, play, play_acknowledged, play_with};
use super::{GONE, LEFT, LOST};
use crate::scheduler::config::Config;
use crate::scheduler::id::WorkerId;

const ON_THE_WAY: &str = "the action did not reach its worker";

#[test]
fn what_a_worker_runs_goes_on_while_it_is_away() {
    play(&[
        ("join w1 2", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("away w1", ""),
        ("submit 2 b", "2 Queued"),
        ("wait 19", ""),
        ("join w1 2 holds=1/1", "w1 starts 2/1; 2 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
        ("settled 1/1", "1 done"),
    ]);
}

#[test]
fn a_network_that_is_cut_for_30_seconds_ends_no_lease() {
    play_with(
        Config::default(),
        &[
            ("join w1 1", ""),
            ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
            // The cut begins. Its worker is missed as early as can be, and back as late as can be.
            ("wait 8", ""),
            ("away w1", ""),
            ("wait 22", ""),
            ("wait 10", ""),
            ("join w1 1 holds=1/1", ""),
            ("w1 1/1 answers", "settle 1/1"),
        ],
    );
}

#[test]
fn a_worker_that_does_not_come_back_is_lost() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("away w1", ""),
        ("wait 19", ""),
        ("away w1", ""),
        ("wait 1", &format!("drop w1: {GONE}; 1/1 failed on w1: {LOST}; 1 Queued")),
        ("join w1 1 holds=1/1", "w1 kills 1/1"),
        ("w1 1/1 killed", "w1 starts 1/2; 1 Executing"),
    ]);
}

#[test]
fn a_start_that_did_not_arrive_is_repeated_and_held_against_nobody() {
    let config = Config { attempts_max: 1, quarantine_after: 1, ..patient() };
    play_with(
        config,
        &[
            ("join w1 2", ""),
            ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
            ("submit 2 b", "2 Queued; w1 starts 2/1; 2 Executing"),
            ("away w1", ""),
            (
                "join w1 2 holds=2/1",
                &format!("1/1 failed on w1: {ON_THE_WAY}; 1 Queued; w1 starts 1/2; 1 Executing"),
            ),
        ],
    );
}

#[test]
fn a_worker_that_connects_anew_before_its_old_connection_is_missed_is_asked_what_it_holds_as_well() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("join w1 1", &format!("1/1 failed on w1: {ON_THE_WAY}; 1 Queued; w1 starts 1/2; 1 Executing")),
    ]);
}

#[test]
fn a_fleet_that_never_gets_an_action_done_gives_up_in_the_end() {
    let mut lines = vec![("submit 1 a".to_owned(), "1 Queued".to_owned())];
    lines.push(("join w1 1".into(), "w1 starts 1/1; 1 Executing".into()));
    for attempt in 1..100 {
        let failed = format!("1/{attempt} failed on w1: {ON_THE_WAY}; 1 Queued");
        lines.push(("join w1 1".into(), format!("{failed}; w1 starts 1/{}; 1 Executing", attempt + 1)));
    }
    let each: Vec<_> = (96..=100).map(|number| format!("attempt {number}: {ON_THE_WAY}")).collect();
    let end = format!("1 ends 14: the farm failed to run the action in 100 attempts ({})", each.join("; "));
    lines.push(("join w1 1".into(), format!("1/100 failed on w1: {ON_THE_WAY}; {end}")));
    let lines: Vec<_> = lines.iter().map(|(line, said)| (line.as_str(), said.as_str())).collect();
    play(&lines);
}

#[test]
fn a_kill_is_repeated_when_the_worker_is_back() {
    let cancelled = "1 ends 1: the client cancelled the operation";
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("away w1", ""),
        ("cancel 1", cancelled),
        ("wait 19", ""),
        ("join w1 1 holds=1/1", "w1 kills 1/1"),
        ("wait 29", ""),
        ("away w1", ""),
        ("wait 10", ""),
        ("join w1 1 holds=1/1", "w1 kills 1/1"),
        ("submit 2 b", "2 Queued"),
        ("wait 1", ""),
        ("w1 1/1 killed", "w1 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn a_killed_lease_that_the_worker_does_not_name_is_over() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("cancel 1", "1 ends 1: the client cancelled the operation; w1 kills 1/1"),
        ("submit 2 b", "2 Queued"),
        ("join w1 1", "w1 starts 2/1; 2 Executing"),
        ("wait 30", ""),
    ]);
}

#[test]
fn a_worker_under_the_name_of_one_that_is_away_is_its_next_life() {
    play(&[
        ("join w1 1 name=n", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("join w2 1 name=n", ""),
        ("away w1", ""),
        (
            "join w3 1 name=n",
            &format!(
                "drop w1: another worker came under its name; 1/1 failed on n: {LOST}; 1 Queued; \
                 w2 starts 1/2; 1 Executing"
            ),
        ),
    ]);
}

#[test]
fn a_worker_comes_back_that_was_connected_or_succeeds_one_that_was() {
    let comes_back = |lines: &[&str], worker: u128, name: &str| {
        core_after(lines).0.comes_back(WorkerId::new(worker), &name.into())
    };
    assert!(!comes_back(&[], 1, "n"));
    assert!(comes_back(&["join w1 1 name=n", "away w1"], 1, "n"));
    assert!(comes_back(&["join w1 1 name=n"], 1, "n"), "its old connection is not missed yet");
    assert!(comes_back(&["join w1 1 name=n", "away w1"], 2, "n"), "it died and was started again");
    assert!(!comes_back(&["join w1 1 name=n"], 2, "n"), "two of one name");
    assert!(!comes_back(&["join w1 1 name=n", "leaves w1"], 1, "n"), "it said goodbye");
    let restarted = ["join w1 1 name=n", "submit 1 a", "restart"];
    assert!(!comes_back(&restarted, 1, "n"), "it was connected to the scheduler before");
    assert!(comes_back(&["join w1 1 name=n", "submit 1 a", "restart", "join w1 1 name=n holds=1/1"], 1, "n"));
}

#[test]
fn workers_without_a_name_do_not_succeed_each_other() {
    play(&[
        ("join w1 1 name=", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("away w1", ""),
        ("join w2 1 name=", ""),
        ("join w1 1 name= holds=1/1", ""),
    ]);
}

#[test]
fn what_ran_on_a_worker_that_leaves_runs_elsewhere_and_is_held_against_nobody() {
    let config = Config { attempts_max: 1, quarantine_after: 1, ..patient() };
    play_with(
        config,
        &[
            ("join w1 1", ""),
            ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
            ("join w2 1", ""),
            ("leaves w1", &format!("1/1 failed on w1: {LEFT}; 1 Queued; w2 starts 1/2; 1 Executing")),
            ("leaves w1", ""),
        ],
    );
}

#[test]
fn a_worker_may_come_back_with_less_than_it_holds() {
    play(&[
        ("join w1 2 cores=4", ""),
        ("submit 1 a cores=3", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("submit 3 c", "3 Queued"),
        ("away w1", ""),
        ("join w1 1 holds=1/1 holds=2/1", ""),
        ("w1 1/1 answers", "settle 1/1"),
        ("w1 2/1 answers", "settle 2/1; w1 starts 3/1; 3 Executing"),
        ("submit 4 d cores=1", "4 Queued"),
        ("away w1", ""),
        ("join w1 2 cores=1 holds=3/1", "w1 starts 4/1; 4 Executing"),
    ]);
}

#[test]
fn a_worker_that_is_away_counts_as_able_until_it_is_given_up() {
    let end = "ends 9: the action cannot run: no worker is connected";
    let config = Config { unsatisfiable_after: std::time::Duration::from_secs(5), ..patient() };
    play_with(
        config,
        &[
            ("join w1 1", ""),
            ("away w1", ""),
            ("submit 1 a", "1 Queued"),
            ("wait 19", ""),
            ("wait 1", &format!("drop w1: {GONE}")),
            ("wait 4", ""),
            ("wait 1", &format!("1 {end}")),
        ],
    );
}

#[test]
fn an_answer_is_acknowledged_when_it_is_safe() {
    play_acknowledged(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
        ("w1 1/1 answers", ""),
        ("away w1", ""),
        ("join w1 1 holds=1/1", ""),
        ("w1 1/1 answers", ""),
        ("settled 1/1", "1 done; w1 may forget 1/1"),
        ("w1 1/1 answers", "w1 may forget 1/1"),
    ]);
}

#[test]
fn an_answer_that_became_safe_while_the_worker_was_away_is_acknowledged_when_it_comes_again() {
    play_acknowledged(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("w1 1/1 answers", "settle 1/1"),
        ("away w1", ""),
        ("settled 1/1", "1 done"),
        ("submit 2 b", "2 Queued"),
        ("join w1 1 holds=1/1", "w1 kills 1/1"),
        ("w1 1/1 answers", "w1 may forget 1/1; w1 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn an_answer_that_counts_for_nothing_is_acknowledged_too() {
    let full = "the disk is full";
    let cancelled = "2 ends 1: the client cancelled the operation";
    play_acknowledged(&[
        ("join w1 2", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        (
            "w1 1/1 faults",
            &format!("1/1 failed on w1: {full}; 1 Queued; w1 starts 1/2; 1 Executing; w1 may forget 1/1"),
        ),
        ("submit 2 b", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("w1 2/1 answers", "settle 2/1"),
        ("cancel 2", &format!("{cancelled}; w1 may forget 2/1")),
        ("settled 2/1", ""),
        ("w1 9/1 answers", "w1 may forget 9/1"),
        ("w1 1/2 answers", "settle 1/2"),
        (
            "unsettled 1/2",
            "1/2 failed on w1: output x is missing; 1 Queued; w1 starts 1/3; 1 Executing; w1 may forget 1/2",
        ),
        ("cancel 1", "1 ends 1: the client cancelled the operation; w1 kills 1/3"),
        ("w1 1/3 killed", "w1 may forget 1/3"),
    ]);
}

#[test]
fn the_answer_of_a_worker_that_is_away_counts_if_it_still_arrives() {
    play(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("away w1", ""),
        ("submit 2 b", "2 Queued"),
        ("w1 1/1 answers", "settle 1/1"),
        ("settled 1/1", "1 done"),
        ("wait 20", &format!("drop w1: {GONE}")),
    ]);
}

#[test]
fn a_lease_that_nobody_gave_is_killed_and_holds_a_slot_until_then() {
    play(&[
        ("join w1 2 holds=7/1", "w1 kills 7/1"),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued"),
        ("w1 7/1 killed", "w1 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn a_lease_of_unknown_size_may_take_all_that_its_worker_has() {
    play(&[
        ("join w1 2 cores=4 holds=7/1", "w1 kills 7/1"),
        ("submit 1 a cores=1", "1 Queued"),
        ("w1 7/1 killed", "w1 starts 1/1; 1 Executing"),
    ]);
}

#[test]
fn a_lease_that_was_not_given_takes_what_its_execution_demands() {
    play(&[
        ("submit 1 a cores=1", "1 Queued"),
        ("join w1 4 cores=4 holds=1/5", "w1 kills 1/5; w1 starts 1/6; 1 Executing"),
        ("submit 2 b cores=2", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("submit 3 c cores=1", "3 Queued"),
        ("w1 1/5 killed", "w1 starts 3/1; 3 Executing"),
    ]);
}
