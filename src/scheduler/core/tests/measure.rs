//! How many actions a second go through the core: submit, start, finish, settle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::digest::{Digest, Function};

use super::patient;
use crate::scheduler::core::*;
use crate::scheduler::event::Submission;
use crate::scheduler::requirements::{Capacity, Requirements};
use crate::scheduler::task::{Offer, Outcome, Platform, Task};

struct Bench {
    core: Core,
    running: VecDeque<(WorkerId, Lease)>,
    submitted: u128,
}

impl Bench {
    fn new(workers: u128, slots: u32) -> Self {
        let mut bench = Self { core: Core::new(Arc::new(patient())), running: VecDeque::new(), submitted: 0 };
        for number in 0..workers {
            let worker = WorkerId::new(number);
            let offer = Offer {
                worker,
                name: String::new(),
                slots,
                properties: Default::default(),
                leases: Vec::new(),
            };
            let capacity = Arc::new(Capacity::resolve(&patient(), &offer).unwrap());
            bench.feed(Event::WorkerJoined { worker, name: "".into(), capacity, leases: Vec::new() });
        }
        bench
    }

    fn submit(&mut self) {
        self.submitted += 1;
        let mut hash = [0; 32];
        hash[..16].copy_from_slice(&self.submitted.to_be_bytes());
        let task = Task {
            instance: "main".into(),
            action_digest: Digest::new(Function::Sha256, &hash, 1),
            command: Digest::new(Function::Sha256, &hash, 2),
            input_root: Digest::new(Function::Sha256, &hash, 3),
            do_not_cache: false,
            timeout: Duration::from_secs(60),
            platform: Arc::new(Platform::default()),
            priority: 0,
            invocation: "".into(),
            identity: "".into(),
            neighbours: Box::default(),
        };
        self.feed(Event::Submit(Box::new(Submission {
            operation: OperationId::new(self.submitted),
            execution: ExecutionId::new(self.submitted),
            task: Arc::new(task),
            requirements: Arc::new(Requirements::default()),
            at: SystemTime::UNIX_EPOCH,
        })));
    }

    fn finish_one(&mut self) {
        let (worker, lease) = self.running.pop_front().expect("something always runs");
        let outcome = Outcome::Response(Box::default());
        self.feed(Event::Finished { worker, lease, outcome });
        self.feed(Event::Settled { lease, result: Ok(Box::default()) });
    }

    fn feed(&mut self, event: Event) {
        for effect in self.core.handle(Time::START, event) {
            if let Effect::Start { worker, lease, .. } = effect {
                self.running.push_back((worker, lease));
            }
        }
    }
}

#[test]
#[ignore = "a measurement: run it with --release --ignored --nocapture"]
fn measure_cycles_per_second() {
    const CYCLES: u32 = 100_000;
    for (queued, workers, slots) in [(0, 100, 8), (100_000, 100, 8), (900_000, 100, 8), (0, 10_000, 8)] {
        let mut bench = Bench::new(workers, slots);
        (0..queued).for_each(|_| bench.submit());
        let start = Instant::now();
        for _ in 0..CYCLES {
            bench.submit();
            bench.finish_one();
        }
        let rate = f64::from(CYCLES) / start.elapsed().as_secs_f64();
        println!("{workers} workers with {slots} slots, {queued} queued: {rate:.0} cycles/s");
    }
}
