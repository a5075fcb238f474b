//! `SplitBlob` and `SpliceBlob`: a blob as a list of chunks, which are ordinary blobs.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::access::Demand;
use crate::digest::{Digest, Function, ParseError};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::chunking_function::Value as Chunking;
use crate::proto::rev2::{SpliceBlobRequest, SpliceBlobResponse, SplitBlobRequest, SplitBlobResponse};
use crate::store::{Blob, Chunks, chunking};
use crate::tasks;

use super::{Farm, cas};

/// The largest blob that is split or spliced. A short request makes us read, hash and write this much.
const BLOB_BYTES_MAX: u64 = 16 << 30;

/// Chunks of one blob: as many as the largest blob has when all are of the smallest size.
const CHUNKS_MAX: usize = (BLOB_BYTES_MAX / chunking::MIN_BYTES) as usize;

/// Blobs that are split or spliced at a time. Each holds up to 24 MiB of chunks and keeps a core and the disk busy.
static AT_A_TIME: Semaphore = Semaphore::const_new(4);

/// How long a request waits for its turn. Clients repeat what is refused then.
const TURN_MAX: Duration = Duration::from_secs(60);

/// Chunks that are stored together.
const BATCH_MAX: usize = 8;

/// Chunks of a splice that are opened before their turn.
const AHEAD_MAX: usize = 2;

/// Absent chunks that an error names.
const NAMED_MAX: usize = 20;

impl Farm {
    /// The chunks of a blob, all of them stored.
    ///
    /// # Errors
    /// `NotFound` when the blob is absent, `Exhausted` when there is no room for the chunks.
    pub(super) async fn split(
        &self,
        demand: &Demand,
        request: &SplitBlobRequest,
    ) -> Result<SplitBlobResponse> {
        let blob = request.blob_digest.as_ref();
        let function = self.function_of(demand, &request.instance_name, (request.digest_function, blob))?;
        let digest = Digest::from_proto(function, blob)?;
        check_size(&digest)?;
        let chunks = if digest.size() < chunking::MAX_BYTES {
            // REv2 leaves blobs below the largest chunk whole.
            match self.cas.missing(&[digest]).await?.as_slice() {
                [] => vec![digest],
                _ => return Err(cas::absent(&digest)),
            }
        } else {
            let _turn = turn().await?;
            let blob = self.cas.open(&digest, 0).await?.ok_or_else(|| cas::absent(&digest))?;
            self.store_chunks(function, chunking::cut(blob.into_chunks())).await?
        };
        Ok(SplitBlobResponse {
            chunk_digests: chunks.iter().map(Digest::to_proto).collect(),
            chunking_function: Chunking::FastCdc2020.into(),
        })
    }

    async fn store_chunks(&self, function: Function, chunks: Chunks) -> Result<Vec<Digest>> {
        let mut digests = Vec::new();
        let mut batches = chunks.try_chunks(BATCH_MAX);
        while let Some(batch) = batches.try_next().await.map_err(|broken| broken.1)? {
            let hashed = tasks::blocking(move || Ok(hash_all(function, batch))).await?;
            let names: Vec<Digest> = hashed.iter().map(|(digest, _)| *digest).collect();
            // Those that are there already, which is the point of splitting, are not hashed and written again.
            let missing = self.cas.missing(&names).await?;
            let absent = hashed.into_iter().filter(|(digest, _)| missing.contains(digest)).collect();
            self.cas.put_all(absent).await.into_iter().collect::<Result<()>>()?;
            digests.extend(names);
        }
        Ok(digests)
    }

    /// Puts a blob together from its chunks.
    ///
    /// # Errors
    /// `NotFound` with the chunks that are absent, `Invalid` when the chunks do not give the blob.
    pub(super) async fn splice(
        &self,
        demand: &Demand,
        request: &SpliceBlobRequest,
    ) -> Result<SpliceBlobResponse> {
        let blob = request.blob_digest.as_ref();
        let function = self.function_of(demand, &request.instance_name, (request.digest_function, blob))?;
        let digest = Digest::from_proto(function, blob)
            .map_err(|error: ParseError| Error::invalid(format!("blob_digest: {error}")))?;
        check_size(&digest)?;
        let count = request.chunk_digests.len();
        if count > CHUNKS_MAX {
            return Err(Error::invalid(format!("{count} chunks are more than the limit of {CHUNKS_MAX}")));
        }
        let chunks = cas::parse_all(function, &request.chunk_digests)?;
        check_sum(&digest, &chunks)?;
        // The chunks are asked for even when the blob is there, because that extends their life.
        let missing = self.cas.missing(&chunks).await?;
        if !self.cas.missing(&[digest]).await?.is_empty() {
            refuse_absent(&missing)?;
            let _turn = turn().await?;
            let chunks = self.concatenated(chunks);
            self.cas.put(&digest, Blob::Stream { size: digest.size(), chunks }).await?;
        }
        Ok(SpliceBlobResponse { blob_digest: Some(digest.to_proto()) })
    }

    fn concatenated(&self, digests: Vec<Digest>) -> Chunks {
        let cas = self.cas.clone();
        let opened = stream::iter(digests).map(move |digest| {
            let cas = cas.clone();
            async move {
                let blob = cas.open(&digest, 0).await?.ok_or_else(|| cas::absent(&digest))?;
                Ok::<_, Error>(blob.into_chunks())
            }
        });
        opened.buffered(AHEAD_MAX).try_flatten().boxed()
    }
}

fn hash_all(function: Function, chunks: Vec<Bytes>) -> Vec<(Digest, Bytes)> {
    chunks.into_iter().map(|chunk| (function.hash(&chunk), chunk)).collect()
}

async fn turn() -> Result<SemaphorePermit<'static>> {
    let late = |_| Error::new(Kind::Exhausted, "too many blobs are being split and spliced");
    let turn = tokio::time::timeout(TURN_MAX, AT_A_TIME.acquire()).await.map_err(late)?;
    Ok(turn.expect("nobody closes it"))
}

fn check_size(digest: &Digest) -> Result<()> {
    if digest.size() > BLOB_BYTES_MAX {
        let message =
            format!("blob {digest} is over the limit of {BLOB_BYTES_MAX} bytes for splitting and splicing");
        return Err(Error::invalid(message));
    }
    Ok(())
}

fn check_sum(digest: &Digest, chunks: &[Digest]) -> Result<()> {
    let sum = chunks.iter().map(Digest::size).fold(0, u64::saturating_add);
    if sum != digest.size() {
        return Err(Error::invalid(format!("the chunks of blob {digest} have {sum} bytes together")));
    }
    Ok(())
}

fn refuse_absent(missing: &[Digest]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = missing.iter().take(NAMED_MAX).map(Digest::to_string).collect();
    let more = if missing.len() > NAMED_MAX { " and others" } else { "" };
    let message = format!("{} chunks are not in the CAS: {}{more}", missing.len(), named.join(", "));
    Err(Error::new(Kind::NotFound, message))
}
