//! Qualifiers of a request: which content of a URI is meant, and how to ask for it.

use std::collections::HashSet;

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;

use super::archive::Format;
use super::integrity::Integrity;
use crate::error::{Error, Result};
use crate::proto::asset::Qualifier;
use crate::status;
use crate::store::AssetKind;

/// Qualifiers of one request. Each is a few bytes of a key or a header of a request.
const QUALIFIERS_MAX: usize = 256;

const CHECKSUM: &str = "checksum.sri";
const CANONICAL_ID: &str = "bazel.canonical_id";
const DIRECTORY: &str = "directory";
const RESOURCE_TYPE: &str = "resource_type";

/// Bazel's way to name a header for all URIs: `http_header:<name>`.
const HEADER: &str = "http_header:";

/// Bazel's way to name a header for the URI at a place: `http_header_url:<place>:<name>`.
const HEADER_OF_URI: &str = "http_header_url:";

/// Headers that belong to the connection or frame the message; a client must not choose them.
const FORBIDDEN_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The qualifiers of one request, parsed.
#[derive(Debug, Clone, Default)]
pub(super) struct Qualifiers {
    /// All but the headers, which a key needs in a form of their own.
    plain: Vec<(String, String)>,
    headers: Vec<Header>,
    unsupported: Vec<String>,
    pub(super) integrity: Option<Integrity>,
    /// The part of an archive that is meant.
    pub(super) directory: Option<String>,
    /// The kind of archive, where the client names it.
    pub(super) format: Option<Format>,
}

#[derive(Debug, Clone)]
struct Header {
    /// The place of the one URI that it is for; none: for all.
    uri: Option<usize>,
    name: HeaderName,
    value: HeaderValue,
}

impl Qualifiers {
    /// Reads the qualifiers of a request for `kind`. One that we do not know is no error yet: it may name what was pushed.
    ///
    /// # Errors
    /// `Invalid` when a name stands twice or a value is malformed.
    pub(super) fn parse(kind: AssetKind, qualifiers: Vec<Qualifier>) -> Result<Self> {
        if qualifiers.len() > QUALIFIERS_MAX {
            return Err(Error::invalid(format!("there are more than {QUALIFIERS_MAX} qualifiers")));
        }
        let mut names = HashSet::new();
        let mut parsed = Self::default();
        for Qualifier { name, value } in qualifiers {
            if !names.insert(name.clone()) {
                return Err(Error::invalid(format!("qualifier `{}` stands twice", shown(&name))));
            }
            parsed.add(kind, name, value)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, kind: AssetKind, name: String, value: String) -> Result<()> {
        if name.starts_with(HEADER) || name.starts_with(HEADER_OF_URI) {
            self.headers.push(Header::parse(&name, &value)?);
            return Ok(());
        }
        match name.as_str() {
            CHECKSUM => self.integrity = Some(Integrity::parse(&value)?),
            CANONICAL_ID => {}
            DIRECTORY if kind == AssetKind::Directory => self.directory = Some(value.clone()),
            RESOURCE_TYPE if kind == AssetKind::Directory => match Format::of_media_type(&value) {
                Some(format) => self.format = Some(format),
                None => self.unsupported.push(name.clone()),
            },
            _ => self.unsupported.push(name.clone()),
        }
        self.plain.push((name, value));
        Ok(())
    }

    /// # Errors
    /// `INVALID_ARGUMENT` with a violation for each qualifier that means nothing to us, as the protocol wants.
    pub(super) fn refuse_unsupported(&self) -> Result<(), Status> {
        if self.unsupported.is_empty() {
            return Ok(());
        }
        let violation =
            |name: &String| ("qualifiers.name".to_owned(), format!("\"{}\" not supported", shown(name)));
        let message = "the asset is unknown here, and it cannot be fetched with these qualifiers";
        Err(status::bad_request(message, self.unsupported.iter().map(violation)))
    }

    /// The qualifiers that tell the asset at `place` from others.
    ///
    /// Headers may be what grants access, so what they fetched is not for those who ask without them. A checksum names the content
    /// whoever asks, and tokens change all the time; so with one, headers tell nothing apart.
    pub(super) fn key(&self, place: usize) -> Vec<(String, String)> {
        let mut key = self.plain.clone();
        if self.integrity.is_none() {
            key.extend(self.header_key(place));
        }
        key
    }

    /// The headers for the URI at `place`, as parts of a key.
    pub(super) fn header_key(&self, place: usize) -> Vec<(String, String)> {
        let headers = self.headers(place);
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.iter().map(|(name, value)| (format!("{HEADER}{name}"), text(value))).collect()
    }

    /// The qualifiers that name content by its checksum, wherever it comes from; none without a checksum.
    pub(super) fn content_key(&self) -> Option<Vec<(String, String)>> {
        self.integrity.as_ref()?;
        let names = [CHECKSUM, CANONICAL_ID];
        Some(self.plain.iter().filter(|(name, _)| names.contains(&name.as_str())).cloned().collect())
    }

    /// The same without what says how an archive is unpacked: what the archive itself is asked for by.
    pub(super) fn of_archive(&self) -> Self {
        let mut archive = Self { directory: None, format: None, ..self.clone() };
        archive.plain.retain(|(name, _)| name != DIRECTORY && name != RESOURCE_TYPE);
        archive
    }

    /// The headers of a request for the URI at `place`: its own take the place of those for all.
    pub(super) fn headers(&self, place: usize) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let (general, own): (Vec<_>, Vec<_>) = self.headers.iter().partition(|header| header.uri.is_none());
        for header in general.into_iter().chain(own.into_iter().filter(|header| header.uri == Some(place))) {
            headers.insert(header.name.clone(), header.value.clone());
        }
        headers
    }
}

