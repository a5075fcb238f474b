//! Clients that submit, come back, leave, cancel and forget.

use std::sync::Arc;

use super::world::{Happening, World, some_wall_time, task};
use crate::scheduler::event::{Event, Submission};
use crate::scheduler::id::{ExecutionId, OperationId};
use crate::scheduler::requirements::{Requirements, SoftSize};

/// Few enough that equal actions meet.
const ACTIONS: u64 = 24;

impl World {
    /// One client does one thing, and the next one is due.
    pub(super) fn client_acts(&mut self) -> Result<(), String> {
        if !self.is_chaos {
            return Ok(());
        }
        let delay = self.random.millis(1, 400);
        self.schedule(delay, Happening::Client);
        match self.random.below(10) {
            0 => self.cancels(),
            1 | 2 => self.leaves(),
            3 => self.comes_back(),
            4 if self.random.chance(30) => self.deletes(),
            _ => self.submits(),
        }
    }

    fn submits(&mut self) -> Result<(), String> {
        let number = self.random.below(ACTIONS);
        let priority = i32::try_from(self.random.below(3)).unwrap() - 1;
        let task = task(number, priority);
        let requirements = Requirements::resolve(&self.config, &task.platform).unwrap();
        let operation = OperationId::new(self.fresh_id());
        let submission = Submission {
            operation,
            execution: ExecutionId::new(self.fresh_id()),
            soft: SoftSize::default(),
            task: Arc::new(task),
            requirements: Arc::new(requirements),
            at: some_wall_time(),
        };
        self.feed(Event::Submit(Box::new(submission)))?;
        if self.books.operations.contains_key(&operation) {
            self.watches.insert(operation, 1);
        }
        Ok(())
    }

    fn cancels(&mut self) -> Result<(), String> {
        let Some(operation) = self.any_operation() else { return Ok(()) };
        self.feed(Event::Cancel { operation })
    }

    fn deletes(&mut self) -> Result<(), String> {
        let Some(operation) = self.any_operation() else { return Ok(()) };
        self.feed(Event::Delete { operation })
    }

    fn leaves(&mut self) -> Result<(), String> {
        let watched: Vec<_> =
            self.watches.iter().filter(|(_, count)| **count > 0).map(|(id, _)| *id).collect();
        let Some(operation) = self.random.pick(&watched) else { return Ok(()) };
        *self.watches.get_mut(&operation).unwrap() -= 1;
        self.feed(Event::Unwatched { operation })
    }

    fn comes_back(&mut self) -> Result<(), String> {
        let Some(operation) = self.any_operation() else { return Ok(()) };
        *self.watches.entry(operation).or_default() += 1;
        self.feed(Event::Watched { operation })
    }

    fn any_operation(&mut self) -> Option<OperationId> {
        let known: Vec<_> = self.watches.keys().copied().collect();
        self.random.pick(&known)
    }
}
