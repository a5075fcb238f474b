//! Settling answers, each in a task of its own.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::super::Settle;
use super::super::config::Config;
use super::super::event::Event;
use super::super::handle::Message;
use super::super::id::{Lease, OperationId};
use super::super::task::{Task, Update};
use crate::proto::rev2::ExecuteResponse;
use crate::tasks;

/// How many answers are checked and written at once; the rest wait in line, each as one response in memory.
const SETTLING_MAX: usize = 256;

/// What it takes to settle an answer outside of the driver's task.
#[derive(Clone)]
pub(super) struct Settling {
    config: Arc<Config>,
    settle: Arc<dyn Settle>,
    permits: Arc<Semaphore>,
    messages: mpsc::Sender<Message>,
}

impl Settling {
    pub(super) fn new(config: Arc<Config>, settle: Arc<dyn Settle>, messages: mpsc::Sender<Message>) -> Self {
        Self { config, settle, permits: Arc::new(Semaphore::new(SETTLING_MAX)), messages }
    }

    /// The way to send the driver a message.
    pub(super) fn messages(&self) -> mpsc::Sender<Message> {
        self.messages.clone()
    }

    /// Tells whoever settles answers where an operation stands.
    pub(super) fn note(&self, operation: OperationId, update: &Update) {
        self.settle.noted(operation, update);
    }

    /// Settles the answer to a lease and tells the driver.
    pub(super) fn begin(&self, lease: Lease, task: Arc<Task>, response: Box<ExecuteResponse>) {
        let settling = self.clone();
        tasks::spawn("settle", async move {
            let result = settling.settle(&task, *response).await;
            // The driver is gone only when the farm stops, and then nobody waits for the answer.
            let _ = settling.messages.send(Message::Event(Event::Settled { lease, result })).await;
        });
    }

    async fn settle(&self, task: &Task, response: ExecuteResponse) -> Result<Box<ExecuteResponse>, String> {
        let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
        match tokio::time::timeout(self.config.settle_timeout, self.settle.settle(task, response)).await {
            Ok(Ok(response)) => Ok(Box::new(response)),
            Ok(Err(error)) => {
                tracing::warn!(action = %task.action_digest, error = error.chain(), "an answer could not be settled");
                Err(error.to_string())
            }
            Err(_) => Err("checking the outputs took too long".to_owned()),
        }
    }
}
