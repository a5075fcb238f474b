//! The header `Range`: one range of bytes; everything else gives the whole, as HTTP allows.

use axum::http::HeaderValue;

/// Which bytes of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    All,
    /// At least one byte, all of them in the blob.
    Part {
        start: u64,
        length: u64,
    },
    /// The range begins behind the blob.
    Unsatisfiable,
}

impl Range {
    /// Reads the header of a request for a blob of `size` bytes.
    pub(super) fn parse(header: Option<&HeaderValue>, size: u64) -> Self {
        let text = header.and_then(|header| header.to_str().ok());
        let Some((first, last)) = text.and_then(|text| text.strip_prefix("bytes=")?.split_once('-')) else {
            return Self::All;
        };
        let number = |text: &str| text.parse::<u64>().ok();
        match (first, last) {
            ("", last) => {
                number(last).map_or(Self::All, |count| Self::within(size.saturating_sub(count), size, size))
            }
            (first, "") => number(first).map_or(Self::All, |first| Self::within(first, size, size)),
            (first, last) => match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => {
                    Self::within(first, last.saturating_add(1), size)
                }
                // No range, or several of them.
                _ => Self::All,
            },
        }
    }

    fn within(start: u64, end: u64, size: u64) -> Self {
        match end.min(size).checked_sub(start) {
            Some(length) if length > 0 => Self::Part { start, length },
            Some(_) | None => Self::Unsatisfiable,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_range_is_read_and_the_rest_means_all() {
        let part = |start, length| Range::Part { start, length };
        for (header, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=3-5", part(3, 3)),
            ("bytes=3-", part(3, 7)),
            ("bytes=-4", part(6, 4)),
            ("bytes=-99", part(0, 10)),
            ("bytes=9-99", part(9, 1)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=5-3", Range::All),
            ("bytes=0-1,3-4", Range::All),
            ("bytes=a-b", Range::All),
            ("items=0-1", Range::All),
        ] {
            assert_eq!(Range::parse(Some(&HeaderValue::from_static(header)), 10), expected, "{header}");
        }
        assert_eq!(Range::parse(None, 10), Range::All);
    }

    proptest! {
        #[test]
        fn a_part_is_never_outside_the_blob(text in "bytes=[0-9]{0,21}-[0-9]{0,21}", size in any::<u64>()) {
            let header = HeaderValue::from_str(&text).unwrap();
            if let Range::Part { start, length } = Range::parse(Some(&header), size) {
                prop_assert!(length > 0 && start.checked_add(length).unwrap() <= size);
            }
        }
    }
}
