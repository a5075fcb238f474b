//! OpenDAL's operators as we use them: our HTTP client, which counts, below time-outs, below retries.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use opendal::layers::{RetryEvent, RetryLayer, TimeoutLayer};
use opendal::{Buffer, HttpBody, HttpTransport, HttpTransporter, Operator, services};
use opendal_http_transport_reqwest::ReqwestTransport;

use super::config::{Azure, Fs, Gcs, Provider, S3};
use crate::error::{Context, Error, Kind, Result};
use crate::metrics::{CLOUD_ERRORS, CLOUD_REQUESTS, Counter};

/// Attempts after the first. A service that does not answer at all costs the time-out this often and once more.
const RETRIES_MAX: usize = 3;

/// The pauses before them double from the first on; a random part keeps many clients from coming back together.
const RETRY_DELAY: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// Connections that are kept open: a handshake costs more than a small request.
const IDLE_CONNECTIONS_MAX: usize = 64;
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// One client for all tiers. HTTP/1.1, because S3 has nothing else and one HTTP/2 connection is one TCP connection's speed.
static TRANSPORT: LazyLock<Result<ReqwestTransport>> = LazyLock::new(|| {
    // Another part of the process may have installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .http1_only()
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .build()
        .map_err(|error| Error::new(Kind::Unavailable, "start the HTTP client").with_source(error))?;
    let transport = ReqwestTransport::new(client);
    // Requests for credentials are made outside the operators.
    HttpTransporter::install_default(transport.clone());
    Ok(transport)
});

/// The same service twice.
pub(super) struct Operators {
    /// Tries again what failed for the moment, in the middle of a stream too.
    pub(super) retrying: Operator,
    /// Tries once: a stream that goes on after a failure could be half of one value and half of the next.
    pub(super) single: Operator,
}

/// Makes the operators; makes no request.
pub(super) fn operators(provider: Provider<'_>) -> Result<Operators> {
    let label = provider.label();
    let transport = TRANSPORT.as_ref().map_err(|error| Error::new(error.kind(), error.chain()))?;
    let counted = HttpTransporter::new(Counting { inner: transport.clone(), counters: Counters::new(label) });
    let build = |operator: opendal::Result<Operator>| {
        operator.map_err(|error| {
            Error::invalid(format!("tier {label} ({})", provider.service())).with_source(error)
        })
    };
    let operator = match provider {
        Provider::S3(config) => build(Operator::new(s3(config)?))?,
        Provider::Gcs(config) => build(Operator::new(gcs(config)))?,
        Provider::Azure(config) => build(Operator::new(azure(config)?))?,
        Provider::Fs(config) => build(Operator::new(fs(config)?))?,
    };
    let context = operator.context().with_http_transport(counted);
    let timeout = provider.requests().timeout;
    let timeouts = TimeoutLayer::new().with_timeout(timeout).with_io_timeout(timeout);
    // Retries must be outside: a time-out around them would end a retry in its middle, and with it the upload's state.
    let single = operator.with_context(context).layer(timeouts);
    let retrying = single.clone().layer(retries(label.to_owned()));
    Ok(Operators { retrying, single })
}

fn retries(label: String) -> RetryLayer<impl Fn(RetryEvent<'_>) + Send + Sync + 'static> {
    RetryLayer::new()
        .with_jitter()
        .with_min_delay(RETRY_DELAY)
        .with_max_delay(RETRY_DELAY_MAX)
        .with_max_times(RETRIES_MAX)
        .with_notify(move |event: RetryEvent<'_>| {
            tracing::debug!(
                tier = label,
                attempt = event.attempt,
                "{} is tried again: {}",
                event.op,
                event.err
            );
        })
}

fn s3(config: &S3) -> Result<services::S3> {
    let mut builder = services::S3::default().root(&config.requests.prefix).bucket(&config.bucket);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.endpoint(endpoint);
    }
    match &config.region {
        Some(region) => builder = builder.region(region),
        None if config.endpoint.is_some() && !has_region() => builder = builder.region("us-east-1"),
        None => {}
    }
    if let (Some(id), Some(file)) = (&config.access_key_id, &config.secret_access_key_file) {
        builder = builder.access_key_id(id).secret_access_key(&secret("secret_access_key_file", file)?);
    }
    if config.skip_signature {
        builder = builder.skip_signature();
    }
    Ok(builder)
}

fn has_region() -> bool {
    ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|variable| std::env::var_os(variable).is_some())
}

fn gcs(config: &Gcs) -> services::Gcs {
    let mut builder = services::Gcs::default().root(&config.requests.prefix).bucket(&config.bucket);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.endpoint(endpoint);
    }
    if let Some(file) = &config.credential_file {
        builder = builder.credential_path(&file.to_string_lossy());
    }
    if config.skip_signature {
        builder = builder.skip_signature();
    }
    builder
}

