//! Reads of blobs: one request for most, several in parallel for large ones, always in bounded memory.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use opendal::{Buffer, BufferStream, ErrorKind, Operator};
use tokio::sync::OwnedSemaphorePermit;

use super::bucket::{Bucket, Found};
use crate::store::blob::{Blob, Chunks};
use crate::store::name::Name;

/// Bytes of one request when a blob is read in parallel.
pub(super) const RANGE_BYTES: u64 = 8 << 20;

/// Ranges of one blob that are under way or wait to be read, beside the one that is being read.
pub(super) const AHEAD_MAX: usize = 3;

/// What has fewer ranges is read by one request: to begin in parallel costs more than it saves.
const PARALLEL_RANGES_MIN: u64 = 4;

/// Opens `name` at `start`. The one request is for all that follows, and its answer tells the size; OpenDAL takes an answer that
/// is shorter than what was asked for to be cut off, so a first range cannot be asked for before the size is known.
pub(super) async fn open(bucket: &Bucket, name: &Name, start: u64) -> opendal::Result<Option<(Blob, Found)>> {
    let permit = bucket.permit().await;
    let path = name.path();
    let opened = stream_from(bucket, &path, start).await;
    drop(permit);
    let (stream, found) = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let Some(size) = found.size.checked_sub(start) else {
        return Err(opendal::Error::new(ErrorKind::RangeNotSatisfied, "the range begins behind the end"));
    };
    let stream = chunks(bucket.clone(), stream);
    let chunks = match parallel_memory(bucket, size) {
        Some(memory) => {
            let first_end = start + bucket.shared.sizes.range;
            let rest = parallel(bucket, path, first_end..found.size, memory);
            // The first request is broken off there; that costs its connection.
            first(bucket.shared.sizes.range, stream).chain(rest).boxed()
        }
        None => stream,
    };
    Ok(Some((Blob::Stream { size, chunks }, found)))
}

async fn stream_from(bucket: &Bucket, path: &str, start: u64) -> opendal::Result<(BufferStream, Found)> {
    let operator = &bucket.shared.retrying;
    if bucket.shared.ways.tells_on_read {
        let mut stream = operator.reader(path).await?.into_stream(start..).await?;
        let found = Found::from(&stream.metadata().await?);
        return Ok((stream, found));
    }
    let found = Found::from(&operator.stat(path).await?);
    let range = start.min(found.size)..found.size;
    Ok((operator.reader(path).await?.into_stream(range).await?, found))
}

/// The right to read `size` bytes in parallel, when they are many and memory is to be had.
fn parallel_memory(bucket: &Bucket, size: u64) -> Option<OwnedSemaphorePermit> {
    if size < PARALLEL_RANGES_MIN * bucket.shared.sizes.range || !bucket.shared.ways.has_parts {
        return None;
    }
    Arc::clone(&bucket.shared.parallel_reads).try_acquire_owned().ok()
}

/// The first `count` bytes.
fn first(count: u64, chunks: Chunks) -> Chunks {
    let cut = stream::try_unfold((chunks, count), |(mut chunks, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut chunk) = chunks.try_next().await? else { return Ok(None) };
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - chunk.len() as u64;
        Ok(Some((chunk, (chunks, left))))
    });
    cut.boxed()
}

fn parallel(bucket: &Bucket, path: String, range: Range<u64>, memory: OwnedSemaphorePermit) -> Chunks {
    let step = bucket.shared.sizes.range;
    let count = (range.end - range.start).div_ceil(step);
    let ranges = (0..count).map(move |number| {
        let start = range.start + number * step;
        start..range.end.min(start + step)
    });
    let bucket = bucket.clone();
    let read = move |range: Range<u64>| {
        let (bucket, path) = (bucket.clone(), path.clone());
        async move {
            let _permit = bucket.permit().await;
            let read = async { bucket.shared.retrying.reader(&path).await?.read(range).await }.await;
            read.map_err(|error| bucket.error("read an object", error))
        }
    };
    let buffers = stream::iter(ranges).map(read).buffered(AHEAD_MAX);
    // The memory is given back when the stream is dropped.
    let pieces = buffers.map_ok(move |buffer| {
        let _held = &memory;
        stream::iter(Iterator::map(buffer, Ok))
    });
    pieces.try_flatten().boxed()
}

fn chunks(bucket: Bucket, stream: BufferStream) -> Chunks {
    let pieces = stream.map(move |buffer: opendal::Result<Buffer>| match buffer {
        Ok(buffer) => Ok(stream::iter(Iterator::map(buffer, Ok))),
        Err(error) => Err(bucket.error("read an object", error)),
    });
    pieces.try_flatten().boxed()
}

/// The whole object by one request, which is not repeated; `None` when it has more than `limit` bytes.
pub(super) async fn whole(
    operator: &Operator,
    path: &str,
    limit: u64,
) -> opendal::Result<Option<(Bytes, Found)>> {
    let mut stream = operator.reader(path).await?.into_stream(..).await?;
    let found = match stream.metadata().await {
        Ok(metadata) => Found::from(&metadata),
        Err(error) if error.kind() == ErrorKind::Unsupported => Found::from(&operator.stat(path).await?),
        Err(error) => return Err(error),
    };
    if found.size > limit {
        return Ok(None);
    }
    let buffers: Vec<Buffer> = stream.try_collect().await?;
    let bytes = buffers.into_iter().flatten().collect::<Buffer>().to_bytes();
    Ok(Some((bytes, found)))
}
