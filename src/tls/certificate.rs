//! What a certificate says of its owner: the names that may stand for an identity, and how long it holds.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::error::{Error, Result};

/// The certificate of a client, which was verified when its connection came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The URIs among its alternative names, as in `spiffe://farm.example/ci`.
    pub uris: Vec<String>,
    /// The DNS names among them.
    pub dns_names: Vec<String>,
    /// The common name of its subject, if that is text.
    pub common_name: Option<String>,
    /// The end of its validity: a connection may live longer.
    pub not_after: SystemTime,
    /// Names exactly this certificate.
    pub fingerprint: Fingerprint,
}

/// The SHA-256 of a certificate's bytes; shown in hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fingerprint([u8; 32]);

impl ClientCertificate {
    /// Reads what a certificate says.
    ///
    /// # Errors
    /// `Invalid` when it is none that we can read.
    pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Self> {
        let parsed = parse(certificate)?;
        let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        for name in alternatives.iter().flat_map(|names| &names.value.general_names) {
            if let GeneralName::URI(uri) = name {
                uris.push((*uri).to_owned());
            } else if let GeneralName::DNSName(name) = name {
                dns_names.push((*name).to_owned());
            }
        }
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            uris,
            dns_names,
            common_name: common_name.map(str::to_owned),
            not_after: time(&parsed.validity().not_after),
            fingerprint: Fingerprint::of(certificate),
        })
    }

    /// Whether its validity has ended.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }
}

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The time in which a certificate is valid.
///
/// # Errors
/// `Invalid` when it is none that we can read.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Result<RangeInclusive<SystemTime>> {
    let parsed = parse(certificate)?;
    Ok(time(&parsed.validity().not_before)..=time(&parsed.validity().not_after))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>> {
    let parsed = X509Certificate::from_der(certificate).map(|(_, parsed)| parsed);
    parsed.map_err(|error| Error::invalid("a certificate cannot be read").with_source(error))
}

/// What is before 1970 is long ago in any case.
fn time(time: &ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}
