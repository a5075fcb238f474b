//! Input roots of actions that may come: staged one after another while others run.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::inputs::Inputs;
use crate::digest::Digest;
use crate::tasks;

/// Roots that wait: twice as many as a scheduler has made ready at a time, since some of those may have gone elsewhere. More are ignored.
const WAITING_MAX: usize = 8;
/// How long one root may hold up the next: by then its action has come, or will not.
const STAGING_MAX: Duration = Duration::from_secs(5 * 60);

/// Stages what may be wanted soon. Only one root at a time, so that the actions which run keep the network and the disk to themselves but
/// for that.
pub(super) struct Warming {
    roots: mpsc::Sender<Digest>,
    /// What is staged at the end of the worker is nobody's.
    _task: AbortOnDropHandle<()>,
}

impl Warming {
    pub(super) fn start(inputs: Inputs) -> Self {
        let (roots, waiting) = mpsc::channel(WAITING_MAX);
        Self { roots, _task: AbortOnDropHandle::new(tasks::spawn("warm inputs", warm(inputs, waiting))) }
    }

    /// Has `root` staged when those before it are, unless too many wait.
    pub(super) fn add(&self, root: Digest) {
        if self.roots.try_send(root).is_err() {
            tracing::debug!("inputs are not made ready: too many wait");
        }
    }
}

async fn warm(inputs: Inputs, mut waiting: mpsc::Receiver<Digest>) {
    while let Some(root) = waiting.recv().await {
        // The action that wants them says what is wrong with them.
        match timeout(STAGING_MAX, inputs.warm(root)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = error.chain(), "inputs are not made ready"),
            Err(_) => tracing::debug!("inputs are not made ready in time"),
        }
    }
}
