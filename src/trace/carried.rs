//! A trace on its way to where it goes on.

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::MetadataMap;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header of the W3C's Trace Context, level 1.
const HEADER: &str = "traceparent";

/// Bytes of that header in its version 00.
const BYTES: usize = 55;

/// The trace and the span that something belongs to, as the header `traceparent` has it. Only of traces that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried(Box<str>);

impl Carried {
    /// That of the current span, if there is one.
    pub fn current() -> Option<Self> {
        let span = super::current()?;
        let mut headers = HashMap::new();
        TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
        headers.remove(HEADER).map(|text| Self(text.into()))
    }

    /// What another part of the farm has sent; none if it has sent none. What it means is looked at where it is used.
    pub fn read(text: &str) -> Option<Self> {
        (text.len() == BYTES && text.is_ascii()).then(|| Self(text.into()))
    }

    /// As it is sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// None when it is malformed or its trace is not kept.
    pub(super) fn context(&self) -> Option<Context> {
        let headers = HashMap::from([(HEADER.to_owned(), self.0.to_string())]);
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
        context.span().span_context().is_sampled().then_some(context)
    }
}

/// Sends the current span along with a call of ours.
pub fn send(metadata: &mut MetadataMap) {
    if let Some(carried) = Carried::current()
        && let Ok(value) = carried.as_str().parse()
    {
        metadata.insert(HEADER, value);
    }
}
