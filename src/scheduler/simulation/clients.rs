//! Clients that submit, come back, leave, cancel and forget, each in its own time.

use std::sync::Arc;
use std::time::Duration;

use super::actions::{Asker, task};
use super::journal::Word;
use super::world::{Happening, World};
use crate::scheduler::event::{Event, Submission};
use crate::scheduler::id::{ExecutionId, OperationId};
use crate::scheduler::requirements::Requirements;
use crate::scheduler::task::Task;

/// Few enough that equal actions meet.
const ACTIONS: u64 = 24;

/// The numbers of audits begin here. They are multiples of five, as of all actions that must run each time.
const AUDITS: u64 = 1_000_000;

/// How many operations a storm begins, and cancels at once.
const STORM: u64 = 200;

impl World {
    /// One client does one thing, and the next one is due.
    pub(super) fn client_acts(&mut self) -> Result<(), String> {
        if !self.is_chaos {
            return Ok(());
        }
        let delay = self.random.millis(1, self.plan.client_pause);
        self.schedule(delay, Happening::Client);
        match self.random.below(40) {
            0 if self.plan.has_storms => self.storm_begins(),
            1 if self.plan.has_storms => self.storm_ends(),
            2..6 => self.cancels(),
            6..13 => self.leaves(),
            13..17 => self.comes_back(),
            17 => self.deletes(),
            18 => self.submits_elsewhere(),
            _ => self.submits_any(),
        }
    }

    fn submits_any(&mut self) -> Result<(), String> {
        let number = self.random.below(ACTIONS);
        let asker = Asker {
            priority: i32::try_from(self.random.below(3)).unwrap() - 1,
            invocation: self.random.pick(&["first", "second", "third"]).unwrap(),
            identity: self.random.pick(&["", "ann", "bob"]).unwrap(),
        };
        self.submits(number, &asker)
    }

    pub(super) fn submits(&mut self, number: u64, asker: &Asker) -> Result<(), String> {
        let task = task(number, asker);
        let requirements = Requirements::resolve(&self.config, &task.platform).unwrap();
        self.submits_task(task, requirements)
    }

    /// An audit: an action of its own that must not run on one of the workers, if there is another one.
    fn submits_elsewhere(&mut self) -> Result<(), String> {
        let names: Vec<_> = self.workers.values().map(|worker| worker.offer().0).collect();
        let Some(avoided) = self.random.pick(&names) else { return Ok(()) };
        let asker = Asker { priority: 1, invocation: "audit", identity: "" };
        // No other action has its number, and none of these is joined by others.
        let number = AUDITS + 5 * u64::try_from(self.fresh_id()).unwrap();
        let task = task(number, &asker);
        let requirements = Requirements::resolve(&self.config, &task.platform).unwrap().elsewhere(avoided);
        if self.books.is_clear(&requirements) { self.submits_task(task, requirements) } else { Ok(()) }
    }

    fn submits_task(&mut self, task: Task, requirements: Requirements) -> Result<(), String> {
        let operation = OperationId::new(self.fresh_id());
        let submission = Submission {
            operation,
            execution: ExecutionId::new(self.fresh_id()),
            task: Arc::new(task),
            requirements: Arc::new(requirements),
            at: self.wall_time(),
        };
        self.feed(Event::Submit(Box::new(submission)))?;
        if self.books.operations.contains_key(&operation) {
            return self.gate(Word::Accepted(operation));
        }
        Ok(())
    }

    /// One build submits all that it has.
    fn storm_begins(&mut self) -> Result<(), String> {
        self.books.see("storm");
        let asker = Asker { priority: 0, invocation: "storm", identity: "" };
        (0..STORM).try_for_each(|number| self.submits(1000 + number, &asker))
    }

    /// Everybody cancels everything.
    fn storm_ends(&mut self) -> Result<(), String> {
        self.books.see("cancel storm");
        let known: Vec<_> = self.watches.keys().copied().collect();
        known.into_iter().try_for_each(|operation| self.feed(Event::Cancel { operation }))
    }

    fn cancels(&mut self) -> Result<(), String> {
        let Some(operation) = self.any_operation() else { return Ok(()) };
        self.feed(Event::Cancel { operation })
    }

    fn deletes(&mut self) -> Result<(), String> {
        let Some(operation) = self.any_operation() else { return Ok(()) };
        self.books.disclaim(operation);
        self.feed(Event::Delete { operation })
    }

    /// A client leaves. The scheduler learns it at once, or late when the client is slow.
    fn leaves(&mut self) -> Result<(), String> {
        let watched: Vec<_> =
            self.watches.iter().filter(|(_, count)| **count > 0).map(|(id, _)| *id).collect();
        let Some(operation) = self.random.pick(&watched) else { return Ok(()) };
        *self.watches.get_mut(&operation).unwrap() -= 1;
        let event = Event::Unwatched { operation };
        if self.random.chance(70) {
            return self.feed(event);
        }
        let delay = self.random.millis(1, 5000);
        self.schedule(delay, Happening::Arrives { life: self.life, event });
        Ok(())
    }

    fn comes_back(&mut self) -> Result<(), String> {
        let Some(operation) = self.any_operation() else { return Ok(()) };
        self.returns(operation)
    }

    /// A client asks for an operation by its name.
    pub(super) fn returns(&mut self, operation: OperationId) -> Result<(), String> {
        let Some(watches) = self.watches.get_mut(&operation) else { return Ok(()) };
        *watches += 1;
        self.feed(Event::Watched { operation })
    }

    /// The scheduler is dead. Most clients come back for what they were promised, each in its own time.
    pub(super) fn lose_all_watches(&mut self) {
        let known: Vec<_> = self.watches.keys().copied().collect();
        for operation in known {
            self.watches.insert(operation, 0);
            if self.random.chance(70) {
                let delay = Duration::from_millis(1 + self.random.below(4000));
                self.schedule(delay, Happening::Returns { life: self.life, operation });
            }
        }
    }

    fn any_operation(&mut self) -> Option<OperationId> {
        let known: Vec<_> = self.watches.keys().copied().collect();
        self.random.pick(&known)
    }
}
