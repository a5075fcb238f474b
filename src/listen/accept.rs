//! Accepts connections, as many as there are files for, and lets go of those whose client says nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::addresses::{Addresses, Counted};
use super::{Listener, PLACES_PER_ADDRESS, Peer, Socket};
use crate::tls::{Acceptor, Refusal};
use crate::{metrics, tasks};

/// How long a client may take to begin. All protocols that are served begin with the client.
const BEGINNING_MAX: Duration = Duration::from_secs(30);

/// The pause after a connection could not be accepted, which is for want of files or memory: until some are free, to try again at
/// once would only keep a core busy.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections of one listener; the least serves a small team where the system allows few files, the most is far more than a farm has
/// clients.
const CONNECTIONS_MIN: u64 = 64;
const CONNECTIONS_MAX: u64 = 16 * 1024;

/// Handshakes that are done and wait for the task that serves; more wait themselves, each in its place.
const HANDSHAKEN_MAX: usize = 64;

/// A connection that keeps its place among those that may be open.
pub(super) struct Accepted {
    stream: Transport,
    peer: Socket,
    /// None when the client has begun.
    beginning: Option<Beginning>,
    _place: Place,
}

/// The wait for what a client begins with: the preface of HTTP/2, or the headers of a request. Nobody else times these.
struct Beginning {
    end: Pin<Box<Sleep>>,
    /// Bytes that have come.
    length: usize,
    /// How many of the last bytes are the beginning of an empty line.
    matched: usize,
    has_empty_line: bool,
}

/// The end of the headers of HTTP/1.1; the preface of HTTP/2 has it, too.
const EMPTY_LINE: &[u8] = b"\r\n\r\n";

/// Bytes of the preface of HTTP/2 (RFC 9113, section 3.4); the shortest request of HTTP/1.1 with a host has more.
const PREFACE_BYTES: usize = 24;

impl Beginning {
    fn new(time: Duration) -> Self {
        Self { end: Box::pin(tokio::time::sleep(time)), length: 0, matched: 0, has_empty_line: false }
    }

    /// Looks at the next bytes; whether the client has begun with them.
    fn is_over(&mut self, bytes: &[u8]) -> bool {
        self.length += bytes.len();
        for byte in bytes {
            if self.has_empty_line {
                break;
            }
            self.matched = match *byte == EMPTY_LINE[self.matched] {
                true => self.matched + 1,
                false => usize::from(*byte == EMPTY_LINE[0]),
            };
            self.has_empty_line = self.matched == EMPTY_LINE.len();
        }
        self.has_empty_line && self.length >= PREFACE_BYTES
    }
}

/// What carries the bytes.
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that has come and said nothing yet.
struct Arrived {
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
}

/// What a connection keeps from others: one of those that may be open, and one of those of its address.
struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_address: Counted,
}

/// The places of a listener.
struct Places {
    listener: String,
    all: Arc<Semaphore>,
    addresses: Addresses,
}

impl Places {
    fn new(listener: String, count: usize, per_address: u32) -> Self {
        Self { listener, all: Arc::new(Semaphore::new(count)), addresses: Addresses::new(per_address) }
    }

    /// The place of a connection from `address`, if that has not as many as it may.
    fn take(&self, of_all: OwnedSemaphorePermit, address: SocketAddr) -> Option<Place> {
        let of_address = self.addresses.count(address.ip());
        if of_address.is_none() {
            metrics::CONNECTIONS_REFUSED.with_label_values(&[&self.listener]).inc();
        }
        Some(Place { _of_all: of_all, _of_address: of_address? })
    }
}

