//! Fetches content over http and https into a spool.

use std::path::Path;

use bytes::BytesMut;
use http::{HeaderMap, StatusCode, header};
use reqwest::{Certificate, Client, Response, Url, redirect};

use super::address::{self, Resolver};
use super::config::Config;
use super::origins::{Origins, is_http};
use super::spool::{Expected, Spool, Spools};
use super::{Failure, Wanted};
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::store::{Blob, CHUNK_BYTES};
use crate::{tasks, tls};

/// Redirects that are followed: what browsers and curl allow is about this or more.
const REDIRECTS_MAX: usize = 10;

/// How long one address may take to accept a connection; then the next is tried.
const CONNECT_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// The servers out there, as far as the configuration lets us ask them.
pub(super) struct Origin {
    /// None when no origin is allowed: a farm that asks nobody needs no certificates.
    client: Option<Client>,
    resolver: Resolver,
    allowed: Origins,
    spools: Spools,
    size_max: u64,
}

impl Origin {
    /// # Errors
    /// `Invalid` when the allow-list or the file of certificates is wrong.
    pub(super) fn new(config: &Config, spools: Spools) -> Result<Self> {
        let allowed =
            Origins::parse(&config.allow).map_err(|problems| Error::invalid(problems.join("; ")))?;
        let resolver = Resolver { allow_private: config.allow_private };
        let client =
            if allowed.is_empty() { None } else { Some(client(resolver, config.ca_file.as_deref())?) };
        Ok(Self { client, resolver, allowed, spools, size_max: config.size_max.as_u64() })
    }

    pub(super) fn spools(&self) -> &Spools {
        &self.spools
    }

    /// The content, complete and checked.
    pub(super) async fn fetch(&self, wanted: &Wanted) -> Result<(Digest, Blob), Failure> {
        let response = self.open(wanted).await.map_err(Failure::of_origin)?;
        let expected = Expected {
            function: wanted.function,
            integrity: wanted.qualifiers.integrity.as_ref(),
            size: response.content_length(),
            size_max: self.size_max,
        };
        if expected.size.is_some_and(|size| size > self.size_max) {
            let message =
                format!("the origin announces more than the {} bytes that are taken", self.size_max);
            return Err(Failure::of_origin(Error::new(Kind::Exhausted, message)));
        }
        let spool = Spool::new(&self.spools, &expected).map_err(Failure::of_farm)?;
        receive(response, spool).await
    }

    /// The response that carries the content, after all redirects.
    async fn open(&self, wanted: &Wanted) -> Result<Response> {
        let mut url = parse(&wanted.uri)?;
        let mut headers = wanted.qualifiers.headers(wanted.place);
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(&url, &headers).await?;
            let Some(target) = redirection(&response) else { return accept(response, &headers) };
            let next = url.join(&target).map_err(|_| unusable("redirects to no URL"))?;
            // What a client sends to one origin, credentials above all, is not for the next one.
            if next.origin() != url.origin() {
                headers.clear();
            }
            url = next;
        }
        Err(unusable(&format!("redirects more than {REDIRECTS_MAX} times")))
    }

    async fn send(&self, url: &Url, headers: &HeaderMap) -> Result<Response> {
        self.allowed.check(url)?;
        self.resolver.check(url)?;
        let client =
            self.client.as_ref().ok_or_else(|| Error::bug("an origin is allowed without a client"))?;
        client.get(url.clone()).headers(headers.clone()).send().await.map_err(unreachable)
    }
}

fn client(resolver: Resolver, ca_file: Option<&Path>) -> Result<Client> {
    tls::install();
    let mut builder = Client::builder()
        .user_agent(concat!("croft/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_MAX)
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .dns_resolver(resolver);
    if let Some(file) = ca_file {
        let pem = std::fs::read(file).map_err(|error| {
            Error::invalid(format!("asset.ca_file {} cannot be read", file.display())).with_source(error)
        })?;
        let invalid = |error| Error::invalid("asset.ca_file has no certificates in PEM").with_source(error);
        builder = builder.tls_certs_merge(Certificate::from_pem_bundle(&pem).map_err(invalid)?);
    }
    builder.build().map_err(|error| Error::bug("make the client for fetches").with_source(error))
}

fn parse(uri: &str) -> Result<Url> {
    let unknown =
        || Error::new(Kind::NotFound, "nothing is known under this URI, and it is no URL of http or https");
    Url::parse(uri).ok().filter(is_http).ok_or_else(unknown)
}

fn redirection(response: &Response) -> Option<String> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(header::LOCATION).filter(|_| is_redirect)?;
    location.to_str().ok().map(ToOwned::to_owned)
}

/// The response if it has the content. A part of it is what a client wants that asks for a range, and nobody else.
fn accept(response: Response, headers: &HeaderMap) -> Result<Response> {
    let status = response.status();
    let is_content = status == StatusCode::OK
        || (status == StatusCode::PARTIAL_CONTENT && headers.contains_key(header::RANGE));
    if is_content {
        return Ok(response);
    }
    let kind = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Kind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Kind::Denied
        }
        StatusCode::TOO_MANY_REQUESTS => Kind::Exhausted,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Kind::Timeout,
        status if status.is_server_error() => Kind::Unavailable,
        _ => Kind::Aborted,
    };
    Err(Error::new(kind, format!("the origin answers {status}")))
}

/// Writes the body to the spool, some chunks at a time, so that memory is bounded and a hop between threads worth its price.
async fn receive(mut response: Response, mut spool: Spool) -> Result<(Digest, Blob), Failure> {
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
    loop {
        let chunk = response.chunk().await.map_err(|error| Failure::of_origin(broken(error)))?;
        let is_end = chunk.is_none();
        buffer.extend_from_slice(&chunk.unwrap_or_default());
        if buffer.len() >= CHUNK_BYTES || (is_end && !buffer.is_empty()) {
            let piece = buffer.split();
            let written = tasks::blocking(move || spool.write(&piece).map(|()| spool));
            spool = written.await.map_err(Failure::of_content)?;
        }
        if is_end {
            return tasks::blocking(|| spool.finish()).await.map_err(Failure::of_content);
        }
    }
}

fn unusable(what: &str) -> Error {
    Error::new(Kind::Aborted, format!("the origin {what}"))
}

fn unreachable(error: reqwest::Error) -> Error {
    if let Some(refusal) = address::refusal(&error) {
        return refusal;
    }
    let (kind, message) = if error.is_timeout() {
        (Kind::Timeout, "the origin does not answer in time")
    } else {
        (Kind::Unavailable, "the origin cannot be reached")
    };
    // The URL may carry secrets, and the log is not the place for them.
    Error::new(kind, message).with_source(error.without_url())
}

fn broken(error: reqwest::Error) -> Error {
    Error::new(Kind::Unavailable, "the connection to the origin broke off").with_source(error.without_url())
}
