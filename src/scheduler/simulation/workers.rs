//! Workers: each has one identity for its life, runs on while it is not connected, and says an answer until it is thanked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::actions::{action_number, response};
use super::links::{Link, Order};
use super::world::{Happening, World};
use crate::scheduler::core::inspect::ensure;
use crate::scheduler::event::Event;
use crate::scheduler::id::{Lease, Time, WorkerId};
use crate::scheduler::requirements::{Capacity, Requirements};
use crate::scheduler::task::{Availability, Offer, Outcome, Task};

/// The action that kills the worker that runs it, as long as there is chaos.
const POISON: u64 = 17;

pub(super) struct Worker {
    birth: Birth,
    running: BTreeMap<Lease, Job>,
    /// What it has said and was not thanked for.
    pub(super) answered: BTreeMap<Lease, Outcome>,
    /// Its connection, as far as it knows.
    pub(super) link: Option<Link>,
    /// When the last message on its way arrives.
    pub(super) up_at: Time,
    /// When the last command on its way arrives.
    pub(super) down_at: Time,
    /// Until then nothing passes in either direction.
    pub(super) cut_off_until: Time,
    /// It takes nothing new and leaves when it has nothing left.
    pub(super) is_leaving: bool,
}

/// What a worker process is started with; the next life of the same worker is started with the same.
#[derive(Clone)]
pub(super) struct Birth {
    name: Arc<str>,
    capacity: Arc<Capacity>,
}

struct Job {
    task: Arc<Task>,
    requirements: Requirements,
    since: Time,
    is_killed: bool,
    /// A kill has no effect before.
    deaf_until: Time,
}

impl Worker {
    /// What it runs, and what it has answered and was not thanked for.
    pub(super) fn leases(&self) -> Vec<Lease> {
        self.running.keys().chain(self.answered.keys()).copied().collect()
    }

    pub(super) fn offer(&self) -> (Arc<str>, Arc<Capacity>) {
        (Arc::clone(&self.birth.name), Arc::clone(&self.birth.capacity))
    }

    pub(super) fn is_done(&self) -> bool {
        self.running.is_empty() && self.answered.is_empty()
    }

    /// What it runs is at most what it offers.
    fn check_load(&self) -> Result<(), String> {
        let (name, capacity) = (&self.birth.name, &self.birth.capacity);
        let (running, slots) = (self.running.len(), capacity.slots);
        ensure!(running <= slots as usize, "{name} runs {running} actions in {slots} slots");
        for (property, offered) in &capacity.amounts {
            let amounts = self.running.values().filter_map(|job| job.requirements.amounts().get(property));
            let used: u64 = amounts.sum();
            ensure!(used <= *offered, "{name} gives {used} of {offered} {property}");
        }
        Ok(())
    }
}

impl World {
    pub(super) fn join_any(&mut self) {
        let sets: [&[&str]; 4] = [&["a"], &["b"], &["a", "b"], &[]];
        let instructions = self.random.pick(&sets).unwrap();
        let cores = self.random.below(5);
        self.join(instructions, cores);
    }

    /// Starts a worker that can run every action.
    pub(super) fn join_able(&mut self) {
        self.join(&["a", "b", "z"], 4);
    }

    fn join(&mut self, instructions: &[&str], cores: u64) {
        let list = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        let properties = BTreeMap::from([
            ("ISA".to_owned(), list(instructions)),
            ("cores".to_owned(), vec![cores.to_string()]),
            ("memory".to_owned(), vec!["8".to_owned()]),
        ]);
        let slots = 1 + u32::try_from(self.random.below(3)).unwrap();
        let name = format!("worker {}", self.fresh_id());
        let offer = Offer {
            worker: WorkerId::new(0),
            name: name.clone(),
            owner: "".into(),
            slots,
            properties,
            leases: Vec::new(),
        };
        let capacity = Arc::new(Capacity::resolve(&self.config, &offer).unwrap());
        self.begins(Birth { name: name.into(), capacity });
    }

    /// A worker process starts.
    pub(super) fn begins(&mut self, birth: Birth) {
        let id = WorkerId::new(self.fresh_id());
        let worker = Worker {
            birth,
            running: BTreeMap::new(),
            answered: BTreeMap::new(),
            link: None,
            up_at: self.now,
            down_at: self.now,
            cut_off_until: self.now,
            is_leaving: false,
        };
        self.workers.insert(id, worker);
        self.schedule(self.config.heartbeat_interval, Happening::Heartbeat { worker: id });
        self.connects(id);
    }

    /// A command arrives on a connection; it counts if that is the worker's connection yet.
    pub(super) fn told(&mut self, link: Link, lease: Lease, order: Order) -> Result<(), String> {
        let Some(worker) = self.workers.get_mut(&link.worker).filter(|worker| worker.link == Some(link))
        else {
            return Ok(());
        };
        match order {
            Order::Start(task) => return self.told_to_start(link, lease, task),
            Order::Kill => self.told_to_kill(link.worker, lease),
            Order::Acknowledge => {
                worker.answered.remove(&lease);
                self.leave_if_done(link.worker);
            }
        }
        Ok(())
    }

