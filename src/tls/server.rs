//! The server's side: what a listener shows, whom it lets in, and why not.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::ClientCertificate;
use super::config::Server;
use super::files::{End, Made, reloaded};
use super::{PROTOCOLS, provider};
use crate::error::{Error, Result};
use crate::reload::{Content, NamedFile, Reloaded};

/// How long a handshake may take: two round trips and two signatures, over a bad network.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// The first byte of whatever begins with a handshake of TLS.
const HANDSHAKE_RECORD: u8 = 0x16;

/// The files of a listener, in this order.
const CERTIFICATE: usize = 0;
const KEY: usize = 1;
const AUTHORITIES: usize = 2;
const REVOKED: usize = 3;

/// Makes handshakes with what the files hold at that time.
pub struct Acceptor(Arc<Reloaded<ServerConfig>>);

/// Why a handshake did not come about. The set is fixed, since it is a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It took longer than [`HANDSHAKE_MAX`].
    Late,
    /// The client went away.
    Gone,
    /// The client speaks HTTP without TLS.
    PlainHttp,
    /// What came is no TLS.
    Garbage,
    /// Both have no version, cipher or protocol in common.
    Incompatible,
    /// The client does not want our certificate.
    RefusedByClient,
    /// The client has no certificate, but must.
    NoCertificate,
    CertificateExpired,
    CertificateRevoked,
    /// The client's certificate is none of our authorities', or wrong in another way.
    CertificateWrong,
    Other,
}

impl Acceptor {
    /// The acceptor of the listener that is called `name`, whose section is `name.tls`.
    ///
    /// # Errors
    /// `Invalid` with the key and the path of the file that is wrong.
    pub fn new(name: &str, config: &Server) -> Result<Self> {
        let (files, make) = (files(&format!("{name}.tls"), config), make(config));
        reloaded(name, files, make).map(Self)
    }

    /// What the listener is called.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    #[cfg(test)]
    pub(super) fn reloaded(&self) -> &Reloaded<ServerConfig> {
        &self.0
    }

    /// Makes the handshake, within [`HANDSHAKE_MAX`].
    ///
    /// # Errors
    /// Why it did not come about, with what the library says.
    pub async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<Arc<ClientCertificate>>), (Refusal, io::Error)> {
        let handshake = tokio::time::timeout(HANDSHAKE_MAX, self.shake_hands(stream));
        handshake.await.unwrap_or_else(|_| Err((Refusal::Late, io::ErrorKind::TimedOut.into())))
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<Arc<ClientCertificate>>), (Refusal, io::Error)> {
        let mut first = [0];
        let seen = stream.peek(&mut first).await.map_err(|error| (Refusal::Gone, error))?;
        if seen > 0 && first[0] != HANDSHAKE_RECORD {
            let refusal = if first[0].is_ascii_uppercase() { Refusal::PlainHttp } else { Refusal::Garbage };
            return Err((refusal, io::ErrorKind::InvalidData.into()));
        }
        let stream = TlsAcceptor::from(self.0.current()).accept(stream).await;
        let stream = stream.map_err(|error| (Refusal::of(&error), error))?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = shown.map(ClientCertificate::read).transpose();
        let certificate =
            certificate.map_err(|error| (Refusal::CertificateWrong, io::Error::other(error.chain())))?;
        Ok((stream, certificate.map(Arc::new)))
    }
}

impl Refusal {
    /// As in the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Gone => "gone",
            Self::PlainHttp => "plain_http",
            Self::Garbage => "garbage",
            Self::Incompatible => "incompatible",
            Self::RefusedByClient => "refused_by_client",
            Self::NoCertificate => "no_certificate",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateRevoked => "certificate_revoked",
            Self::CertificateWrong => "certificate_wrong",
            Self::Other => "other",
        }
    }

    fn of(error: &io::Error) -> Self {
        let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Gone;
        };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the errors of rustls are more than we tell apart"
        )]
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(wrong) => Self::of_certificate(wrong),
            rustls::Error::InvalidMessage(_)
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InappropriateHandshakeMessage { .. }
            | rustls::Error::PeerSentOversizedRecord
            | rustls::Error::DecryptError => Self::Garbage,
            rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => Self::Incompatible,
            rustls::Error::AlertReceived(_) => Self::RefusedByClient,
            _ => Self::Other,
        }
    }

    fn of_certificate(wrong: &CertificateError) -> Self {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the errors of rustls are more than we tell apart"
        )]
        match wrong {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::CertificateExpired,
            CertificateError::Revoked => Self::CertificateRevoked,
            _ => Self::CertificateWrong,
        }
    }
}

