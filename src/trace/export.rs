//! How spans leave the process: in batches, bounded, and without anybody waiting for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use opentelemetry_sdk::{Resource, runtime};
use tonic::transport::{Channel, Endpoint};

use super::build::Identifiers;
use super::config::{Protocol, Settings};
use super::origin::Sampling;
use super::{Config, TRACING, Tracing};
use crate::error::{Context, Error, Result};
use crate::metrics::{Counter, TRACE_SPANS};
use crate::{tasks, tls};

/// How long the last spans may take to be sent when the process ends.
const STOP_MAX: Duration = Duration::from_secs(5);

/// How long a collector may take to accept a connection, and over HTTP to take a batch, which over gRPC is what the variables say (10 s).
const CONNECT_MAX: Duration = Duration::from_secs(5);
const SEND_MAX: Duration = Duration::from_secs(10);

/// What exports spans, if anything does.
#[derive(Debug, Default)]
pub struct Export(Option<SdkTracerProvider>);

impl Export {
    /// Begins to export what `config` and the environment say. Must be called within the runtime, once, before the log is started.
    ///
    /// # Errors
    /// `Invalid` for a variable or an address that is not understood.
    pub fn start(config: &Config) -> Result<Self> {
        let Some(settings) = config.settle(|name| std::env::var(name).ok())? else { return Ok(Self(None)) };
        tls::install();
        let exporter = exporter(&settings, &config.tls.clone().unwrap_or_default())?;
        let processor = BatchSpanProcessor::builder(Counted::new(exporter), runtime::Tokio);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor.build())
            // A span is made only when it is to be exported.
            .with_sampler(Sampler::AlwaysOn)
            .with_id_generator(Identifiers::default())
            .with_resource(resource())
            .build();
        let tracing = Tracing {
            tracer: provider.tracer("croft"),
            sampling: Sampling::new(settings.sample, settings.follows_callers),
        };
        if TRACING.set(tracing).is_err() {
            return Err(Error::bug("traces are exported already"));
        }
        Ok(Self(Some(provider)))
    }

    /// Sends what is left, for a while.
    pub async fn stop(self) {
        let Some(provider) = self.0 else { return };
        let stopping = tasks::blocking(move || {
            let stopped = provider.shutdown_with_timeout(STOP_MAX);
            stopped.map_err(|error| Error::bug("stop the export of traces").with_source(error))
        });
        match tokio::time::timeout(STOP_MAX, stopping).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = error.chain(), "the last spans were not sent"),
            Err(_) => tracing::debug!("the last spans were not sent in time"),
        }
    }
}

fn exporter(settings: &Settings, tls: &tls::Client) -> Result<opentelemetry_otlp::SpanExporter> {
    let builder = opentelemetry_otlp::SpanExporter::builder();
    let built = match settings.protocol {
        Protocol::Grpc => {
            let channel = channel(&settings.endpoint, tls).context(|| "export traces")?;
            builder.with_tonic().with_channel(channel).build()
        }
        Protocol::Http => builder
            .with_http()
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_http_client(client(tls).context(|| "export traces")?)
            .with_endpoint(&settings.endpoint)
            .build(),
    };
    built
        .map_err(|error| Error::invalid("the address that traces go to is wrong").with_source(error))
        .context(|| "export traces")
}

/// Connects when the first spans are sent. The exporter bounds the time of a call.
fn channel(endpoint: &str, tls: &tls::Client) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| Error::invalid("the address that traces go to is none").with_source(error))?
        .connect_timeout(CONNECT_MAX);
    if endpoint.uri().scheme_str() != Some("https") {
        return Ok(endpoint.connect_lazy());
    }
    let connector = tls::Connector::new("traces", "trace.tls", tls, Some(b"h2"))?;
    Ok(endpoint.connect_with_connector_lazy(connector.dial()))
}

fn client(tls: &tls::Client) -> Result<reqwest::Client> {
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_MAX)
        .timeout(SEND_MAX)
        .tls_backend_preconfigured(tls::preconfigured("trace.tls", tls)?);
    client.build().map_err(|error| Error::bug("make an HTTP client").with_source(error))
}

/// Who we are: as the environment says (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`), else `croft`.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = || Resource::builder().with_attribute(version.clone());
    let said = builder().build();
    let name = said.get(&"service.name".into()).map(|name| name.to_string()).unwrap_or_default();
    if name.is_empty() || name.starts_with("unknown_service") {
        return builder().with_service_name("croft").build();
    }
    said
}

/// Counts what is sent and what is not, and tells the log when that begins and ends.
#[derive(Debug)]
struct Counted<E> {
    inner: E,
    sent: Counter,
    lost: Counter,
    is_failing: AtomicBool,
}

impl<E> Counted<E> {
    fn new(inner: E) -> Self {
        let counter = |outcome| TRACE_SPANS.with_label_values(&[outcome]);
        Self { inner, sent: counter("sent"), lost: counter("lost"), is_failing: AtomicBool::new(false) }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        match &result {
            Ok(()) => {
                self.sent.inc_by(spans);
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("traces are taken again");
                }
            }
            Err(error) => {
                self.lost.inc_by(spans);
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "traces are not taken; they are lost until they are");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
