//! Why a call to another server failed, and what that means to us.

use tonic::{Code, Status};

use crate::error::{Error, Kind};

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said so, or the way to it broke.
    Status(Box<Status>),
    /// The server did not answer in time.
    Late,
    /// What was to be sent could not be read; the server has no part in it.
    Source(Error),
}

impl Failure {
    /// Whether the server, or the way to it, seems to be gone: then calls are not worth their time for a while.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Status(status) => is_of_the_way(status),
            Self::Late => true,
            Self::Source(_) => false,
        }
    }

    /// Whether the same call on another connection may succeed at once. A server that is late once would be late twice.
    pub(super) fn is_worth_another_attempt(&self) -> bool {
        match self {
            Self::Status(status) => is_of_the_way(status),
            Self::Late | Self::Source(_) => false,
        }
    }

    pub(super) fn is_not_found(&self) -> bool {
        match self {
            Self::Status(status) => status.code() == Code::NotFound && !is_of_the_way(status),
            Self::Late | Self::Source(_) => false,
        }
    }

    /// The error, with what was being done.
    pub(super) fn into_error(self, doing: &str) -> Error {
        match self {
            Self::Status(status) => {
                let message = format!("{doing}: a server of the farm tier {}", what(status.code()));
                Error::new(kind_of(status.code()), message).with_source(*status)
            }
            Self::Late => {
                Error::new(Kind::Unavailable, format!("{doing}: a server of the farm tier does not answer"))
            }
            Self::Source(error) => error,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// A status with a cause was made on our side, from a connection that failed; a server's own has none.
fn is_of_the_way(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The code of one blob's status inside of a batch.
pub(super) fn from_code(code: i32, doing: &str) -> Error {
    Failure::from(Status::new(Code::from_i32(code), "")).into_error(doing)
}

/// What a server's code means for us. Our own clients have done nothing wrong when it refuses us, so `Invalid` and `Denied` never
/// come out of it; and an absence is told apart before, so that what is left of it is a server that does not know our instance.
fn kind_of(code: Code) -> Kind {
    match code {
        Code::ResourceExhausted | Code::OutOfRange => Kind::Exhausted,
        Code::Unimplemented | Code::InvalidArgument | Code::FailedPrecondition => Kind::Unsupported,
        Code::DataLoss => Kind::Corrupt,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::Unauthenticated => Kind::Unavailable,
    }
}

fn what(code: Code) -> &'static str {
    match code {
        Code::ResourceExhausted | Code::OutOfRange => "has no room or a lower limit",
        Code::Unimplemented | Code::InvalidArgument | Code::FailedPrecondition => "refuses the request",
        Code::DataLoss => "holds damaged content",
        Code::NotFound => "does not know the instance",
        Code::PermissionDenied | Code::Unauthenticated => "does not let us in",
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => "is not available",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_server_says_blames_our_client_or_looks_like_an_absence() {
        for code in 0..=16 {
            let error = from_code(code, "store blob x");
            let allowed = [Kind::Exhausted, Kind::Unsupported, Kind::Corrupt, Kind::Unavailable];
            assert!(allowed.contains(&error.kind()), "{code}: {:?}", error.kind());
            assert!(error.to_string().starts_with("store blob x: "), "{error}");
        }
    }

    #[test]
    fn only_a_servers_own_not_found_is_an_absence() {
        assert!(Failure::from(Status::not_found("")).is_not_found());
        assert!(!Failure::from(Status::unavailable("")).is_not_found());
        let broken = Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        let failure = Failure::from(broken);
        assert!(failure.is_outage() && failure.is_worth_another_attempt() && !failure.is_not_found());
        assert_eq!(failure.into_error("read").kind(), Kind::Unavailable);
    }
}
