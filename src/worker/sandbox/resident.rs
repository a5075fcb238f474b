//! The farm's side of a resident: a command that stays in its sandbox and is shown the inputs of one request after the other.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::time::timeout;

use super::order::Purpose;
use super::wire::{Event, Left};
use super::{Exit, Launcher, Running, Spec, send, unavailable};
use crate::error::{Context, Error, Result};

/// How long an init may take to exchange inputs, which is a matter of microseconds unless the machine hangs.
const EXCHANGE_MAX: Duration = Duration::from_secs(10);
/// The end of what a resident has said of itself that is worth a place in the log.
const COMPLAINT_BYTES: u64 = 2048;

/// The exec root of a request, to be shown to a resident.
pub struct Request {
    /// Not attached anywhere; a resident's init takes it.
    tree: OwnedFd,
    left: Left,
}

/// A command that stays. Dropping it kills the command and all that it started.
pub struct Resident {
    running: Running,
    stderr: File,
}

/// The farm's ends of the pipes that a resident reads requests from and writes answers to.
pub struct Pipes {
    pub requests: Sender,
    pub answers: Receiver,
}

impl Launcher {
    /// Makes the exec root of a request as for a command with these layers; nothing is run.
    ///
    /// # Errors
    /// As [`Launcher::run`] and [`Running::wait`].
    pub async fn prepare(&self, spec: Spec) -> Result<Request> {
        let running = self.begin(spec, Purpose::Request).await?;
        let Event::Staged { left, tree } = running.event().await? else {
            return Err(Error::bug("the sandbox's init gave no exec root"));
        };
        Ok(Request { tree, left })
    }

    /// Starts a command that stays and sees the inputs of `request` first. Its own layers do not count.
    ///
    /// # Errors
    /// As [`Launcher::run`] and [`Running::wait`].
    pub async fn reside(&self, spec: Spec, request: &Request) -> Result<(Resident, Pipes)> {
        let running = self.begin(spec, Purpose::Resident).await?;
        let Event::Piped { stdin, stdout, stderr } = running.event().await? else {
            return Err(Error::bug("the sandbox's init told of no pipes"));
        };
        let pipes = Pipes {
            requests: Sender::from_owned_fd(stdin).context(|| "watch a pipe to the sandbox")?,
            answers: Receiver::from_owned_fd(stdout).context(|| "watch a pipe to the sandbox")?,
        };
        let resident = Resident { running, stderr: stderr.into() };
        resident.show(Some(request)).await?;
        Ok((resident, pipes))
    }
}

impl Resident {
    /// Puts the inputs of `request` in the place of those that it sees, or nothing.
    ///
    /// # Errors
    /// `Unavailable` when that fails or the command has ended; a resident that it failed for must not be used any more.
    pub async fn show(&self, request: Option<&Request>) -> Result<()> {
        let tree: Vec<_> = request.iter().map(|request| request.tree.as_fd()).collect();
        let exchange = async {
            let sent = send(&self.running.channel, b"X", &tree).await;
            sent.context(|| "show a resident its inputs")?;
            match self.running.event().await? {
                Event::Exchanged => Ok(()),
                Event::Ended { .. } => Err(unavailable("the resident has ended")),
                Event::Begun { .. } | Event::Staged { .. } | Event::Piped { .. } | Event::Fault(_) => {
                    Err(Error::bug("the sandbox's init sent a message at a wrong time"))
                }
            }
        };
        let late = |_| unavailable("the sandbox's init does not exchange the inputs of a resident");
        timeout(EXCHANGE_MAX, exchange).await.map_err(late)?
    }

    /// Waits for the command's end.
    ///
    /// # Errors
    /// As [`Running::wait`].
    pub async fn ended(&self) -> Result<Exit> {
        self.running.wait().await
    }

    /// Kills the command and all that it started; [`Resident::ended`] tells when nothing runs any more.
    pub fn kill(&self) {
        self.running.kill();
    }

    /// The last that it has printed as its errors, for the log. Blocks.
    pub fn complaint(&self) -> String {
        let size = self.stderr.metadata().map_or(0, |metadata| metadata.len());
        let mut bytes = vec![0; usize::try_from(size.min(COMPLAINT_BYTES)).expect("a few bytes")];
        let read = self.stderr.read_at(&mut bytes, size.saturating_sub(COMPLAINT_BYTES)).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }
}

impl Request {
    /// What a resident that was shown this has left of it, as if it were a command that ended so.
    pub fn exit(self, end: super::End) -> Exit {
        let Left { view, stdout, stderr } = self.left;
        let usage = super::Usage::default();
        Exit { end, usage, spent: None, view, stdout: stdout.into(), stderr: stderr.into() }
    }
}
