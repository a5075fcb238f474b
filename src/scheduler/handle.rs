//! What the rest of the program holds of the scheduler.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::error::{Context, Error, Kind, Result};
use crate::tasks::{self, Shutdown};

use super::config::Config;
use super::departures::Guard;
use super::driver::{self, Driver, Restored};
use super::event::Event;
use super::id::{OperationId, WorkerId};
use super::journal::{Embedded, Journal, Writer};
use super::requirements::{Capacity, Requirements};
use super::session::WorkerSession;
use super::shared::Shared;
use super::task::{Availability, Offer, Task, Update};
use super::view::{Load, Overview, Why, WorkerView};
use super::{Claim, Listed, Settle};

/// Messages that may wait for the driver. It handles one in microseconds; whoever sends waits when this is full.
const MESSAGES_MAX: usize = 1024;

/// The way to the scheduler. Clones lead to the same one; it runs until the farm stops, whether or not a handle is left.
#[derive(Debug, Clone)]
pub struct Handle {
    config: Arc<Config>,
    messages: mpsc::Sender<Message>,
    /// Held for a moment, to share what tasks have in common.
    shared: Arc<Mutex<Shared>>,
    /// What workers held when the journal ended.
    claims: Arc<[Claim]>,
}

/// What the driver is sent.
#[derive(Debug)]
pub(super) enum Message {
    Submit { task: Box<Task>, requirements: Arc<Requirements>, reply: oneshot::Sender<Result<Watch>> },
    Watch { operation: OperationId, reply: oneshot::Sender<Option<Watch>> },
    Cancel { operation: OperationId, reply: oneshot::Sender<bool> },
    Delete { operation: OperationId, reply: oneshot::Sender<bool> },
    List { after: Option<OperationId>, limit: usize, reply: oneshot::Sender<Vec<Listed>> },
    Join { offer: Offer, capacity: Capacity, reply: oneshot::Sender<WorkerSession> },
    Overview { reply: oneshot::Sender<Overview> },
    Why { operation: OperationId, reply: oneshot::Sender<Option<Why>> },
    Load { reply: oneshot::Sender<Load> },
    FindWorkers { key: String, reply: oneshot::Sender<Vec<(WorkerId, WorkerView)>> },
    Event(Event),
}

impl Handle {
    /// Starts a scheduler that keeps nothing, which runs until `shutdown`.
    pub fn start(config: Config, settle: Arc<dyn Settle>, shutdown: Shutdown) -> Self {
        let (handle, _) = Self::launch(config, settle, None, shutdown);
        handle
    }

    /// Starts a scheduler that takes up what the journal in `directory` holds, if the configuration has a journal, and runs until
    /// `shutdown`. What it ends with comes from the task: an error when the journal cannot be written.
    ///
    /// # Errors
    /// When the journal can be neither read nor begun anew.
    pub async fn resume(
        config: Config,
        settle: Arc<dyn Settle>,
        directory: PathBuf,
        shutdown: Shutdown,
    ) -> Result<(Self, JoinHandle<Result<()>>)> {
        if !config.journal {
            return Ok(Self::launch(config, settle, None, shutdown));
        }
        let opened = tasks::blocking(move || Embedded::open(&directory)).await;
        let journal = opened.context(|| "open the scheduler's journal")?;
        Self::resume_from(Arc::new(journal), config, settle, shutdown).await
    }

    /// As `resume`, from any journal.
    pub(super) async fn resume_from(
        journal: Arc<dyn Journal>,
        config: Config,
        settle: Arc<dyn Settle>,
        shutdown: Shutdown,
    ) -> Result<(Self, JoinHandle<Result<()>>)> {
        let restored = driver::restore(&journal, &settle).await.context(|| "read the scheduler's journal")?;
        let kept = Some((Writer::start(journal)?, restored));
        Ok(Self::launch(config, settle, kept, shutdown))
    }

    fn launch(
        config: Config,
        settle: Arc<dyn Settle>,
        kept: Option<(Writer, Restored)>,
        shutdown: Shutdown,
    ) -> (Self, JoinHandle<Result<()>>) {
        let config = Arc::new(Config { journal: kept.is_some(), ..config });
        let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
        let claims = kept.iter().flat_map(|(_, restored)| restored.claims()).collect();
        let mut driver = Driver::new(Arc::clone(&config), settle, messages.clone());
        if let Some((writer, restored)) = kept {
            driver = driver.resume(writer, restored);
        }
        let running = tasks::spawn("scheduler", driver.run(inbox, shutdown));
        (Self { config, messages, shared: Arc::default(), claims }, running)
    }

    /// The way to nowhere, for a process whose part of the farm has no scheduler: whatever is asked fails with `Unavailable`.
    pub fn absent(config: Config) -> Self {
        let (messages, _) = mpsc::channel(1);
        Self { config: Arc::new(config), messages, shared: Arc::default(), claims: Arc::default() }
    }

