//! The face of known assets: which blob or tree a URI with its qualifiers stands for.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;

use super::{Blob, Key, Store};
use crate::digest::{Digest, Function};
use crate::error::Result;

/// The largest record, in bytes: a hash, a size and two times are far smaller.
const RECORD_MAX: u64 = 1024;

/// What an asset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssetKind {
    Blob,
    /// The root of a tree of `Directory` messages.
    Directory,
}

/// What an asset is asked for by. The same URI may stand for a blob and for a directory, with digests of several functions.
#[derive(Debug, Clone, Copy)]
pub struct AssetName<'a> {
    pub instance: &'a str,
    pub kind: AssetKind,
    pub function: Function,
    pub uri: &'a str,
    /// Names and values, in any order.
    pub qualifiers: &'a [(String, String)],
}

/// What is known of an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asset {
    pub digest: Digest,
    /// When it was pushed, or when its retrieval from the origin began.
    pub since: SystemTime,
    /// When it is to be forgotten.
    pub expires: Option<SystemTime>,
}

impl AssetName<'_> {
    /// SHA-256 of all parts. Each goes in with its length, so that no two names give the same bytes.
    pub fn hash(&self) -> [u8; 32] {
        let mut qualifiers: Vec<_> = self.qualifiers.iter().collect();
        qualifiers.sort_unstable();
        let kind = match self.kind {
            AssetKind::Blob => "blob",
            AssetKind::Directory => "directory",
        };
        let mut encoded = Vec::new();
        let pairs = qualifiers.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        for part in
            [self.instance, kind, self.function.to_proto().as_str_name(), self.uri].into_iter().chain(pairs)
        {
            encoded.extend_from_slice(&(part.len() as u64).to_le_bytes());
            encoded.extend_from_slice(part.as_bytes());
        }
        *Function::Sha256.hash(&encoded).hash().first_chunk().expect("SHA-256 has 32 bytes")
    }
}

/// Known assets by name. What they stand for is in the CAS, or was.
#[derive(Clone)]
pub struct AssetIndex {
    store: Arc<dyn Store>,
}

impl AssetIndex {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// What is known of `name`, fresh or not; `None` too for a record that does not decode.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn get(&self, name: &AssetName<'_>) -> Result<Option<Asset>> {
        let Some(blob) = self.store.get(&Key::Asset(name.hash()), 0..).await? else { return Ok(None) };
        let record = Record::decode(blob.into_bytes(RECORD_MAX).await?).ok();
        let asset = record.as_ref().and_then(|record| record.asset(name.function));
        if asset.is_none() {
            tracing::warn!("the record of an asset is broken and counts as absent");
        }
        Ok(asset)
    }

    /// Remembers what `name` stands for, instead of what was known before.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn put(&self, name: &AssetName<'_>, asset: &Asset) -> Result<()> {
        let record = Bytes::from(Record::from(asset).encode_to_vec());
        self.store.put(&Key::Asset(name.hash()), Blob::Whole(record)).await
    }
}

/// An asset as it is stored. The function and the kind are part of the name.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(bytes = "vec", tag = "1")]
    hash: Vec<u8>,
    #[prost(uint64, tag = "2")]
    size: u64,
    /// Microseconds since 1970.
    #[prost(uint64, tag = "3")]
    since: u64,
    #[prost(uint64, optional, tag = "4")]
    expires: Option<u64>,
}

impl Record {
    fn asset(&self, function: Function) -> Option<Asset> {
        let time = |micros| UNIX_EPOCH.checked_add(Duration::from_micros(micros));
        let expires = match self.expires {
            Some(micros) => Some(time(micros)?),
            None => None,
        };
        let is_whole = self.hash.len() == function.hash_bytes() && i64::try_from(self.size).is_ok();
        let digest = is_whole.then(|| Digest::new(function, &self.hash, self.size))?;
        Some(Asset { digest, since: time(self.since)?, expires })
    }
}

impl From<&Asset> for Record {
    fn from(asset: &Asset) -> Self {
        Self {
            hash: asset.digest.hash().to_vec(),
            size: asset.digest.size(),
            since: micros(asset.since),
            expires: asset.expires.map(micros),
        }
    }
}

/// A time before 1970 counts as 1970: such an asset is as old or as expired either way.
fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::Memory;
    use super::*;

    fn name<'a>(uri: &'a str, qualifiers: &'a [(String, String)]) -> AssetName<'a> {
        AssetName { instance: "main", kind: AssetKind::Blob, function: Function::Sha256, uri, qualifiers }
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_order_of_qualifiers_is_nothing_and_every_part_is_something() {
        let (ab, ba) = (pairs(&[("a", "1"), ("b", "2")]), pairs(&[("b", "2"), ("a", "1")]));
        let base = name("u", &ab);
        assert_eq!(base.hash(), name("u", &ba).hash());
        let shifted = pairs(&[("a", "1b"), ("", "2")]);
        let others = [
            name("u", &shifted),
            name("v", &ab),
            name("u", &ab[..1]),
            AssetName { instance: "", ..base },
            AssetName { kind: AssetKind::Directory, ..base },
            AssetName { function: Function::Blake3, ..base },
        ];
        for other in others {
            assert_ne!(base.hash(), other.hash(), "{other:?}");
        }
    }

    #[tokio::test]
    async fn what_is_remembered_is_told_and_replaced() {
        let index = AssetIndex::new(Arc::new(Memory::new(1 << 20)));
        let asked = name("https://example.com/a", &[]);
        assert_eq!(index.get(&asked).await.unwrap(), None);
        for (content, seconds) in [(b"one", 1_000), (b"two", 2_000)] {
            let asset = Asset {
                digest: Function::Sha256.hash(content),
                since: UNIX_EPOCH + Duration::from_secs(seconds),
                expires: Some(UNIX_EPOCH + Duration::from_micros(seconds)),
            };
            index.put(&asked, &asset).await.unwrap();
            assert_eq!(index.get(&asked).await.unwrap(), Some(asset));
        }
    }

    #[tokio::test]
    async fn a_broken_record_counts_as_absent() {
        let store: Arc<dyn Store> = Arc::new(Memory::new(1 << 20));
        let asked = name("u", &[]);
        store.put(&Key::Asset(asked.hash()), Blob::Whole(Bytes::from_static(b"\xff"))).await.unwrap();
        assert_eq!(AssetIndex::new(store).get(&asked).await.unwrap(), None);
    }
}
