//! A leaf in object storage: S3, Google Cloud Storage, Azure Blob Storage, or a directory that is shared, all through OpenDAL.
//!
//! A request costs money and some ten milliseconds, so what is known to exist is not asked for; and a bucket deletes by age, so
//! what is used is kept young.

mod bucket;
mod clock;
mod config;
mod download;
mod existence;
mod lifecycle;
mod refresh;
mod rules;
mod service;
#[cfg(test)]
mod tests;
mod upload;

use std::ops::RangeFrom;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};

use self::bucket::{Bucket, Found, Sizes};
use self::clock::Clock;
pub use self::config::{Azure, Fs, Gcs, Provider, Requests, S3};
use self::existence::Existence;
pub use self::lifecycle::{Age, Lifecycle};
use self::lifecycle::{Policy, Verdict};
use self::refresh::Refresher;
pub use self::rules::Rules;
use super::name::{Family, Name};
use super::{Blob, Key, Store};
use crate::digest::Function;
use crate::error::{Error, Kind, Result};

/// Opens the tier. What it remembers of existence is kept in `state`, a directory of its own. No request is made.
///
/// # Errors
/// `Invalid` when the configuration cannot be right, or a file that it names cannot be read.
pub fn open(provider: Provider<'_>, state: &Path) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(Object::open(provider, state, Sizes::default())?))
}

/// Objects in a bucket.
struct Object {
    bucket: Bucket,
    /// Blobs only: whoever looks for a result wants to read it.
    existence: Arc<Existence>,
    policy: Policy,
    refresher: Refresher,
    clock: Clock,
    /// Requests of one call that are under way at a time.
    requests_max: usize,
}

impl Object {
    fn open(provider: Provider<'_>, state: &Path, sizes: Sizes) -> Result<Self> {
        let bucket = Bucket::open(provider, sizes)?;
        let requests = provider.requests();
        Ok(Self {
            existence: Arc::new(Existence::open(requests.existence_max.get(), state)?),
            policy: Policy::new(provider),
            refresher: Refresher::new(bucket.clone()),
            clock: Clock::default(),
            requests_max: requests.requests_max.get(),
            bucket,
        })
    }

    /// Takes note of an object that was found and is in use; says whether it may be counted on.
    fn found(&self, key: &Key, found: Found) -> bool {
        match self.policy.judge(found.modified, self.clock.now()) {
            Verdict::Present { until } => {
                self.learn(key, until);
                true
            }
            Verdict::Ageing { until } => {
                self.learn(key, until);
                self.refresh(Name::from(key), found);
                true
            }
            Verdict::Expiring => false,
        }
    }

    fn learn(&self, key: &Key, until: u64) {
        if !key.is_mutable() {
            self.existence.learn(key, until);
        }
    }

    /// Refreshes the object in the background. Nothing remembers that it is old, so nothing has to be told when it is young.
    fn refresh(&self, name: Name, found: Found) {
        self.refresher.start(name, found);
    }

    /// The object that was written a moment ago.
    fn written(&self, key: &Key) {
        let now = self.clock.now();
        if let Verdict::Present { until } | Verdict::Ageing { until } = self.policy.judge(Some(now), now) {
            self.learn(key, until);
        }
    }

    /// Which of `keys` are absent, by one request each.
    async fn ask(&self, keys: Vec<(usize, Key)>) -> Result<Vec<usize>> {
        let asked = stream::iter(keys).map(|(number, key)| async move {
            let found = self.bucket.find(&Name::from(&key)).await?.filter(|found| key.fits(found.size));
            Ok::<_, Error>((!found.is_some_and(|found| self.found(&key, found))).then_some(number))
        });
        let mut absent: Vec<usize> = asked
            .buffer_unordered(self.requests_max)
            .try_filter_map(|absent| async move { Ok(absent) })
            .try_collect()
            .await?;
        absent.sort_unstable();
        Ok(absent)
    }
}

/// Whether a blob of this key reaches to `start`.
fn reaches(key: &Key, start: u64) -> bool {
    key.size().is_some_and(|size| start <= size)
}

#[async_trait]
impl Store for Object {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        let name = Name::from(key);
        let found = match self.bucket.get(&name, range.start).await {
            // The object ends where the key says that there is more.
            Err(error) if error.kind() == Kind::OutOfRange && reaches(key, range.start) => None,
            // The size is no part of its name: a digest with a right hash and a wrong size finds the right object, which must stay.
            found => found?.filter(|(_, found)| key.fits(found.size)),
        };
        let Some((blob, found)) = found else {
            self.existence.forget(key);
            return Ok(None);
        };
        // What is about to be deleted is still right to read, and becomes young by it.
        if !self.found(key, found.clone()) {
            self.refresh(name, found);
        }
        Ok(Some(blob))
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        let name = Name::from(key);
        self.bucket.put(&name, blob).await?;
        self.written(key);
        Ok(())
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let known = self.existence.known(keys, self.clock.now()).await?;
        let unknown = keys.iter().zip(known).enumerate().filter(|(_, (_, known))| !known);
        let absent = self.ask(unknown.map(|(number, (key, _))| (number, key.clone())).collect()).await?;
        Ok(absent.into_iter().map(|number| keys[number].clone()).collect())
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        let name = Name::from(key);
        // Before, so that nobody is told that it is there; and after, because a read may have learnt it meanwhile.
        self.existence.forget(key);
        self.bucket.remove(&name).await?;
        self.existence.forget(key);
        Ok(())
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        let Some(name) = Name::new(Family::Blob(function), hash) else { return Ok(None) };
        Ok(self.bucket.find(&name).await?.map(|found| found.size))
    }

    async fn finds_by_hash(&self) -> bool {
        true
    }
}
