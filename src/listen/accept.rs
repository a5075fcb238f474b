//! Accepts connections, as many as there are files for, and lets go of those whose client says nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::Peer;

/// How long a client may take for its first byte. All protocols that are served begin with the client.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(30);

/// The pause after a connection could not be accepted, which is for want of files or memory: until some are free, to try again at
/// once would only keep a core busy.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections of one listener; the least serves a small team where the system allows few files, the most is far more than a farm has
/// clients.
const CONNECTIONS_MIN: u64 = 64;
const CONNECTIONS_MAX: u64 = 16 * 1024;

/// A connection that keeps its place among those that may be open.
pub(super) struct Accepted {
    stream: TcpStream,
    /// The end of the wait for the first byte; none when it has come.
    silence: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

/// The connections of a listener, for ever.
pub(super) fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<Accepted>> + Send {
    let places = Arc::new(Semaphore::new(connections_max()));
    stream::unfold((listener, places), |(listener, places)| async move {
        let accepted = accept(&listener, &places).await;
        Some((Ok(accepted), (listener, places)))
    })
}

/// Half of the files that this process may open; the other half is for blobs.
fn connections_max() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let half = files.map_or(CONNECTIONS_MAX, |files| files / 2);
    usize::try_from(half.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Accepted {
    let place = Arc::clone(places).acquire_owned().await.expect("nobody closes it");
    loop {
        match listener.accept().await {
            // It fails for a connection that its client has reset already.
            Ok((stream, _)) if stream.set_nodelay(true).is_ok() => {
                unpace(&stream);
                let silence = Some(Box::pin(tokio::time::sleep(FIRST_BYTE_MAX)));
                return Accepted { stream, silence, _place: place };
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Loopback has no congestion, but BBR, where it is the system's default, paces even there and halves the rate of large reads.
fn unpace(connection: &TcpStream) {
    if connection.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
        // It is a matter of speed only, and every kernel has it.
        let _ = rustix::net::sockopt::set_tcp_congestion(connection, "reno");
    }
}

impl Connected for Accepted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.stream.peer_addr().map_or(Peer::Gone, Peer::Socket)
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.silence = None;
        } else if let Some(silence) = &mut self.silence
            && silence.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn connected() -> (TcpStream, Accepted) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepted = Box::pin(connections(listener)).next().await.unwrap().unwrap();
        (client, accepted)
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_let_go_and_one_that_spoke_is_not() {
        let (mut client, mut accepted) = connected().await;
        accepted.silence = Some(Box::pin(tokio::time::sleep(Duration::ZERO)));
        let silent = accepted.read_u8().await.unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        drop(client);
        (client, accepted) = connected().await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), b'x');
        assert!(accepted.silence.is_none());
        assert!(accepted.read_u8().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_connection_too_many_waits_for_a_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let places = Arc::new(Semaphore::new(1));
        let (_one, _two) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let first = accept(&listener, &places).await;
        assert!(accept(&listener, &places).now_or_never().is_none());
        drop(first);
        accept(&listener, &places).await;
    }
}
