//! Tools that stay running and answer one action after the other, as Bazel's persistent workers do on a client's machine.
//!
//! A process of a tool lives in a sandbox as an action's, and sees the inputs of one request at a time. Only successes are taken from it:
//! whatever else happens, but for a timeout and a kill, the action is run once the ordinary way, and that is its result.

mod call;
mod pool;
mod process;
mod protocol;

use std::time::Duration;

use tokio::time::timeout;

use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::metrics::WORKER_RESIDENT_REQUESTS;
use crate::store::Cas;
use crate::worker::command::Command;
use crate::worker::inputs::{Inputs, Staged};
use crate::worker::sandbox::{Launcher, Request, Spec};
use call::Call;
pub(super) use call::Wish;
pub(super) use pool::Pool;
use pool::Taken;
use process::Process;

/// How long it may take to start a process or to make another one go; after that an ordinary run is sooner done.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// What requests are served with.
pub(super) struct Service<'a> {
    pub(super) cas: &'a Cas,
    pub(super) inputs: &'a Inputs,
    pub(super) launcher: &'a Launcher,
    pub(super) pool: &'a Pool,
}

/// An action that asks for a process that stays.
pub(super) struct Asking<'a> {
    pub(super) wish: Wish,
    pub(super) command: &'a Command,
    pub(super) input_root: Digest,
    pub(super) staged: &'a Staged,
    /// How it is run the ordinary way.
    pub(super) spec: Spec,
}

/// A process that sees the inputs of an action and has not been asked, or not answered. Dropping it kills the process.
pub(super) struct Session {
    process: Process,
    request: Request,
    call: Call,
}

/// How a session ended. Some of these have the action run the ordinary way; the words are the metric's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    /// The action had no time left.
    Timeout,
    /// Nobody wants the action any more.
    Killed,
    /// The action needs what cannot be had of a process that stays.
    Unfit,
    /// All processes that there may be are at work.
    Busy,
    /// The process could not be started, or not be shown the inputs.
    Unstarted,
    /// The process said that the action has failed.
    Failed,
    /// The process ended, or closed its pipes.
    Ended,
    /// The process wrote something else than an answer.
    Garbled,
}

impl Service<'_> {
    /// A process that has the inputs of the action before it; `None` if the action has to be run the ordinary way.
    pub(super) async fn open(&self, asking: Asking<'_>) -> Option<Session> {
        let late = |_| Err(Error::new(Kind::Timeout, "no persistent worker was ready in time"));
        match timeout(OPEN_MAX, self.try_open(asking)).await.unwrap_or_else(late) {
            Ok(Ok(session)) => return Some(session),
            Ok(Err(fate)) => fate.count(),
            Err(error) => {
                tracing::warn!(
                    error = error.chain(),
                    "no persistent worker; the action runs the ordinary way"
                );
                Fate::Unstarted.count();
            }
        }
        None
    }

    async fn try_open(&self, asking: Asking<'_>) -> Result<std::result::Result<Session, Fate>> {
        let Asking { wish, command, input_root, staged, spec } = asking;
        let Some(files) = self.inputs.files(input_root).await? else { return Ok(Err(Fate::Unfit)) };
        let call = wish.call(self.cas, (command, &files), (spec.root, spec.limits)).await?;
        let Some(call) = call else { return Ok(Err(Fate::Unfit)) };
        // Taken first: if there is none, nothing has to be mounted.
        let mut taken = self.pool.take(&call.key).await;
        if matches!(taken, Taken::Nothing) {
            return Ok(Err(Fate::Busy));
        }
        let request = self.launcher.prepare(spec).await?;
        loop {
            let process = match taken {
                Taken::Process(process) => *process,
                Taken::Place(place) => {
                    let tool = staged.clone();
                    let process = Process::start(self.launcher, (&call.key, &request), (tool, place)).await?;
                    return Ok(Ok(Session { process, request, call }));
                }
                Taken::Nothing => return Ok(Err(Fate::Busy)),
            };
            match process.show(Some(&request)).await {
                Ok(()) => return Ok(Ok(Session { process, request, call })),
                // It has ended while it waited, which says nothing about this action.
                Err(error) => {
                    tracing::info!(error = error.chain(), "an idle persistent worker is gone");
                    process.end().await;
                }
            }
            taken = self.pool.take(&call.key).await;
        }
    }
}

impl Session {
    /// Has the action done. Returns what an ordinary run would have printed as its errors.
    ///
    /// # Errors
    /// What else has happened; the action must be run the ordinary way then. There is no limit of time.
    pub(super) async fn ask(&mut self) -> std::result::Result<String, Fate> {
        let response = self.process.ask(&self.call).await?;
        if response.exit_code == 0 { Ok(response.output) } else { Err(Fate::Failed) }
    }

    /// Takes the inputs away from the process, which waits in `pool` for the next, or is killed, as `fate` says. Returns the exec root,
    /// which nobody writes to any more but a process that keeps files open after its answer.
    pub(super) async fn close(self, pool: &Pool, fate: Fate) -> Request {
        fate.count();
        let Self { process, request, .. } = self;
        match fate {
            Fate::Answered | Fate::Failed => match process.show(None).await {
                Ok(()) => pool.give(process).await,
                Err(error) => {
                    tracing::warn!(error = error.chain(), "a persistent worker ends after its answer");
                    process.end().await;
                }
            },
            Fate::Ended | Fate::Garbled => {
                let tool = process.name().escape_default().to_string();
                let complaint = process.end_with_complaint().await;
                let why = fate.name();
                tracing::warn!(
                    tool,
                    why,
                    complaint,
                    "a persistent worker gave no answer; the action runs the ordinary way"
                );
            }
            Fate::Timeout | Fate::Killed | Fate::Unfit | Fate::Busy | Fate::Unstarted => process.end().await,
        }
        request
    }
}

impl Fate {
    fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Timeout => "timeout",
            Self::Killed => "killed",
            Self::Unfit => "unfit",
            Self::Busy => "busy",
            Self::Unstarted => "unstarted",
            Self::Failed => "failed",
            Self::Ended => "ended",
            Self::Garbled => "garbled",
        }
    }

    fn count(self) {
        WORKER_RESIDENT_REQUESTS.with_label_values(&[self.name()]).inc();
    }
}
