//! What is to run on another worker than the one that ran it before.

use super::script::play;

#[test]
fn it_waits_for_another_worker_although_the_avoided_one_is_idle() {
    play(&[
        ("join w1 1", ""),
        ("join w2 1", ""),
        ("submit 1 a", "1 Queued; w2 starts 1/1; 1 Executing"),
        ("submit 2 b not=w1", "2 Queued"),
        ("submit 3 c", "3 Queued; w1 starts 3/1; 3 Executing"),
        ("w1 3/1 answers", "settle 3/1"),
        ("w2 1/1 answers", "settle 1/1; w2 starts 2/1; 2 Executing"),
    ]);
}

#[test]
fn it_runs_on_the_same_worker_where_no_other_could_run_it() {
    play(&[
        ("join w1 1 ISA=a", ""),
        ("join w2 1 ISA=b", ""),
        ("submit 1 a ISA=a not=w1", "1 Queued; w1 starts 1/1; 1 Executing"),
    ]);
}

#[test]
fn a_worker_that_is_taken_out_is_no_other_worker() {
    play(&[
        ("join w1 1", ""),
        ("join w2 1", ""),
        ("cordon w2", ""),
        ("submit 1 a not=w1", "1 Queued; w1 starts 1/1; 1 Executing"),
    ]);
}

#[test]
fn its_attempts_all_keep_away_from_the_avoided_worker() {
    play(&[
        ("join w1 1", ""),
        ("join w2 1", ""),
        ("submit 1 a not=w1", "1 Queued; w2 starts 1/1; 1 Executing"),
        ("w2 1/1 faults", "1/1 failed on w2: the disk is full; 1 Queued; w2 starts 1/2; 1 Executing"),
    ]);
}
