//! Who is at the other end of a connection, as far as the connection itself tells.

use std::net::{IpAddr, SocketAddr};

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

impl Peer {
    /// The address of its machine; none for a part of this process.
    pub fn machine(&self) -> Option<IpAddr> {
        match self {
            Self::Socket(address) => Some(address.ip()),
            Self::Process | Self::Gone => None,
        }
    }
}
