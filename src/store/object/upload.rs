//! Writes of blobs: one request for a small one, parts for a large one, and nothing left behind by one that fails.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use opendal::{Operator, Writer};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::bucket::{Bucket, Sizes};
use crate::error::{Error, Kind, Result};
use crate::store::blob::{Blob, Chunks};
use crate::store::name::Name;
use crate::tasks;

/// Bytes of a part. S3 wants at least 5 MiB and at most [`PARTS_MAX`] of them.
pub(super) const PART_BYTES: u64 = 8 << 20;

/// Parts of one blob that are on their way.
const PARTS_IN_FLIGHT: usize = 3;

/// S3's limit is 10,000; a blob with more parts of [`PART_BYTES`] gets larger ones.
const PARTS_MAX: u64 = 9_000;

/// A client that sends nothing for this long does not keep the memory of its upload.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// Azure's code for a list of blocks of which some are not there.
const LOST_BLOCKS: &str = "InvalidBlockList";

/// The bytes in memory while a blob of `size` bytes is uploaded: the parts on their way, the one that is being filled, and the
/// one that is kept until it is known whether it is the last.
pub(super) fn memory_bytes(size: u64, sizes: Sizes) -> u64 {
    if size <= sizes.single_max {
        return size;
    }
    part_bytes(size, sizes) * (PARTS_IN_FLIGHT as u64 + 2)
}

fn part_bytes(size: u64, sizes: Sizes) -> u64 {
    sizes.part.max(size.div_ceil(PARTS_MAX))
}

/// One blob on its way to the bucket.
///
/// It runs as a task of its own: OpenDAL loses an upload's state when one of its futures is dropped, and could not abort it.
pub(super) struct Upload {
    bucket: Bucket,
    name: Name,
    /// Given back when the upload ends, not when its caller does.
    memory: OwnedSemaphorePermit,
}

impl Upload {
    pub(super) fn new(bucket: Bucket, name: Name, memory: OwnedSemaphorePermit) -> Self {
        Self { bucket, name, memory }
    }

    /// Stores the blob. When the future is dropped, a blob that is not yet complete is given up, and one that is gets stored.
    pub(super) async fn run(self, blob: Blob) -> Result<()> {
        let size = blob.size();
        let task = if size <= self.bucket.shared.sizes.single_max {
            let bytes = blob.into_bytes(size).await?;
            tasks::spawn("object-put", self.single(bytes))
        } else {
            let dropped = CancellationToken::new();
            let task = tasks::spawn("object-upload", self.parts(size, blob.into_chunks(), dropped.clone()));
            let _guard = dropped.drop_guard();
            return joined(task.await);
        };
        joined(task.await)
    }

    async fn single(self, bytes: Bytes) -> Result<()> {
        let Self { bucket, name, memory: _memory } = self;
        let _permit = bucket.permit().await;
        let written = bucket.shared.retrying.write(&name.path(), bytes).await;
        written.map(drop).map_err(|error| bucket.error("write an object", error))
    }

    async fn parts(self, size: u64, chunks: Chunks, dropped: CancellationToken) -> Result<()> {
        let Self { bucket, name, memory: _memory } = self;
        let path = name.path();
        let part = part_bytes(size, bucket.shared.sizes);
        let failed = |error| bucket.error("write an object", error);
        let permit = bucket.permit().await;
        let has_parts = bucket.shared.ways.has_parts;
        let mut writer =
            writer(&bucket.shared.retrying, &path, has_parts.then_some(part)).await.map_err(failed)?;
        drop(permit);
        let written = fill(&bucket, &mut writer, chunks, dropped).await;
        let closed = match written {
            Ok(()) => match writer.close().await {
                // On Azure the end of one upload takes the blocks of another one of the same blob; then the blob is there.
                Err(error)
                    if name.is_blob() && has_lost_blocks(&error) && is_stored(&bucket, &path, size).await =>
                {
                    tracing::debug!("another upload of the same blob was first: {error}");
                    return Ok(());
                }
                closed => closed.map(drop).map_err(failed),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = closed {
            if let Err(abort) = writer.abort().await {
                // The bucket's rule for incomplete uploads takes what is left.
                tracing::debug!("an upload cannot be aborted: {abort}");
            }
            return Err(error);
        }
        // Another value may have replaced one that can be replaced.
        if name.is_blob() { verify_length(&bucket, &path, size).await } else { Ok(()) }
    }
}

fn joined(ended: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.unwrap_or_else(|error| Err(Error::new(Kind::Cancelled, "the farm is stopping").with_source(error)))
}

async fn writer(operator: &Operator, path: &str, part: Option<u64>) -> opendal::Result<Writer> {
    match part {
        Some(part) => {
            let part = usize::try_from(part).expect("a part fits into memory");
            operator.writer_with(path).chunk(part).concurrent(PARTS_IN_FLIGHT).await
        }
        None => operator.writer(path).await,
    }
}

/// Sends the chunks. A caller that is gone is noticed between two of them, never in the middle of a write.
async fn fill(
    bucket: &Bucket,
    writer: &mut Writer,
    mut chunks: Chunks,
    dropped: CancellationToken,
) -> Result<()> {
    loop {
        let next = tokio::select! {
            biased;
            () = dropped.cancelled() => return Err(Error::new(Kind::Cancelled, "the upload was given up")),
            next = tokio::time::timeout(IDLE_MAX, chunks.try_next()) => next,
        };
        let next = next.map_err(|_| Error::new(Kind::Timeout, "the upload stands still"))??;
        let Some(chunk) = next else { return Ok(()) };
        writer.write(chunk).await.map_err(|error| bucket.error("write an object", error))?;
    }
}

/// Whether Azure says that blocks of this upload are gone. No other failure may be taken for a success.
fn has_lost_blocks(error: &opendal::Error) -> bool {
    !error.is_temporary() && error.to_string().contains(LOST_BLOCKS)
}

async fn is_stored(bucket: &Bucket, path: &str, size: u64) -> bool {
    let _permit = bucket.permit().await;
    bucket.shared.retrying.stat(path).await.is_ok_and(|metadata| metadata.content_length() == size)
}

/// A service that put the parts together wrongly must not be believed.
async fn verify_length(bucket: &Bucket, path: &str, size: u64) -> Result<()> {
    let _permit = bucket.permit().await;
    let found = bucket.shared.retrying.stat(path).await;
    let stored = found.map_err(|error| bucket.error("look for an object", error))?.content_length();
    if stored == size {
        return Ok(());
    }
    if let Err(error) = bucket.shared.retrying.delete(path).await {
        tracing::error!("an object of the wrong length cannot be deleted: {error}");
    }
    Err(Error::new(Kind::Unavailable, format!("the service stored {stored} of {size} bytes")))
}

#[cfg(test)]
mod tests {
    use opendal::ErrorKind;

    use super::*;

    #[test]
    fn only_lost_blocks_may_mean_that_another_upload_was_first() {
        let answer = "AzblobError { code: \"InvalidBlockList\", message: \"\" }";
        assert!(has_lost_blocks(&opendal::Error::new(ErrorKind::Unexpected, answer)));
        assert!(!has_lost_blocks(&opendal::Error::new(ErrorKind::Unexpected, answer).set_temporary()));
        for kind in [ErrorKind::Unexpected, ErrorKind::PermissionDenied, ErrorKind::NotFound] {
            assert!(!has_lost_blocks(&opendal::Error::new(kind, "AccountIsDisabled")));
        }
    }
}
