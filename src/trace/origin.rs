//! Where the trace of a call begins, and whether it is kept.

use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceId};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;

use super::build;
use crate::digest::Function;
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

    /// All processes of a farm say the same of a trace. Its hash counts, since in every kind of identifier other bytes are random, and some are
    /// a clock or a machine.
    pub(super) fn keeps(&self, trace: TraceId) -> bool {
        let number = Function::Blake3
            .hash(&trace.to_bytes())
            .hash()
            .first_chunk()
            .map_or(0, |first| u32::from_be_bytes(*first));
        f64::from(number) < self.share * (f64::from(u32::MAX) + 1.0)
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
            let expected = share * 10_000.0;
            assert!((calls as f64 - expected).abs() <= 1.0, "{calls}");
            // Of a UUID of version 4 all is random, of version 7 the second half, of version 1 only what counts.
            let random = || uuid::Uuid::new_v4().as_u128();
            let (now, node) = (0x0193_5000_1234 << 80, 0x11ef_8000_0242_ac11_0002);
            let kinds: [&dyn Fn(u128) -> u128; 3] =
                [&|_| random(), &|_| now | (random() >> 64), &|number| (number << 96) | node];
            for kind in kinds {
                let kept = (0..10_000).filter(|number| sampling.keeps(TraceId::from(kind(*number)))).count();
                assert!((kept as f64 - expected).abs() <= 300.0, "{kept} of {expected}");
            }
        }
    }
}
