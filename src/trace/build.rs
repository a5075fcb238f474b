//! The span of a whole build. Its identifier and that of its trace follow from the build's own: so whoever takes a call of the build knows what
//! to hang it below, long before whoever hears that the build is over exports it.

use std::cell::Cell;
use std::time::SystemTime;

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

use super::TRACING;
use crate::digest::Function;

thread_local! {
    /// The trace and the span that this thread is about to make, where they are not left to chance.
    static NEXT: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Random identifiers, but for the spans of builds.
#[derive(Debug, Default)]
pub(super) struct Identifiers(RandomIdGenerator);

impl IdGenerator for Identifiers {
    fn new_trace_id(&self) -> TraceId {
        NEXT.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        NEXT.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

/// A build that is over.
#[derive(Debug)]
pub struct Build {
    /// Its `tool_invocation_id`.
    pub invocation: String,
    /// What the user called it with, such as `test`.
    pub command: String,
    pub times: (SystemTime, SystemTime),
    /// As the tool calls its end, such as `BUILD_FAILURE`.
    pub exit: String,
    pub has_failed: bool,
}

/// Exports the span of a build, if its trace is kept.
pub fn build(build: Build) {
    let Some(tracing) = TRACING.get() else { return };
    let Some(own) = span_of(&build.invocation) else { return };
    if !tracing.sampling.keeps(own.trace_id()) {
        return;
    }
    let (start, end) = build.times;
    let builder = tracing
        .tracer
        .span_builder(format!("bazel {}", build.command))
        .with_kind(SpanKind::Client)
        .with_start_time(start)
        .with_attributes([
            KeyValue::new("croft.invocation", build.invocation),
            KeyValue::new("croft.exit", build.exit.clone()),
        ]);
    NEXT.set(Some((own.trace_id(), own.span_id())));
    let mut span = tracing.tracer.build_with_context(builder, &Context::new());
    NEXT.set(None);
    if build.has_failed {
        span.set_status(Status::error(build.exit));
    }
    span.end_with_timestamp(end.max(start));
}

/// The span of the build with this `tool_invocation_id`; none for the one number that no span may have.
pub(super) fn span_of(invocation: &str) -> Option<SpanContext> {
    let trace = match uuid::Uuid::parse_str(invocation) {
        Ok(uuid) => uuid.into_bytes(),
        Err(_) => *Function::Blake3.hash(invocation.as_bytes()).hash().first_chunk()?,
    };
    let span: [u8; 8] = *trace.last_chunk()?;
    let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
    let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::NONE);
    context.is_valid().then_some(context)
}
