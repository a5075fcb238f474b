//! Workers that join, work, fail, hang, crash, vanish for a while, answer twice and answer late.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::world::{Happening, Order, World, action_number, response};
use crate::scheduler::event::Event;
use crate::scheduler::id::{ExecutionId, Lease, Time, WorkerId};
use crate::scheduler::requirements::Capacity;
use crate::scheduler::task::{Offer, Outcome, Task};

const WORKERS_MAX: usize = 5;

/// The action that kills the worker that runs it, as long as there is chaos.
const POISON: u64 = 17;

pub(super) struct Worker {
    running: BTreeMap<Lease, Job>,
    /// Until then nothing that it says arrives.
    cut_off_until: Time,
}

struct Job {
    task: Arc<Task>,
    is_killed: bool,
    /// A kill has no effect before.
    deaf_until: Time,
}

impl World {
    /// Something happens to a worker, and the next thing is due.
    pub(super) fn trouble(&mut self) -> Result<(), String> {
        if !self.is_chaos {
            return Ok(());
        }
        let delay = self.random.millis(100, 2500);
        self.schedule(delay, Happening::Trouble);
        match self.random.below(10) {
            0 | 1 => self.crash_any(),
            2 | 3 => self.cut_off_any(),
            4 => return self.stray_answer(),
            _ if self.workers.len() < WORKERS_MAX => return self.join_any(),
            _ => {}
        }
        Ok(())
    }

    fn join_any(&mut self) -> Result<(), String> {
        let sets: [&[&str]; 4] = [&["a"], &["b"], &["a", "b"], &[]];
        let instructions = self.random.pick(&sets).unwrap();
        let cores = self.random.below(5);
        self.join(instructions, cores)
    }

    /// Connects a worker that can run every action.
    pub(super) fn join_able(&mut self) -> Result<(), String> {
        self.join(&["a", "b", "z"], 4)
    }

    fn join(&mut self, instructions: &[&str], cores: u64) -> Result<(), String> {
        let id = WorkerId::new(self.fresh_id());
        let list = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        let properties = BTreeMap::from([
            ("ISA".to_owned(), list(instructions)),
            ("cores".to_owned(), vec![cores.to_string()]),
            ("memory".to_owned(), vec!["8".to_owned()]),
        ]);
        let slots = 1 + u32::try_from(self.random.below(3)).unwrap();
        let name = format!("worker {id}");
        let offer = Offer { worker: id, name, slots, properties, leases: Vec::new() };
        let capacity = Arc::new(Capacity::resolve(&self.config, &offer).unwrap());
        self.workers.insert(id, Worker { running: BTreeMap::new(), cut_off_until: self.now });
        self.schedule(self.config.heartbeat_interval, Happening::Heartbeat { worker: id });
        self.feed(Event::WorkerJoined { worker: id, name: offer.name.into(), capacity, leases: Vec::new() })
    }

    pub(super) fn told(&mut self, id: WorkerId, lease: Lease, order: Order) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match order {
            Order::Start(task) => {
                let job = Job { task, is_killed: false, deaf_until: self.now };
                worker.running.insert(lease, job);
                // Longer than timeout and slack together now and then: a worker that hangs.
                let hangs = self.is_chaos && self.random.chance(4);
                let time = if hangs { Duration::from_secs(15) } else { self.random.millis(10, 1900) };
                self.schedule(time, Happening::Ends { worker: id, lease });
                self.tell_progress(id, lease);
            }
            Order::Kill => {
                let Some(job) = worker.running.get_mut(&lease) else { return };
                job.is_killed = true;
                let is_deaf = self.is_chaos && self.random.chance(40);
                let time = if is_deaf { Duration::from_secs(9) } else { self.random.millis(1, 900) };
                if is_deaf {
                    job.deaf_until = self.now + time;
                }
                self.schedule(time, Happening::Ends { worker: id, lease });
            }
        }
    }

    fn tell_progress(&mut self, worker: WorkerId, lease: Lease) {
        let event = Event::Progress { worker, lease, metadata: Box::default() };
        self.say(worker, event);
    }

    /// An action ends on a worker that is still there.
    pub(super) fn ends(&mut self, id: WorkerId, lease: Lease) {
        let Some(job) = self.workers.get_mut(&id).and_then(|worker| worker.running.remove(&lease)) else {
            return;
        };
        if self.is_chaos && action_number(&job.task) == POISON {
            return self.crash(id);
        }
        let outcome = match self.random.below(100) {
            0..10 if self.is_chaos => Outcome::Fault("the disk is full".to_owned()),
            // A kill may come too late.
            _ if job.is_killed && !self.random.chance(20) => Outcome::Killed,
            _ => Outcome::Response(Box::new(response(&job.task))),
        };
        let event = Event::Finished { worker: id, lease, outcome };
        if self.is_chaos && self.random.chance(8) {
            let delay = self.random.millis(1, 3000);
            self.schedule(delay, Happening::Arrives(event.clone()));
        }
        self.say(id, event);
    }

    pub(super) fn heartbeat(&mut self, worker: WorkerId) {
        if self.workers.contains_key(&worker) {
            self.say(worker, Event::Heartbeat { worker });
            self.schedule(self.config.heartbeat_interval, Happening::Heartbeat { worker });
        }
    }

    /// Sends a message to the scheduler; it arrives late if the worker is cut off.
    fn say(&mut self, id: WorkerId, event: Event) {
        let cut_off_until = self.workers[&id].cut_off_until.since_start();
        let wait = cut_off_until.saturating_sub(self.now.since_start());
        let delay = wait + self.random.millis(1, 60);
        self.schedule(delay, Happening::Arrives(event));
    }

    /// The scheduler has given the worker up. It learns that, stops what it runs, and what it has said may still arrive.
    pub(super) fn dropped(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
    }

    fn crash_any(&mut self) {
        let ids: Vec<_> = self.workers.keys().copied().collect();
        if let Some(id) = self.random.pick(&ids) {
            self.crash(id);
        }
    }

    /// A worker is gone at once. The scheduler sees the connection close, or only silence.
    fn crash(&mut self, id: WorkerId) {
        self.workers.remove(&id);
        if self.random.chance(70) {
            let delay = self.random.millis(1, 200);
            self.schedule(delay, Happening::Arrives(Event::WorkerAway { worker: id }));
        }
    }

    fn cut_off_any(&mut self) {
        let ids: Vec<_> = self.workers.keys().copied().collect();
        if let Some(id) = self.random.pick(&ids) {
            let time = self.random.millis(200, 7000);
            self.workers.get_mut(&id).unwrap().cut_off_until = self.now + time;
        }
    }

    /// An answer to a lease that the worker may never have had.
    fn stray_answer(&mut self) -> Result<(), String> {
        let ids: Vec<_> = self.workers.keys().copied().collect();
        let Some(worker) = self.random.pick(&ids) else { return Ok(()) };
        let known = u64::try_from(self.fresh_id()).unwrap();
        let execution = ExecutionId::new(u128::from(self.random.below(known)));
        let lease = Lease { execution, attempt: 1 + u32::try_from(self.random.below(2)).unwrap() };
        if self.workers[&worker].running.contains_key(&lease) {
            return Ok(());
        }
        self.feed(Event::Finished { worker, lease, outcome: Outcome::Killed })
    }
}
