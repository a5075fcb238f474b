//! Random histories: whatever happens, the core is sound, the journal holds what it must, and every state that the journal is in on the
//! way is one to start from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::script::{Stage, lease, patient, restored};
use crate::scheduler::core::*;
use crate::scheduler::execution::State;
use crate::scheduler::record::{Record, RecordKey};

/// How many histories, and how many events each.
const HISTORIES: u64 = 60;
const EVENTS: usize = 150;

/// A small generator of numbers, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[usize::try_from(self.roll(words.len() as u64)).unwrap()]
    }
}

/// The next line of a history: what could happen to a farm with a few workers, actions and clients.
fn line(dice: &mut Dice, number: usize) -> String {
    let worker = dice.pick(&["w1", "w2", "w3", "w4"]);
    let operation = 1 + dice.roll(1 + number as u64);
    let held = format!("{operation}/{}", 1 + dice.roll(3));
    match dice.roll(20) {
        0..=4 => {
            let action = dice.pick(&["a", "b", "c", "d uncached", "f ISA=x", "g cores=1", "h cores=4"]);
            let invocation = dice.pick(&["", "invocation=x", "invocation=y"]);
            format!("submit {} {action} priority={} {invocation}", number + 1, dice.roll(3))
        }
        5..=6 => {
            let held = if dice.roll(2) == 0 { format!("holds={held}") } else { String::new() };
            let name = dice.pick(&["name=m", "name=n", "name=o"]);
            let offered = dice.pick(&["", "ISA=x", "cores=4", "cores=4 ISA=x", "cores=2 memory=200000000"]);
            format!("join {worker} {} {name} {offered} {held}", 1 + dice.roll(3))
        }
        7 => format!("{} {worker}", dice.pick(&["away", "away", "leaves", "heartbeat"])),
        8 => format!("{} {worker}", dice.pick(&["cordon", "drain", "open"])),
        9..=10 => format!("{} {operation}", dice.pick(&["watch", "leave", "cancel", "delete"])),
        11 => format!("wait {}", dice.pick(&["1", "5", "12", "40", "700"])),
        12 => dice.pick(&["restart", "wait 0", "wait 0"]).to_owned(),
        13 => format!("{worker} {held} {}", dice.pick(&["answers", "faults", "killed", "progress"])),
        _ => "answer".to_owned(),
    }
}

/// Something that runs is answered, or something that is settled is told to be.
fn answer(core: &Core, dice: &mut Dice) -> String {
    let states: Vec<State> =
        core.executions.iter().flat_map(|(_, execution)| execution.states().collect::<Vec<_>>()).collect();
    let leases: Vec<_> = states.into_iter().filter_map(|state| Some((state, state.lease()?))).collect();
    if leases.is_empty() {
        return "wait 1".to_owned();
    }
    let (state, (lease, worker)) = leases[usize::try_from(dice.roll(leases.len() as u64)).unwrap()];
    let said = format!("{}/{}", lease.execution.number(), lease.attempt);
    match state {
        State::Settling { .. } => {
            let took = dice.pick(&["took=1 cores=1", "took=2 cores=3 memory=150", "took=9", ""]);
            format!("{} {said} {took}", dice.pick(&["settled", "settled", "unsettled"]))
        }
        State::Queued | State::Running { .. } => {
            format!("w{} {said} {}", worker.number(), dice.pick(&["answers", "answers", "faults", "killed"]))
        }
    }
}

fn config() -> Config {
    Config {
        operations_max: 40,
        finished_max: 10,
        health_probation: Duration::from_secs(30),
        heartbeat_timeout: Duration::from_secs(30),
        ..patient()
    }
}

#[test]
fn every_prefix_of_the_records_of_a_random_history_is_a_state_to_start_from() {
    for seed in 0..HISTORIES {
        let (mut dice, mut stage) = (Dice(seed), Stage::new(config()));
        let mut story = Vec::new();
        for number in 0..EVENTS {
            let mut next = line(&mut dice, number);
            if next == "answer" {
                next = answer(&stage.core, &mut dice);
            }
            story.push(next.clone());
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stage.play(&next)));
            assert!(told.is_ok(), "history {seed}: {}", story.join("\n"));
        }
    }
}

/// Records that never were in one journal together.
#[test]
fn records_that_do_not_fit_together_are_dropped() {
    let config = Arc::new(patient());
    let mut stage = Stage::new(patient());
    for line in ["join w1 2", "submit 1 a", "submit 2 b", "submit 3 c"] {
        stage.play(line);
    }
    let whole: Vec<(RecordKey, Record)> = stage.journal.clone().into_iter().collect();
    for chosen in 0..1u32 << whole.len() {
        let is_chosen = |(place, _): &(usize, _)| chosen & (1 << place) != 0;
        let some = whole.iter().cloned().enumerate().filter(is_chosen).map(|(_, record)| record);
        restored(&config, Time::START, &some.collect::<BTreeMap<_, _>>());
    }
    let mut three = stage.journal.clone();
    for (lease, worker, name) in [(lease("1/0"), 7, "w7"), (lease("1/2"), 8, "w8")] {
        let record =
            Record::Leased { lease, worker: WorkerId::new(worker), name: name.into(), owner: "".into() };
        three.insert(record.key(), record);
    }
    let kept = restored(&config, Time::START, &three).record_keys();
    let is_kept = ["1/0", "1/1", "1/2"].map(|text| kept.contains(&RecordKey::Lease(lease(text))));
    assert_eq!(is_kept, [false, true, true], "two leases of an execution run");
}
