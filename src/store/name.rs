//! What a blob, a result or an asset is called where it is stored: in an index, a bucket or a Redis.

use super::Key;
use crate::digest::{Function, HASH_BYTES_MAX};

/// The kinds of what is stored; each has a folder and a tag of its own. Tags are on disks and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Family {
    Blob(Function),
    Action,
    Asset,
}

/// A key as bytes: the family's tag, and the hash in the length that the family has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    /// Zero behind the hash.
    bytes: [u8; Name::BYTES_MAX],
    length: u8,
}

impl Family {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Function::ALL.into_iter().map(Self::Blob).chain([Self::Action, Self::Asset])
    }

    fn tag(self) -> u8 {
        match self {
            Self::Blob(Function::Sha256) => 0,
            Self::Blob(Function::Blake3) => 1,
            Self::Action => 2,
            Self::Asset => 3,
            Self::Blob(Function::Sha1) => 4,
            Self::Blob(Function::Md5) => 5,
            Self::Blob(Function::Vso) => 6,
            Self::Blob(Function::Sha384) => 7,
            Self::Blob(Function::Sha512) => 8,
            Self::Blob(Function::Murmur3) => 9,
            Self::Blob(Function::Sha256Tree) => 10,
            Self::Blob(Function::GitSha1) => 11,
        }
    }

    /// The folder or prefix, without slashes at its ends.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Blob(Function::Sha256) => "blobs/sha256",
            Self::Blob(Function::Blake3) => "blobs/blake3",
            Self::Blob(Function::Sha1) => "blobs/sha1",
            Self::Blob(Function::Md5) => "blobs/md5",
            Self::Blob(Function::Vso) => "blobs/vso",
            Self::Blob(Function::Sha384) => "blobs/sha384",
            Self::Blob(Function::Sha512) => "blobs/sha512",
            Self::Blob(Function::Murmur3) => "blobs/murmur3",
            Self::Blob(Function::Sha256Tree) => "blobs/sha256tree",
            Self::Blob(Function::GitSha1) => "blobs/gitsha1",
            Self::Action => "actions",
            Self::Asset => "assets",
        }
    }

    pub(super) fn hash_bytes(self) -> usize {
        match self {
            Self::Blob(function) => function.hash_bytes(),
            Self::Action | Self::Asset => 32,
        }
    }

    fn of_tag(tag: u8) -> Option<Self> {
        Self::all().find(|family| family.tag() == tag)
    }
}

impl Name {
    pub(super) const BYTES_MAX: usize = 1 + HASH_BYTES_MAX;

    /// `None` when the hash is not as long as those of the family.
    pub(super) fn new(family: Family, hash: &[u8]) -> Option<Self> {
        if hash.len() != family.hash_bytes() {
            return None;
        }
        let mut bytes = [0; Self::BYTES_MAX];
        bytes[0] = family.tag();
        bytes[1..=hash.len()].copy_from_slice(hash);
        Some(Self { bytes, length: 1 + hash.len() as u8 })
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    pub(super) fn family(&self) -> Family {
        Family::of_tag(self.bytes[0]).expect("names are made of families")
    }

    /// Whether the bytes under this name never change.
    pub(super) fn is_blob(&self) -> bool {
        matches!(self.family(), Family::Blob(_))
    }

    pub(super) fn hash(&self) -> &[u8] {
        &self.as_bytes()[1..]
    }

    pub(super) fn hex(&self) -> String {
        hex::encode(self.hash())
    }

    /// Folder, a folder of the first byte, and the hash: `blobs/sha256/ab/abcd…`.
    pub(super) fn path(&self) -> String {
        let hex = self.hex();
        format!("{}/{}/{hex}", self.family().folder(), &hex[..2])
    }

    /// Reads names that stand one after the other; what is no name ends them.
    pub(super) fn parse_all(mut bytes: &[u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let (tag, rest) = bytes.split_first()?;
            let family = Family::of_tag(*tag)?;
            let (hash, rest) = rest.split_at_checked(family.hash_bytes())?;
            bytes = rest;
            Self::new(family, hash)
        })
    }
}

impl From<&Key> for Name {
    fn from(key: &Key) -> Self {
        let name = match key {
            Key::Blob(digest) => Self::new(Family::Blob(digest.function()), digest.hash()),
            Key::Action(action) => Self::new(Family::Action, &action.hash()),
            Key::Asset(hash) => Self::new(Family::Asset, hash),
        };
        name.expect("a key's hash has its family's length")
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_found_again_and_shares_no_name() {
        let names: Vec<Name> =
            Family::all().map(|family| Name::new(family, &vec![7; family.hash_bytes()]).unwrap()).collect();
        let together: Vec<u8> = names.iter().flat_map(|name| name.as_bytes()).copied().collect();
        assert_eq!(Name::parse_all(&together).collect::<Vec<_>>(), names);
        let paths: std::collections::HashSet<String> = names.iter().map(Name::path).collect();
        assert_eq!(paths.len(), names.len());
        for (family, name) in Family::all().zip(names) {
            assert_eq!(name.family(), family);
            assert_eq!(Name::new(family, &[7; 3]), None);
        }
    }
}
