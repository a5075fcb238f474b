//! A blob on its way: what a store hands out and takes in, and its forms turned into each other.

use std::fs::File;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use rustix::buffer::spare_capacity;

use crate::error::{Error, Kind, Result};
use crate::tasks;

/// Bytes of a chunk: large enough that a hop between threads costs little, small enough that many streams fit into memory.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks of a file that are read while the one before is on its way, so that disk and network overlap.
const READ_AHEAD: usize = 1;

/// Pieces of a blob, in order.
pub type Chunks = BoxStream<'static, Result<Bytes>>;

/// A blob on its way, in the form that its holder can give most cheaply.
pub enum Blob {
    Whole(Bytes),
    /// `size` bytes in all; a stream that ends early or late is refused by whoever stores it.
    Stream {
        size: u64,
        chunks: Chunks,
    },
    /// `size` bytes of `file` from `offset`. The file is never written again, so it can be spliced, linked or mounted.
    File {
        file: Arc<File>,
        offset: u64,
        size: u64,
    },
}

impl Blob {
    /// The number of bytes that the blob has or promises.
    pub fn size(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Stream { size, .. } | Self::File { size, .. } => *size,
        }
    }

    /// The blob as a stream of exactly [`Blob::size`] bytes, or of an error.
    ///
    /// # Errors
    /// The stream ends with `Invalid` when the source has fewer or more bytes than it said, with `Corrupt` for a file.
    pub fn into_chunks(self) -> Chunks {
        match self {
            Self::Whole(bytes) => slices(bytes).boxed(),
            Self::Stream { size, chunks } => exact(size, chunks).boxed(),
            Self::File { file, offset, size } => file_chunks(file, offset, size).boxed(),
        }
    }

    /// The whole blob in memory.
    ///
    /// # Errors
    /// `Exhausted` when the blob has more than `limit` bytes, and what [`Blob::into_chunks`] reports.
    pub async fn into_bytes(self, limit: u64) -> Result<Bytes> {
        let size = self.size();
        if size > limit {
            let message = format!("a blob of {size} bytes is over the limit of {limit} bytes");
            return Err(Error::new(Kind::Exhausted, message));
        }
        match self {
            Self::Whole(bytes) => Ok(bytes),
            Self::Stream { size, chunks } => collect(size, exact(size, chunks).boxed()).await,
            Self::File { file, offset, size } => {
                tasks::blocking(move || read_at(&file, offset, in_memory(size)?)).await
            }
        }
    }

    /// The blob without its first `start` bytes. A start at the end gives an empty blob.
    ///
    /// # Errors
    /// `OutOfRange` when the start is past the end.
    pub fn starting_at(self, start: u64) -> Result<Self> {
        let rest = self.size().checked_sub(start).ok_or_else(|| past_the_end(start, self.size()))?;
        Ok(match self {
            blob if start == 0 => blob,
            Self::Whole(bytes) => Self::Whole(bytes.slice(bytes.len() - in_memory(rest)?..)),
            Self::Stream { size, chunks } => {
                Self::Stream { size: rest, chunks: skip(start, exact(size, chunks).boxed()) }
            }
            Self::File { file, offset, .. } => Self::File { file, offset: offset + start, size: rest },
        })
    }
}

/// The error for a range that begins after the blob's last byte.
pub(super) fn past_the_end(start: u64, size: u64) -> Error {
    Error::new(Kind::OutOfRange, format!("offset {start} is past the end of a blob of {size} bytes"))
}

fn in_memory(size: u64) -> Result<usize> {
    usize::try_from(size)
        .map_err(|_| Error::new(Kind::Exhausted, format!("{size} bytes do not fit into memory")))
}

pub(super) fn slices(bytes: Bytes) -> impl futures_util::Stream<Item = Result<Bytes>> + Send {
    stream::iter((0..bytes.len()).step_by(CHUNK_BYTES))
        .map(move |start| Ok(bytes.slice(start..bytes.len().min(start + CHUNK_BYTES))))
}

/// Passes `chunks` on as long as they keep to `size`.
fn exact(size: u64, chunks: Chunks) -> impl futures_util::Stream<Item = Result<Bytes>> + Send {
    stream::try_unfold((chunks, size), move |(mut chunks, left)| async move {
        let Some(chunk) = chunks.try_next().await? else {
            return if left == 0 { Ok(None) } else { Err(ended_early(size - left, size)) };
        };
        match left.checked_sub(chunk.len() as u64) {
            Some(left) => Ok(Some((chunk, (chunks, left)))),
            None => Err(Error::invalid(format!("a blob of {size} bytes goes on beyond its size"))),
        }
    })
}