impl Header {
    fn parse(name: &str, value: &str) -> Result<Self> {
        let malformed = || Error::invalid(format!("qualifier `{}` names no header", shown(name)));
        let (uri, header) = match name.strip_prefix(HEADER_OF_URI) {
            Some(rest) => {
                let (place, header) = rest.split_once(':').ok_or_else(malformed)?;
                (Some(place.parse().map_err(|_| malformed())?), header)
            }
            None => (None, name.strip_prefix(HEADER).ok_or_else(malformed)?),
        };
        let header: HeaderName = header.parse().map_err(|_| malformed())?;
        if FORBIDDEN_HEADERS.contains(&header.as_str()) {
            return Err(Error::invalid(format!(
                "qualifier `{}`: this header is not the client's",
                shown(name)
            )));
        }
        // The value may be a secret, so the message does not show it.
        let mut value: HeaderValue = value
            .parse()
            .map_err(|_| Error::invalid(format!("the value of `{}` is no header", shown(name))))?;
        value.set_sensitive(true);
        Ok(Self { uri, name: header, value })
    }
}

/// A name as a message shows it.
fn shown(name: &str) -> String {
    name.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;
    use crate::error::Kind;

    const SRI: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    fn parse(kind: AssetKind, pairs: &[(&str, &str)]) -> Result<Qualifiers> {
        let qualifier =
            |(name, value): &(&str, &str)| Qualifier { name: (*name).into(), value: (*value).into() };
        Qualifiers::parse(kind, pairs.iter().map(qualifier).collect())
    }

    #[test]
    fn a_header_of_one_uri_comes_before_one_of_all() {
        let pairs = [
            ("http_header_url:1:authorization", "two"),
            ("http_header:Authorization", "one"),
            ("http_header:Accept", "x"),
        ];
        let parsed = parse(AssetKind::Blob, &pairs).unwrap();
        assert_eq!(parsed.headers(0)["authorization"], "one");
        assert_eq!(parsed.headers(1)["authorization"], "two");
        assert_eq!(parsed.headers(1)["accept"], "x");
        assert_ne!(parsed.key(0), parsed.key(1));
    }

    #[test]
    fn headers_tell_assets_apart_unless_a_checksum_does() {
        let header = ("http_header:Authorization", "secret");
        let plain = parse(AssetKind::Blob, &[]).unwrap();
        let with = parse(AssetKind::Blob, &[header]).unwrap();
        assert_ne!(plain.key(0), with.key(0));
        let sum = parse(AssetKind::Blob, &[("checksum.sri", SRI)]).unwrap();
        let both = parse(AssetKind::Blob, &[header, ("checksum.sri", SRI)]).unwrap();
        assert_eq!(sum.key(0), both.key(0));
        assert_ne!(sum.header_key(0), both.header_key(0));
        assert_eq!(both.content_key().unwrap(), [("checksum.sri".to_owned(), SRI.to_owned())]);
        assert_eq!(plain.content_key(), None);
    }

    #[test]
    fn each_unsupported_qualifier_is_a_violation() {
        let parsed =
            parse(AssetKind::Blob, &[("vcs.commit", "a"), ("bazel.canonical_id", "b"), ("directory", "c")]);
        let status = parsed.unwrap().refuse_unsupported().unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        let told: Vec<_> =
            violations.iter().map(|one| (one.field.as_str(), one.description.as_str())).collect();
        let expected = ["\"vcs.commit\" not supported", "\"directory\" not supported"];
        assert_eq!(told, expected.map(|description| ("qualifiers.name", description)));
    }

    #[test]
    fn malformed_qualifiers_are_invalid() {
        let cases: [&[(&str, &str)]; 7] = [
            &[("a", "1"), ("a", "1")],
            &[("checksum.sri", "md5-x")],
            &[("http_header:", "x")],
            &[("http_header:Host", "x")],
            &[("http_header:a", "x\ny")],
            &[("http_header_url:x:a", "x")],
            &[("http_header_url:-1:a", "x")],
        ];
        for pairs in cases {
            assert_eq!(parse(AssetKind::Blob, pairs).unwrap_err().kind(), Kind::Invalid, "{pairs:?}");
        }
    }

    #[test]
    fn what_says_how_to_unpack_does_not_name_the_archive() {
        let pairs = [("directory", "a"), ("resource_type", "application/zip"), ("checksum.sri", SRI)];
        let archive = parse(AssetKind::Directory, &pairs).unwrap().of_archive();
        assert_eq!(archive.key(0), [("checksum.sri".to_owned(), SRI.to_owned())]);
    }
}
