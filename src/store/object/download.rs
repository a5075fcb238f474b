//! Reads of blobs: one request for most, several in parallel for large ones, always in bounded memory.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use opendal::{Buffer, BufferStream, ErrorKind, Operator};
use tokio::sync::OwnedSemaphorePermit;

use super::bucket::{Bucket, Found, Opening};
use crate::error::{Error, Result};
use crate::store::blob::{Blob, Chunks, past_the_end};
use crate::store::name::Name;

/// Bytes of one request of a read. What is not larger needs one request.
pub(super) const RANGE_BYTES: u64 = 8 << 20;

/// Ranges of one blob that are under way or wait to be read, beside the one that is being read.
pub(super) const AHEAD_MAX: usize = 3;

/// Blobs whose rest is not larger than this many ranges are read by one request after the other: to begin in parallel costs more
/// than it saves.
const PARALLEL_RANGES_MIN: u64 = 4;

/// Opens `name` at `start`. The first range is asked for, and its answer tells the size; so a small blob costs one request.
pub(super) async fn open(bucket: &Bucket, name: &Name, start: u64) -> Result<Option<(Blob, Found)>, Opening> {
    let permit = bucket.permit().await;
    let path = name.path();
    let known =
        if bucket.shared.ways.tells_on_read { None } else { Some(bucket.shared.retrying.stat(&path).await) };
    if let Some(Ok(metadata)) = &known
        && metadata.content_length() <= start
    {
        return at_the_end(start, Found::from(metadata)).map(Some).map_err(Opening::Failed);
    }
    let failed = |error: opendal::Error| match error.kind() {
        ErrorKind::NotFound => Ok(None),
        ErrorKind::RangeNotSatisfied => Err(Opening::PastTheEnd),
        _ => Err(Opening::Failed(bucket.error("read an object", error))),
    };
    let first = match known.transpose() {
        Err(error) => return failed(error),
        Ok(known) => first_range(bucket, &path, start, known.map(|metadata| Found::from(&metadata))).await,
    };
    drop(permit);
    let (stream, found) = match first {
        Err(error) => return failed(error),
        Ok(first) => first,
    };
    let Some(size) = found.size.checked_sub(start) else { return Err(Opening::PastTheEnd) };
    let first_end = found.size.min(start + bucket.shared.sizes.range);
    let chunks = chunks(bucket.clone(), stream);
    let rest = rest(bucket, path, first_end..found.size);
    Ok(Some((Blob::Stream { size, chunks: chunks.chain(rest).boxed() }, found)))
}

fn at_the_end(start: u64, found: Found) -> Result<(Blob, Found)> {
    if start > found.size {
        return Err(past_the_end(start, found.size));
    }
    Ok((Blob::Whole(Bytes::new()), found))
}

async fn first_range(
    bucket: &Bucket,
    path: &str,
    start: u64,
    known: Option<Found>,
) -> opendal::Result<(BufferStream, Found)> {
    let reader = bucket.shared.retrying.reader(path).await?;
    let end = start.saturating_add(bucket.shared.sizes.range);
    let end = known.as_ref().map_or(end, |found| end.min(found.size));
    let mut stream = reader.into_stream(start..end).await?;
    let found = match known {
        Some(found) => found,
        None => Found::from(&stream.metadata().await?),
    };
    Ok((stream, found))
}

/// What comes behind the first range: in parallel when it is much and memory is to be had, else by one request.
fn rest(bucket: &Bucket, path: String, range: Range<u64>) -> Chunks {
    if range.is_empty() {
        return stream::empty().boxed();
    }
    let is_much = range.end - range.start >= PARALLEL_RANGES_MIN * bucket.shared.sizes.range;
    if is_much
        && bucket.shared.ways.has_parts
        && let Ok(memory) = Arc::clone(&bucket.shared.parallel_reads).try_acquire_owned()
    {
        return parallel(bucket, path, range, memory);
    }
    one_request(bucket.clone(), path, range)
}

fn one_request(bucket: Bucket, path: String, range: Range<u64>) -> Chunks {
    let opened = async move {
        let permit = bucket.permit().await;
        let opened = async { bucket.shared.retrying.reader(&path).await?.into_stream(range).await }.await;
        drop(permit);
        let stream = opened.map_err(|error| bucket.error("read an object", error))?;
        Ok::<Chunks, Error>(chunks(bucket, stream))
    };
    stream::once(opened).try_flatten().boxed()
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
