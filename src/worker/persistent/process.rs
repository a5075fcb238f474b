//! One process that stays running, and what is said to it.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::Fate;
use super::call::{Call, Key};
use super::protocol::{Decoder, Protocol};
use crate::error;
use crate::metrics::WORKER_RESIDENTS;
use crate::proto::persistent::WorkResponse;
use crate::tasks;
use crate::worker::inputs::Staged;
use crate::worker::sandbox::{Launcher, Pipes, Request, Resident, Spec};

/// How long the rest of an answer may take: a tool writes it at once, and text that it has printed by mistake may look like the
/// beginning of one for ever.
const REST_MAX: Duration = Duration::from_secs(10);
/// How long killed processes may take to go.
const KILL_MAX: Duration = Duration::from_secs(30);
/// Requests that one process answers. What it has leaked by then, descriptors of old inputs among it, ends with it.
const CALLS_MAX: u32 = 1000;
/// Bytes that are read at a time: those of a pipe.
const PIECE_BYTES: usize = 64 * 1024;

/// A process that stays running. Dropping it kills it.
pub(super) struct Process {
    pub(super) key: Key,
    resident: Resident,
    pipes: Pipes,
    calls: u32,
    /// What the tool was started from. It may read its own files at any time.
    _tool: Staged,
    _place: OwnedSemaphorePermit,
    _count: Count,
}

/// Counts the processes there are.
struct Count;

impl Process {
    /// Starts a process for `call` that sees the inputs of `request`.
    ///
    /// # Errors
    /// When the sandbox cannot be made.
    pub(super) async fn start(
        launcher: &Launcher,
        (key, request): (&Key, &Request),
        (tool, place): (Staged, OwnedSemaphorePermit),
    ) -> error::Result<Self> {
        let spec = Spec {
            directory: String::new(),
            layers: Vec::new(),
            arguments: key.arguments.clone(),
            environment: key.environment.clone(),
            working_directory: String::new(),
            root: key.root,
            limits: key.limits,
        };
        let (resident, pipes) = launcher.reside(spec, request).await?;
        let count = Count::new();
        Ok(Self { key: key.clone(), resident, pipes, calls: 0, _tool: tool, _place: place, _count: count })
    }

    /// Puts the inputs of `request` before it, or nothing.
    ///
    /// # Errors
    /// When it has ended, or its sandbox has a fault; it must not be used any more then.
    pub(super) async fn show(&self, request: Option<&Request>) -> error::Result<()> {
        self.resident.show(request).await
    }

    /// Sends the request and waits for its answer, without a limit of time. A process that gave none must not be used any more, nor
    /// one whose answer was not waited for.
    pub(super) async fn ask(&mut self, call: &Call) -> Result<WorkResponse, Fate> {
        self.calls += 1;
        let protocol = self.key.protocol;
        let request = protocol.encode(&call.request);
        let Self { resident, pipes: Pipes { requests, answers }, .. } = self;
        let is_sent = AtomicBool::new(false);
        let send = async {
            // A process that does not read it has ended or will not answer.
            is_sent.store(requests.write_all(&request).await.is_ok(), Ordering::Relaxed);
            std::future::pending::<Infallible>().await
        };
        let response = tokio::select! {
            response = receive(protocol, answers) => response?,
            never = send => match never {},
            _ = resident.ended() => return Err(Fate::Ended),
        };
        // Nobody has numbered or cancelled a request, and the rest of one would stand before the next.
        match is_sent.load(Ordering::Relaxed) && response.request_id == 0 && !response.was_cancelled {
            true => Ok(response),
            false => Err(Fate::Garbled),
        }
    }

    /// The program, for the log.
    pub(super) fn name(&self) -> &str {
        self.key.arguments.first().map_or("", String::as_str)
    }

    /// Whether it may answer another request.
    pub(super) fn is_fresh(&self) -> bool {
        self.calls < CALLS_MAX
    }

    /// Kills it as [`Process::end`] does. Returns the last that it has printed as its errors, for the log.
    pub(super) async fn end_with_complaint(self) -> String {
        let resident = self.end_but_keep().await;
        tasks::blocking(move || Ok(resident.complaint())).await.unwrap_or_default()
    }

    /// Kills it and waits until nothing of it runs.
    pub(super) async fn end(self) {
        drop(self.end_but_keep().await);
    }

    async fn end_but_keep(self) -> Resident {
        self.resident.kill();
        // Whoever hangs in the kernel goes when that lets it; its init goes with this.
        if timeout(KILL_MAX, self.resident.ended()).await.is_err() {
            tracing::warn!("the processes of a persistent worker cannot be killed");
        }
        self.resident
    }
}

async fn receive(protocol: Protocol, answers: &mut Receiver) -> Result<WorkResponse, Fate> {
    let (mut decoder, mut piece) = (Decoder::new(protocol), vec![0; PIECE_BYTES]);
    loop {
        let limit = if decoder.has_begun() { REST_MAX } else { Duration::MAX };
        let length = match timeout(limit, answers.read(&mut piece)).await {
            Ok(Ok(0) | Err(_)) => return Err(Fate::Ended),
            Ok(Ok(length)) => length,
            Err(_) => return Err(Fate::Garbled),
        };
        if let Some(response) = decoder.push(&piece[..length]).map_err(|_| Fate::Garbled)? {
            return Ok(response);
        }
    }
}

impl Count {
    fn new() -> Self {
        WORKER_RESIDENTS.inc();
        Self
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        WORKER_RESIDENTS.dec();
    }
}
