//! Makes objects young again that are in use, in the background.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use opendal::ErrorKind;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::bucket::{Bucket, Found};
use crate::error::{Error, Kind, Result};
use crate::store::name::Name;
use crate::tasks;

/// Objects that wait or are being refreshed. What comes when there are more is refreshed when it is used again.
const WAITING_MAX: usize = 1_000;

/// Objects that are refreshed at the same time; clients come first.
const PARALLEL_MAX: usize = 4;

/// Bytes that S3 copies as one part.
const COPY_PART_MAX: u64 = 5 << 30;

/// Where copies are that are on their way back.
const OTHER_NAMES: &str = "refresh";

/// How an object becomes young again without a moment in which it is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// S3 refuses a copy onto itself that changes nothing, but takes an upload whose parts are copied from the object.
    PartsOfItself,
    /// GCS copies at once and replaces at once; OpenDAL copies nothing onto itself, so it goes by another name.
    ThereAndBack,
    /// Azure's copies end at some later time and leave an empty blob behind when they fail.
    ReadAndWrite,
}

/// Refreshes each object once at a time.
#[derive(Clone)]
pub(super) struct Refresher {
    bucket: Bucket,
    waiting: Arc<Mutex<HashSet<Name>>>,
    places: Arc<Semaphore>,
}

impl Refresher {
    pub(super) fn new(bucket: Bucket) -> Self {
        Self { bucket, waiting: Arc::default(), places: Arc::new(Semaphore::new(PARALLEL_MAX)) }
    }

    /// Refreshes the object some time soon.
    pub(super) fn start(&self, name: Name, found: Found) {
        {
            let mut waiting = self.waiting();
            if waiting.len() >= WAITING_MAX || !waiting.insert(name) {
                return;
            }
        }
        let refresher = self.clone();
        // What is not done when the process ends is done when the object is used again.
        tasks::spawn("object-refresh", async move {
            let place = refresher.places.acquire().await.expect("it is never closed");
            if let Err(error) = refresher.refresh(&name, &found).await {
                tracing::warn!(object = ?name, "an ageing object is not refreshed: {}", error.chain());
            }
            drop(place);
            refresher.waiting().remove(&name);
        });
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.waiting().is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, HashSet<Name>> {
        // A set is right between any two steps that can panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn refresh(&self, name: &Name, found: &Found) -> Result<()> {
        if !name.is_blob() {
            return self.rewrite_value(name).await;
        }
        match (self.bucket.shared.ways.refresh, &found.version) {
            (Way::PartsOfItself, _) => self.copy_parts(name, found).await,
            (Way::ThereAndBack, Some(version)) => self.copy_there_and_back(name, version).await,
            (Way::ThereAndBack, None) | (Way::ReadAndWrite, _) => self.rewrite_blob(name).await,
        }
    }

    async fn copy_parts(&self, name: &Name, found: &Found) -> Result<()> {
        let failed = |error| self.bucket.error("refresh an object", error);
        let path = name.path();
        let _permit = self.bucket.permit().await;
        let mut writer = self.bucket.shared.retrying.writer(&path).await.map_err(failed)?;
        let copied = async {
            for start in (0..found.size).step_by(COPY_PART_MAX as usize) {
                let end = found.size.min(start + COPY_PART_MAX);
                writer.copy_from(&path, start..end).await?;
            }
            writer.close().await
        };
        let copied = copied.await;
        if copied.is_err()
            && let Err(abort) = writer.abort().await
        {
            tracing::debug!("a copy cannot be aborted: {abort}");
        }
        copied.map(drop).map_err(failed)
    }

    /// On the way back only what is still of that version is replaced: what was removed meanwhile stays removed.
    async fn copy_there_and_back(&self, name: &Name, version: &str) -> Result<()> {
        let (path, other) = (name.path(), format!("{OTHER_NAMES}/{}", Uuid::new_v4()));
        let operator = &self.bucket.shared.retrying;
        let _permit = self.bucket.permit().await;
        let copied = async {
            operator.copy(&path, &other).await?;
            operator.copy_with(&other, &path).if_version_match(version).await
        };
        let copied = copied.await;
        // The bucket's rule for old objects takes what is left.
        if let Err(error) = operator.delete(&other).await {
            tracing::debug!("a copy cannot be deleted: {error}");
        }
        match copied {
            Err(error) if error.kind() != ErrorKind::ConditionNotMatch => {
                Err(self.bucket.error("refresh an object", error))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn rewrite_blob(&self, name: &Name) -> Result<()> {
        let Some((blob, _)) = self.bucket.get(name, 0).await? else { return Err(gone()) };
        self.bucket.put(name, blob).await
    }

    /// A value that was replaced meanwhile is young, and must not be replaced by the older one.
    async fn rewrite_value(&self, name: &Name) -> Result<()> {
        let Some((bytes, found)) = self.bucket.read_whole(name).await? else { return Err(gone()) };
        let _permit = self.bucket.permit().await;
        let capability = self.bucket.shared.retrying.info().capability();
        let path = name.path();
        let write = self.bucket.shared.retrying.write_with(&path, bytes);
        let written = match (found.etag, found.version) {
            (Some(etag), _) if capability.write_with_if_match => write.if_match(&etag).await,
            (_, Some(version)) if capability.write_with_if_version_match => {
                write.if_version_match(&version).await
            }
            _ => return Err(Error::new(Kind::Unsupported, "the service writes nothing on a condition")),
        };
        match written {
            Err(error) if error.kind() != ErrorKind::ConditionNotMatch => {
                Err(self.bucket.error("refresh an object", error))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

fn gone() -> Error {
    Error::new(Kind::NotFound, "the object is gone")
}
