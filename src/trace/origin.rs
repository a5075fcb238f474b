//! Where the trace of a call begins, and whether it is kept.

use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceId};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;

use super::build;
use crate::proto;

/// What begins a trace that is kept.
#[derive(Debug)]
pub(super) enum Origin {
    /// A span of the caller, or the build that the call belongs to.
    Elsewhere(Context),
    /// The call itself.
    Here,
}

/// Which traces are kept.
#[derive(Debug)]
pub(super) struct Sampling {
    /// The share of those that begin here or with a build, from 0 to 1.
    share: f64,
    /// Whether a caller that sends a trace decides for it.
    follows_callers: bool,
    /// Counts the calls that have no other origin.
    turn: AtomicU64,
}

impl Sampling {
    pub(super) const fn new(share: f64, follows_callers: bool) -> Self {
        Self { share, follows_callers, turn: AtomicU64::new(0) }
    }

    /// All processes of a farm say the same of a trace. The first bytes count, which are random in a UUID of any version in use.
    pub(super) fn keeps(&self, trace: TraceId) -> bool {
        let [a, b, c, d, e, f, ..] = trace.to_bytes();
        let number = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        (number as f64) < self.share * (1_u64 << 48) as f64
    }

    /// Every so many calls.
    fn keeps_next(&self) -> bool {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as f64;
        ((turn + 1.0) * self.share).floor() > (turn * self.share).floor()
    }
}

/// Where the trace of a call with these headers begins; none when it is not kept.
pub(super) fn of(headers: &HeaderMap, sampling: &Sampling) -> Option<Origin> {
    if let Some(caller) = caller(headers) {
        let sent = caller.span().span_context().clone();
        let is_kept =
            if sampling.follows_callers { sent.is_sampled() } else { sampling.keeps(sent.trace_id()) };
        return is_kept.then_some(Origin::Elsewhere(caller));
    }
    match invocation(headers).as_deref().and_then(build::span_of) {
        Some(build) => sampling.keeps(build.trace_id()).then(|| elsewhere(build)),
        None => sampling.keeps_next().then_some(Origin::Here),
    }
}

fn elsewhere(span: SpanContext) -> Origin {
    Origin::Elsewhere(Context::new().with_remote_span_context(span))
}

fn caller(headers: &HeaderMap) -> Option<Context> {
    if !headers.contains_key("traceparent") {
        return None;
    }
    let context =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
    let is_valid = context.span().span_context().is_valid();
    is_valid.then_some(context)
}

/// The client's `tool_invocation_id`, if it has sent one.
fn invocation(headers: &HeaderMap) -> Option<String> {
    let id = proto::request_metadata(headers)?.tool_invocation_id;
    (!id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD_NO_PAD;
    use prost::Message;

    use super::*;
    use crate::proto::REQUEST_METADATA;
    use crate::proto::rev2::RequestMetadata;

    fn headers(traceparent: &str, invocation: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !traceparent.is_empty() {
            headers.insert("traceparent", traceparent.parse().unwrap());
        }
        if !invocation.is_empty() {
            let metadata =
                RequestMetadata { tool_invocation_id: invocation.to_owned(), ..RequestMetadata::default() };
            let text = STANDARD_NO_PAD.encode(metadata.encode_to_vec());
            headers.insert(REQUEST_METADATA, text.parse().unwrap());
        }
        headers
    }

    fn trace_of(headers: &HeaderMap, sampling: &Sampling) -> Option<String> {
        match of(headers, sampling)? {
            Origin::Elsewhere(context) => Some(context.span().span_context().trace_id().to_string()),
            Origin::Here => Some("here".to_owned()),
        }
    }

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const BUILD: &str = "0c1f3d6e-9a55-4c8e-b1a2-8d6f7e5c4b3a";

    #[test]
    fn a_trace_is_that_of_the_caller_or_of_the_build_or_begins_with_the_call() {
        let all = Sampling::new(1.0, true);
        assert_eq!(trace_of(&headers(CALLER, BUILD), &all).unwrap(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace_of(&headers("", BUILD), &all).unwrap(), "0c1f3d6e9a554c8eb1a28d6f7e5c4b3a");
        assert_eq!(trace_of(&headers("nonsense", ""), &all).unwrap(), "here");
        let named = trace_of(&headers("", "build 7"), &all).unwrap();
        assert_eq!(named.len(), 32);
        assert_eq!(trace_of(&headers("", "build 7"), &all).unwrap(), named);
    }

    #[test]
    fn a_caller_decides_unless_the_configuration_does() {
        let not_kept = CALLER.replace("-01", "-00");
        for (share, follows, kept) in [(0.0, true, true), (0.0, false, false), (1.0, false, true)] {
            assert_eq!(of(&headers(CALLER, ""), &Sampling::new(share, follows)).is_some(), kept);
        }
        assert!(of(&headers(&not_kept, BUILD), &Sampling::new(1.0, true)).is_none());
    }

    #[test]
    fn of_builds_and_calls_the_share_is_kept_that_was_asked_for() {
        for share in [0.0, 0.01, 0.25, 1.0] {
            let sampling = Sampling::new(share, true);
            let calls = (0..10_000).filter(|_| of(&headers("", ""), &sampling).is_some()).count();
            let builds = (0..10_000)
                .filter(|_| sampling.keeps(TraceId::from_bytes(uuid::Uuid::new_v4().into_bytes())));
            let expected = share * 10_000.0;
            assert!((calls as f64 - expected).abs() <= 1.0, "{calls}");
            assert!((builds.count() as f64 - expected).abs() <= 300.0);
        }
    }
}
