//! Who the owner of a client's certificate is. TLS has verified the certificate when the connection came about.

use std::time::SystemTime;

use crate::error::{Error, Kind, Result};
use crate::listen::Peer;
use crate::tls::ClientCertificate;

use super::config::is_name;
use super::identity::{Identity, Proof};

/// Names of one certificate that are looked at; with them all rules are compared.
const NAMES_MAX: usize = 64;

/// Whoever showed a certificate, or nobody.
///
/// # Errors
/// `Unauthenticated` when the certificate has expired since the connection came about, or names nobody.
pub(super) fn identity(peer: Option<&Peer>) -> Result<Identity> {
    match peer {
        Some(Peer::Socket(socket)) => match &socket.certificate {
            Some(certificate) => owner(certificate, SystemTime::now()),
            None => Ok(Identity::anonymous()),
        },
        Some(Peer::Process) | None => Ok(Identity::anonymous()),
    }
}

fn owner(certificate: &ClientCertificate, now: SystemTime) -> Result<Identity> {
    let refused = |message| Error::new(Kind::Unauthenticated, message);
    if certificate.has_expired(now) {
        return Err(refused("the certificate of the connection has expired"));
    }
    let alternatives = certificate.uris.iter().chain(&certificate.dns_names);
    let mut names: Vec<String> = alternatives.filter(|name| is_name(name)).take(NAMES_MAX).cloned().collect();
    if names.is_empty() {
        // The common name counts only where there is nothing better, as with servers' names.
        names.extend(certificate.common_name.iter().filter(|name| is_name(name) && is_plain(name)).cloned());
    }
    if names.is_empty() {
        return Err(refused("the certificate of the connection names nobody"));
    }
    let expires = Some(certificate.not_after);
    Ok(Identity { proof: Proof::Certificate, names, groups: Vec::new(), expires })
}

/// A common name is free text; one that reads like a URI must not pass for a verified one.
fn is_plain(name: &str) -> bool {
    !name.contains("://")
}
