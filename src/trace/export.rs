//! How spans leave the process: in batches, bounded, and without anybody waiting for them.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
use opentelemetry_sdk::trace::{BatchConfigBuilder, Sampler, SdkTracerProvider};
use opentelemetry_sdk::{Resource, runtime};
use tonic::transport::{Channel, Endpoint};

use super::build::Identifiers;
use super::config::{Protocol, Settings};
use super::counted::{Bounded, Counted, Waiting};
use super::origin::Sampling;
use super::{Config, TRACING, Tracing};
use crate::error::{Context, Error, Result};
use crate::{tasks, tls};

/// How long the last spans may take to be sent when the process ends.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Messages to the task that sends spans, beside those with spans: that the process ends, and who we are.
const MESSAGES_MAX: usize = 8;

/// How long a collector may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

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
        let waiting = Waiting::new(settings.queue);
        let exporter = Counted::new(exporter(&settings)?, Arc::clone(&waiting));
        let batches =
            BatchConfigBuilder::default().with_max_queue_size(settings.queue + MESSAGES_MAX).build();
        let batched =
            BatchSpanProcessor::builder(exporter, runtime::Tokio).with_batch_config(batches).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded { batched, waiting })
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

fn exporter(settings: &Settings) -> Result<opentelemetry_otlp::SpanExporter> {
    let builder = opentelemetry_otlp::SpanExporter::builder();
    let built = match settings.protocol {
        Protocol::Grpc => {
            let channel = channel(&settings.endpoint, &settings.tls).context(|| "export traces")?;
            builder.with_tonic().with_channel(channel).build()
        }
        Protocol::Http => builder
            .with_http()
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_http_client(client(&settings.tls, settings.timeout).context(|| "export traces")?)
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

/// The exporter over gRPC reads the time itself.
fn client(tls: &tls::Client, timeout: Duration) -> Result<reqwest::Client> {
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_MAX)
        .timeout(timeout)
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
