//! A door into the core for `benches/scheduler`, which measures what it decides without a runtime around it. Nothing else may use it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use super::core::Core;
use super::event::{Effect, Event, Submission};
use super::id::{ExecutionId, Lease, OperationId, Time, WorkerId};
use super::requirements::{Capacity, Requirements};
use super::task::{Offer, Outcome, Platform, Task};
use super::{Config, Result};

/// A core by itself, at a time that stands still.
#[derive(Debug)]
pub struct Bare {
    config: Arc<Config>,
    core: Core,
    /// What was started and not yet taken by [`Bare::finish`].
    running: VecDeque<(WorkerId, Lease)>,
}

/// A resolved platform.
#[derive(Debug, Clone)]
pub struct Resolved(Arc<Requirements>);

impl Bare {
    pub fn new(config: Config) -> Self {
        let config = Arc::new(config);
        Self { core: Core::new(Arc::clone(&config)), config, running: VecDeque::new() }
    }

    /// # Errors
    /// When the platform is malformed.
    pub fn resolve(&self, platform: &Platform) -> Result<Resolved> {
        Requirements::resolve(&self.config, platform).map(|requirements| Resolved(Arc::new(requirements)))
    }

    /// # Errors
    /// When the offer is malformed.
    pub fn join(&mut self, offer: Offer) -> Result<()> {
        let capacity = Arc::new(Capacity::resolve(&self.config, &offer)?);
        let Offer { worker, name, owner, .. } = offer;
        self.feed(Event::WorkerJoined { worker, name: name.into(), owner, capacity, leases: Vec::new() });
        Ok(())
    }

    /// One client submits an action and watches it.
    pub fn submit(
        &mut self,
        (operation, execution): (OperationId, ExecutionId),
        task: Task,
        resolved: &Resolved,
    ) {
        self.feed(Event::Submit(Box::new(Submission {
            operation,
            execution,
            task: Arc::new(task),
            requirements: Arc::clone(&resolved.0),
            at: SystemTime::UNIX_EPOCH,
        })));
    }

    /// One more client watches, and leaves again.
    pub fn visit(&mut self, operation: OperationId) {
        self.feed(Event::Watched { operation });
        self.feed(Event::Unwatched { operation });
    }

    /// What was started first ends well and is settled. Returns whether anything ran.
    pub fn finish(&mut self) -> bool {
        let Some((worker, lease)) = self.running.pop_front() else { return false };
        self.feed(Event::Finished { worker, lease, outcome: Outcome::Response(Box::default()) });
        self.feed(Event::Settled { lease, result: Ok(Box::default()) });
        true
    }

    pub fn queued(&self) -> usize {
        self.core.queued()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    fn feed(&mut self, event: Event) {
        for effect in self.core.handle(Time::START, event) {
            if let Effect::Start { worker, lease, .. } = effect {
                self.running.push_back((worker, lease));
            }
        }
    }
}