    /// The leases that workers were given before this start, by what the journal tells.
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// How often workers are to send a heartbeat, and the other numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Has `task` run. If an equal one is in flight, its result is shared. Dropping the future or the `Watch` abandons the operation.
    ///
    /// # Errors
    /// `Precondition` for a platform property that is not declared, `Invalid` for a malformed amount, `Exhausted` when the
    /// scheduler is full, `Unavailable` when it has stopped.
    pub async fn submit(&self, mut task: Task) -> Result<Watch> {
        let requirements = self.share(&mut task)?;
        self.ask(|reply| Message::Submit { task: Box::new(task), requirements, reply }).await?
    }

    /// As [`Handle::submit`], but not on workers with the name `avoided`, if another one that takes work could run it.
    ///
    /// # Errors
    /// As for `submit`.
    pub async fn submit_elsewhere(&self, mut task: Task, avoided: Arc<str>) -> Result<Watch> {
        let requirements = Arc::new(self.share(&mut task)?.elsewhere(avoided));
        self.ask(|reply| Message::Submit { task: Box::new(task), requirements, reply }).await?
    }

    /// Follows an operation that is live or was finished a short while ago; `None` if it is unknown.
    ///
    /// # Errors
    /// `Unavailable` when the scheduler has stopped, as for the rest.
    pub async fn watch(&self, operation: OperationId) -> Result<Option<Watch>> {
        self.ask(|reply| Message::Watch { operation, reply }).await
    }

    /// Ends an operation, and kills what runs unless another operation waits for it. Returns whether it is known.
    ///
    /// # Errors
    /// As for `watch`.
    pub async fn cancel(&self, operation: OperationId) -> Result<bool> {
        self.ask(|reply| Message::Cancel { operation, reply }).await
    }

    /// Says that nobody will ask for the operation again. It is not cancelled. Returns whether it is known.
    ///
    /// # Errors
    /// As for `watch`.
    pub async fn delete(&self, operation: OperationId) -> Result<bool> {
        self.ask(|reply| Message::Delete { operation, reply }).await
    }

    /// Up to `limit` operations, and no more than 1,000, in the order of their identifiers, from the one after `after`.
    ///
    /// # Errors
    /// As for `watch`.
    pub async fn list(&self, after: Option<OperationId>, limit: usize) -> Result<Vec<Listed>> {
        self.ask(|reply| Message::List { after, limit, reply }).await
    }

    /// Connects a worker.
    ///
    /// # Errors
    /// `Precondition` when it offers a property that is not declared, `Invalid` for a malformed offer, `Unavailable` when the
    /// scheduler has stopped.
    pub async fn join(&self, offer: Offer) -> Result<WorkerSession> {
        let capacity = Capacity::resolve(&self.config, &offer)?;
        self.ask(|reply| Message::Join { offer, capacity, reply }).await
    }

    /// The whole scheduler at one moment.
    ///
    /// # Errors
    /// As for `watch`.
    pub async fn overview(&self) -> Result<Overview> {
        self.ask(|reply| Message::Overview { reply }).await
    }

    /// Where an operation stands and why; `None` if it is unknown.
    ///
    /// # Errors
    /// As for `watch`.
    pub async fn why(&self, operation: OperationId) -> Result<Option<Why>> {
        self.ask(|reply| Message::Why { operation, reply }).await
    }

    /// What the fleet is asked for, by property set.
    ///
    /// # Errors
    /// As for `watch`.
    pub async fn load(&self) -> Result<Load> {
        self.ask(|reply| Message::Load { reply }).await
    }

    /// The workers whose name or identifier is `key`, at most 100.
    ///
    /// # Errors
    /// As for `watch`.
    pub async fn find_workers(&self, key: String) -> Result<Vec<(WorkerId, WorkerView)>> {
        self.ask(|reply| Message::FindWorkers { key, reply }).await
    }

    /// Says whether a worker, and whoever else has its name, is to take new work. A worker that is not known is let be.
    ///
    /// # Errors
    /// As for `watch`.
    pub async fn mark(&self, worker: WorkerId, availability: Availability) -> Result<()> {
        let event = Event::Mark { worker, availability, by_operator: true };
        self.messages.send(Message::Event(event)).await.map_err(|_| stopped())
    }

    fn share(&self, task: &mut Task) -> Result<Arc<Requirements>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).share(&self.config, task)
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

pub(super) fn stopped() -> Error {
    Error::new(Kind::Unavailable, "the scheduler has stopped")
}

/// A client's view of one operation. Dropping it is how a client leaves; an operation that nobody watches is cancelled after a while.
#[derive(Debug)]
pub struct Watch {
    id: OperationId,
    updates: watch::Receiver<Arc<Update>>,
    _guard: Guard,
}

impl Watch {
    pub(super) fn new(id: OperationId, updates: watch::Receiver<Arc<Update>>, guard: Guard) -> Self {
        Self { id, updates, _guard: guard }
    }

    pub fn id(&self) -> OperationId {
        self.id
    }

    /// Where the operation stands. `next` does not return this state again.
    pub fn current(&mut self) -> Arc<Update> {
        Arc::clone(&self.updates.borrow_and_update())
    }

    /// Waits for a state that this watch has not returned yet; states in between may be left out, the last one never is.
    /// `None` once the operation is forgotten or the scheduler has stopped.
    pub async fn next(&mut self) -> Option<Arc<Update>> {
        self.updates.changed().await.ok()?;
        Some(self.current())
    }
}
