//! The connections between workers and the scheduler: in order each, but not one with another, and each end learns in its own
//! time that one is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::world::{Happening, World};
use crate::scheduler::event::Event;
use crate::scheduler::id::{Lease, Time, WorkerId};
use crate::scheduler::task::Task;

/// One connection of a worker to one life of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) worker: WorkerId,
    number: u64,
    pub(super) life: u32,
}

/// What the scheduler tells a worker.
pub(super) enum Order {
    Start(Arc<Task>),
    Kill,
    Acknowledge,
}

#[derive(Default)]
pub(super) struct Links {
    /// What the driver takes for the connection of each worker.
    current: BTreeMap<WorkerId, Link>,
    /// Connections on which nothing arrives any more.
    dead: BTreeSet<Link>,
    made: u64,
}

impl World {
    /// A worker without a connection makes one, unless it is cut off.
    pub(super) fn connects(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.link.is_none()) else { return };
        if worker.cut_off_until > self.now {
            let at = worker.cut_off_until + Duration::from_millis(1 + self.random.below(50));
            return self.schedule_at(at, Happening::Connects { worker: id });
        }
        self.links.made += 1;
        let link = Link { worker: id, number: self.links.made, life: self.life };
        worker.link = Some(link);
        worker.up_at = self.now;
        worker.down_at = self.now;
        let leases = worker.leases();
        let answered = worker.answered.clone();
        let is_leaving = worker.is_leaving;
        let at = self.upward(link);
        self.schedule_at(at, Happening::Hello { link, leases });
        if is_leaving {
            self.send_mark(link);
        }
        for (lease, outcome) in answered {
            self.send(link, Event::Finished { worker: id, lease, outcome });
            self.books.see("answer said again");
        }
        self.leave_if_done(id);
    }

    pub(super) fn hello(&mut self, link: Link, leases: Vec<Lease>) -> Result<(), String> {
        let Some((name, capacity)) = self.workers.get(&link.worker).map(|worker| worker.offer()) else {
            // It crashed meanwhile; its connection is open for the scheduler all the same.
            return Ok(());
        };
        if self.links.dead.contains(&link) {
            return Ok(());
        }
        if let Some(old) = self.links.current.insert(link.worker, link) {
            self.schedule(Duration::from_millis(5), Happening::Closes { link: old });
        }
        self.feed(Event::WorkerJoined { worker: link.worker, name, owner: "".into(), capacity, leases })
    }

    pub(super) fn hear(&mut self, link: Link, event: Event) -> Result<(), String> {
        if self.links.dead.contains(&link) {
            return Ok(());
        }
        if self.links.current.get(&link.worker) != Some(&link) {
            self.books.see("message of an old connection");
        }
        self.feed(event)
    }

    /// The scheduler sees the end of a connection; the end of one that was replaced means nothing.
    pub(super) fn breaks(&mut self, link: Link) -> Result<(), String> {
        if self.links.current.get(&link.worker) != Some(&link) {
            return Ok(());
        }
        self.links.current.remove(&link.worker);
        self.feed(Event::WorkerAway { worker: link.worker })
    }

    /// A worker sees the end of its connection and makes another.
    pub(super) fn closes(&mut self, link: Link) {
        let Some(worker) = self.workers.get_mut(&link.worker).filter(|worker| worker.link == Some(link))
        else {
            return;
        };
        worker.link = None;
        let delay = if self.is_chaos { self.random.millis(5, 4000) } else { self.random.millis(5, 300) };
        self.schedule(delay, Happening::Connects { worker: link.worker });
    }

    /// A worker's connection ends. Both sides notice in their own time, the scheduler perhaps never, and what was under way
    /// may arrive yet.
    pub(super) fn break_link(&mut self, id: WorkerId) {
        let Some(link) = self.workers.get(&id).and_then(|worker| worker.link) else { return };
        self.tell(|| format!("the connection of {id:?} breaks"));
        self.closes(link);
        if self.random.chance(50) {
            self.links.dead.insert(link);
        }
        self.breaks_soon(link);
    }

    pub(super) fn breaks_soon(&mut self, link: Link) {
        if self.random.chance(75) {
            let delay = self.random.millis(1, 1500);
            self.schedule(delay, Happening::Breaks { link });
        }
    }

    /// Puts a command on its way to a worker, if there is a way.
    pub(super) fn command(&mut self, worker: WorkerId, lease: Lease, order: Order) {
        let Some(link) = self.links.current.get(&worker).copied() else { return };
        if self.links.dead.contains(&link) {
            return;
        }
        if self.is_chaos && self.plan.has_partitions && self.random.below(400) == 0 {
            return self.overflow(link);
        }
        let at = self.downward(link);
        self.schedule_at(at, Happening::Told { link, lease, order });
    }

    /// A worker does not take its commands: the driver ends the connection.
    fn overflow(&mut self, link: Link) {
        self.books.see("full outbox");
        self.links.dead.insert(link);
        self.schedule(Duration::ZERO, Happening::Breaks { link });
        self.schedule(Duration::from_millis(5), Happening::Closes { link });
    }

    /// The scheduler has given a worker up, and its connection ends.
    pub(super) fn drop_link(&mut self, worker: WorkerId) {
        if let Some(link) = self.links.current.remove(&worker) {
            let at = self.downward(link);
            self.schedule_at(at, Happening::Closes { link });
        }
    }

    /// The scheduler is dead. Workers come back one after the other, a few of them late.
    pub(super) fn lose_all_links(&mut self) {
        self.links.current.clear();
        let ids: Vec<_> = self.workers.keys().copied().collect();
        for id in ids {
            let is_late = self.random.chance(15);
            let delay = if is_late { self.random.millis(2500, 9000) } else { self.random.millis(5, 2000) };
            self.workers.get_mut(&id).unwrap().link = None;
            self.schedule(delay, Happening::Connects { worker: id });
        }
    }

    /// Sends a message to the scheduler, if the worker has a connection.
    pub(super) fn send(&mut self, link: Link, event: Event) {
        let at = self.upward(link);
        self.schedule_at(at, Happening::Says { link, event });
    }

    /// When what is sent now reaches the scheduler: after all that was sent before, and not while the worker is cut off.
    fn upward(&mut self, link: Link) -> Time {
        let delay = self.random.millis(1, 60);
        let now = self.now;
        let worker = self.workers.get_mut(&link.worker).expect("only a worker that lives sends");
        worker.up_at = worker.up_at.max(now.max(worker.cut_off_until) + delay);
        worker.up_at
    }

    fn downward(&mut self, link: Link) -> Time {
        let delay = self.random.millis(1, 50);
        let now = self.now;
        let Some(worker) = self.workers.get_mut(&link.worker) else { return now };
        worker.down_at = worker.down_at.max(now.max(worker.cut_off_until) + delay);
        worker.down_at
    }
}