/// Whether a listener could begin with these files.
pub(super) fn probe(section: &str, config: &Server) -> Result<()> {
    let contents: Vec<Content> = files(section, config).iter().map(NamedFile::read).collect();
    make(config)(&contents).map(drop)
}

fn files(section: &str, config: &Server) -> Vec<NamedFile> {
    let file = |key: &str, path: &std::path::Path| NamedFile {
        key: format!("{section}.{key}"),
        path: path.to_owned(),
    };
    let mut files = vec![file("certificate", &config.certificate), file("key", &config.key)];
    if let Some(clients) = &config.clients {
        files.push(file("clients.authorities", &clients.authorities));
        files.extend(clients.revoked.as_deref().map(|path| file("clients.revoked", path)));
    }
    files
}

fn make(config: &Server) -> impl Fn(&[Content]) -> Result<Made<ServerConfig>> + Send + Sync + use<> {
    let is_required = config.clients.as_ref().is_some_and(|clients| clients.required);
    move |contents| {
        let chain = contents[CERTIFICATE].certificates()?;
        let mut ends = vec![("certificate", usable(&contents[CERTIFICATE], &chain)?)];
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Error::bug("choose the versions of TLS").with_source(error))?;
        let verifier = match contents.get(AUTHORITIES) {
            Some(authorities) => {
                let (verifier, end) = verifier(authorities, contents.get(REVOKED), is_required)?;
                ends.push(("client_authorities", end));
                Some(verifier)
            }
            None => None,
        };
        let asks_clients = verifier.is_some();
        let builder =
            builder.with_client_cert_verifier(verifier.unwrap_or_else(WebPkiClientVerifier::no_client_auth));
        let made = builder.with_single_cert(chain, contents[KEY].private_key()?);
        let mut made = made.map_err(|error| contents[KEY].unfit(&error))?;
        made.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        if asks_clients {
            // A session that is resumed brings the client's certificate along without a look at whether it still holds.
            made.session_storage = Arc::new(NoServerSessionStorage {});
            made.send_tls13_tickets = 0;
        }
        Ok(Made { value: made, ends })
    }
}

/// A chain whose first certificate holds.
pub(super) fn usable(content: &Content, chain: &[CertificateDer<'_>]) -> Result<End> {
    content.is_valid_at(&chain[0], SystemTime::now())?;
    content.end(chain)
}

impl Content {
    /// An error about a key that is unusable with its certificate. It says nothing of the key itself.
    pub(super) fn unfit(&self, error: &rustls::Error) -> Error {
        let problem = if matches!(error, rustls::Error::InconsistentKeys(_)) {
            "it is not the key of the certificate"
        } else {
            "the key, or the certificate that it is for, is of a kind that cannot be used"
        };
        self.wrong(problem)
    }
}

/// Only the client's own certificate is looked for in the revocation lists; one whose authority has no list there is refused, since
/// a list that is missing by mistake must not let everybody in.
fn verifier(
    authorities: &Content,
    revoked: Option<&Content>,
    is_required: bool,
) -> Result<(Arc<dyn ClientCertVerifier>, End)> {
    let (roots, end) = authorities.authorities()?;
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    if let Some(revoked) = revoked {
        builder = builder.with_crls(revoked.revocation_lists()?).only_check_end_entity_revocation();
    }
    if !is_required {
        builder = builder.allow_unauthenticated();
    }
    let built = builder.build().map_err(|_| {
        revoked.unwrap_or(authorities).wrong("it holds a revocation list or an authority that cannot be used")
    });
    Ok((built?, end))
}
