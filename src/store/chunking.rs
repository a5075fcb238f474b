//! Cuts a blob where its content says so (FastCDC 2020), so that similar blobs have most of their chunks in common.
//!
//! The parameters are those that REv2 recommends and the capabilities announce; a client that cuts with them finds our chunks.

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::{FastCDC, Normalization};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::Chunks;
use crate::error::{Error, Result};
use crate::tasks;

/// Bytes of a chunk as a rule.
pub const AVERAGE_BYTES: u64 = 512 << 10;

/// Bytes of the smallest chunk but the last, and of the largest: REv2 derives both from the average.
pub const MIN_BYTES: u64 = AVERAGE_BYTES / 4;
pub const MAX_BYTES: u64 = AVERAGE_BYTES * 4;

/// What the hash of the content is mixed with; other values only serve to hide where a blob is cut. The cuts below take 0 for granted.
pub const SEED: u32 = 0;

/// Bytes that are gathered before they are cut: a cut needs to see the largest chunk, and each walk to another thread should give
/// several chunks.
const WINDOW_BYTES: usize = 2 * MAX_BYTES as usize;

/// The same bytes, cut by content.
pub fn cut(chunks: Chunks) -> Chunks {
    let window = Window { chunks: Some(chunks), bytes: BytesMut::new() };
    let batches = stream::try_unfold(window, |mut window| async move {
        window.fill().await?;
        if window.bytes.is_empty() {
            return Ok::<_, Error>(None);
        }
        let (batch, window) = tasks::blocking(move || Ok(window.cut())).await?;
        Ok(Some((stream::iter(batch.into_iter().map(Ok)), window)))
    });
    batches.try_flatten().boxed()
}

struct Window {
    /// `None` when they have ended.
    chunks: Option<Chunks>,
    bytes: BytesMut,
}

impl Window {
    async fn fill(&mut self) -> Result<()> {
        while self.bytes.len() < WINDOW_BYTES {
            let Some(chunks) = &mut self.chunks else { return Ok(()) };
            match chunks.try_next().await? {
                Some(chunk) => self.bytes.extend_from_slice(&chunk),
                None => self.chunks = None,
            }
        }
        Ok(())
    }

    /// Takes the chunks off whose ends are certain: before the blob's end, a chunk could still become longer.
    fn cut(mut self) -> (Vec<Bytes>, Self) {
        let is_end = self.chunks.is_none();
        let mut left = self.bytes.len();
        let lengths: Vec<usize> = chunker(&self.bytes)
            .map(|chunk| chunk.length)
            .take_while(|length| {
                let is_certain = is_end || left as u64 >= MAX_BYTES;
                left -= length;
                is_certain
            })
            .collect();
        // A copy of its own: what becomes a blob must not hold the window for as long as somebody holds the blob.
        let chunks =
            lengths.iter().map(|length| Bytes::copy_from_slice(&self.bytes.split_to(*length))).collect();
        (chunks, self)
    }
}

fn chunker(bytes: &[u8]) -> FastCDC<'_> {
    let [min, average, max] = [MIN_BYTES, AVERAGE_BYTES, MAX_BYTES].map(|size| size as usize);
    FastCDC::with_level(bytes, min, average, max, Normalization::Level2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Function;

    fn content(size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        fastrand::Rng::with_seed(7).fill(&mut bytes);
        bytes
    }

    fn streamed(bytes: &[u8], piece: usize) -> Chunks {
        let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces).boxed()
    }

    async fn chunks(bytes: &[u8], piece: usize) -> Vec<Bytes> {
        cut(streamed(bytes, piece)).try_collect().await.unwrap()
    }

    /// FastCDC as REv2 describes it, a byte at a time: the gear table is made of MD5, over 64 equal bytes as in the implementations that
    /// REv2 names; the masks are those of the paper's authors.
    fn ends_by_the_book(mut bytes: &[u8]) -> Vec<usize> {
        const STRICT: u64 = 0x0000_d917_6753_7000;
        const LOOSE: u64 = 0x0000_d907_0353_7000;
        let gear: Vec<u64> = (0..=255_u8)
            .map(|byte| u64::from_be_bytes(*Function::Md5.hash(&[byte; 64]).hash().first_chunk().unwrap()))
            .collect();
        let mut lengths = Vec::new();
        while !bytes.is_empty() {
            let end = bytes.len().min(MAX_BYTES as usize);
            let (mut hash, mut length) = (0_u64, end);
            for place in (MIN_BYTES as usize).min(end)..end {
                hash = (hash << 1).wrapping_add(gear[usize::from(bytes[place])]);
                let mask = if (place as u64) < AVERAGE_BYTES { STRICT } else { LOOSE };
                if hash & mask == 0 {
                    length = place;
                    break;
                }
            }
            lengths.push(length);
            bytes = &bytes[length..];
        }
        lengths
    }

    #[tokio::test]
    async fn the_cuts_are_those_of_the_protocol_however_the_bytes_come() {
        let content = content((9 << 20) + 12_345);
        let expected = ends_by_the_book(&content);
        assert!(expected.len() > 8);
        for piece in [1 << 20, 77_777, content.len()] {
            let chunks = chunks(&content, piece).await;
            assert_eq!(chunks.iter().map(Bytes::len).collect::<Vec<_>>(), expected);
            assert_eq!(chunks.concat(), content);
        }
    }

    /// So that an update of the library cannot move the cuts unseen: chunks that are stored would be lost for sharing.
    #[tokio::test]
    async fn the_cuts_of_a_known_blob_stay_where_they_are() {
        let mut state = 1_u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let content: Vec<u8> = std::iter::repeat_with(next).take(3 << 20).collect();
        let lengths: Vec<usize> = chunks(&content, 1 << 20).await.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [558_185, 620_486, 565_253, 581_529, 676_398, 143_877]);
    }

    #[tokio::test]
    async fn sizes_are_in_their_bounds_and_a_zero_run_gives_the_largest() {
        let chunks = chunks(&vec![0; 5 << 20], 300_000).await;
        let lengths: Vec<u64> = chunks.iter().map(|chunk| chunk.len() as u64).collect();
        assert_eq!(lengths, [MAX_BYTES, MAX_BYTES, 1 << 20]);
        assert_eq!(super::cut(streamed(b"", 1)).try_collect::<Vec<_>>().await.unwrap(), Vec::<Bytes>::new());
    }

    #[tokio::test]
    async fn an_insertion_leaves_most_chunks_as_they_were() {
        let old = content(12 << 20);
        let mut new = old.clone();
        new.splice((5 << 20)..(5 << 20), *b"some bytes in the middle");
        let (before, after) = (chunks(&old, 1 << 20).await, chunks(&new, 1 << 20).await);
        let shared = after.iter().filter(|chunk| before.contains(chunk)).count();
        assert!(shared + 3 >= after.len(), "{shared} of {}", after.len());
    }

    #[tokio::test]
    async fn an_error_of_the_source_comes_through() {
        let error = crate::error::Error::invalid("broken");
        let source = streamed(&content(3 << 20), 1 << 20).chain(stream::iter([Err(error)])).boxed();
        assert!(cut(source).try_collect::<Vec<_>>().await.is_err());
    }
}
