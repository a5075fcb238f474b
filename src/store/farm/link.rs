//! The connections to one server: spread over several, bounded in time, left alone while the server is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};

use super::Config;
use super::failure::Failure;
use crate::error::{Error, Kind, Result};
use crate::store::health::Health;

/// The largest HTTP/2 frame that we take. Blobs in large frames cost half the CPU of those in 16 KiB ones.
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// What one stream may have under way before it is read. Reads over links with a long round trip need it.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// The same for all streams of a connection, which bounds what a server can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// A server that is gone without a word is found out by pings while a call is under way. More of them would anger servers that
/// count pings against a client, as those made with Go do.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Calls for the same thing, each on another connection: one may have been closed by the server just before.
const ATTEMPTS_MAX: usize = 2;

/// One server, and how to reach it.
pub(super) struct Link {
    channels: Vec<Channel>,
    next: AtomicUsize,
    health: Arc<Health>,
    /// How long the server may take for an answer or a piece of a blob.
    pub(super) timeout: Duration,
}

impl Link {
    /// Connections are made when they are needed.
    ///
    /// # Errors
    /// `Invalid` when the endpoint is no address.
    pub(super) fn new(endpoint: &str, config: &Config) -> Result<Self> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())
            .map_err(|error| Error::invalid("an endpoint of a farm tier is no address").with_source(error))?
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX);
        let channels = (0..config.connections.max(1)).map(|_| endpoint.connect_lazy()).collect();
        let health = Arc::new(Health::default());
        Ok(Self { channels, next: AtomicUsize::new(0), health, timeout: config.timeout })
    }

    pub(super) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Makes a call that can be made again: once more when the connection breaks.
    ///
    /// # Errors
    /// At once while the server is away; else the last attempt's.
    pub(super) async fn call<T, F>(&self, attempt: impl Fn(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.admit()?;
        let mut result = attempt(self.channel()).await;
        for _ in 1..ATTEMPTS_MAX {
            match &result {
                Err(failure) if failure.is_worth_another_attempt() => {
                    result = attempt(self.channel()).await;
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.note(&result);
        result
    }

    /// Makes a call that cannot be made again, since it consumes what it sends.
    ///
    /// # Errors
    /// At once while the server is away; else the attempt's.
    pub(super) async fn call_once<T, F>(&self, attempt: impl FnOnce(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.admit()?;
        let result = attempt(self.channel()).await;
        self.note(&result);
        result
    }

    fn admit(&self) -> Result<(), Failure> {
        if self.health.admits(Instant::now()) {
            return Ok(());
        }
        let error =
            Error::new(Kind::Unavailable, "a server of the farm tier is away; it is tried again soon");
        Err(Failure::Source(error))
    }

    fn channel(&self) -> Channel {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels[turn % self.channels.len()].clone()
    }

    fn note<T>(&self, result: &Result<T, Failure>) {
        match result {
            Ok(_) => self.health.succeeded(),
            Err(failure) if failure.is_outage() => self.health.failed(Instant::now()),
            // The server has answered, or was never asked.
            Err(Failure::Status(_)) => self.health.succeeded(),
            Err(Failure::Late | Failure::Source(_)) => {}
        }
    }
}

/// Waits for a server's answer, at most `limit`.
pub(super) async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::Late),
    }
}
