//! An authority for tests: it issues certificates for servers and clients, and revokes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

const HOUR: Duration = Duration::from_secs(3600);

/// An authority with its key.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate in PEM.
    pub(crate) certificate: String,
}

/// A certificate in PEM with its key.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
    serial: u64,
}

/// What an authority is asked for.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) names: Vec<String>,
    pub(crate) uris: Vec<String>,
    pub(crate) common_name: String,
    pub(crate) validity: (SystemTime, SystemTime),
}

impl Wanted {
    /// For whoever is at loopback, from an hour ago for two hours.
    pub(crate) fn new(common_name: &str) -> Self {
        let now = SystemTime::now();
        Self {
            names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            uris: Vec::new(),
            common_name: common_name.to_owned(),
            validity: (now - HOUR, now + HOUR),
        }
    }

    pub(crate) fn ending(self, end: SystemTime) -> Self {
        Self { validity: (self.validity.0.min(end - HOUR), end), ..self }
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("authority {}", fastrand::u64(..)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A certificate that ends in an hour.
    pub(crate) fn issue(&self, common_name: &str) -> Issued {
        self.issue_as(&Wanted::new(common_name))
    }

    pub(crate) fn issue_as(&self, wanted: &Wanted) -> Issued {
        let key = KeyPair::generate().unwrap();
        let serial = fastrand::u64(1..u64::MAX / 2);
        let mut params = CertificateParams::new(wanted.names.clone()).unwrap();
        let uris = wanted.uris.iter().map(|uri| SanType::URI(Ia5String::try_from(uri.as_str()).unwrap()));
        params.subject_alt_names.extend(uris);
        params.distinguished_name.push(DnType::CommonName, wanted.common_name.as_str());
        params.serial_number = Some(SerialNumber::from(serial));
        (params.not_before, params.not_after) = (wanted.validity.0.into(), wanted.validity.1.into());
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { certificate: certificate.pem(), key: key.serialize_pem(), serial }
    }

    /// A client that trusts the authority and shows whatever it has, be it of no use.
    pub(crate) fn client(&self, shown: Option<&Issued>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(shown) => {
                let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![shown.der()], key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// The list of what is revoked, in PEM.
    pub(crate) fn revoke(&self, revoked: &[&Issued]) -> String {
        let now = SystemTime::now();
        let entry = |issued: &&Issued| RevokedCertParams {
            serial_number: SerialNumber::from(issued.serial),
            revocation_time: (now - HOUR).into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: (now - HOUR).into(),
            next_update: (now + HOUR).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

impl Issued {
    /// The certificate's bytes, as a peer shows them.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    /// Writes both into `directory` and gives their paths.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) =
            (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        self.write_to(&certificate, &key);
        (certificate, key)
    }

    pub(crate) fn write_to(&self, certificate: &Path, key: &Path) {
        std::fs::write(certificate, &self.certificate).unwrap();
        std::fs::write(key, &self.key).unwrap();
    }
}
