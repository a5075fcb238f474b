//! What the index knows about a blob, and how it is written down.

use bytes::Bytes;

use super::super::Key;
use crate::digest::{Function, HASH_BYTES};

/// Blobs of up to this many bytes are kept in the index: one file each would cost a block, an inode and a sync.
pub const INLINE_MAX: u64 = 4 * 1024;

/// The unit in which a file system hands out space.
const BLOCK_BYTES: u64 = 4 * 1024;

/// The index writes each inlined byte about twice (measured: 1.8 times), and each entry has a key and a place in the queue.
const INLINE_FACTOR: u64 = 2;
const ENTRY_OVERHEAD: u64 = 128;

/// What a blob is stored under: its function or the action cache, and the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name([u8; Name::BYTES]);

/// The families of names; each has a folder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Sha256,
    Blake3,
    Action,
}

impl Family {
    pub(super) const ALL: [Self; 3] = [Self::Sha256, Self::Blake3, Self::Action];

    fn tag(self) -> u8 {
        match self {
            Self::Sha256 => 0,
            Self::Blake3 => 1,
            Self::Action => 2,
        }
    }

    /// The folder, below the store's directory.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Sha256 => "blobs/sha256",
            Self::Blake3 => "blobs/blake3",
            Self::Action => "actions",
        }
    }
}

impl Name {
    pub(super) const BYTES: usize = 1 + HASH_BYTES;

    pub(super) fn new(family: Family, hash: &[u8; HASH_BYTES]) -> Self {
        let mut bytes = [family.tag(); Self::BYTES];
        bytes[1..].copy_from_slice(hash);
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn family(&self) -> Option<Family> {
        Family::ALL.into_iter().find(|family| family.tag() == self.0[0])
    }

    pub(super) fn hex(&self) -> String {
        hex::encode(&self.0[1..])
    }

    /// Reads names that stand one after the other.
    pub(super) fn parse_all(bytes: &[u8]) -> impl Iterator<Item = Self> {
        bytes.as_chunks::<{ Self::BYTES }>().0.iter().map(|name| Self(*name))
    }
}

impl From<&Key> for Name {
    fn from(key: &Key) -> Self {
        match key {
            Key::Blob(digest) => {
                let family = match digest.function() {
                    Function::Sha256 => Family::Sha256,
                    Function::Blake3 => Family::Blake3,
                };
                Self::new(family, digest.hash())
            }
            Key::Action(hash) => Self::new(Family::Action, hash),
        }
    }
}

/// Whether `size` can be the size of what `key` names.
pub(super) fn fits(key: &Key, size: u64) -> bool {
    match key {
        Key::Blob(digest) => digest.size() == size,
        Key::Action(_) => true,
    }
}

/// Where the bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    Inline(Bytes),
    File { size: u64 },
}

/// The value of a name in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) location: Location,
    /// When it was put, in minutes since 1970; later uses are noted elsewhere.
    pub(super) minute: u32,
}

const HEADER_BYTES: usize = 1 + 4 + 8;
const TAG_INLINE: u8 = 0;
const TAG_FILE: u8 = 1;

impl Entry {
    pub(super) fn size(&self) -> u64 {
        match &self.location {
            Location::Inline(bytes) => bytes.len() as u64,
            Location::File { size } => *size,
        }
    }

    /// The bytes that the entry takes from the disk.
    pub(super) fn charge(&self) -> u64 {
        ENTRY_OVERHEAD
            + match &self.location {
                Location::Inline(bytes) => INLINE_FACTOR * bytes.len() as u64,
                Location::File { size } => size.div_ceil(BLOCK_BYTES) * BLOCK_BYTES,
            }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let (tag, inline): (u8, &[u8]) = match &self.location {
            Location::Inline(bytes) => (TAG_INLINE, bytes),
            Location::File { .. } => (TAG_FILE, &[]),
        };
        let mut encoded = Vec::with_capacity(HEADER_BYTES + inline.len());
        encoded.push(tag);
        encoded.extend_from_slice(&self.minute.to_be_bytes());
        encoded.extend_from_slice(&self.size().to_be_bytes());
        encoded.extend_from_slice(inline);
        encoded
    }

    /// The size alone; `None` when the bytes are no entry.
    pub(super) fn decode_size(encoded: &[u8]) -> Option<u64> {
        let size = encoded.get(1 + 4..)?.first_chunk()?;
        Some(u64::from_be_bytes(*size))
    }

    /// `None` when the bytes are no entry: it is then absent.
    pub(super) fn decode(encoded: &[u8]) -> Option<Self> {
        let (header, inline) = encoded.split_first_chunk::<HEADER_BYTES>()?;
        let minute = u32::from_be_bytes(*header[1..].first_chunk()?);
        let size = u64::from_be_bytes(*header.last_chunk()?);
        let location = match header[0] {
            TAG_INLINE if inline.len() as u64 == size => Location::Inline(Bytes::copy_from_slice(inline)),
            TAG_FILE if inline.is_empty() => Location::File { size },
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
        fn what_is_written_is_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..50), minute in any::<u32>(), size in any::<u64>()) {
            for location in [Location::Inline(Bytes::from(bytes.clone())), Location::File { size }] {
                let entry = Entry { location, minute };
                prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
            }
            let _ = Entry::decode(&bytes);
        }
    }

    #[test]
    fn every_family_is_found_again_and_shares_no_name() {
        for family in Family::ALL {
            let name = Name::new(family, &[7; HASH_BYTES]);
            assert_eq!(name.family(), Some(family));
            assert_eq!(Name::parse_all(&[name.as_bytes(), name.as_bytes()].concat()).count(), 2);
        }
    }
}
