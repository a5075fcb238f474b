//! What is known of an asset without asking its origin, and how it becomes known.

use std::time::SystemTime;

use super::{Assets, Wanted};
use crate::digest::Digest;
use crate::error::Result;
use crate::store::tree::{self, Limits};
use crate::store::{Asset, AssetKind, AssetName};

impl Assets {
    /// The asset, if it is known, not expired, not older than `oldest`, and all of it is in the CAS.
    pub(super) async fn known(&self, wanted: &Wanted, oldest: Option<SystemTime>) -> Result<Option<Asset>> {
        let key = wanted.qualifiers.key(wanted.place);
        if let Some(asset) = self.fresh(&wanted.name(&key), oldest).await? {
            return Ok(Some(asset));
        }
        match &wanted.qualifiers.content_key() {
            Some(key) => self.fresh(&by_content(wanted, key), oldest).await,
            None => Ok(None),
        }
    }

    /// Remembers what was fetched, checked if there was something to check it by.
    pub(super) async fn remember(&self, wanted: &Wanted, asset: &Asset) -> Result<()> {
        let index = &self.parts.stored.index;
        if let Some(key) = &wanted.qualifiers.content_key()
            && wanted.kind == AssetKind::Blob
        {
            index.put(&by_content(wanted, key), asset).await?;
        }
        index.put(&wanted.name(&wanted.qualifiers.key(wanted.place)), asset).await
    }

    async fn fresh(&self, name: &AssetName<'_>, oldest: Option<SystemTime>) -> Result<Option<Asset>> {
        let Some(asset) = self.parts.stored.index.get(name).await? else { return Ok(None) };
        let is_fresh = oldest.is_none_or(|oldest| asset.since >= oldest)
            && asset.expires.is_none_or(|expires| expires > SystemTime::now());
        if !is_fresh || !self.absent(name.kind, &asset.digest).await?.is_empty() {
            return Ok(None);
        }
        Ok(Some(asset))
    }

    /// The blobs of an asset that the CAS does not have; the present ones are marked as used.
    pub(super) async fn absent(&self, kind: AssetKind, digest: &Digest) -> Result<Vec<Digest>> {
        self.absent_within(kind, digest, &mut Limits::default()).await
    }

    /// The same within what is `left` of the work for one request, which becomes less by it.
    pub(super) async fn absent_within(
        &self,
        kind: AssetKind,
        digest: &Digest,
        left: &mut Limits,
    ) -> Result<Vec<Digest>> {
        let cas = &self.parts.stored.cas;
        match kind {
            AssetKind::Blob => cas.missing(&[*digest]).await,
            AssetKind::Directory => {
                let walk = tree::directories(cas, digest, left).await?;
                left.directories_max = left.directories_max.saturating_sub(walk.directories.len());
                let mut named = Vec::new();
                for (digest, directory) in &walk.directories {
                    left.bytes_max = left.bytes_max.saturating_sub(digest.size());
                    named.extend(tree::files(digest.function(), directory)?);
                }
                let mut absent = walk.missing;
                absent.extend(cas.missing(&named).await?);
                Ok(absent)
            }
        }
    }
}

/// The name of content by its checksum, whatever its URI is. Only what was fetched and checked gets it.
fn by_content<'a>(wanted: &'a Wanted, key: &'a [(String, String)]) -> AssetName<'a> {
    AssetName { uri: "", ..wanted.name(key) }
}
