//! What must not be said before the journal has the records behind it, in the order in which it came up.
//!
//! A client that has its operation's name, or its result, and a worker that may forget an answer rely on what a crash must not
//! undo. A worker that is told to run something does not, so starting does not wait for a disk.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::super::handle::Watch;
use super::super::id::{Lease, OperationId, WorkerId};
use super::super::journal::{Change, Progress, Writer};
use super::super::task::Update;
use crate::error::{Error, Result};

/// An effect that waits for the journal.
pub(super) enum Gated {
    /// The answer to a submission.
    Accept {
        reply: oneshot::Sender<Result<Watch>>,
        watch: Box<Watch>,
    },
    /// The answer to a client that ended or deleted an operation.
    Ended {
        reply: oneshot::Sender<bool>,
        is_known: bool,
    },
    /// An operation is finished.
    Report {
        operation: OperationId,
        update: Arc<Update>,
    },
    Forget {
        operation: OperationId,
    },
    Acknowledge {
        worker: WorkerId,
        lease: Lease,
    },
}

#[derive(Default)]
pub(super) struct Gate {
    /// `None` when nothing is kept, and so nothing waits.
    writer: Option<Writer>,
    /// Changes that the writer has not been given yet.
    changes: Vec<Change>,
    /// How many changes there have been.
    recorded: u64,
    durable: u64,
    /// With the number of changes that each waits for. There are no more of them than operations and leases in hand, because the
    /// next record of either comes from a client or a worker that waits for this one, or from an end that happens once.
    waiting: VecDeque<(u64, Gated)>,
}

impl Gate {
    pub(super) fn new(writer: Option<Writer>) -> Self {
        Self { writer, ..Self::default() }
    }

    /// Whether what is going on survives the end of the process.
    pub(super) fn is_durable(&self) -> bool {
        self.writer.is_some()
    }

    pub(super) fn record(&mut self, change: Change) {
        if self.writer.is_some() {
            self.recorded += 1;
            self.changes.push(change);
        }
    }

    /// Gives the writer what was recorded since the last time.
    pub(super) fn hand_over(&mut self) {
        if let Some(writer) = &self.writer {
            writer.append(&mut self.changes);
        }
    }

    /// Whether the writer is so far behind that nothing new should be begun.
    pub(super) fn is_full(&self) -> bool {
        self.writer.as_ref().is_some_and(Writer::is_full)
    }

    /// Returns `gated` if nothing recorded so far is missing, and keeps it until then otherwise.
    pub(super) fn pass(&mut self, gated: Gated) -> Option<Gated> {
        if self.durable == self.recorded {
            return Some(gated);
        }
        self.waiting.push_back((self.recorded, gated));
        None
    }

    /// The next effect that waits no longer.
    pub(super) fn release(&mut self) -> Option<Gated> {
        let (number, _) = self.waiting.front()?;
        if *number > self.durable {
            return None;
        }
        self.waiting.pop_front().map(|(_, gated)| gated)
    }

    /// Waits until the writer is further than before. Dropping the future loses nothing.
    pub(super) async fn progress(&mut self) -> Progress {
        match &mut self.writer {
            Some(writer) => writer.progress().await,
            None => std::future::pending().await,
        }
    }

    /// Takes note of how far the writer is.
    ///
    /// # Errors
    /// When it will never be further: what waits must never be said.
    pub(super) fn note(&mut self, progress: Progress) -> Result<()> {
        self.durable = progress.durable;
        match progress.failure {
            Some(error) => Err(Error::repeated(&error).context("write the scheduler's journal")),
            None => Ok(()),
        }
    }

    /// Whether everything that was recorded is safe.
    pub(super) fn is_clear(&self) -> bool {
        self.durable == self.recorded
    }
}