/// The connections of a listener, for ever.
pub(super) fn connections(listener: Listener) -> impl Stream<Item = io::Result<Accepted>> + Send {
    let count = connections_max();
    let per_address = u64::from(listener.connections_per_address).min(count as u64 / PLACES_PER_ADDRESS);
    let per_address = u32::try_from(per_address).expect("it was one");
    let places = Places::new(listener.name, count, per_address);
    let tls = listener.tls.map(Handshakes::new);
    stream::unfold((listener.socket, places, tls), |(socket, places, mut tls)| async move {
        let accepted = match &mut tls {
            Some(handshakes) => handshakes.next(&socket, &places).await,
            None => Accepted::plain(accept(&socket, &places).await),
        };
        Some((Ok(accepted), (socket, places, tls)))
    })
}

/// The handshakes of a listener: each in a task of its own, so that none waits for another.
struct Handshakes {
    acceptor: Arc<Acceptor>,
    /// Whether a client without TLS has been told of, which is a mistake of the operator's when it is none of the client's.
    has_told: Arc<AtomicBool>,
    done: (mpsc::Sender<Accepted>, mpsc::Receiver<Accepted>),
}

impl Handshakes {
    fn new(acceptor: Acceptor) -> Self {
        let done = mpsc::channel(HANDSHAKEN_MAX);
        Self { acceptor: Arc::new(acceptor), has_told: Arc::default(), done }
    }

    /// The next connection whose handshake is done. Those that arrive meanwhile begin theirs.
    async fn next(&mut self, socket: &TcpListener, places: &Places) -> Accepted {
        loop {
            let arrived = tokio::select! {
                Some(accepted) = self.done.1.recv() => return accepted,
                arrived = accept(socket, places) => arrived,
            };
            let (acceptor, has_told) = (Arc::clone(&self.acceptor), Arc::clone(&self.has_told));
            let done = self.done.0.clone();
            // The time is bounded, so nobody waits for its end.
            tasks::spawn("handshake", async move {
                let Arrived { stream, address, place } = arrived;
                match acceptor.accept(stream).await {
                    Ok((stream, certificate)) => {
                        let peer = Socket { address, certificate };
                        // Nobody takes it when the listener has stopped.
                        let _ = done.send(Accepted::new(Transport::Tls(Box::new(stream)), peer, place)).await;
                    }
                    Err((refusal, error)) => tell(&acceptor, refusal, &error, &has_told),
                }
            });
        }
    }
}

/// Anybody can make handshakes fail as fast as they like, so the log has them only where it is asked for.
fn tell(acceptor: &Acceptor, refusal: Refusal, error: &io::Error, has_told: &AtomicBool) {
    let (listener, reason) = (acceptor.name(), refusal.label());
    metrics::TLS_HANDSHAKE_FAILURES.with_label_values(&[listener, reason]).inc();
    if refusal == Refusal::PlainHttp && !has_told.swap(true, Ordering::Relaxed) {
        let advice = "clients must use grpcs:// or https:// here (this is told once)";
        tracing::warn!(listener, "a client speaks plain HTTP on a port with TLS; {advice}");
    }
    tracing::debug!(listener, reason, %error, "a handshake did not come about");
}

