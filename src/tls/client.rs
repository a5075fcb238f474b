//! The client's side: whom the farm trusts where it connects to others, and what it shows them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use super::config::Client;
use super::files::{Made, reloaded};
use super::provider;
use super::server::usable;
use crate::error::{Error, Result};
use crate::reload::{Content, NamedFile, Reloaded};

/// The port of an address that names none.
const PORT: u16 = 443;

/// The files of a client. Which are there is a matter of the configuration.
const AUTHORITIES: &str = "authorities";
const CERTIFICATE: &str = "certificate";
const KEY: &str = "key";

/// Connects with what the files hold at that time.
pub struct Connector {
    reloaded: Arc<Reloaded<ClientConfig>>,
    server_name: Option<ServerName<'static>>,
}

impl Connector {
    /// A connector for the client that is called `name` in logs and metrics and whose section is `section`, which speaks `protocol`, as
    /// in `h2`, or whatever the server expects when that is none.
    ///
    /// # Errors
    /// `Invalid` with the key and the path of the file that is wrong.
    pub fn new(name: &str, section: &str, config: &Client, protocol: Option<&[u8]>) -> Result<Arc<Self>> {
        let server_name = config.server_name.as_deref().map(parse_name).transpose()?;
        let make = make(config, protocol);
        let reloaded = reloaded(name, files(section, config), make)?;
        Ok(Arc::new(Self { reloaded, server_name }))
    }

    /// Changes when connections made from then on show another certificate or trust other authorities.
    pub fn generation(&self) -> u64 {
        self.reloaded.generation()
    }

    #[cfg(test)]
    pub(super) fn reloaded(&self) -> &Reloaded<ClientConfig> {
        &self.reloaded
    }

    /// Tells of each such change from now on.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.reloaded.renewals()
    }

    /// Makes the handshake with `host`.
    ///
    /// # Errors
    /// When it does not come about, as with a server that we do not trust.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => parse_name(host)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.chain()))?,
        };
        TlsConnector::from(self.reloaded.current()).connect(name, stream).await
    }

    /// What connects a channel of gRPC to the host and port of its address. The channel bounds the time.
    pub fn dial(
        self: &Arc<Self>,
    ) -> impl Service<Uri, Response = TokioIo<TlsStream<TcpStream>>, Error = io::Error, Future: Send> + Send + use<>
    {
        let connector = Arc::clone(self);
        tower::service_fn(move |uri: Uri| {
            let connector = Arc::clone(&connector);
            async move {
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(PORT))).await?;
                stream.set_nodelay(true)?;
                connector.connect(host, stream).await.map(TokioIo::new)
            }
        })
    }
}

/// The configuration for a client that makes its own connections over HTTP/1.1, as it is at this moment.
///
/// # Errors
/// `Invalid` with the key and the path of the file that is wrong.
pub fn preconfigured(section: &str, config: &Client) -> Result<ClientConfig> {
    let contents: Vec<Content> = files(section, config).iter().map(NamedFile::read).collect();
    make(config, Some(b"http/1.1"))(&contents).map(|made| made.value)
}

/// Whether a client could begin with these files.
pub(super) fn probe(section: &str, config: &Client) -> Result<()> {
    preconfigured(section, config).map(drop)
}

pub(super) fn parse_name(name: &str) -> Result<ServerName<'static>> {
    let parsed = ServerName::try_from(name.to_owned());
    parsed.map_err(|error| Error::invalid("the name of a server is none for TLS").with_source(error))
}

fn named(config: &Client) -> impl Iterator<Item = (&'static str, &Path)> {
    let all = [(AUTHORITIES, &config.authorities), (CERTIFICATE, &config.certificate), (KEY, &config.key)];
    all.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?)))
}

fn files(section: &str, config: &Client) -> Vec<NamedFile> {
    let file =
        |(key, path): (&str, &Path)| NamedFile { key: format!("{section}.{key}"), path: path.to_owned() };
    named(config).map(file).collect()
}

fn make(
    config: &Client,
    protocol: Option<&[u8]>,
) -> impl Fn(&[Content]) -> Result<Made<ClientConfig>> + Send + Sync + use<> {
    let keys: Vec<&'static str> = named(config).map(|(key, _)| key).collect();
    let protocols: Vec<Vec<u8>> = protocol.map(<[u8]>::to_vec).into_iter().collect();
    move |contents| {
        let content = |key| keys.iter().position(|named| *named == key).map(|place| &contents[place]);
        let mut ends = Vec::new();
        let roots = match content(AUTHORITIES) {
            Some(authorities) => {
                let (roots, end) = authorities.authorities()?;
                ends.push(("server_authorities", end));
                roots
            }
            None => system_authorities()?,
        };
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Error::bug("choose the versions of TLS").with_source(error))?;
        let builder = builder.with_root_certificates(roots);
        let mut made = match (content(CERTIFICATE), content(KEY)) {
            (Some(certificate), Some(key)) => {
                let chain = certificate.certificates()?;
                ends.push((CERTIFICATE, usable(certificate, &chain)?));
                let made = builder.with_client_auth_cert(chain, key.private_key()?);
                made.map_err(|error| key.unfit(&error))?
            }
            (None, None) => builder.with_no_client_auth(),
            (Some(one), None) | (None, Some(one)) => {
                return Err(one.wrong("a certificate and its key go together"));
            }
        };
        made.alpn_protocols.clone_from(&protocols);
        Ok(Made { value: made, ends })
    }
}

/// The system may have none, as in a small container; then every server is refused, and that is told here.
fn system_authorities() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let message = "this system has no authorities for TLS; name a file of them as `authorities`";
        return Err(Error::invalid(message));
    }
    Ok(roots)
}
