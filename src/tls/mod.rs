//! TLS with rustls, and ring as the one provider of its cryptography: servers, clients, and the files of both.
//!
//! What is made of files is made anew when they change ([`crate::reload`]); what cannot be right is refused, and the former stays in use.

#[cfg(test)]
pub(crate) mod authority;
mod certificate;
mod client;
mod config;
mod files;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use self::certificate::{ClientCertificate, Fingerprint};
pub use self::client::{Connector, preconfigured};
pub use self::config::{Client, Clients, Server};
pub use self::server::{Acceptor, HANDSHAKE_MAX, Refusal};

/// The protocols that run over TLS, in the order of preference: gRPC needs the first, plain clients of the cache speak the second.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Makes ring the provider of this process; reqwest and rustls look for it when they build a client. To call it again is no error.
pub fn install() {
    // The error says that a provider is installed, and no other than this one is part of the program.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
