//! Sockets: bind, accept, serve, drain. Also the in-memory pipe that joins parts of one process.

use std::io;
use std::net::{self, SocketAddr};
use std::time::Duration;

use futures_util::Stream;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use tokio::net::{TcpListener, TcpSocket};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower::util::option_layer;

use crate::error::{Context, Error, Kind, Result};
use crate::tasks::Shutdown;
use crate::tls;

mod accept;
mod addresses;
mod calls;
mod connect;
mod incoming;
mod measured;
mod peer;
mod pipe;
#[cfg(test)]
mod silence_tests;

pub use calls::promise;
pub use connect::connect;
pub use measured::Measured;
pub use peer::{Peer, Socket};
pub use pipe::{Pipe, PipeIncoming, pipe};

/// The largest HTTP/2 frame that we take. Uploads in large frames cost half the CPU of those in 16 KiB ones.
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// What one stream may have under way before it is read. Uploads over links with a long round trip need it.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// The same for all streams of a connection, which bounds what a connection can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Requests that one connection may have open. Bazel opens one for each of its `--jobs`.
const STREAMS_MAX: u32 = 4096;

/// Bytes of all headers of a request together, as HTTP/2 counts them: a token and what clients tell of themselves are a fourth of it.
const HEADER_BYTES_MAX: u32 = 32 << 10;

/// Requests of one connection that were taken back before we have looked at them. More are a flood (CVE-2023-44487), and it is closed.
const RESETS_MAX: usize = 64;

/// Errors of its protocol that one connection may make before it is closed, each of which costs us an answer (CVE-2025-8671).
const ERRORS_MAX: usize = 256;

/// Bytes that the kernel holds for a connection that we have not read yet. Left to itself it begins with 128 KiB, which a fast upload
/// fills; and a sender that met a closed window may wait for 200 ms before it tries again.
const RECEIVE_BUFFER_BYTES: u32 = 4 << 20;

/// Connections that one address may have open when nothing else is said, and how many of a listener's places they may be at most. A Bazel
/// has up to 100, so some 40 may share an address; who would take all places leaves half of them to others.
pub const CONNECTIONS_PER_ADDRESS: u32 = 4096;
const PLACES_PER_ADDRESS: u64 = 2;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// How a peer is found out that is gone without a word.
#[derive(Debug, Clone, Copy)]
struct Pings {
    /// The silence after which it is asked for a sign of life.
    interval: Duration,
    /// How long it may take for that.
    timeout: Duration,
}

/// A client that is gone costs a connection, nothing else.
const CLIENT_PINGS: Pings = Pings { interval: Duration::from_secs(30), timeout: Duration::from_secs(20) };

/// Actions wait for a worker that is gone, and a worker is idle whose scheduler is gone: both ends know after 18 s.
const WORKER_PINGS: Pings = Pings { interval: Duration::from_secs(10), timeout: Duration::from_secs(8) };

/// Whom a listener is for.
#[derive(Debug, Clone, Copy)]
struct Served {
    pings: Pings,
    /// Whether the time of its requests counts among those of the protocols.
    is_measured: bool,
}

const CLIENTS: Served = Served { pings: CLIENT_PINGS, is_measured: true };
const WORKERS: Served = Served { pings: WORKER_PINGS, is_measured: true };
const OPERATORS: Served = Served { pings: CLIENT_PINGS, is_measured: false };

/// How long requests may go on after the stop was asked for.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A socket that connections can be made to, not served yet.
pub struct Listener {
    name: String,
    socket: TcpListener,
    /// None: without TLS.
    tls: Option<tls::Acceptor>,
    connections_per_address: u32,
}

impl Listener {
    fn new(name: &str, socket: TcpListener, tls: Option<tls::Acceptor>) -> Self {
        Self { name: name.to_owned(), socket, tls, connections_per_address: CONNECTIONS_PER_ADDRESS }
    }

    /// The same, where one address may have so many connections open.
    #[must_use]
    pub fn with_connections_per_address(self, connections_per_address: u32) -> Self {
        Self { connections_per_address, ..self }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.socket.local_addr().context(|| "read the address of a listener")
    }
}

/// Binds the listener that is called `name` in messages.
///
/// # Errors
/// `Unavailable` with what to do when the address is taken, `Invalid` when it is not ours or the files of `tls` are wrong.
pub fn bind(name: &str, address: SocketAddr, tls: Option<&tls::Server>) -> Result<Listener> {
    let tls = tls.map(|tls| tls::Acceptor::new(name, tls)).transpose()?;
    let socket = open(address).map_err(|error| {
        let (kind, hint) = if error.kind() == io::ErrorKind::AddrInUse {
            (Kind::Unavailable, "another process listens there; is a farm running already?")
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            (Kind::Invalid, "ports below 1024 need a privilege")
        } else {
            (Kind::Invalid, "it is not an address of this machine")
        };
        Error::new(kind, format!("listen on {address} ({name}): {hint}")).with_source(error)
    })?;
    Ok(Listener::new(name, socket, tls))
}

/// Serves a socket that listens already, under the name `name`.
///
/// # Errors
/// `Invalid` when the files of `tls` are wrong, `Unavailable` when the socket is of no use.
pub fn adopt(name: &str, socket: net::TcpListener, tls: Option<&tls::Server>) -> Result<Listener> {
    let tls = tls.map(|tls| tls::Acceptor::new(name, tls)).transpose()?;
    let serve = |socket: net::TcpListener| {
        set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES as usize)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket)
    };
    let socket = serve(socket).context(|| format!("listen on the socket that was handed over ({name})"))?;
    Ok(Listener::new(name, socket, tls))
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `routes` on a socket until `shutdown`, then lets what is under way end, for a while.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: Listener, routes: Routes, shutdown: Shutdown) -> Result<()> {
    serve_incoming(accept::connections(listener), routes, CLIENTS, shutdown).await
}

/// As [`serve`], for the pages of operators.
///
/// # Errors
/// When the listener fails.
pub async fn serve_pages(listener: Listener, routes: Routes, shutdown: Shutdown) -> Result<()> {
    serve_incoming(accept::connections(listener), routes, OPERATORS, shutdown).await
}

/// As [`serve`], for workers.
///
/// # Errors
/// When the listener fails.
pub async fn serve_workers(listener: Listener, routes: Routes, shutdown: Shutdown) -> Result<()> {
    serve_incoming(accept::connections(listener), routes, WORKERS, shutdown).await
}

/// Serves `routes` on the connections of an in-memory pipe.
///
/// # Errors
/// When the pipe fails, which it does not.
pub async fn serve_pipe(incoming: PipeIncoming, routes: Routes, shutdown: Shutdown) -> Result<()> {
    serve_incoming(incoming.connections(), routes, CLIENTS, shutdown).await
}

async fn serve_incoming<C>(
    incoming: impl Stream<Item = io::Result<C>> + Send + 'static,
    routes: Routes,
    served: Served,
    shutdown: Shutdown,
) -> Result<()>
where
    C: Connected<ConnectInfo = Peer> + tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    // HTTP/1.1 is for the clients of the plain cache protocol; gRPC is always HTTP/2.
    let serving = Server::builder()
        .accept_http1(true)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(ERRORS_MAX))
        .http2_keepalive_interval(Some(served.pings.interval))
        .http2_keepalive_timeout(Some(served.pings.timeout))
        .layer(option_layer(served.is_measured.then_some(Measured)))
        .layer(incoming::Bounded)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    let expired = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        served = serving => served.map_err(|error| Error::bug("serve a listener").with_source(error)),
        () = expired => Ok(()),
    }
}

/// Whether a message of HTTP with these headers is one of gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
