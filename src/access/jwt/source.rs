//! Where the keys of an issuer are read: a file, an address, or the address that the issuer's discovery document names.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use reqwest::{Client, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::access::config::{JwtConfig, is_address};
use crate::error::{Error, Kind, Result};
use crate::reload::{self, Content, NamedFile, Reloaded};
use crate::tls;

/// How long an issuer may take to answer. Clients wait for it.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Bytes of a set of keys, or of a discovery document.
const DOCUMENT_BYTES_MAX: usize = 256 << 10;

/// Where an issuer says where its keys are (OpenID Connect Discovery 1.0, section 4).
const DISCOVERY: &str = "/.well-known/openid-configuration";

#[derive(Debug)]
pub(super) enum Source {
    /// It is read again when it changes.
    File(Arc<Reloaded<JwkSet>>),
    Address(Client, String),
    /// The issuer, whose discovery document is asked each time: the address of the keys may change.
    Discovery(Client, String),
}

#[derive(Debug, Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl Source {
    /// # Errors
    /// `Invalid` when the file cannot be read or holds no keys, `Bug` when the client cannot be made.
    pub(super) fn new(config: &JwtConfig) -> Result<Self> {
        Ok(match &config.keys {
            Some(keys) if keys.contains("://") => Self::Address(client()?, keys.clone()),
            Some(file) => Self::File(watched(config, file)?),
            None => Self::Discovery(client()?, config.issuer.clone()),
        })
    }

    /// # Errors
    /// `Unavailable` when they cannot be read, or what is there is no set of keys.
    pub(super) async fn read(&self) -> Result<JwkSet> {
        match self {
            Self::File(file) => Ok(JwkSet::clone(&file.current())),
            Self::Address(client, address) => get(client, address).await,
            Self::Discovery(client, issuer) => {
                let address = format!("{}{DISCOVERY}", issuer.trim_end_matches('/'));
                let found: Discovered = get(client, &address).await?;
                if found.issuer != *issuer {
                    return Err(unavailable("the discovery document is of another issuer"));
                }
                if !is_address(&found.jwks_uri) {
                    return Err(unavailable("the discovery document names no https:// address of keys"));
                }
                get(client, &found.jwks_uri).await
            }
        }
    }
}

fn watched(config: &JwtConfig, file: &str) -> Result<Arc<Reloaded<JwkSet>>> {
    let make = |contents: &[Content]| key_set(&contents[0]);
    let files = vec![named(config, file)];
    Reloaded::new((reload::Kind::Keys, config.issuer.clone()), files, Box::new(make))
}

fn named(config: &JwtConfig, file: &str) -> NamedFile {
    NamedFile { key: format!("access.jwt `{}`: keys", config.issuer), path: file.into() }
}

fn key_set(content: &Content) -> Result<JwkSet> {
    let malformed = |error| content.wrong("it is no set of keys (JWKS)").with_source(error);
    serde_json::from_slice(content.bytes()?).map_err(malformed)
}

/// What is wrong with the file of keys, if they come from one, as a sentence for the operator.
pub(in crate::access) fn file_problem(config: &JwtConfig) -> Option<String> {
    let file = config.keys.as_deref().filter(|keys| !keys.contains("://"))?;
    key_set(&named(config, file).read()).err().map(|error| error.chain())
}

/// It follows no redirects: they could lead from https:// to a place where anybody answers.
fn client() -> Result<Client> {
    tls::install();
    let client = Client::builder().timeout(ANSWER_MAX).redirect(redirect::Policy::none()).build();
    client.map_err(|error| Error::bug("make the client for an issuer of tokens").with_source(error))
}

async fn get<T: DeserializeOwned>(client: &Client, address: &str) -> Result<T> {
    let silent = |error: reqwest::Error| unavailable("the issuer does not answer").with_source(error);
    let sent = client.get(address).send().await.and_then(reqwest::Response::error_for_status);
    let mut response = sent.map_err(silent)?;
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(silent)? {
        body.extend_from_slice(&piece);
        if body.len() > DOCUMENT_BYTES_MAX {
            return Err(unavailable("the issuer's answer is too long"));
        }
    }
    parse(&body)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|error| unavailable("the issuer's document is malformed").with_source(error))
}

fn unavailable(message: &str) -> Error {
    Error::new(Kind::Unavailable, message)
}
