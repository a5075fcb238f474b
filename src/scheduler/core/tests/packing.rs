//! Workers are filled by what runs of a kind have used before.

use super::script::{Line, play};

/// A worker of 8 GiB with two slots. Actions `a` and `b` used 6 GiB there, `c` 20 GiB.
const PAST: [Line<'_>; 10] = [
    ("join w1 2 memory=8589934592", ""),
    ("submit 91 a", "91 Queued; w1 starts 91/1; 91 Executing"),
    ("w1 91/1 answers", "settle 91/1"),
    ("settled 91/1 took=1 memory=6144", "91 done"),
    ("submit 92 b", "92 Queued; w1 starts 92/1; 92 Executing"),
    ("w1 92/1 answers", "settle 92/1"),
    ("settled 92/1 took=1 memory=6144", "92 done"),
    ("submit 93 c", "93 Queued; w1 starts 93/1; 93 Executing"),
    ("w1 93/1 answers", "settle 93/1"),
    ("settled 93/1 took=1 memory=20480", "93 done"),
];

#[test]
fn what_does_not_fit_together_runs_one_after_the_other() {
    let lines: [Line<'_>; 4] = [
        ("submit 1 a", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 b", "2 Queued"),
        ("submit 3 d", "3 Queued; w1 starts 3/1; 3 Executing"),
        ("w1 1/1 answers", "settle 1/1; w1 starts 2/1; 2 Executing"),
    ];
    play(&[&PAST[..], &lines].concat());
}

#[test]
fn what_is_too_large_for_every_worker_runs_alone() {
    let lines: [Line<'_>; 3] = [
        ("submit 1 c", "1 Queued; w1 starts 1/1; 1 Executing"),
        ("submit 2 a", "2 Queued"),
        ("w1 1/1 answers", "settle 1/1; w1 starts 2/1; 2 Executing"),
    ];
    play(&[&PAST[..], &lines].concat());
}
