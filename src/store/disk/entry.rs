//! What the index knows about a blob, and how it is written down.

use bytes::Bytes;

use super::files::{Form, Stored};

/// Blobs of up to this many bytes are kept in the index: one file each would cost a block, an inode and a sync.
pub const INLINE_MAX: u64 = 4 * 1024;

/// The unit in which a file system hands out space.
const BLOCK_BYTES: u64 = 4 * 1024;

/// The index writes each inlined byte about twice (measured: 1.8 times), and each entry has a key and a place in the queue.
const INLINE_FACTOR: u64 = 2;
const ENTRY_OVERHEAD: u64 = 128;

/// Where the bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    Inline(Bytes),
    File {
        size: u64,
    },
    /// `size` bytes of content in a file of `stored` bytes.
    Compressed {
        size: u64,
        stored: u64,
    },
}

impl Location {
    /// The bytes of content.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::File { size } | Self::Compressed { size, .. } => *size,
        }
    }

    /// The file that holds the bytes, if they are in one.
    pub(super) fn file(&self) -> Option<Stored> {
        match self {
            Self::Inline(_) => None,
            Self::File { size } => Some(Stored { form: Form::Plain, bytes: *size }),
            Self::Compressed { stored, .. } => Some(Stored { form: Form::Compressed, bytes: *stored }),
        }
    }
}

/// The blocks that a file of `bytes` takes.
pub(super) fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}

/// The value of a name in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) location: Location,
    /// When it was put, in minutes since 1970; later uses are noted elsewhere.
    pub(super) minute: u32,
}

/// The part of an encoded entry that tells all but inlined bytes, which come behind it.
pub(super) const HEADER_BYTES: usize = 1 + 4 + 8;
const TAG_INLINE: u8 = 0;
const TAG_FILE: u8 = 1;
const TAG_COMPRESSED: u8 = 2;

impl Entry {
    pub(super) fn size(&self) -> u64 {
        self.location.size()
    }

    /// The bytes that the entry takes from the disk.
    pub(super) fn charge(&self) -> u64 {
        ENTRY_OVERHEAD
            + match &self.location {
                Location::Inline(bytes) => INLINE_FACTOR * bytes.len() as u64,
                Location::File { size: bytes } | Location::Compressed { stored: bytes, .. } => {
                    blocks(*bytes) * BLOCK_BYTES
                }
            }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let stored;
        let (tag, rest): (u8, &[u8]) = match &self.location {
            Location::Inline(bytes) => (TAG_INLINE, bytes),
            Location::File { .. } => (TAG_FILE, &[]),
            Location::Compressed { stored: bytes, .. } => {
                stored = bytes.to_be_bytes();
                (TAG_COMPRESSED, &stored)
            }
        };
        let mut encoded = Vec::with_capacity(HEADER_BYTES + rest.len());
        encoded.push(tag);
        encoded.extend_from_slice(&self.minute.to_be_bytes());
        encoded.extend_from_slice(&self.size().to_be_bytes());
        encoded.extend_from_slice(rest);
        encoded
    }

    /// The size alone; `None` when the bytes are no entry.
    pub(super) fn decode_size(encoded: &[u8]) -> Option<u64> {
        let size = encoded.get(1 + 4..)?.first_chunk()?;
        Some(u64::from_be_bytes(*size))
    }

    /// `None` when the bytes are no entry: it is then absent.
    pub(super) fn decode(encoded: &[u8]) -> Option<Self> {
        let (header, rest) = encoded.split_first_chunk::<HEADER_BYTES>()?;
        let minute = u32::from_be_bytes(*header[1..].first_chunk()?);
        let size = u64::from_be_bytes(*header.last_chunk()?);
        let location = match header[0] {
            TAG_INLINE if rest.len() as u64 == size => Location::Inline(Bytes::copy_from_slice(rest)),
            TAG_FILE if rest.is_empty() => Location::File { size },
            TAG_COMPRESSED => {
                Location::Compressed { size, stored: u64::from_be_bytes(rest.try_into().ok()?) }
            }
            _ => return None,
        };
        Some(Self { location, minute })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..50), minute in any::<u32>(), size in any::<u64>(), stored in any::<u64>()) {
            let inline = Location::Inline(Bytes::from(bytes.clone()));
            for location in [inline, Location::File { size }, Location::Compressed { size, stored }] {
                let entry = Entry { location, minute };
                prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
            }
            let _ = Entry::decode(&bytes);
        }
    }
}