fn azure(config: &Azure) -> Result<services::Azblob> {
    let own = format!("https://{}.blob.core.windows.net", config.account);
    let mut builder = services::Azblob::default()
        .root(&config.requests.prefix)
        .container(&config.container)
        .endpoint(config.endpoint.as_deref().unwrap_or(&own))
        .account_name(&config.account);
    if let Some(file) = &config.account_key_file {
        builder = builder.account_key(&secret("account_key_file", file)?);
    }
    if config.skip_signature {
        builder = builder.skip_signature();
    }
    Ok(builder)
}

/// Files are written under another name in a folder of their own and renamed when they are whole.
fn fs(config: &Fs) -> Result<services::Fs> {
    let path = |path: &Path| {
        let path = path.to_str().ok_or_else(|| Error::invalid("the path of an fs tier is not UTF-8"))?;
        Ok::<String, Error>(path.to_owned())
    };
    let root = path(&config.path.join(&config.requests.prefix))?;
    Ok(services::Fs::default().root(&root).atomic_write_dir(&path(&config.path.join("tmp"))?))
}

/// What a file named in the configuration says, without the line end that editors leave.
fn secret(key: &str, file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).context(|| format!("read {key}"))?;
    Ok(text.trim().to_owned())
}

/// Counts requests as they go out, those of retries too.
struct Counting {
    inner: ReqwestTransport,
    counters: Counters,
}

/// The counters of one tier, looked up once.
struct Counters {
    put: Counter,
    get: Counter,
    head: Counter,
    copy: Counter,
    delete: Counter,
    part: Counter,
    error: Counter,
}

impl HttpTransport for Counting {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        self.counters.of(&request).inc();
        let answer = self.inner.fetch(request).await;
        let is_failure =
            |status: StatusCode| status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        if answer.as_ref().map_or(true, |answer| is_failure(answer.status())) {
            self.counters.error.inc();
        }
        answer
    }
}

impl Counters {
    fn new(label: &str) -> Self {
        let counter = |kind| CLOUD_REQUESTS.with_label_values(&[label, kind]);
        Self {
            put: counter("put"),
            get: counter("get"),
            head: counter("head"),
            copy: counter("copy"),
            delete: counter("delete"),
            part: counter("part"),
            error: CLOUD_ERRORS.with_label_values(&[label]),
        }
    }

    /// By what the services charge for, as their URLs and headers show it.
    fn of<T>(&self, request: &Request<T>) -> &Counter {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let has = |header| request.headers().contains_key(header);
        let is_object_of_gcs = path.contains("/storage/v1/b/") && !query.contains("alt=media");
        if has("x-amz-copy-source") || has("x-ms-copy-source") || path.contains("/rewriteTo/") {
            return &self.copy;
        }
        if ["uploads", "uploadId=", "comp=block"].iter().any(|part| query.contains(part)) {
            return &self.part;
        }
        match *request.method() {
            Method::HEAD => &self.head,
            Method::GET if is_object_of_gcs => &self.head,
            Method::GET => &self.get,
            Method::DELETE => &self.delete,
            _ => &self.put,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_as_they_are_charged() {
        let counters = Counters::new("requests-test");
        let cases = [
            ("HEAD", "http://s/cas/blobs/a", "", &counters.head),
            ("GET", "http://s/storage/v1/b/cas/o/blobs%2Fa", "", &counters.head),
            ("GET", "http://s/storage/v1/b/cas/o/blobs%2Fa?alt=media", "", &counters.get),
            ("GET", "http://s/cas/blobs/a", "", &counters.get),
            ("PUT", "http://s/cas/blobs/a", "", &counters.put),
            ("POST", "http://s/upload/storage/v1/b/cas/o?uploadType=media&name=a", "", &counters.put),
            ("POST", "http://s/cas/blobs/a?uploads", "", &counters.part),
            ("PUT", "http://s/cas/blobs/a?partNumber=1&uploadId=x", "", &counters.part),
            ("PUT", "http://s/cas/blobs/a?comp=blocklist", "", &counters.part),
            ("DELETE", "http://s/cas/blobs/a", "", &counters.delete),
            ("PUT", "http://s/cas/blobs/a?partNumber=1&uploadId=x", "x-amz-copy-source", &counters.copy),
            ("POST", "http://s/storage/v1/b/cas/o/a/rewriteTo/b/cas/o/a", "", &counters.copy),
        ];
        for (method, uri, header, expected) in cases {
            let mut request = Request::builder().method(method).uri(uri);
            if !header.is_empty() {
                request = request.header(header, "x");
            }
            let request = request.body(()).unwrap();
            assert!(std::ptr::eq(counters.of(&request), expected), "{method} {uri}");
        }
    }
}