fn ended_early(got: u64, size: u64) -> Error {
    Error::invalid(format!("a blob of {size} bytes ended after {got} bytes"))
}

fn skip(start: u64, chunks: Chunks) -> Chunks {
    let rest = chunks.try_filter_map({
        let mut left = start;
        move |mut chunk: Bytes| {
            let cut = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
            left -= cut as u64;
            let rest = chunk.split_off(cut);
            std::future::ready(Ok((!rest.is_empty()).then_some(rest)))
        }
    });
    rest.boxed()
}

async fn collect(size: u64, mut chunks: Chunks) -> Result<Bytes> {
    let Some(first) = chunks.try_next().await? else { return Ok(Bytes::new()) };
    let mut rest = BytesMut::new();
    while let Some(chunk) = chunks.try_next().await? {
        if rest.is_empty() {
            rest.reserve(in_memory(size)?);
            rest.extend_from_slice(&first);
        }
        rest.extend_from_slice(&chunk);
    }
    // One chunk that holds all is the usual case and needs no copy.
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

fn file_chunks(
    file: Arc<File>,
    offset: u64,
    size: u64,
) -> impl futures_util::Stream<Item = Result<Bytes>> + Send {
    stream::iter((0..size).step_by(CHUNK_BYTES))
        .map(move |start| {
            let file = Arc::clone(&file);
            let length = usize::try_from(size - start).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
            tasks::blocking(move || read_at(&file, offset + start, length))
        })
        .buffered(1 + READ_AHEAD)
}

/// Reads exactly `length` bytes; blocks.
pub(super) fn read_at(file: &File, offset: u64, length: usize) -> Result<Bytes> {
    let mut buffer = Vec::with_capacity(length);
    while buffer.len() < length {
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut buffer), at) {
            Ok(0) => return Err(Error::new(Kind::Corrupt, "a stored blob ends before its size")),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::from(errno).context("read a blob")),
        }
    }
    buffer.truncate(length);
    Ok(Bytes::from(buffer))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn stream_of(size: u64, pieces: &[&'static str]) -> Blob {
        let chunks: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        Blob::Stream { size, chunks: stream::iter(chunks).boxed() }
    }

    fn file_of(bytes: &[u8], offset: u64, size: u64) -> Blob {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Blob::File { file: Arc::new(file), offset, size }
    }

    #[tokio::test]
    async fn a_stream_that_is_not_as_long_as_it_says_is_invalid() {
        for pieces in [&["ab"][..], &["ab", "cd"], &[]] {
            let error = stream_of(3, pieces).into_bytes(9).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{pieces:?}");
        }
        assert_eq!(stream_of(3, &["ab", "c"]).into_bytes(3).await.unwrap(), "abc");
    }

    #[tokio::test]
    async fn a_file_gives_its_window_in_chunks() {
        let content: Vec<u8> = (0..3 * CHUNK_BYTES + 7).map(|i| (i % 251) as u8).collect();
        let blob = file_of(&content, 5, content.len() as u64 - 5);
        let chunks: Vec<Bytes> = blob.into_chunks().try_collect().await.unwrap();
        assert_eq!(chunks.len(), 4);
        assert_eq!(chunks.concat(), &content[5..]);
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_corrupt() {
        let error = file_of(b"abc", 0, 4).into_bytes(9).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let error = file_of(b"abc", 0, 4).into_chunks().try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
    }

    #[tokio::test]
    async fn every_form_can_start_later() {
        let blobs = [
            || Blob::Whole(Bytes::from_static(b"abcdef")),
            || stream_of(6, &["ab", "cd", "ef"]),
            || file_of(b"abcdef", 0, 6),
        ];
        for blob in blobs {
            for start in 0..=6 {
                let rest = blob().starting_at(start).unwrap();
                assert_eq!(rest.size(), 6 - start);
                assert_eq!(rest.into_bytes(9).await.unwrap(), &"abcdef"[start as usize..]);
            }
            let error = blob().starting_at(7).err().unwrap();
            assert_eq!(error.kind(), Kind::OutOfRange);
        }
    }

    #[tokio::test]
    async fn a_blob_over_the_limit_is_not_read() {
        let error = stream_of(1 << 40, &[]).into_bytes(1 << 20).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted);
    }

    #[tokio::test]
    async fn a_whole_blob_is_cut_without_a_copy() {
        let whole = Bytes::from(vec![7; CHUNK_BYTES + 1]);
        let chunks: Vec<Bytes> = Blob::Whole(whole.clone()).into_chunks().try_collect().await.unwrap();
        assert_eq!(chunks.iter().map(Bytes::len).collect::<Vec<_>>(), [CHUNK_BYTES, 1]);
        assert_eq!(chunks[0].as_ptr(), whole.as_ptr());
    }
}
