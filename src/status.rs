//! The only place that turns an error of ours into a gRPC status.

use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt};

use crate::digest::Digest;
use crate::error::{Error, Kind};
use crate::proto;

/// How long a client is asked to wait before it repeats a call that met a limit or an absent part.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

/// The gRPC status of an error, with the details that REv2 asks for.
///
/// The client sees the kind and the messages of our own errors; the log gets the whole chain when the fault is ours.
pub fn from_error(error: &Error) -> Status {
    let code = code_of(error.kind());
    if matches!(error.kind(), Kind::Bug | Kind::Corrupt) {
        tracing::error!(error = error.chain(), "a request failed by our fault");
    }
    let mut details = ErrorDetails::new();
    if !error.missing().is_empty() {
        details.set_precondition_failure(error.missing().iter().map(violation).collect::<Vec<_>>());
    }
    if error.kind().is_retryable() {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    Status::with_error_details(code, error.public_message(), details)
}

/// The same as a message, for a place inside a response.
pub fn message_of(error: &Error) -> proto::Status {
    let status = from_error(error);
    let details = proto::Status::decode(status.details()).map(|status| status.details).unwrap_or_default();
    proto::Status { code: status.code() as i32, message: status.message().to_owned(), details }
}

/// `INVALID_ARGUMENT` with what is wrong at which field: pairs of a field and a description.
pub fn bad_request(message: &str, violations: impl IntoIterator<Item = (String, String)>) -> Status {
    let violations =
        violations.into_iter().map(|(field, description)| FieldViolation::new(field, description));
    let details = ErrorDetails::with_bad_request(violations.collect::<Vec<_>>());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// `OK`, for a place inside a response.
pub fn ok() -> proto::Status {
    proto::Status::default()
}

/// The gRPC code of a kind of error.
pub fn code_of(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::Precondition | Kind::MissingInput => Code::FailedPrecondition,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Denied => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::Exists => Code::AlreadyExists,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::Timeout => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::Aborted => Code::Aborted,
        Kind::Corrupt => Code::DataLoss,
        Kind::Unsupported => Code::Unimplemented,
        Kind::Bug => Code::Internal,
    }
}

/// REv2, `Execution.Execute`: type `MISSING`, subject `blobs/{digest_function/}{hash}/{size}`.
fn violation(digest: &Digest) -> PreconditionViolation {
    PreconditionViolation::new("MISSING", format!("blobs/{digest}"), "the blob is not in the CAS")
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        from_error(&error)
    }
}

impl From<crate::digest::ParseError> for Error {
    fn from(error: crate::digest::ParseError) -> Self {
        Self::invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Function;

    #[test]
    fn every_missing_blob_is_a_violation() {
        let digests = vec![Function::Sha256.hash(b"a"), Function::Blake3.hash(b"b")];
        let status = from_error(&Error::missing_input(digests.clone()));
        assert_eq!(status.code(), Code::FailedPrecondition);
        let failure = status.get_details_precondition_failure().unwrap();
        let subjects: Vec<_> = failure.violations.iter().map(|violation| violation.subject.clone()).collect();
        let expected: Vec<_> = digests.iter().map(|digest| format!("blobs/{digest}")).collect();
        assert_eq!(subjects, expected);
        assert!(subjects[1].starts_with("blobs/blake3/"));
        let message = message_of(&Error::missing_input(digests));
        assert_eq!(message.details.len(), 1);
        assert_eq!(message.details[0].type_url, "type.googleapis.com/google.rpc.PreconditionFailure");
    }

    #[test]
    fn causes_from_the_system_stay_in_the_log() {
        let io = std::io::Error::other("/var/lib/secret: broken");
        let error = Error::from(io).context("open the blob");
        assert_eq!(from_error(&error).message(), "open the blob: input or output failed");
    }

    #[test]
    fn a_full_disk_carries_a_retry_hint() {
        let status = from_error(&Error::new(Kind::Exhausted, "the disk is full"));
        assert!(status.get_details_retry_info().is_some());
    }
}
