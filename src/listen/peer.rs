//! Who is at the other end of a connection, as far as the connection itself tells.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::tls::ClientCertificate;

/// The other end of a connection. Every request has it among its extensions.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A part of this process, over the in-memory pipe.
    Process,
    /// Someone over a socket.
    Socket(Socket),
}

/// What is known of someone at the other end of a socket.
#[derive(Debug, Clone)]
pub struct Socket {
    pub address: SocketAddr,
    /// What the client showed and TLS verified; it may have expired since. None without TLS, or when the client showed none.
    pub certificate: Option<Arc<ClientCertificate>>,
}
