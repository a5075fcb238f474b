//! What is answered over HTTP, and the only place that turns an error of ours into an HTTP status.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use crate::error::{Error, Kind};
use crate::store::Chunks;

use super::range::Range;

/// When a client may try again that found no place: most uploads are over by then.
const RETRY_AFTER_SECONDS: u32 = 5;

/// Why a request is not served: what only HTTP knows, or an error of ours.
#[derive(Debug)]
pub(super) enum Refusal {
    NoSuchPath,
    Method,
    WebPage,
    LengthRequired,
    /// The content may have this many bytes.
    TooLarge(u64),
    /// The blob has this many bytes.
    Range(u64),
    /// There is no place at the moment.
    Busy(Error),
    Error(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

pub(super) fn refuse(refusal: Refusal) -> Response {
    match refusal {
        Refusal::NoSuchPath => {
            text(StatusCode::NOT_FOUND, "this is a build farm: gRPC, and HTTP at /cas/{hash} and /ac/{hash}")
        }
        Refusal::Method => {
            let allowed = [(header::ALLOW, "GET, HEAD, PUT")];
            (allowed, text(StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD and PUT are served"))
                .into_response()
        }
        Refusal::WebPage => text(StatusCode::FORBIDDEN, "web pages are not served"),
        Refusal::LengthRequired => text(StatusCode::LENGTH_REQUIRED, "the Content-Length must be given"),
        Refusal::TooLarge(limit) => {
            text(StatusCode::PAYLOAD_TOO_LARGE, &format!("the content is over the limit of {limit} bytes"))
        }
        Refusal::Range(size) => {
            let whole = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            let message = format!("the range begins behind the blob of {size} bytes");
            (whole, text(StatusCode::RANGE_NOT_SATISFIABLE, &message)).into_response()
        }
        // Of the statuses that say so, Bazel tries again after this one only.
        Refusal::Busy(error) => {
            let later = [(header::RETRY_AFTER, RETRY_AFTER_SECONDS)];
            (later, text(StatusCode::SERVICE_UNAVAILABLE, &error.public_message())).into_response()
        }
        Refusal::Error(error) => failed(&error),
    }
}

fn failed(error: &Error) -> Response {
    if matches!(error.kind(), Kind::Bug | Kind::Corrupt) {
        tracing::error!(error = error.chain(), "a request failed by our fault");
    }
    text(status_of(error.kind()), &error.public_message())
}

fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Precondition => StatusCode::PRECONDITION_FAILED,
        Kind::OutOfRange => StatusCode::RANGE_NOT_SATISFIABLE,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Denied => StatusCode::FORBIDDEN,
        Kind::NotFound | Kind::MissingInput => StatusCode::NOT_FOUND,
        Kind::Exists | Kind::Aborted => StatusCode::CONFLICT,
        Kind::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Kind::Corrupt | Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn text(status: StatusCode, message: &str) -> Response {
    (status, format!("{message}\n")).into_response()
}

pub(super) fn stored() -> Response {
    StatusCode::OK.into_response()
}

pub(super) fn whole(bytes: Bytes) -> Response {
    described(StatusCode::OK, bytes.len() as u64, Body::from(bytes))
}

/// The headers of a blob of `size` bytes.
pub(super) fn head(size: u64) -> Response {
    described(StatusCode::OK, size, Body::empty())
}

/// A blob of `size` bytes, or a range of it, as it comes from the store.
pub(super) fn streamed(chunks: Chunks, range: &Range, size: u64) -> Response {
    let body = Body::from_stream(chunks);
    match *range {
        Range::Part { start, length } => {
            let place = format!("bytes {start}-{}/{size}", start + length - 1);
            let mut response = described(StatusCode::PARTIAL_CONTENT, length, body);
            let place = HeaderValue::from_str(&place).expect("numbers make a header");
            response.headers_mut().insert(header::CONTENT_RANGE, place);
            response
        }
        Range::All | Range::Unsatisfiable => described(StatusCode::OK, size, body),
    }
}

fn described(status: StatusCode, length: u64, body: Body) -> Response {
    const CONTENT: [(HeaderName, &str); 2] =
        [(header::CONTENT_TYPE, "application/octet-stream"), (header::ACCEPT_RANGES, "bytes")];
    let length = [(header::CONTENT_LENGTH, length)];
    (status, CONTENT, length, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_place_is_told_when_to_come_again_and_a_full_store_is_another_matter() {
        let full = || Error::new(Kind::Exhausted, "full");
        let busy = refuse(Refusal::Busy(full()));
        assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(busy.headers()[header::RETRY_AFTER], "5");
        let stored = refuse(Refusal::Error(full()));
        assert_eq!(stored.status(), StatusCode::INSUFFICIENT_STORAGE);
        assert!(!stored.headers().contains_key(header::RETRY_AFTER));
    }
}
