//! Who gets what share, and how long anybody may have to wait.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use proptest::prelude::*;

use super::patient;
use crate::scheduler::core::*;
use crate::scheduler::event::Submission;
use crate::scheduler::queue::OLDEST_EVERY;
use crate::scheduler::requirements::{Capacity, Requirements};
use crate::scheduler::task::{Offer, Outcome, Platform, Task};

/// A core whose workers answer one after the other, the longest running first.
struct Farm {
    core: Core,
    running: VecDeque<(WorkerId, Lease)>,
    /// All that has started.
    started: Vec<u128>,
    submitted: u128,
}

impl Farm {
    fn new() -> Self {
        let core = Core::new(Arc::new(patient()));
        Self { core, running: VecDeque::new(), started: Vec::new(), submitted: 0 }
    }

    fn join(&mut self, number: u128, slots: u32, cores: u64) {
        let worker = WorkerId::new(number);
        let properties = [("cores".to_owned(), vec![cores.to_string()])].into();
        let offer =
            Offer { worker, name: String::new(), owner: "".into(), slots, properties, leases: Vec::new() };
        let capacity = Arc::new(Capacity::resolve(&patient(), &offer).unwrap());
        self.feed(Event::WorkerJoined {
            worker,
            name: "w".into(),
            owner: "".into(),
            capacity,
            leases: Vec::new(),
        });
    }

    fn submit(&mut self, invocation: &str, priority: i32, cores: u64) -> u128 {
        self.submitted += 1;
        let task = Task {
            platform: Arc::new(Platform::new([("cores".to_owned(), cores.to_string())])),
            priority,
            invocation: invocation.into(),
            ..Task::example(&self.submitted.to_string())
        };
        self.feed(Event::Submit(Box::new(Submission {
            operation: OperationId::new(self.submitted),
            execution: ExecutionId::new(self.submitted),
            requirements: Arc::new(Requirements::resolve(&patient(), &task.platform).unwrap()),
            task: Arc::new(task),
            at: SystemTime::UNIX_EPOCH,
        })));
        self.submitted
    }

    fn finish_one(&mut self) {
        let (worker, lease) = self.running.pop_front().unwrap();
        self.feed(Event::Finished { worker, lease, outcome: Outcome::Response(Box::default()) });
        self.feed(Event::Settled { lease, result: Ok(Box::default()) });
    }

    /// Finishes one after the other until all of `wanted` have started. Returns how many have started in the meantime.
    fn starts_until(&mut self, wanted: &[u128], most: usize) -> usize {
        let before = self.started.len();
        let mut missing: BTreeSet<u128> = wanted.iter().copied().collect();
        missing.retain(|id| !self.started.contains(id));
        let mut seen = before;
        while !missing.is_empty() {
            assert!(self.started.len() - before <= most, "{missing:?} have not started after {most} starts");
            self.finish_one();
            for id in &self.started[seen..] {
                missing.remove(id);
            }
            seen = self.started.len();
        }
        self.started.len() - before
    }

    fn feed(&mut self, event: Event) {
        for effect in self.core.handle(Time::START, event) {
            if let Effect::Start { worker, lease, .. } = effect {
                self.running.push_back((worker, lease));
                self.started.push(lease.execution.number());
            }
        }
    }
}

#[test]
fn ten_actions_beside_ten_thousand_start_with_the_next_round() {
    let mut farm = Farm::new();
    farm.join(1, 4, 4);
    for _ in 0..10_000 {
        farm.submit("large", 0, 0);
    }
    (0..100).for_each(|_| farm.finish_one());
    let small: Vec<_> = (0..10).map(|_| farm.submit("small", 0, 0)).collect();
    // What is left of the large one's round, the ten, and one start by age among fifteen others.
    farm.starts_until(&small, 16 + 10 + 2);
    farm.core.check().unwrap();
}

