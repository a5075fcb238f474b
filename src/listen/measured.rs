//! Times every call, by method and gRPC code, into `nativelink_request_duration_seconds`, and has a span for it in its trace.
//!
//! A call that lasts as long as what it waits for says nothing of how fast we are. It counts there only up to the head of its answer,
//! which comes when an action is accepted or its result was found, and as a whole in `croft_stream_duration_seconds`.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use super::calls::{Method, REQUESTS, STREAMS, Timers};
use super::is_grpc;
use crate::trace;

/// The layer; a call ends with its last frame, or when its client goes away.
#[derive(Debug, Clone, Copy)]
pub struct Measured;

impl<S> Layer<S> for Measured {
    type Service = Measure<S>;

    fn layer(&self, inner: S) -> Measure<S> {
        Measure { inner }
    }
}

#[derive(Debug, Clone)]
pub struct Measure<S> {
    inner: S,
}

impl<S, R> Service<Request<R>> for Measure<S>
where
    S: Service<Request<R>, Response = Response<tonic::body::Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<tonic::body::Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let method = Method::of(request.uri().path());
        let timers = if method.waits() { &STREAMS } else { &REQUESTS };
        let span = trace::call(method.name(), request.headers());
        let mut call = Call { method, timers, start: Instant::now(), code: None, span: span.clone() };
        let answer = span.in_scope(|| self.inner.call(request));
        let measured = async move {
            let answer = answer.await?;
            if is_grpc(answer.headers()) {
                call.observe(answer.headers());
            } else {
                call.code = Some(code_of(answer.status()));
            }
            if method.waits() {
                call.write_down(&REQUESTS, call.code.unwrap_or(Code::Ok));
            }
            Ok(answer.map(|body| tonic::body::Body::new(MeasuredBody { body, call })))
        };
        Box::pin(measured.instrument(span))
    }
}

/// One call under way. Dropping it writes it down.
struct Call {
    method: Method,
    timers: &'static Timers,
    start: Instant,
    code: Option<Code>,
    span: Span,
}

impl Call {
    /// A status stands in the trailers, or in the headers of an answer without a body.
    fn observe(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = Some(status.code());
        }
    }

    fn write_down(&self, timers: &Timers, code: Code) {
        timers.of(self.method, code).observe(self.start.elapsed().as_secs_f64());
    }
}

/// Of plain HTTP, the status line says it all.
fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        ..400 => Code::Ok,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        408 => Code::Cancelled,
        409 => Code::Aborted,
        412 => Code::FailedPrecondition,
        413 | 429 => Code::ResourceExhausted,
        416 => Code::OutOfRange,
        400..500 => Code::InvalidArgument,
        501 => Code::Unimplemented,
        503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        507 => Code::ResourceExhausted,
        500.. => Code::Internal,
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // A call without a status is one whose client went away.
        let code = self.code.unwrap_or(Code::Cancelled);
        self.write_down(self.timers, code);
        trace::end(&self.span, code);
    }
}

struct MeasuredBody {
    body: tonic::body::Body,
    call: Call,
}

impl Body for MeasuredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = this.call.span.in_scope(|| Pin::new(&mut this.body).poll_frame(context));
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.observe(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_plain_http_is_told_from_a_request_that_cannot_be_read() {
        for (status, code) in [
            (200, Code::Ok),
            (304, Code::Ok),
            (400, Code::InvalidArgument),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::NotFound),
            (405, Code::InvalidArgument),
            (408, Code::Cancelled),
            (409, Code::Aborted),
            (412, Code::FailedPrecondition),
            (413, Code::ResourceExhausted),
            (416, Code::OutOfRange),
            (429, Code::ResourceExhausted),
            (500, Code::Internal),
            (501, Code::Unimplemented),
            (503, Code::Unavailable),
            (504, Code::DeadlineExceeded),
            (507, Code::ResourceExhausted),
        ] {
            assert_eq!(code_of(StatusCode::from_u16(status).unwrap()), code, "{status}");
        }
    }
}