    fn told_to_start(&mut self, link: Link, lease: Lease, task: Arc<Task>) -> Result<(), String> {
        let id = link.worker;
        let requirements = Requirements::resolve(&self.config, &task.platform).unwrap();
        let worker = self.workers.get_mut(&id).expect("a worker that is told something lives");
        let is_new = !worker.running.contains_key(&lease) && !worker.answered.contains_key(&lease);
        ensure!(is_new, "{id:?} is told to start {lease:?}, which it has");
        let job = Job { task, requirements, since: self.now, is_killed: false, deaf_until: self.now };
        worker.running.insert(lease, job);
        worker.check_load()?;
        // Longer than timeout and slack together now and then: a worker that hangs.
        let hangs = self.is_chaos && self.plan.has_crashes && self.random.chance(4);
        let time = if hangs { Duration::from_secs(15) } else { self.random.millis(10, 1900) };
        self.schedule(time, Happening::Ends { worker: id, lease });
        self.send(link, Event::Progress { worker: id, lease, metadata: Box::default() });
        Ok(())
    }

    fn told_to_kill(&mut self, id: WorkerId, lease: Lease) {
        let worker = self.workers.get_mut(&id).expect("a worker that is told something lives");
        let Some(job) = worker.running.get_mut(&lease) else { return };
        job.is_killed = true;
        let is_deaf = self.is_chaos && self.random.chance(30);
        let time = if is_deaf { Duration::from_secs(9) } else { self.random.millis(1, 900) };
        if is_deaf {
            job.deaf_until = self.now + time;
        }
        self.schedule(time, Happening::Ends { worker: id, lease });
    }

    /// An action ends on a worker that is still there.
    pub(super) fn ends(&mut self, id: WorkerId, lease: Lease) -> Result<(), String> {
        let now = self.now;
        let Some(worker) = self.workers.get_mut(&id) else { return Ok(()) };
        let Some(job) = worker.running.get(&lease).filter(|job| job.deaf_until <= now) else { return Ok(()) };
        if self.is_chaos && self.plan.has_crashes && action_number(&job.task) == POISON {
            self.crash(id);
            return Ok(());
        }
        let outcome = match self.random.below(100) {
            0..10 if self.is_chaos && self.plan.has_crashes => Outcome::Fault("the disk is full".to_owned()),
            // A kill may come too late.
            _ if job.is_killed && !self.random.chance(20) => Outcome::Killed,
            _ => {
                Outcome::Response(Box::new(response(&job.task, now.since_start() - job.since.since_start())))
            }
        };
        worker.running.remove(&lease);
        worker.answered.insert(lease, outcome.clone());
        if let Some(link) = worker.link {
            let event = Event::Finished { worker: id, lease, outcome };
            if self.is_chaos && self.random.chance(8) {
                let delay = self.random.millis(1, 3000);
                self.schedule(delay, Happening::Says { link, event: event.clone() });
            }
            self.send(link, event);
        }
        self.leave_if_done(id);
        Ok(())
    }

    pub(super) fn heartbeat(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        if let Some(link) = worker.link {
            self.send(link, Event::Heartbeat { worker: id });
        }
        self.schedule(self.config.heartbeat_interval, Happening::Heartbeat { worker: id });
    }

    /// A worker takes nothing new from here on, and leaves once all that it had is answered and safe.
    pub(super) fn drain(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.is_leaving = true;
        if let Some(link) = worker.link {
            self.send_mark(link);
        }
        self.leave_if_done(id);
    }

    pub(super) fn send_mark(&mut self, link: Link) {
        let availability = Availability::Draining { reason: "it was told to stop".to_owned() };
        self.send(link, Event::Mark { worker: link.worker, availability, by_operator: false });
    }

    pub(super) fn leave_if_done(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id).filter(|worker| worker.is_leaving && worker.is_done())
        else {
            return;
        };
        let Some(link) = worker.link else { return };
        self.send(link, Event::WorkerLeft { worker: id });
        let at = self.workers[&id].up_at;
        self.schedule_at(at, Happening::Breaks { link });
        self.workers.remove(&id);
        self.books.see("goodbye");
    }

    /// A worker is gone at once, and with it what it ran and what it had to say. The scheduler sees the connection close, or only
    /// silence. Often the next life of the worker begins soon.
    pub(super) fn crash(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.remove(&id) else { return };
        self.tell(|| format!("{id:?} crashes"));
        if let Some(link) = worker.link {
            self.breaks_soon(link);
        }
        if self.random.chance(40) {
            let delay = self.random.millis(50, 5000);
            self.schedule(delay, Happening::Starts(worker.birth));
        }
    }
}
