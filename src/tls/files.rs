//! The files of certificates and keys: read whole, told apart by their contents, and turned into what rustls takes.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::certificate;
use crate::error::{Context, Error, Result};

/// The largest file that is read. The authorities of a whole system take 250 KiB; a revocation list of 20,000 certificates, 1 MiB.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A file, and the key of the configuration that names it, as in `public.tls.key`.
#[derive(Debug, Clone)]
pub(super) struct NamedFile {
    pub(super) key: String,
    pub(super) path: PathBuf,
}

/// A file with what it held. Not printable, since that may be a private key.
pub(super) struct Content {
    file: NamedFile,
    bytes: Result<Vec<u8>>,
}

/// Tells contents apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity([u8; 32]);

/// The validity of a chain or of a list of authorities: of that certificate among them that ends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End(pub(super) SystemTime);

impl NamedFile {
    /// Reads the file through whatever symlinks lead to it at this moment.
    pub(super) fn read(&self) -> Content {
        Content { file: self.clone(), bytes: self.bytes() }
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(&self.path).context(|| self.names("it cannot be opened"))?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).context(|| self.names("it cannot be read"))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Error::invalid(self.names(&format!("it has more than {FILE_BYTES_MAX} bytes"))));
        }
        Ok(bytes)
    }

    fn names(&self, problem: &str) -> String {
        format!("{}: {}: {problem}", self.key, self.path.display())
    }
}

impl Identity {
    /// Of all these files together. One that cannot be read has another identity than any that can.
    pub(super) fn of(contents: &[Content]) -> Self {
        let mut hash = Sha256::new();
        for content in contents {
            let bytes = content.bytes.as_deref().map_err(|_| ());
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hash.update(length.to_le_bytes());
            hash.update(bytes.unwrap_or_default());
        }
        Self(hash.finalize().into())
    }
}

impl Content {
    fn bytes(&self) -> Result<&[u8]> {
        self.bytes.as_deref().map_err(|error| Error::invalid(error.chain()))
    }

    /// An error about this file. Of a key nothing but the kind of mistake is told.
    pub(super) fn wrong(&self, problem: &str) -> Error {
        Error::invalid(self.file.names(problem))
    }

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
