//! A connected worker, as the service that talks with it sees it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::error::Result;
use crate::proto::rev2::ExecutedActionMetadata;

use super::departures::Guard;
use super::event::Event;
use super::handle::{Message, stopped};
use super::id::{Lease, WorkerId};
use super::task::{Availability, Outcome, Task};

/// What a worker is told.
#[derive(Debug, Clone)]
pub enum Command {
    /// Run the task.
    Start { lease: Lease, task: Arc<Task> },
    /// Make the inputs of the task ready, which may start soon: a hint.
    Warm { task: Arc<Task> },
    /// The answer to this lease is safe and need not be said again.
    Acknowledge { lease: Lease },
    /// Stop the lease and confirm with [`WorkerSession::finished`].
    Kill { lease: Lease },
}

/// One connection of a worker. Dropping it says that the connection broke: the worker may come back, until it is given up.
#[derive(Debug)]
pub struct WorkerSession {
    id: WorkerId,
    commands: mpsc::Receiver<Command>,
    messages: mpsc::Sender<Message>,
    _guard: Guard,
}

impl WorkerSession {
    pub(super) fn new(
        id: WorkerId,
        commands: mpsc::Receiver<Command>,
        messages: mpsc::Sender<Message>,
        guard: Guard,
    ) -> Self {
        Self { id, commands, messages, _guard: guard }
    }

    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// The next command; `None` once the scheduler has given this worker up or stops. Dropping the future loses no command.
    pub async fn next(&mut self) -> Option<Command> {
        self.commands.recv().await
    }

    /// Says that the worker lives.
    ///
    /// # Errors
    /// `Unavailable` when the scheduler has stopped, as for the other messages.
    pub async fn heartbeat(&self) -> Result<()> {
        self.send(Event::Heartbeat { worker: self.id }).await
    }

    /// Tells what is known so far of a running attempt.
    ///
    /// # Errors
    /// As for `heartbeat`.
    pub async fn progress(&self, lease: Lease, metadata: ExecutedActionMetadata) -> Result<()> {
        self.send(Event::Progress { worker: self.id, lease, metadata: Box::new(metadata) }).await
    }

    /// Tells how a lease ended. Everything that is told before the session is dropped counts.
    ///
    /// # Errors
    /// As for `heartbeat`.
    pub async fn finished(&self, lease: Lease, outcome: Outcome) -> Result<()> {
        self.send(Event::Finished { worker: self.id, lease, outcome }).await
    }

    /// Says that the worker takes no new work, or takes it again. It holds until the worker leaves or is given up.
    ///
    /// # Errors
    /// As for `heartbeat`.
    pub async fn mark(&self, availability: Availability) -> Result<()> {
        self.send(Event::Mark { worker: self.id, availability, by_operator: false }).await
    }

    /// Says that nothing of the worker runs any more and that it will not be back.
    ///
    /// # Errors
    /// As for `heartbeat`.
    pub async fn leave(self) -> Result<()> {
        self.send(Event::WorkerLeft { worker: self.id }).await
    }

    async fn send(&self, event: Event) -> Result<()> {
        self.messages.send(Message::Event(event)).await.map_err(|_| stopped())
    }
}
