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

use super::is_grpc;
use crate::metrics::{Durations, REQUEST_DURATION, STREAM_DURATION};
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
        let method = method(request.uri().path());
        let durations = if WAITING.contains(&method) { &STREAM_DURATION } else { &REQUEST_DURATION };
        let span = trace::call(method, request.headers());
        let mut call = Call { method, durations, start: Instant::now(), code: None, span: span.clone() };
        let answer = span.in_scope(|| self.inner.call(request));
        let measured = async move {
            let answer = answer.await?;
            if is_grpc(answer.headers()) {
                call.observe(answer.headers());
            } else {
                call.observe_plain(answer.status());
            }
            if WAITING.contains(&method) {
                call.write_down(&REQUEST_DURATION, call.code.unwrap_or(Code::Ok));
            }
            Ok(answer.map(|body| tonic::body::Body::new(MeasuredBody { body, call })))
        };
        Box::pin(measured.instrument(span))
    }
}

/// One call under way. Dropping it writes it down.
struct Call {
    method: &'static str,
    durations: &'static Durations,
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

    /// Of plain HTTP, the status line says it all.
    fn observe_plain(&mut self, status: StatusCode) {
        self.code = Some(match status.as_u16() {
            ..400 => Code::Ok,
            404 => Code::NotFound,
            429 => Code::ResourceExhausted,
            400..500 => Code::InvalidArgument,
            503 => Code::Unavailable,
            507 => Code::ResourceExhausted,
            500.. => Code::Internal,
        });
    }

    fn write_down(&self, durations: &Durations, code: Code) {
        let seconds = self.start.elapsed().as_secs_f64();
        durations.with_label_values(&[self.method, &format!("{code:?}")]).observe(seconds);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // A call without a status is one whose client went away.
        let code = self.code.unwrap_or(Code::Cancelled);
        self.write_down(self.durations, code);
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

/// The methods that we serve, as they stand in the label; a client can make no series of its own.
const METHODS: [&str; 33] = [
    "ActionCache/GetActionResult",
    "ActionCache/UpdateActionResult",
    "ByteStream/QueryWriteStatus",
    "ByteStream/Read",
    "ByteStream/Write",
    "Capabilities/GetCapabilities",
    "ContentAddressableStorage/BatchReadBlobs",
    "ContentAddressableStorage/BatchUpdateBlobs",
    "ContentAddressableStorage/FindMissingBlobs",
    "ContentAddressableStorage/GetTree",
    "ContentAddressableStorage/SpliceBlob",
    "ContentAddressableStorage/SplitBlob",
    "Execution/Execute",
    "Execution/WaitExecution",
    "ExternalScaler/GetMetricSpec",
    "ExternalScaler/GetMetrics",
    "ExternalScaler/IsActive",
    "ExternalScaler/StreamIsActive",
    "Fetch/FetchBlob",
    "Fetch/FetchDirectory",
    "Health/Check",
    "Health/Watch",
    "Operations/CancelOperation",
    "Operations/DeleteOperation",
    "Operations/GetOperation",
    "Operations/ListOperations",
    "Operations/WaitOperation",
    "PublishBuildEvent/PublishBuildToolEventStream",
    "PublishBuildEvent/PublishLifecycleEvent",
    "Push/PushBlob",
    "Push/PushDirectory",
    "ServerReflection/ServerReflectionInfo",
    "Workers/Work",
];

/// Those of them that last as long as what they wait for.
const WAITING: [&str; 8] = [
    "Execution/Execute",
    "Execution/WaitExecution",
    "ExternalScaler/StreamIsActive",
    "Health/Watch",
    "Operations/WaitOperation",
    "PublishBuildEvent/PublishBuildToolEventStream",
    "ServerReflection/ServerReflectionInfo",
    "Workers/Work",
];

/// `/google.bytestream.ByteStream/Read` as `ByteStream/Read`; of plain HTTP, which of the two caches.
fn method(path: &str) -> &'static str {
    match path.rsplit('/').nth(1) {
        Some("ac") => return "HTTP/ac",
        Some("cas") => return "HTTP/cas",
        Some(_) | None => {}
    }
    let name = path.rsplit_once('.').map_or("", |(_, name)| name);
    METHODS.binary_search(&name).map_or("other", |place| METHODS[place])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_waits_is_timed_up_to_its_answer() {
        assert!(WAITING.iter().all(|method| METHODS.contains(method)));
    }

    #[test]
    fn a_method_is_named_without_its_package() {
        assert!(METHODS.is_sorted());
        assert_eq!(method("/google.bytestream.ByteStream/Read"), "ByteStream/Read");
        assert_eq!((method("/ac/00"), method("/some/instance/cas/00")), ("HTTP/ac", "HTTP/cas"));
        for unknown in ["", "/", "/x.Y/Z", "/google.bytestream.ByteStream/Read/more"] {
            assert_eq!(method(unknown), "other");
        }
    }
}
