//! One request, or a few, about one object: the leaf. What it knows of time is what the service tells.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use opendal::{ErrorKind, Metadata, Operator};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::Provider;
use super::service::{Operators, operators};
use super::upload::{self, Upload};
use super::{download, refresh};
use crate::error::{Error, Kind, Result};
use crate::store::blob::{Blob, past_the_end};
use crate::store::name::Name;

/// What goes in one request and is kept in memory for it, so that a failed attempt can be repeated; more goes in parts.
pub(super) const SINGLE_MAX: u64 = 8 << 20;

/// Values that can be replaced are read whole, so that no reader gets the beginning of one and the end of another. An action
/// result has some MiB at most.
const MUTABLE_MAX: u64 = 64 << 20;

/// Attempts to read such a value.
const MUTABLE_ATTEMPTS_MAX: u32 = 3;
const MUTABLE_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Memory for uploads, in KiB: what is on its way to the service at any moment. More uploads wait.
pub(super) const UPLOAD_MEMORY_KIB: usize = 256 << 10;

/// Large blobs that are read by several requests at a time; each keeps up to [`download::AHEAD_MAX`] ranges in memory. The others
/// are read by one request each, in constant memory.
const PARALLEL_READS_MAX: usize = 8;

/// A bucket, a container or a directory, and how much is asked of it at a time.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    /// The tier's label and the service, for errors.
    label: String,
    service: &'static str,
    pub(super) retrying: Operator,
    single: Operator,
    pub(super) ways: Ways,
    pub(super) sizes: Sizes,
    requests: Arc<Semaphore>,
    pub(super) upload_memory: Arc<Semaphore>,
    pub(super) parallel_reads: Arc<Semaphore>,
}

/// What a service is good at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ways {
    /// Whether large blobs are written in parts, several at a time.
    pub(super) has_parts: bool,
    /// Whether the answer to a read tells the object's size and age; else they are asked for first.
    pub(super) tells_on_read: bool,
    /// How an object becomes young again.
    pub(super) refresh: refresh::Way,
}

/// From which size on blobs go in pieces, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) single_max: u64,
    pub(super) part: u64,
    pub(super) range: u64,
}

/// An object that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) size: u64,
    /// When it was written, in seconds since 1970.
    pub(super) modified: Option<u64>,
    /// What changes when it is replaced.
    pub(super) etag: Option<String>,
    pub(super) version: Option<String>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { single_max: SINGLE_MAX, part: upload::PART_BYTES, range: download::RANGE_BYTES }
    }
}

impl Ways {
    fn of(provider: Provider<'_>) -> Self {
        match provider {
            Provider::S3(_) => {
                Self { has_parts: true, tells_on_read: true, refresh: refresh::Way::PartsOfItself }
            }
            Provider::Gcs(_) => {
                Self { has_parts: true, tells_on_read: true, refresh: refresh::Way::ThereAndBack }
            }
            Provider::Azure(_) => {
                Self { has_parts: true, tells_on_read: true, refresh: refresh::Way::ReadAndWrite }
            }
            // In parts it is slower than in one go, and its reader tells nothing.
            Provider::Fs(_) => {
                Self { has_parts: false, tells_on_read: false, refresh: refresh::Way::ReadAndWrite }
            }
        }
    }
}

impl From<&Metadata> for Found {
    fn from(metadata: &Metadata) -> Self {
        let since_1970 = |time: opendal::raw::Timestamp| {
            SystemTime::from(time).duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
        };
        Self {
            size: metadata.content_length(),
            modified: metadata.last_modified().map(since_1970),
            etag: metadata.etag().map(str::to_owned),
            version: metadata.version().map(str::to_owned),
        }
    }
}

