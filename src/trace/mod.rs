//! Traces: one call with all that the farm does for it, as OpenTelemetry spans over OTLP.
//!
//! A span exists only below a call whose trace is kept, and whether it is kept is decided when the call comes. So what is not kept costs
//! a look at the current span, and where nothing is exported only a look at a constant.
//!
//! A trace goes from process to process as the W3C header `traceparent`, and to a worker in the message that starts an action. Clients
//! of the protocol rarely send that header, but they say which build a call belongs to; the trace is then that of the build, under the
//! build's own identifier.

mod build;
mod carried;
mod config;
mod counted;
mod export;
mod origin;

use std::sync::OnceLock;
use std::time::SystemTime;

use http::HeaderMap;
use opentelemetry::trace::{Span as _, TraceContextExt, Tracer as _};
use opentelemetry_sdk::trace::SdkTracer;
use tonic::Code;
use tracing::{Span, Subscriber, field};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;

pub use self::build::{Build, build};
pub use self::carried::{Carried, send};
pub use self::config::{Config, Protocol};
pub use self::export::Export;
use self::origin::{Origin, Sampling};

/// What all our spans have as their target. Their level is the least verbose one, so that a line of the log has the trace's identifier
/// whatever else is logged.
pub const TARGET: &str = "croft::trace";

/// Calls that say nothing of what a client waits for: one lasts as long as its worker, the others are asked all the time.
const UNTRACED: [&str; 3] = ["Workers/Work", "Health/Check", "Health/Watch"];

/// Set once, where traces are exported.
static TRACING: OnceLock<Tracing> = OnceLock::new();

struct Tracing {
    tracer: SdkTracer,
    sampling: Sampling,
}

/// What the subscriber of this process must have for spans to be exported; none where they are not.
pub fn layer<S>() -> Option<OpenTelemetryLayer<S, SdkTracer>>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let tracing = TRACING.get()?;
    let layer = OpenTelemetryLayer::new(tracing.tracer.clone());
    Some(
        layer
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false),
    )
}

/// The span of a call that a listener takes, `method` being its label; [`Span::none`] when its trace is not kept.
pub fn call(method: &'static str, headers: &HeaderMap) -> Span {
    let Some(tracing) = TRACING.get() else { return Span::none() };
    if UNTRACED.contains(&method) {
        return Span::none();
    }
    let Some(origin) = origin::of(headers, &tracing.sampling) else { return Span::none() };
    let span = tracing::error_span!(
        target: TARGET,
        parent: None,
        "call",
        otel.name = method,
        otel.kind = "server",
        rpc.grpc.status_code = field::Empty,
        otel.status_code = field::Empty,
        trace_id = field::Empty,
    );
    if let Origin::Elsewhere(parent) = origin {
        follow(&span, parent);
    }
    name_trace(&span);
    span
}

/// Writes down how a call has ended.
pub fn end(span: &Span, code: Code) {
    if span.is_none() {
        return;
    }
    span.record("rpc.grpc.status_code", code as i32);
    let is_our_fault = matches!(code, Code::Unknown | Code::Internal | Code::DataLoss | Code::Unavailable);
    if is_our_fault {
        span.record("otel.status_code", "ERROR");
    }
}

/// A part of what the current span is about; [`Span::none`] when there is none.
pub fn part(name: &str) -> Span {
    let Some(current) = current() else { return Span::none() };
    tracing::error_span!(target: TARGET, parent: &current, "part", otel.name = name)
}

/// The span that is entered, if it is one of ours.
fn current() -> Option<Span> {
    TRACING.get()?;
    let current = Span::current();
    let is_ours = current.metadata().is_some_and(|metadata| metadata.target() == TARGET);
    is_ours.then_some(current)
}

/// A span that goes on with a trace which came some other way than as a call; [`Span::none`] when none came or nothing is exported.
pub fn resume(carried: Option<&Carried>, name: &str) -> Span {
    if TRACING.get().is_none() {
        return Span::none();
    }
    let Some(parent) = carried.and_then(Carried::context) else { return Span::none() };
    let span = tracing::error_span!(
        target: TARGET,
        parent: None,
        "part",
        otel.name = name,
        croft.worker = field::Empty,
        trace_id = field::Empty,
    );
    follow(&span, parent);
    name_trace(&span);
    span
}

/// Exports a part of a trace that is over, and was nobody's to watch.
pub fn past(carried: &Carried, name: &'static str, (start, end): (SystemTime, SystemTime)) {
    let Some(tracing) = TRACING.get() else { return };
    let Some(parent) = carried.context() else { return };
    let builder = tracing.tracer.span_builder(name).with_start_time(start);
    tracing.tracer.build_with_context(builder, &parent).end_with_timestamp(end.max(start));
}

fn follow(span: &Span, parent: opentelemetry::Context) {
    // It fails for a span that the subscriber has not taken, and then nothing is lost.
    let _ = span.set_parent(parent);
}

/// Lines of the log that are written within the span name its trace.
fn name_trace(span: &Span) {
    let context = span.context();
    span.record("trace_id", field::display(context.span().span_context().trace_id()));
}
