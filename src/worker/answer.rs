//! What a worker says of a lease that ended: an answer for the client, a fault of its own, or that it was killed.

use prost::Message;
use tonic::Code;

use crate::error::{Error, Kind};
use crate::proto::Status;
use crate::proto::rev2::{ActionResult, ExecuteResponse};
use crate::proto::worker::finished::Outcome;
use crate::status;
use crate::store::RESULT_MAX;

/// The outcome of a lease that failed with `error`: the client's fault becomes a response, the worker's own a fault.
pub(super) fn of_error(error: &Error) -> Outcome {
    if !is_the_requests(error.kind()) {
        return fault(error);
    }
    Outcome::Response(response(status::message_of(error), None))
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
    if !is_the_requests(error.kind()) {
        return fault(error);
    }
    Outcome::Response(response(status::message_of(error), Some(result)))
}

fn response(status: Status, result: Option<ActionResult>) -> ExecuteResponse {
    ExecuteResponse { result, status: Some(status), ..ExecuteResponse::default() }
}

/// The outcome, unless its message would be too large to be taken or stored: then the client learns why.
pub(super) fn fitting(outcome: Outcome) -> Outcome {
    let size = match &outcome {
        Outcome::Response(response) => response.encoded_len() as u64,
        Outcome::Fault(_) | Outcome::Killed(_) => 0,
    };
    if size <= RESULT_MAX {
        return outcome;
    }
    let message =
        format!("the result lists so many outputs that it has {size} bytes; the limit is {RESULT_MAX}");
    of_error(&Error::new(Kind::Precondition, message))
}

/// Whether the request is at fault, so that another attempt would end the same way.
fn is_the_requests(kind: Kind) -> bool {
    match kind {
        Kind::Invalid | Kind::OutOfRange | Kind::Precondition | Kind::MissingInput => true,
        Kind::Unauthenticated
        | Kind::Denied
        | Kind::NotFound
        | Kind::Exists
        | Kind::Exhausted
        | Kind::Unavailable
        | Kind::Timeout
        | Kind::Cancelled
        | Kind::Aborted
        | Kind::Corrupt
        | Kind::Unsupported
        | Kind::Bug => false,
    }
}

/// A fault of the worker: the client reads our own sentences, the log has the causes too.
fn fault(error: &Error) -> Outcome {
    tracing::warn!(error = error.chain(), "an attempt failed");
    Outcome::Fault(error.public_message())
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
    fn missing_blobs_are_named_to_the_client() {
        let status = status_of(&Error::missing_input(vec![Function::Sha256.hash(b"x")]));
        assert_eq!((status.code, status.details.len()), (i32::from(Code::FailedPrecondition), 1));
    }

    #[test]
    fn the_clients_fault_is_an_answer_and_the_workers_is_not() {
        assert_eq!(status_of(&Error::invalid("x")).code, i32::from(Code::InvalidArgument));
        for kind in [Kind::Bug, Kind::Exhausted, Kind::Unavailable] {
            assert!(matches!(of_error(&Error::new(kind, "x")), Outcome::Fault(sentence) if sentence == "x"));
        }
    }
}
