//! What an operator says about TLS: only where files are. Nothing secret stands in the configuration itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{client, server};

/// TLS of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// The file of its certificate in PEM, with those between it and the authority behind it.
    pub certificate: PathBuf,
    /// The file of the certificate's private key in PEM.
    pub key: PathBuf,
    /// Unset: clients are not asked for certificates.
    #[serde(default)]
    pub clients: Option<Clients>,
}

/// The certificates of a listener's clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clients {
    /// The file of the authorities, in PEM, that issue them.
    pub authorities: PathBuf,
    /// Whether a client without a certificate is turned away; one with a wrong certificate always is.
    #[serde(default = "required")]
    pub required: bool,
    /// The file of the revocation lists in PEM, one of each authority that issues certificates of clients.
    #[serde(default)]
    pub revoked: Option<PathBuf>,
}

/// TLS of a client, that is of the farm where it connects to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// The file of the authorities, in PEM, that a server's certificate must come from. Unset: those of the system.
    pub authorities: Option<PathBuf>,
    /// The file of its own certificate in PEM, for servers that ask for one.
    pub certificate: Option<PathBuf>,
    /// The file of that certificate's private key in PEM.
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must be for. Unset: the host that is connected to.
    pub server_name: Option<String>,
}

fn required() -> bool {
    true
}

impl Server {
    /// What is wrong with the values, as sentences for the operator; `section` is where they stand, as in `public.tls`.
    pub fn check(&self, section: &str) -> Vec<String> {
        let clients = self.clients.as_ref();
        let paths = [
            ("certificate", Some(&self.certificate)),
            ("key", Some(&self.key)),
            ("clients.authorities", clients.map(|clients| &clients.authorities)),
            ("clients.revoked", clients.and_then(|clients| clients.revoked.as_ref())),
        ];
        relative(section, paths)
    }

    /// What is wrong with the files.
    pub fn file_problem(&self, section: &str) -> Option<String> {
        server::probe(section, self).err().map(|error| error.chain())
    }
}

impl Client {
    /// What is wrong with the values, as sentences for the operator; `section` is where they stand, as in `worker.tls`.
    pub fn check(&self, section: &str) -> Vec<String> {
        let paths = [
            ("authorities", self.authorities.as_ref()),
            ("certificate", self.certificate.as_ref()),
            ("key", self.key.as_ref()),
        ];
        let mut problems = relative(section, paths);
        if self.certificate.is_some() != self.key.is_some() {
            problems.push(format!("{section}: `certificate` and `key` go together"));
        }
        if let Some(name) = self.server_name.as_ref().filter(|name| client::parse_name(name).is_err()) {
            problems.push(format!("{section}.server_name: `{name}` is neither a DNS name nor an IP address"));
        }
        problems
    }

    /// What is wrong with the files.
    pub fn file_problem(&self, section: &str) -> Option<String> {
        client::probe(section, self).err().map(|error| error.chain())
    }
}

/// Services have working directories of their own, where a relative path means something else than where it was written.
fn relative<const N: usize>(section: &str, paths: [(&str, Option<&PathBuf>); N]) -> Vec<String> {
    let relative = paths.into_iter().filter(|(_, path)| path.is_some_and(|path| !path.is_absolute()));
    relative.map(|(key, _)| format!("{section}.{key} must be an absolute path")).collect()
}
