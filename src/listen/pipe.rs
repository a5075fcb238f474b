//! The in-memory pipe that joins parts of one process: a listener without a socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use super::Peer;
use crate::error::{Error, Kind, Result};

/// Bytes on their way through a pipe.
const PIPE_BYTES: usize = 256 << 10;

/// Connections that wait to be accepted.
const PIPE_BACKLOG: usize = 16;

/// The accepting end of an in-memory pipe.
pub struct PipeIncoming(ReceiverStream<Joined>);

/// One connection, as the accepting end has it.
pub(super) struct Joined(DuplexStream);

/// The connecting end of an in-memory pipe.
#[derive(Debug, Clone)]
pub struct Pipe(mpsc::Sender<Joined>);

/// A listener without a socket: what connects to one end is accepted at the other.
pub fn pipe() -> (Pipe, PipeIncoming) {
    let (sender, receiver) = mpsc::channel(PIPE_BACKLOG);
    (Pipe(sender), PipeIncoming(ReceiverStream::new(receiver)))
}

impl Pipe {
    /// A gRPC channel over a new connection.
    ///
    /// # Errors
    /// `Unavailable` when the other end is closed.
    pub async fn connect(&self) -> Result<Channel> {
        let sender = self.0.clone();
        let connector = tower::service_fn(move |_| {
            let sender = sender.clone();
            async move {
                let (near, far) = tokio::io::duplex(PIPE_BYTES);
                sender
                    .send(Joined::new(far))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                Ok::<_, io::Error>(TokioIo::new(near))
            }
        });
        let endpoint = Endpoint::from_static("http://in-memory.invalid");
        let channel = endpoint.connect_with_connector(connector).await;
        channel.map_err(|error| Error::new(Kind::Unavailable, "connect to the scheduler").with_source(error))
    }
}

impl PipeIncoming {
    /// The connections, until the other end is closed.
    pub(super) fn connections(self) -> impl Stream<Item = io::Result<Joined>> + Send {
        self.0.map(Ok)
    }
}

impl Joined {
    pub(super) fn new(end: DuplexStream) -> Self {
        Self(end)
    }
}

impl Connected for Joined {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer::Process
    }
}

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