impl Bucket {
    pub(super) fn open(provider: Provider<'_>, sizes: Sizes) -> Result<Self> {
        let Operators { retrying, single } = operators(provider)?;
        let shared = Shared {
            label: provider.label().to_owned(),
            service: provider.service(),
            retrying,
            single,
            ways: Ways::of(provider),
            sizes,
            requests: Arc::new(Semaphore::new(provider.requests().requests_max.get())),
            upload_memory: Arc::new(Semaphore::new(UPLOAD_MEMORY_KIB)),
            parallel_reads: Arc::new(Semaphore::new(PARALLEL_READS_MAX)),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether the object is there, and what is known of it.
    pub(super) async fn find(&self, name: &Name) -> Result<Option<Found>> {
        let _permit = self.permit().await;
        match self.shared.retrying.stat(&name.path()).await {
            Ok(metadata) => Ok(Some(Found::from(&metadata))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("look for an object", error)),
        }
    }

    /// The object from `start` on. Its `Found` tells the whole size.
    pub(super) async fn get(&self, name: &Name, start: u64) -> Result<Option<(Blob, Found)>> {
        if !name.is_blob() {
            let Some((bytes, found)) = self.read_whole(name).await? else { return Ok(None) };
            return Ok(Some((Blob::Whole(bytes).starting_at(start)?, found)));
        }
        match download::open(self, name, start).await {
            Err(error) if start > 0 && !error.is_temporary() => self.at_the_end(name, start, error).await,
            Err(error) => Err(self.error("read an object", error)),
            Ok(opened) => Ok(opened),
        }
    }

    /// A service refuses a range that begins at the end or behind it, each in its own way; the size tells whether that was it.
    async fn at_the_end(
        &self,
        name: &Name,
        start: u64,
        refused: opendal::Error,
    ) -> Result<Option<(Blob, Found)>> {
        let Some(found) = self.find(name).await? else { return Ok(None) };
        match start.cmp(&found.size) {
            Ordering::Less => Err(self.error("read an object", refused)),
            Ordering::Equal => Ok(Some((Blob::Whole(Bytes::new()), found))),
            Ordering::Greater => Err(past_the_end(start, found.size)),
        }
    }

    /// A value that can be replaced, as it was at one moment.
    pub(super) async fn read_whole(&self, name: &Name) -> Result<Option<(Bytes, Found)>> {
        let path = name.path();
        let mut attempt = 1;
        loop {
            let permit = self.permit().await;
            match download::whole(&self.shared.single, &path, MUTABLE_MAX).await {
                Ok(None) => {
                    return Err(Error::new(Kind::Exhausted, format!("a value of over {MUTABLE_MAX} bytes")));
                }
                Ok(Some(read)) => return Ok(Some(read)),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) if error.is_temporary() && attempt < MUTABLE_ATTEMPTS_MAX => {}
                Err(error) => return Err(self.error("read an object", error)),
            }
            drop(permit);
            tokio::time::sleep(MUTABLE_RETRY_DELAY * attempt).await;
            attempt += 1;
        }
    }

    /// Stores the blob, all of it or nothing; so does a future that is dropped.
    pub(super) async fn put(&self, name: &Name, blob: Blob) -> Result<()> {
        let memory = upload::memory_bytes(blob.size(), self.shared.sizes).div_ceil(1024);
        let memory = u32::try_from(memory).expect("an upload takes some MiB").min(UPLOAD_MEMORY_KIB as u32);
        let memory = Arc::clone(&self.shared.upload_memory)
            .acquire_many_owned(memory)
            .await
            .expect("it is never closed");
        Upload::new(self.clone(), *name, memory).run(blob).await
    }

    pub(super) async fn remove(&self, name: &Name) -> Result<()> {
        let _permit = self.permit().await;
        self.shared.retrying.delete(&name.path()).await.map_err(|error| self.error("delete an object", error))
    }

    /// Waits until one more request may be under way. A reader lets go when the answer begins: readers are as slow as clients, and
    /// must not keep others from asking.
    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.shared.requests).acquire_owned().await.expect("it is never closed")
    }

    /// What a failure of the service means for a caller: nothing but to try later, or elsewhere. It is never an absence.
    pub(super) fn error(&self, doing: &str, error: opendal::Error) -> Error {
        let Shared { label, service, .. } = &*self.shared;
        let is = |kind| error.kind() == kind;
        let why = if is(ErrorKind::PermissionDenied) {
            "the service denies it; the tier's credentials need to read, write, list and delete"
        } else if is(ErrorKind::ConfigInvalid) {
            "the tier's configuration does not fit the service (bucket, region, credentials)"
        } else if is(ErrorKind::RateLimited) {
            "the service asks for fewer requests"
        } else {
            "the service does not answer as it should"
        };
        Error::new(Kind::Unavailable, format!("{doing} in tier {label} ({service}): {why}"))
            .with_source(error)
    }
}