/// Half of the files that this process may open; the other half is for blobs.
fn connections_max() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let half = files.map_or(CONNECTIONS_MAX, |files| files / 2);
    usize::try_from(half.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

async fn accept(listener: &TcpListener, places: &Places) -> Arrived {
    loop {
        let of_all = Arc::clone(&places.all).acquire_owned().await.expect("nobody closes it");
        match listener.accept().await {
            // It fails for a connection that its client has reset already.
            Ok((stream, address)) if stream.set_nodelay(true).is_ok() => {
                unpace(&stream);
                if let Some(place) = places.take(of_all, address) {
                    return Arrived { stream, address, place };
                }
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

impl Accepted {
    fn new(stream: Transport, peer: Socket, place: Place) -> Self {
        Self { stream, peer, beginning: Some(Beginning::new(BEGINNING_MAX)), _place: place }
    }

    fn plain(Arrived { stream, address, place }: Arrived) -> Self {
        Self::new(Transport::Plain(stream), Socket { address, certificate: None }, place)
    }
}

impl Connected for Accepted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer::Socket(self.peer.clone())
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        let Some(beginning) = &mut self.beginning else { return read };
        if read.is_ready() && beginning.is_over(&buffer.filled()[before..]) {
            self.beginning = None;
        } else if read.is_pending() && beginning.end.as_mut().poll(context).is_ready() {
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
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::tls::authority::Authority;

    async fn connected() -> (TcpStream, Accepted) {
        let listener = super::super::bind("test", "127.0.0.1:0".parse().unwrap(), None).unwrap();
        let client = TcpStream::connect(listener.address().unwrap()).await.unwrap();
        let accepted = Box::pin(connections(listener)).next().await.unwrap().unwrap();
        (client, accepted)
    }

    #[tokio::test]
    async fn a_client_that_does_not_begin_is_let_go_and_one_that_has_is_not() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let headers = b"PUT /cas/00 HTTP/1.1\r\nhost: farm\r\n\r\n";
        let halves =
            [&b""[..], b"P", &preface[..23], b"\r\n\r\n", b"GET /cas/00 HTTP/1.1\r\nx-slow: yes\r\n\r"];
        for (said, has_begun) in
            halves.map(|half| (half, false)).into_iter().chain([(&preface[..], true), (headers, true)])
        {
            let (mut client, mut accepted) = connected().await;
            client.write_all(said).await.unwrap();
            for byte in said {
                assert_eq!(accepted.read_u8().await.unwrap(), *byte);
            }
            if let Some(beginning) = &mut accepted.beginning {
                beginning.end = Box::pin(tokio::time::sleep(Duration::ZERO));
            }
            let next = tokio::time::timeout(Duration::from_millis(50), accepted.read_u8()).await;
            match next {
                Ok(read) => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut),
                Err(_) => assert!(has_begun, "{said:?}"),
            }
            assert_eq!(accepted.beginning.is_none(), has_begun, "{said:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_too_many_waits_for_a_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let places = Places::new("test".to_owned(), 1, 1);
        let (_one, _two) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let first = accept(&listener, &places).await;
        assert!(accept(&listener, &places).now_or_never().is_none());
        drop(first);
        accept(&listener, &places).await;
    }

    #[test]
    fn an_address_with_too_many_connections_is_counted_and_gives_its_place_back() {
        let places = Places::new("crowded".to_owned(), 3, 1);
        let refused = || metrics::CONNECTIONS_REFUSED.with_label_values(&["crowded"]).get();
        let take = |address: &str| {
            let of_all = Arc::clone(&places.all).try_acquire_owned().unwrap();
            places.take(of_all, address.parse().unwrap())
        };
        let _first = take("10.0.0.1:1").unwrap();
        assert!(take("10.0.0.1:2").is_none());
        assert_eq!((refused(), places.all.available_permits()), (1, 2));
        let _others = (take("10.0.0.2:1").unwrap(), take("127.0.0.1:1").unwrap());
        assert_eq!(refused(), 1);
    }

    #[tokio::test]
    async fn a_handshake_has_a_place_and_nobody_waits_for_it() {
        let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let (certificate, key) = authority.issue("server").write(directory.path(), "server");
        let tls = crate::tls::Server { certificate, key, clients: None };
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = super::super::bind("handshakes", any, Some(&tls)).unwrap();
        let address = listener.address().unwrap();
        let places = Places::new("test".to_owned(), 2, 1);
        let mut handshakes = Handshakes::new(listener.tls.unwrap());
        let silent = TcpStream::connect(address).await.unwrap();
        let connecting = async {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(authority.client(None)));
            let stream = TcpStream::connect(address).await.unwrap();
            connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
        };
        let (accepted, _client) = tokio::join!(handshakes.next(&listener.socket, &places), connecting);
        assert_eq!(places.all.available_permits(), 0, "the silent one has a place, too");
        drop((silent, accepted));
        let all = tokio::time::timeout(BEGINNING_MAX, places.all.acquire_many(2)).await;
        assert!(all.unwrap().is_ok(), "who is gone has none");
    }
}
