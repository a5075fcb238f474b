//! How commands speak to a running farm: over its admin listener.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;

use super::RunningFarm;
use crate::error::{Context, Error, Kind, Result};
use crate::tls;
use crate::web::ADMIN_HEADER;

/// Where a farm with the embedded defaults has its admin listener.
pub(super) const ADDRESS: &str = "http://127.0.0.1:50080";

/// How long a farm may take to accept a connection. Answers may take as long as they need: a scrub takes hours.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// The admin listener of a farm.
pub(super) struct Admin {
    address: Url,
    client: Client,
}

impl Admin {
    /// # Errors
    /// `Invalid` when the address is not one of http, or the files for TLS are wrong.
    pub(super) fn new(farm: &RunningFarm) -> Result<Self> {
        let RunningFarm { address, ca, certificate, key, token } = farm;
        let url = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let invalid =
            || Error::invalid(format!("`{address}` is no address of a farm; one looks like {ADDRESS}"));
        tls::install();
        let mut client = Client::builder().connect_timeout(CONNECT_MAX).no_proxy();
        let url = url.ok_or_else(invalid)?;
        if url.scheme() == "https" {
            let tls = tls::Client {
                authorities: ca.clone(),
                certificate: certificate.clone(),
                key: key.clone(),
                server_name: None,
            };
            client = client.tls_backend_preconfigured(tls::preconfigured("command line", &tls)?);
        } else if ca.is_some() || certificate.is_some() {
            return Err(Error::invalid("the files for TLS are for a farm at https://"));
        }
        if let Some(file) = token {
            client = client.default_headers(bearer(file)?);
        }
        let client = client
            .build()
            .map_err(|error| Error::bug("make the client of the command").with_source(error))?;
        Ok(Self { address: url, client })
    }

    /// The body that the farm answers to `method` at the path of `segments`.
    ///
    /// # Errors
    /// `Unavailable` when no farm answers, `NotFound` when it does not know what the path names, `Invalid` when it does not understand it; else
    /// `Precondition` with what it says, in its own words.
    pub(super) async fn ask<'a>(
        &self,
        method: Method,
        segments: impl IntoIterator<Item = &'a str>,
    ) -> Result<String> {
        self.send(self.request(method, segments)).await
    }

    /// As [`Admin::ask`], with a body in JSON.
    ///
    /// # Errors
    /// As for `ask`.
    pub(super) async fn tell<'a>(
        &self,
        method: Method,
        segments: impl IntoIterator<Item = &'a str>,
        body: &impl Serialize,
    ) -> Result<String> {
        self.send(self.request(method, segments).json(body)).await
    }

    fn request<'a>(&self, method: Method, segments: impl IntoIterator<Item = &'a str>) -> RequestBuilder {
        let mut url = self.address.clone();
        url.path_segments_mut().expect("addresses of http have paths").clear().extend(segments);
        self.client.request(method, url).header(ADMIN_HEADER, "1")
    }

    async fn send(&self, request: RequestBuilder) -> Result<String> {
        let response = request.send().await.map_err(|error| self.silent(error))?;
        let status = response.status();
        let body = read(response).await?;
        if status.is_success() {
            return Ok(body);
        }
        let message = if body.trim().is_empty() { status.to_string() } else { body.trim().to_owned() };
        let kind = match status {
            StatusCode::NOT_FOUND => Kind::NotFound,
            StatusCode::BAD_REQUEST => Kind::Invalid,
            _ => Kind::Precondition,
        };
        Err(Error::new(kind, format!("the farm answers: {message}")))
    }

    fn silent(&self, error: reqwest::Error) -> Error {
        let message = format!(
            "no farm answers at {}; start one with `croft`, or name its admin listener with --admin",
            self.address
        );
        Error::new(Kind::Unavailable, message).with_source(error.without_url())
    }
}

/// The header with the token in `file`. It comes from a file, since everybody on the machine can read the arguments of a process.
fn bearer(file: &Path) -> Result<HeaderMap> {
    let text = std::fs::read_to_string(file).context(|| format!("read the token in {}", file.display()))?;
    let value = HeaderValue::try_from(format!("Bearer {}", text.trim()));
    let mut value = value.map_err(|error| Error::invalid("the file holds no token").with_source(error))?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

async fn read(response: Response) -> Result<String> {
    let text = response.text().await;
    text.map_err(|error| {
        Error::new(Kind::Unavailable, "the farm's answer broke off").with_source(error.without_url())
    })
}

/// The value in a body.
///
/// # Errors
/// `Precondition` when it is not such a value: then the farm is of another version.
pub(super) fn parse<T: serde::de::DeserializeOwned>(body: &str) -> Result<T> {
    serde_json::from_str(body).map_err(|error| {
        let message =
            "the farm answers in a form that this program does not know; use the farm's own version";
        Error::new(Kind::Precondition, message).with_source(error)
    })
}

/// The value in the form that the farm's own answers have.
pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("our own types have text keys and no infinite numbers") + "\n"
}

/// Runs the work of a command.
pub(super) fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context(|| "start the runtime")?.block_on(work)
}
