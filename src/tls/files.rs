//! The files of certificates and keys, turned into what rustls takes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::certificate;
use crate::error::Result;
use crate::metrics;
use crate::reload::{Content, Kind, NamedFile, Reloaded};

/// The validity of a chain or of a list of authorities: of that certificate among them that ends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End(pub(super) SystemTime);

impl Content {
    /// The certificates in the file, of which there is at least one.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.bytes()?).collect();
        let certificates = read.map_err(|_| self.wrong("it is not in PEM"))?;
        if certificates.is_empty() {
            return Err(self.wrong("there is no certificate in it"));
        }
        Ok(certificates)
    }

    /// The first private key in the file.
    pub(super) fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.bytes()?)
            .map_err(|_| self.wrong("there is no private key in PEM in it"))
    }

    /// The revocation lists in the file, of which there is at least one.
    pub(super) fn revocation_lists(&self) -> Result<Vec<CertificateRevocationListDer<'static>>> {
        let read: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(self.bytes()?).collect();
        let lists = read.map_err(|_| self.wrong("it is not in PEM"))?;
        if lists.is_empty() {
            return Err(self.wrong("there is no revocation list (X509 CRL) in it"));
        }
        Ok(lists)
    }

    /// The file's certificates as authorities.
    pub(super) fn authorities(&self) -> Result<(RootCertStore, End)> {
        let mut roots = RootCertStore::empty();
        let certificates = self.certificates()?;
        let end = self.end(&certificates)?;
        for certificate in certificates {
            roots.add(certificate).map_err(|_| self.wrong("one of its certificates is no authority's"))?;
        }
        Ok((roots, end))
    }

    /// When a chain of certificates can first be of no use.
    pub(super) fn end(&self, chain: &[CertificateDer<'_>]) -> Result<End> {
        let ends = chain.iter().map(certificate::validity).collect::<Result<Vec<_>>>();
        let ends = ends.map_err(|_| self.wrong("one of its certificates cannot be read"))?;
        let end = ends.iter().map(|validity| *validity.end()).min();
        Ok(End(end.ok_or_else(|| self.wrong("there is no certificate in it"))?))
    }

    /// Refuses a certificate whose validity has ended or has not begun: nobody would accept it.
    pub(super) fn is_valid_at(&self, certificate: &CertificateDer<'_>, now: SystemTime) -> Result<()> {
        let validity = certificate::validity(certificate).map_err(|_| self.wrong("it cannot be read"))?;
        if now > *validity.end() {
            return Err(self.wrong("the certificate has expired"));
        }
        if now < *validity.start() {
            return Err(self.wrong("the certificate is not valid yet"));
        }
        Ok(())
    }
}

impl End {
    /// As Prometheus has times.
    pub(super) fn unix_seconds(self) -> i64 {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}

/// What all files of one listener or client together give.
pub(super) struct Made<T> {
    pub(super) value: T,
    /// What of it ends when, by the label in the metric.
    pub(super) ends: Vec<(&'static str, End)>,
}

/// What is made of the files of the listener or client that is called `name`, anew when they change.
///
/// # Errors
/// When nothing can be made of them.
pub(super) fn reloaded<T: Send + Sync + 'static>(
    name: &str,
    files: Vec<NamedFile>,
    make: impl Fn(&[Content]) -> Result<Made<T>> + Send + Sync + 'static,
) -> Result<Arc<Reloaded<T>>> {
    let told = name.to_owned();
    let make = move |contents: &[Content]| {
        let made = make(contents)?;
        for (of, end) in &made.ends {
            metrics::TLS_EXPIRY.with_label_values(&[told.as_str(), of]).set(end.unix_seconds());
        }
        Ok(made.value)
    };
    Reloaded::new((Kind::Certificates, name.to_owned()), files, Box::new(make))
}
