//! The connections to one server: spread over several, bounded in time, left alone while the server is away.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::transport::Endpoint;

use super::Config;
use super::failure::Failure;
use crate::credential::{Credential, Lane};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::GetCapabilitiesRequest;
use crate::proto::rev2::capabilities_client::CapabilitiesClient;
use crate::store::health::Health;
use crate::tls::Connector;

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

/// The least time that a server has to answer a probe.
const PROBE_MIN: Duration = Duration::from_secs(1);

/// Calls for the same thing, each on another connection: one may have been closed by the server just before.
const ATTEMPTS_MAX: usize = 2;

/// One server, and how to reach it.
pub(super) struct Link {
    dialer: Arc<Dialer>,
    lanes: Mutex<Lanes>,
    next: AtomicUsize,
    pulse: Pulse,
    /// How long the server may take for an answer or a piece of a blob.
    pub(super) timeout: Duration,
}

/// What a server is shown: certificates, where it is reached with TLS, and a token.
pub(super) type Shown = (Option<Arc<Connector>>, Credential);

/// Makes channels to a server.
struct Dialer {
    endpoint: Endpoint,
    tls: Option<Arc<Connector>>,
    credential: Credential,
}

/// The channels in use.
struct Lanes {
    /// That of the certificates that they were made with. Others take their place when it changes: a server may refuse what comes over a
    /// connection whose certificate has expired. What is under way ends on the old ones.
    generation: u64,
    channels: Vec<Lane>,
}

/// Whether the server is there, and how to find out.
#[derive(Clone)]
pub(super) struct Pulse {
    health: Arc<Health>,
    dialer: Arc<Dialer>,
    patience: Duration,
}

impl Link {
    /// Connections are made when they are needed.
    ///
    /// # Errors
    /// `Invalid` when the endpoint is no address.
    pub(super) fn new(endpoint: &str, config: &Config, shown: Shown) -> Result<Self> {
        let endpoint = Endpoint::from_shared(endpoint.replacen("grpcs://", "https://", 1))
            .map_err(|error| Error::invalid("an endpoint of a farm tier is no address").with_source(error))?
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX);
        let (tls, credential) = shown;
        let dialer = Arc::new(Dialer { endpoint, tls, credential });
        let lanes = Mutex::new(dialer.lanes(config.connections.max(1)));
        let pulse = Pulse {
            health: Arc::default(),
            dialer: Arc::clone(&dialer),
            patience: config.connect_timeout.max(PROBE_MIN),
        };
        Ok(Self { dialer, lanes, next: AtomicUsize::new(0), pulse, timeout: config.timeout })
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Makes a call that can be made again: once more when the connection breaks.
    ///
    /// # Errors
    /// At once while the server is away; else the last attempt's.
    pub(super) async fn call<T, F>(&self, attempt: impl Fn(Lane) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.pulse.admit()?;
        let mut result = attempt(self.channel()).await;
        for _ in 1..ATTEMPTS_MAX {
            match &result {
                Err(failure) if failure.is_worth_another_attempt() => {
                    result = attempt(self.channel()).await;
                }
                Ok(_) | Err(_) => break,
            }
        }
        result.inspect_err(|failure| self.pulse.note(failure))
    }

    /// Makes a call that cannot be made again, since it consumes what it sends.
    ///
    /// # Errors
    /// At once while the server is away; else the attempt's.
    pub(super) async fn call_once<T, F>(&self, attempt: impl FnOnce(Lane) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.pulse.admit()?;
        let result = attempt(self.channel()).await;
        result.inspect_err(|failure| self.pulse.note(failure))
    }

    fn channel(&self) -> Lane {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        // The lanes are whole between any two steps, so a poisoned lock is as good as a clean one.
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.generation != self.dialer.generation() {
            *lanes = self.dialer.lanes(lanes.channels.len());
        }
        lanes.channels[turn % lanes.channels.len()].clone()
    }
}

impl Dialer {
    fn generation(&self) -> u64 {
        self.tls.as_ref().map_or(0, |tls| tls.generation())
    }

    fn lanes(&self, count: usize) -> Lanes {
        let generation = self.generation();
        Lanes { generation, channels: (0..count).map(|_| self.channel()).collect() }
    }

    /// A channel that connects when it is used.
    fn channel(&self) -> Lane {
        self.credential.over(match &self.tls {
            Some(tls) => self.endpoint.connect_with_connector_lazy(tls.dial()),
            None => self.endpoint.connect_lazy(),
        })
    }
}

impl Pulse {
    pub(super) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    fn admit(&self) -> Result<(), Failure> {
        if self.health.is_up() {
            return Ok(());
        }
        let error =
            Error::new(Kind::Unavailable, "a server of the farm tier is away; it is tried again soon");
        Err(Failure::Source(error))
    }

    /// After a failure that means that the server is gone, it is left alone until it answers again.
    pub(super) fn note(&self, failure: &Failure) {
        if failure.is_outage() {
            let (dialer, patience) = (Arc::clone(&self.dialer), self.patience);
            self.health.failed(move || answers(dialer.channel(), patience));
        }
    }
}

/// Whether the server says anything at all, be it that it does not know the question.
async fn answers(channel: Lane, patience: Duration) -> bool {
    let mut client = CapabilitiesClient::new(channel);
    match in_time(patience, client.get_capabilities(GetCapabilitiesRequest::default())).await {
        Ok(_) => true,
        Err(failure) => !failure.is_outage(),
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
