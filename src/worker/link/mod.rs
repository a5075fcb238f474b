//! The worker's side of its stream to the scheduler. Connections come and go; leases go on, and each is answered until the scheduler
//! has said that the answer is safe.

mod leases;
mod reports;
mod session;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Worker;
use crate::credential::Lane;
use crate::error::{Error, Kind, Result};
use crate::tasks::Shutdown;
use leases::Leases;
pub(crate) use reports::Reports;
use session::{End, Session};

/// Makes a channel to a scheduler; called for every attempt to connect.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Result<Lane>> + Send + Sync>;

/// Whether a scheduler has welcomed the worker and the connection holds, or a sentence that says why not.
pub type Connection = std::result::Result<(), String>;

/// How long a scheduler may take to welcome a worker.
const WELCOME_MAX: Duration = Duration::from_secs(15);
/// The pause before the first attempt to connect again; it doubles up to the longest. A scheduler waits for a worker whose connection
/// broke for 45 s by default, of which 30 s may be a cut of the network, so what is left must have room for two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How a worker is asked to end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Take nothing new, finish what runs, and end.
    pub drain: Shutdown,
    /// Kill what runs, and end.
    pub now: Shutdown,
}

impl Stop {
    /// Waits until the worker is asked to end, one way or the other.
    pub async fn asked(&self) {
        tokio::select! {
            () = self.drain.cancelled() => {}
            () = self.now.cancelled() => {}
        }
    }
}

/// Keeps one worker connected to its scheduler.
pub struct Link {
    worker: Worker,
    connect: Connect,
    stop: Stop,
    connected: watch::Sender<Connection>,
    /// Each tells when the worker has something else to show.
    renewals: Vec<watch::Receiver<u64>>,
}

impl Link {
    pub fn new(worker: Worker, connect: Connect, stop: Stop) -> Self {
        let connected = watch::Sender::new(Err("connecting to the scheduler".to_owned()));
        Self { worker, connect, stop, connected, renewals: Vec::new() }
    }

    /// Connects anew whenever one of `renewals` tells that the worker has another certificate or token: the scheduler looks at it when
    /// a stream begins, and ends the stream when it ends.
    pub fn renewed_by(self, renewals: impl IntoIterator<Item = watch::Receiver<u64>>) -> Self {
        Self { renewals: renewals.into_iter().collect(), ..self }
    }

    /// Whether a scheduler has welcomed the worker and the connection holds.
    pub fn connected(&self) -> watch::Receiver<Connection> {
        self.connected.subscribe()
    }

    /// Connects, again and again, until the worker is asked to end. When it returns, nothing of its leases runs and its directories
    /// are deleted.
    ///
    /// # Errors
    /// None at present: a connection that cannot be made is tried again for ever.
    pub async fn run(self) -> Result<()> {
        let mut leases = Leases::new(self.worker.clone());
        let mut backoff = Backoff { pause: PAUSE_MIN };
        while !self.is_done(&leases) {
            match self.meet(&mut leases, &mut backoff).await {
                Ok(End::Left) => break,
                Ok(End::Renewed) => {
                    tracing::info!("the worker connects anew to show its new certificate or token");
                    continue;
                }
                Ok(End::Lost(error)) | Err(error) => {
                    tracing::warn!(error = error.chain(), "the worker has no scheduler");
                    self.tell(Err(error.public_message()));
                }
            }
            tokio::select! {
                () = backoff.wait() => {}
                () = self.stop.now.cancelled() => {}
            }
        }
        leases.end().await;
        self.worker.tidy().await;
        Ok(())
    }

    fn tell(&self, connection: Connection) {
        self.connected.send_modify(|present| *present = connection);
    }

    /// Whether there is nothing left that a scheduler should hear.
    fn is_done(&self, leases: &Leases) -> bool {
        self.stop.now.is_cancelled() || (self.stop.drain.is_cancelled() && leases.is_empty())
    }

    /// One connection, from its beginning to its end.
    async fn meet(&self, leases: &mut Leases, backoff: &mut Backoff) -> Result<End> {
        let mut renewals = self.renewals.clone();
        renewals.iter_mut().for_each(watch::Receiver::mark_unchanged);
        let opened = async {
            let channel = (self.connect)().await?;
            Session::open(&self.worker, leases, (channel, renewals)).await
        };
        let session = tokio::select! {
            session = timeout(WELCOME_MAX, opened) => {
                session.map_err(|_| Error::new(Kind::Timeout, "the scheduler does not answer"))??
            }
            () = self.stop.now.cancelled() => return Ok(End::Left),
        };
        tracing::info!(worker = self.worker.name(), "the worker is connected");
        self.tell(Ok(()));
        let begin = Instant::now();
        let end = session.serve(&self.worker, leases, &self.stop).await;
        self.tell(Err("the connection to the scheduler has ended".to_owned()));
        backoff.held_for(begin.elapsed());
        Ok(end)
    }
}

/// The pauses between attempts to connect.
struct Backoff {
    pause: Duration,
}

impl Backoff {
    /// A connection that held was a good one: its loss says nothing about the next.
    fn held_for(&mut self, time: Duration) {
        if time > self.pause {
            self.pause = PAUSE_MIN;
        }
    }

    async fn wait(&mut self) {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        tokio::time::sleep(jittered(pause)).await;
    }
}

/// Between a half and the whole of `pause`, so that workers that lost their scheduler together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() % 1000;
    let share = u32::try_from(random).expect("below 1000");
    pause / 2 + pause / 2 * share / 1000
}
