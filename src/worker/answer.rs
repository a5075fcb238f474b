//! What a worker says of a lease that ended: an answer for the client, a fault of its own, or that it was killed.

use prost::Message;
use tonic::Code;
use tonic_types::pb::{PreconditionFailure, precondition_failure::Violation};

use crate::digest::Digest;
use crate::error::{Error, Kind};
use crate::proto::rev2::{ActionResult, ExecuteResponse};
use crate::proto::worker::finished::Outcome;
use crate::proto::{Any, Status};

const PRECONDITION_FAILURE: &str = "type.googleapis.com/google.rpc.PreconditionFailure";
/// The type of violation by which clients know that they must upload a blob again.
const MISSING: &str = "MISSING";

/// The outcome of a lease that failed with `error`: the client's fault becomes a response, the worker's own a fault.
pub(super) fn of_error(error: &Error) -> Outcome {
    match code(error.kind()) {
        Some(code) => Outcome::Response(response(status(code, error), None)),
        None => Outcome::Fault(error.chain()),
    }
}

/// The answer when the command ran out of time; `result` has what it printed.
pub(super) fn of_timeout(result: ActionResult, seconds: f64) -> Outcome {
    let message = format!("the command did not end within its timeout of {seconds} s and was killed");
    let status = Status { code: Code::DeadlineExceeded.into(), message, details: Vec::new() };
    Outcome::Response(response(status, Some(result)))
}

/// The answer when the command ran; `message` is for people.
pub(super) fn of_result(result: ActionResult, message: String) -> Outcome {
    let status = Status::default();
    Outcome::Response(ExecuteResponse { message, ..response(status, Some(result)) })
}

/// The answer when the command ran, but what it left is not what the client asked for.
pub(super) fn of_bad_outputs(result: ActionResult, error: &Error) -> Outcome {
    match code(error.kind()) {
        Some(code) => Outcome::Response(response(status(code, error), Some(result))),
        None => Outcome::Fault(error.chain()),
    }
}

fn response(status: Status, result: Option<ActionResult>) -> ExecuteResponse {
    ExecuteResponse { result, status: Some(status), ..ExecuteResponse::default() }
}

/// The code for errors that another attempt cannot cure, because the request causes them.
fn code(kind: Kind) -> Option<Code> {
    match kind {
        Kind::Invalid | Kind::OutOfRange => Some(Code::InvalidArgument),
        Kind::Precondition | Kind::MissingInput => Some(Code::FailedPrecondition),
        Kind::Unauthenticated
        | Kind::Denied
        | Kind::NotFound
        | Kind::Exists
        | Kind::Exhausted
        | Kind::Unavailable
        | Kind::Timeout
        | Kind::Cancelled
        | Kind::Corrupt
        | Kind::Unsupported
        | Kind::Bug => None,
    }
}

fn status(code: Code, error: &Error) -> Status {
    let details = if error.missing().is_empty() { Vec::new() } else { vec![missing(error.missing())] };
    Status { code: code.into(), message: error.to_string(), details }
}

/// One violation for each blob, as REv2 wants it, so that the client can upload them all before it tries again.
fn missing(digests: &[Digest]) -> Any {
    let violation = |digest: &Digest| Violation {
        r#type: MISSING.to_owned(),
        subject: format!("blobs/{digest}"),
        description: "the blob is missing from the CAS".to_owned(),
    };
    let failure = PreconditionFailure { violations: digests.iter().map(violation).collect() };
    Any { type_url: PRECONDITION_FAILURE.to_owned(), value: failure.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Function;

    fn status_of(error: &Error) -> Status {
        match of_error(error) {
            Outcome::Response(response) => response.status.expect("a status"),
            outcome @ (Outcome::Fault(_) | Outcome::Killed(_)) => panic!("{outcome:?}"),
        }
    }

    #[test]
    fn missing_blobs_become_violations() {
        let digests = Function::ALL.map(|function| function.hash(b"x"));
        let status = status_of(&Error::missing_input(digests.to_vec()));
        assert_eq!(status.code, i32::from(Code::FailedPrecondition));
        let [detail] = status.details.as_slice() else { panic!("one detail") };
        assert_eq!(detail.type_url, PRECONDITION_FAILURE);
        let failure = PreconditionFailure::decode(detail.value.as_slice()).expect("decodes");
        let subjects: Vec<_> =
            failure.violations.iter().map(|violation| violation.subject.as_str()).collect();
        assert_eq!(subjects, digests.map(|digest| format!("blobs/{digest}")));
        assert!(subjects[1].starts_with("blobs/blake3/"));
        assert!(failure.violations.iter().all(|violation| violation.r#type == "MISSING"));
    }

    #[test]
    fn the_clients_fault_is_an_answer_and_the_workers_is_not() {
        assert_eq!(status_of(&Error::invalid("x")).code, i32::from(Code::InvalidArgument));
        for kind in [Kind::Bug, Kind::Exhausted, Kind::Unavailable] {
            assert!(matches!(of_error(&Error::new(kind, "x")), Outcome::Fault(sentence) if sentence == "x"));
        }
    }
}
