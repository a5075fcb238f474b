//! Inputs that are made ready before their action starts.

use super::script::{Stage, patient, play_warming};

#[test]
fn a_busy_worker_makes_ready_what_comes_next() {
    play_warming(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 warms 2"),
        ("submit 3 c", "3 Queued"),
        ("submit 4 d", "4 Queued"),
        ("w1 1/1 answers", "settle 1/1; w1 starts 2/1; 2 Executing; w1 warms 3"),
        ("w1 2/1 answers", "settle 2/1; w1 starts 3/1; 3 Executing; w1 warms 4"),
        ("w1 3/1 answers", "settle 3/1; w1 starts 4/1; 4 Executing"),
    ]);
}

#[test]
fn nothing_is_made_ready_for_what_starts_at_once_and_nothing_twice() {
    play_warming(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 warms 2"),
        ("submit 3 b", "3 Queued"),
        ("join w2 1", "w2 starts 2/1; 2 Executing; 3 Executing"),
        (
            "w2 2/1 faults",
            "2/1 failed on w2: the disk is full; 2 Queued; 3 Queued; w2 starts 2/2; 2 Executing; 3 Executing",
        ),
    ]);
}

#[test]
fn a_worker_with_many_slots_makes_four_ready_at_most() {
    let mut lines = vec!["join w1 6".to_owned()];
    lines.extend((1..=6).map(|number| format!("submit {number} a{number}")));
    let mut stage = Stage::warming(patient());
    lines.iter().for_each(|line| drop(stage.play(line)));
    let said: Vec<_> =
        (7..=12).flat_map(|number| stage.play(&format!("submit {number} a{number}"))).collect();
    let warmed: Vec<_> = said.iter().filter(|one| one.contains("warms")).collect();
    assert_eq!(warmed, ["w1 warms 7", "w1 warms 8", "w1 warms 9", "w1 warms 10"]);
}

#[test]
fn what_is_ready_on_a_worker_rather_starts_there() {
    play_warming(&[
        ("join w1 1", ""),
        ("join w2 1", ""),
        ("submit 1 a", "1 Queued; w2 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("submit 3 c", "3 Queued; w1 warms 3"),
        ("submit 4 d", "4 Queued; w2 warms 4"),
        ("w2 1/1 answers", "settle 1/1; w2 starts 4/1; 4 Executing"),
        ("w1 2/1 answers", "settle 2/1; w1 starts 3/1; 3 Executing"),
    ]);
}

#[test]
fn a_worker_without_anything_ready_takes_what_is_ready_elsewhere() {
    play_warming(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 warms 2"),
        ("join w2 1", "w2 starts 2/1; 2 Executing"),
        ("submit 3 c", "3 Queued; w2 warms 3"),
    ]);
}

#[test]
fn what_is_ready_on_a_worker_that_is_busy_for_long_is_passed_over_eight_times_and_no_more() {
    let mut stage = Stage::warming(patient());
    for line in ["join w1 1", "join w2 1", "submit 1 a", "submit 2 b"] {
        stage.play(line);
    }
    assert!(stage.play("submit 3 c").contains(&"w1 warms 3".to_owned()));
    (4..=20).for_each(|number| drop(stage.play(&format!("submit {number} a{number}"))));
    let mut started = vec![1];
    while !started.contains(&3) && started.len() < 20 {
        let last = started[started.len() - 1];
        let said = stage.play(&format!("w2 {last}/1 answers"));
        let start = said.iter().find_map(|one| one.strip_prefix("w2 starts ")?.strip_suffix("/1"));
        started.push(start.unwrap().parse().unwrap());
    }
    assert_eq!(started, [1, 4, 5, 6, 7, 8, 9, 10, 11, 3]);
}

#[test]
fn one_invocation_does_not_pass_another_for_what_is_ready() {
    play_warming(&[
        ("join w1 1", ""),
        ("join w2 1", ""),
        ("submit 1 a", "1 Queued; w2 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("submit 3 c invocation=x", "3 Queued; w1 warms 3"),
        ("submit 4 d invocation=y", "4 Queued; w2 warms 4"),
        ("w2 1/1 answers", "settle 1/1; w2 starts 3/1; 3 Executing"),
    ]);
}

#[test]
fn the_worker_that_had_the_trees_makes_the_next_ones_ready() {
    play_warming(&[
        ("join w1 1", ""),
        ("join w2 1", ""),
        ("submit 1 a trees=5", "1 Queued; w2 starts 1/1; 1 Executing"),
        ("submit 2 b trees=6", "2 Queued; w1 starts 2/1; 2 Executing"),
        ("submit 3 c trees=5", "3 Queued; w2 warms 3"),
        ("submit 4 d trees=5", "4 Queued; w1 warms 4"),
    ]);
}

#[test]
fn only_a_worker_that_takes_work_and_could_run_it_makes_it_ready() {
    play_warming(&[
        ("join w1 1 ISA=x", ""),
        ("join w2 1 ISA=y", ""),
        ("join w3 1 ISA=y", ""),
        ("submit 1 a ISA=x", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b ISA=y", "2 Queued; w3 starts 2/1; 2 Executing"),
        ("submit 3 c ISA=y", "3 Queued; w2 starts 3/1; 3 Executing"),
        ("away w1", ""),
        ("submit 4 d ISA=x", "4 Queued"),
        ("submit 5 e ISA=y not=w2", "5 Queued; w3 warms 5"),
        ("cordon w2", ""),
        ("submit 6 f ISA=y", "6 Queued"),
    ]);
}

#[test]
fn what_is_cancelled_makes_room_and_what_a_lost_worker_had_ready_waits_as_before() {
    let cancelled = "2 ends 1: the client cancelled the operation";
    play_warming(&[
        ("join w1 1", ""),
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued; w1 warms 2"),
        ("cancel 2", cancelled),
        ("submit 3 c", "3 Queued; w1 warms 3"),
        ("leaves w1", "1/1 failed on w1: the worker left before the action had ended; 1 Queued"),
        ("join w2 1", "w2 starts 1/2; 1 Executing"),
        ("w2 1/2 answers", "settle 1/2; w2 starts 3/1; 3 Executing"),
    ]);
}
