//! Channels to a scheduler: over TCP, watched so closely that a dead one is found out soon.

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::{STREAM_WINDOW_BYTES, WORKER_PINGS};
use crate::error::{Error, Kind, Result};
use crate::tls;

/// How long a connection may take to come about: a scheduler that is there accepts at once.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Connects to the scheduler at `endpoint`, as in `grpc://127.0.0.1:50061`, with TLS if there is a connector for that.
///
/// # Errors
/// `Invalid` when that is no address, `Unavailable` when nobody answers there or one of both does not trust the other.
pub async fn connect(endpoint: &str, tls: Option<&Arc<tls::Connector>>) -> Result<Channel> {
    let address = endpoint.replacen("grpcs://", "https://", 1).replacen("grpc://", "http://", 1);
    let endpoint = Endpoint::from_shared(address)
        .map_err(|error| Error::invalid("the scheduler's address is none").with_source(error))?
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES)
        .http2_keep_alive_interval(WORKER_PINGS.interval)
        .keep_alive_timeout(WORKER_PINGS.timeout)
        .keep_alive_while_idle(true);
    let channel = match tls {
        Some(tls) => endpoint.connect_with_connector(tls.dial()).await,
        None => endpoint.connect().await,
    };
    channel.map_err(|error| Error::new(Kind::Unavailable, "no scheduler answers").with_source(error))
}
