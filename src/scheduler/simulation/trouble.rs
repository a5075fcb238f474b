//! What goes wrong: crashes, broken connections, partitions, restarts, operators, lies.

use super::world::{Happening, World};
use crate::scheduler::event::Event;
use crate::scheduler::id::{ExecutionId, Lease, WorkerId};
use crate::scheduler::task::{Availability, Outcome};

impl World {
    /// Something goes wrong, and the next thing is due.
    pub(super) fn trouble(&mut self) -> Result<(), String> {
        if !self.is_chaos {
            return Ok(());
        }
        let delay = self.random.millis(100, self.plan.trouble_pause);
        self.schedule(delay, Happening::Trouble);
        match self.random.below(16) {
            0 if self.plan.has_crashes => self.crash_any(),
            1 | 2 if self.plan.has_partitions => self.break_any(),
            3 if self.plan.has_partitions => self.cut_off_any(),
            4 if self.plan.has_partitions => self.partition(),
            5 | 6 if self.plan.has_restarts => return self.restart(),
            7 if self.plan.has_marks => self.drain_any(),
            8 | 9 if self.plan.has_marks => return self.mark_any(),
            10 => return self.stray_answer(),
            _ if self.workers.len() < self.plan.workers_max => self.join_any(),
            _ => {}
        }
        Ok(())
    }

    fn any_worker(&mut self) -> Option<WorkerId> {
        let ids: Vec<_> = self.workers.keys().copied().collect();
        self.random.pick(&ids)
    }

    fn crash_any(&mut self) {
        if let Some(id) = self.any_worker() {
            self.crash(id);
        }
    }

    fn break_any(&mut self) {
        if let Some(id) = self.any_worker() {
            self.break_link(id);
        }
    }

    fn drain_any(&mut self) {
        if let Some(id) = self.any_worker() {
            self.drain(id);
        }
    }

    fn cut_off_any(&mut self) {
        if let Some(id) = self.any_worker() {
            self.cut_off(id);
        }
    }

    /// About half of the workers are cut off at once.
    fn partition(&mut self) {
        let ids: Vec<_> = self.workers.keys().copied().collect();
        self.books.see("partition");
        for id in ids {
            if self.random.chance(50) {
                self.cut_off(id);
            }
        }
    }

    /// Nothing passes between a worker and the scheduler for a while. The worker may lose patience and connect anew.
    fn cut_off(&mut self, id: WorkerId) {
        let time = self.random.millis(200, 7000);
        self.workers.get_mut(&id).expect("it was picked from them").cut_off_until = self.now + time;
        self.tell(|| format!("{id:?} is cut off for {time:?}"));
        if self.random.chance(40) {
            self.break_link(id);
        }
    }

    /// An operator takes a worker out or lets it in.
    fn mark_any(&mut self) -> Result<(), String> {
        let Some(worker) = self.any_worker() else { return Ok(()) };
        let availability = match self.random.below(3) {
            0 => Availability::Open,
            1 => Availability::Cordoned { reason: "its disk is slow".to_owned() },
            _ => Availability::Draining { reason: "it moves".to_owned() },
        };
        self.feed(Event::Mark { worker, availability, by_operator: true })
    }

    /// Operators let every worker in.
    pub(super) fn let_all_in(&mut self) -> Result<(), String> {
        let ids: Vec<_> = self.workers.keys().copied().collect();
        for worker in ids {
            let availability = Availability::Open;
            self.feed(Event::Mark { worker, availability, by_operator: true })?;
        }
        Ok(())
    }

    /// An answer to a lease that the worker may never have had.
    fn stray_answer(&mut self) -> Result<(), String> {
        let Some(worker) = self.any_worker() else { return Ok(()) };
        let known = u64::try_from(self.fresh_id()).unwrap();
        let execution = ExecutionId::new(u128::from(self.random.below(known)));
        let lease = Lease { execution, attempt: 1 + u32::try_from(self.random.below(2)).unwrap() };
        if self.books.was_given(worker, lease) {
            return Ok(());
        }
        self.feed(Event::Finished { worker, lease, outcome: Outcome::Killed })
    }
}