#[test]
fn invocations_share_whatever_lines_their_actions_are_in() {
    let mut farm = Farm::new();
    farm.join(1, 1, 8);
    // One has its actions in eight lines, the other in one.
    let many: Vec<_> = (0..800).map(|number| farm.submit("many", 0, number % 8)).collect();
    let one: Vec<_> = (0..800).map(|_| farm.submit("one", 0, 8)).collect();
    (0..639).for_each(|_| farm.finish_one());
    let share = |of: &[u128]| farm.started.iter().filter(|id| of.contains(id)).count();
    let (many, one) = (share(&many), share(&one));
    assert_eq!(many + one, 640);
    assert!(many.abs_diff(one) <= 2 * 16 + 640 / 16, "{many} and {one}");
}

#[test]
fn those_without_an_invocation_count_as_one() {
    let mut farm = Farm::new();
    farm.join(1, 1, 1);
    let nameless: Vec<_> = (0..500).map(|_| farm.submit("", 0, 0)).collect();
    let named: Vec<_> = (0..40).map(|_| farm.submit("named", 0, 0)).collect();
    assert!(farm.starts_until(&named, 110) >= 80, "{nameless:?}");
}

#[test]
fn what_is_least_urgent_starts_within_sixteen_starts_for_each_that_is_older() {
    let mut farm = Farm::new();
    farm.join(1, 1, 1);
    let older: Vec<_> = (0..5).map(|_| farm.submit("x", 3, 0)).collect();
    let last = farm.submit("x", 9, 0);
    let mut starts = 0;
    while !farm.started.contains(&last) {
        // As many urgent ones as anybody may want.
        farm.submit("y", 0, 0);
        farm.submit("y", 0, 0);
        farm.finish_one();
        starts += 1;
        assert!(starts <= OLDEST_EVERY as usize * (older.len() + 1), "not after {starts} starts");
    }
    assert!(starts > 16);
}

#[test]
fn a_large_demand_is_kept_a_worker_beside_a_stream_of_small_ones() {
    let mut farm = Farm::new();
    (1..=3).for_each(|number| farm.join(number, 8, 8));
    (0..24).for_each(|_| {
        farm.submit("small", 0, 1);
    });
    let large = farm.submit("large", 0, 8);
    let mut starts = 0;
    while !farm.started.contains(&large) {
        farm.submit("small", 0, 1);
        farm.finish_one();
        farm.core.check().unwrap();
        starts += 1;
        // A turn by age, and then what runs on one worker must end.
        assert!(starts <= 16 + 3 * 8 + 8, "not after {starts} starts");
    }
    assert_eq!(farm.core.reserved().count(), 0);
    farm.starts_until(&[farm.submitted], 64);
}

#[test]
fn a_worker_is_let_go_when_what_it_was_kept_for_is_gone() {
    let mut farm = Farm::new();
    farm.join(1, 8, 8);
    (0..8).for_each(|_| {
        farm.submit("small", 0, 1);
    });
    let large = farm.submit("large", 9, 8);
    (0..60).for_each(|_| {
        farm.submit("small", 0, 1);
    });
    let next = farm.submitted;
    while farm.core.reserved().next().is_none() {
        farm.finish_one();
    }
    farm.finish_one();
    assert!(farm.running.len() < 8);
    farm.feed(Event::Cancel { operation: OperationId::new(large) });
    assert_eq!(farm.running.len(), 8);
    farm.core.check().unwrap();
    farm.starts_until(&[next], 64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes later, an execution starts among the first 16 · (older + 1) starts.
    #[test]
    fn nobody_waits_for_ever(
        older in proptest::collection::vec((-3..9, 0..3_u8), 0..12),
        later in proptest::collection::vec((-3..9, 0..3_u8), 1..8),
        priority in 0..9,
    ) {
        let mut farm = Farm::new();
        farm.join(1, 1, 1);
        farm.submit("first", 0, 0);
        for (priority, invocation) in &older {
            farm.submit(&invocation.to_string(), *priority, 0);
        }
        let patient = farm.submit("patient", priority, 1);
        let mut later = later.iter().cycle();
        let mut starts = 0;
        while !farm.started.contains(&patient) {
            for (priority, invocation) in later.by_ref().take(2) {
                farm.submit(&invocation.to_string(), *priority, 0);
            }
            farm.finish_one();
            starts += 1;
            prop_assert!(starts <= OLDEST_EVERY as usize * (older.len() + 1));
        }
    }
}
