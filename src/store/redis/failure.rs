//! What an error of Redis means to us.

use redis::{ErrorKind, RedisError};

use crate::error::{Error, Kind};

/// Replies that say that we are not let in.
const REFUSALS: [&str; 3] = ["NOAUTH", "WRONGPASS", "NOPERM"];

/// The error of ours. Whatever is wrong with Redis, our client's request is right and what it asks for may exist: so nothing but
/// `Exhausted` and `Unavailable` comes out of it.
pub(super) fn error_of(error: RedisError) -> Error {
    if error.code() == Some("OOM") {
        return Error::new(Kind::Exhausted, "redis has no memory left").with_source(error);
    }
    let is_refused = error.kind() == ErrorKind::AuthenticationFailed
        || error.code().is_some_and(|code| REFUSALS.contains(&code));
    if is_refused {
        // The reply is not passed on: it may repeat what was sent.
        let message = "redis does not let us in; `username` and `password_file` say who we are";
        return Error::new(Kind::Unavailable, message);
    }
    Error::new(Kind::Unavailable, "redis is not available").with_source(error)
}

/// Whether Redis seems to be gone. One that refuses us is not: each call is to say what is wrong.
pub(super) fn is_outage(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse)
}

/// Whether the connection is of no more use. After a late answer nobody knows whether the next one comes.
pub(super) fn is_of_the_connection(error: &RedisError) -> bool {
    is_outage(error) || error.kind() == ErrorKind::AuthenticationFailed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(code: &str) -> RedisError {
        redis::make_extension_error(code.to_owned(), Some("AUTH me hunter2".to_owned()))
    }

    #[test]
    fn no_error_of_redis_blames_our_client_or_looks_like_an_absence() {
        let errors =
            ["OOM", "NOAUTH", "WRONGPASS", "NOPERM", "MISCONF", "WRONGTYPE", "LOADING", "MOVED"].map(reply);
        let kinds = errors.map(|error| error_of(error).kind());
        assert_eq!(kinds[0], Kind::Exhausted);
        assert!(kinds[1..].iter().all(|kind| *kind == Kind::Unavailable));
        let broken = RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        assert!(is_of_the_connection(&broken));
        assert_eq!(error_of(broken).kind(), Kind::Unavailable);
    }

    #[test]
    fn a_refusal_says_what_to_look_at_and_repeats_no_secret() {
        for code in REFUSALS {
            let text = error_of(reply(code)).chain();
            assert!(text.contains("password_file") && !text.contains("hunter2"), "{text}");
        }
    }
}
