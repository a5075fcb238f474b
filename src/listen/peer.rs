//! Who is at the other end of a connection, as far as the connection itself tells.

use std::net::SocketAddr;

/// The other end of a connection. Every request has it among its extensions.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A part of this process, over the in-memory pipe.
    Process,
    /// Someone over a socket.
    Socket(SocketAddr),
    /// Someone over a socket whose other end is gone already.
    Gone,
}
