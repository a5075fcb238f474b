//! Times of the protocol as ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::proto;

/// The last second of the year 9999, which is the last one that the protocol's `Timestamp` may have.
const LAST: u64 = 253_402_300_799;

/// A point in time; before 1970 counts as 1970, because nothing here is older.
///
/// # Errors
/// `Invalid` when it is malformed or too far away.
pub(super) fn point(value: &proto::Timestamp) -> Result<SystemTime> {
    let malformed = || Error::invalid("a time of the request is malformed");
    let nanos =
        u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(malformed)?;
    let Ok(seconds) = u64::try_from(value.seconds) else { return Ok(UNIX_EPOCH) };
    if seconds > LAST {
        return Err(malformed());
    }
    Ok(UNIX_EPOCH + Duration::new(seconds, nanos))
}

/// # Errors
/// `Invalid` when it is negative or malformed.
pub(super) fn span(value: &proto::Duration) -> Result<Duration> {
    proto::read_duration(value).ok_or_else(|| Error::invalid("the timeout is negative or malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_read_back_and_nonsense_is_refused() {
        let time = UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        assert_eq!(point(&proto::timestamp(time)).unwrap(), time);
        assert_eq!(point(&proto::Timestamp { seconds: -5, nanos: 0 }).unwrap(), UNIX_EPOCH);
        assert!(point(&proto::Timestamp { seconds: 0, nanos: -1 }).is_err());
        assert!(point(&proto::Timestamp { seconds: i64::MAX, nanos: 0 }).is_err());
        assert!(span(&proto::Duration { seconds: -1, nanos: 0 }).is_err());
        assert_eq!(span(&proto::Duration { seconds: 1, nanos: 5 }).unwrap(), Duration::new(1, 5));
    }
}
