//! Compression at rest: content in independent zstd frames of 1 MiB each, and a table of their lengths at the end of the file.
//!
//! This is zstd's seekable format. Its table is a skippable frame, so any zstd tool unpacks such a file; a read from the middle
//! decodes from its frame on, and the size of the content is in the last bytes of the file.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use zstd::bulk::{Compressor, decompress};
use zstd::zstd_safe::CParameter;

use super::entry::blocks;
use crate::error::{Error, Kind, Result};
use crate::store::blob::{past_the_end, read_at, slices};
use crate::store::{Blob, CHUNK_BYTES, Chunks};
use crate::tasks;

/// Content of a frame: what a read from the middle decodes at most without need. All frames but the last have this much.
const FRAME_BYTES: usize = 1 << 20;

/// Frames that are decoded while the one before is on its way.
const READ_AHEAD: usize = 1;

/// Blobs of up to this size are decoded where they are opened: another hop between threads would cost as much.
const WHOLE_MAX: u64 = CHUNK_BYTES as u64;

/// Against level 3, level 1 is 1.3 to 1.6 times as fast on programs, archives and sources, for 3 to 10 percent more bytes
/// (`cargo test --release --lib compressed::tests::speed -- --ignored --nocapture`).
const LEVEL: i32 = 1;

/// The first frame must come down to this part of its content; otherwise the file is not worth the work of each reader.
const PAYS_PERCENT: usize = 85;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const SKIPPABLE_HEADER_BYTES: usize = 4 + 4;
const TABLE_ENTRY_BYTES: usize = 4 + 4;
const FOOTER_BYTES: usize = 4 + 1 + 4;

/// The descriptor of a table without checksums: each frame has one of its own.
const DESCRIPTOR: u8 = 0;

/// Content on its way into a file.
pub(super) enum Packer {
    /// It is stored as it comes.
    Plain,
    Compressing(Box<Encoder>),
}

impl Packer {
    pub(super) fn compressing() -> Result<Self> {
        Ok(Self::Compressing(Box::new(Encoder::new()?)))
    }

    /// The bytes to store for `content`, as far as they are known; after the last content, all of them. Blocks.
    pub(super) fn pack(&mut self, content: Vec<Bytes>, is_last: bool) -> Result<Vec<Bytes>> {
        let Self::Compressing(encoder) = self else { return Ok(content) };
        match encoder.pack(content, is_last)? {
            Packed::Frames(stored) => Ok(stored),
            Packed::DoesNotPay(content) => {
                *self = Self::Plain;
                Ok(content)
            }
        }
    }

    /// The size of the content that was packed, if it is compressed.
    pub(super) fn content_size(&self) -> Option<u64> {
        match self {
            Self::Plain => None,
            Self::Compressing(encoder) => Some(encoder.size),
        }
    }
}

/// Gathers content into frames.
pub(super) struct Encoder {
    compressor: Compressor<'static>,
    /// Content of the frame that is not yet full.
    pending: Vec<u8>,
    /// The entries of the table.
    table: Vec<u8>,
    size: u64,
}

enum Packed {
    Frames(Vec<Bytes>),
    /// The content as it came: its first frame did not shrink.
    DoesNotPay(Vec<Bytes>),
}

impl Encoder {
    fn new() -> Result<Self> {
        let failed = |error| Error::bug("the compressor cannot be made").with_source(error);
        let mut compressor = Compressor::new(LEVEL).map_err(failed)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
        Ok(Self { compressor, pending: Vec::new(), table: Vec::new(), size: 0 })
    }

    fn pack(&mut self, content: Vec<Bytes>, is_last: bool) -> Result<Packed> {
        let mut stored = Vec::new();
        let mut content = content.into_iter();
        while let Some(mut piece) = content.next() {
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(FRAME_BYTES - self.pending.len()));
                self.pending.extend_from_slice(&part);
                if self.pending.len() == FRAME_BYTES && !self.end_frame(&mut stored)? {
                    return Ok(self.give_up([piece].into_iter().chain(content)));
                }
            }
        }
        if !is_last {
            return Ok(Packed::Frames(stored));
        }
        if !self.pending.is_empty() && !self.end_frame(&mut stored)? {
            return Ok(self.give_up(content));
        }
        stored.push(self.finish());
        Ok(Packed::Frames(stored))
    }

    /// Compresses what is pending. `false` if it is the first frame and does not pay; then it is still pending.
    fn end_frame(&mut self, stored: &mut Vec<Bytes>) -> Result<bool> {
        let failed = |error| Error::bug("a frame cannot be compressed").with_source(error);
        let frame = self.compressor.compress(&self.pending).map_err(failed)?;
        if self.table.is_empty() && !pays(self.pending.len(), frame.len()) {
            return Ok(false);
        }
        for length in [frame.len(), self.pending.len()] {
            let length = u32::try_from(length).expect("a frame has about 1 MiB at most");
            self.table.extend_from_slice(&length.to_le_bytes());
        }
        self.size += self.pending.len() as u64;
        self.pending.clear();
        stored.push(Bytes::from(frame));
        Ok(true)
    }

    fn give_up(&mut self, rest: impl Iterator<Item = Bytes>) -> Packed {
        let pending = Bytes::from(std::mem::take(&mut self.pending));
        Packed::DoesNotPay([pending].into_iter().chain(rest).filter(|piece| !piece.is_empty()).collect())
    }

    /// The table as a skippable frame.
    fn finish(&self) -> Bytes {
        let frames = u32::try_from(self.table.len() / TABLE_ENTRY_BYTES);
        let length = u32::try_from(self.table.len() + FOOTER_BYTES);
        let (Ok(frames), Ok(length)) = (frames, length) else { unreachable!("a blob has less than 512 TiB") };
        let mut table = Vec::with_capacity(SKIPPABLE_HEADER_BYTES + self.table.len() + FOOTER_BYTES);
        table.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        table.extend_from_slice(&length.to_le_bytes());
        table.extend_from_slice(&self.table);
        table.extend_from_slice(&frames.to_le_bytes());
        table.push(DESCRIPTOR);
        table.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        Bytes::from(table)
    }
}

/// Whether a first frame of `stored` bytes for `content` bytes is worth it: for a blob of one frame, not unless it takes fewer blocks.
fn pays(content: usize, stored: usize) -> bool {
    let file = stored + SKIPPABLE_HEADER_BYTES + TABLE_ENTRY_BYTES + FOOTER_BYTES;
    stored <= content / 100 * PAYS_PERCENT && blocks(file as u64) < blocks(content as u64)
}

/// The size of the content of a compressed file of `stored` bytes, from the end of its table. Blocks.
///
/// # Errors
/// `Corrupt` when there is no such table.
pub(super) fn content_size(file: &File, stored: u64) -> Result<u64> {
    let end = (TABLE_ENTRY_BYTES + FOOTER_BYTES) as u64;
    let start = stored.checked_sub(end).ok_or_else(damaged)?;
    let end = read_at(file, start, TABLE_ENTRY_BYTES + FOOTER_BYTES)?;
    let (entry, footer) = end.split_at(TABLE_ENTRY_BYTES);
    let (_, last) = entry_of(entry);
    let frames = frames_of(footer)?;
    if table_bytes(frames) > stored || last == 0 || last as usize > FRAME_BYTES {
        return Err(damaged());
    }
    Ok((frames - 1) * FRAME_BYTES as u64 + u64::from(last))
}

/// Stored and content bytes of an entry of the table.
fn entry_of(entry: &[u8]) -> (u32, u32) {
    let number = |bytes: &[u8]| u32::from_le_bytes(*bytes.first_chunk().expect("an entry has two numbers"));
    (number(entry), number(&entry[4..]))
}

/// The number of frames, at least one.
fn frames_of(footer: &[u8]) -> Result<u64> {
    let frames = u32::from_le_bytes(*footer.first_chunk().expect("a footer begins with a number"));
    let is_ours = footer[4] == DESCRIPTOR && footer[5..] == SEEKABLE_MAGIC.to_le_bytes();
    if is_ours && frames > 0 { Ok(u64::from(frames)) } else { Err(damaged()) }
}

fn table_bytes(frames: u64) -> u64 {
    SKIPPABLE_HEADER_BYTES as u64 + frames * TABLE_ENTRY_BYTES as u64 + FOOTER_BYTES as u64
}

fn damaged() -> Error {
    Error::new(Kind::Corrupt, "a stored blob is damaged")
}

/// A compressed file that is open.
pub(super) struct Frames {
    file: Arc<File>,
    size: u64,
    /// Stored bytes of each frame.
    lengths: Vec<u32>,
}

/// A frame in its file.
#[derive(Clone, Copy)]
struct Frame {
    offset: u64,
    stored: usize,
    content: usize,
    /// Content bytes before those that are wanted.
    skipped: usize,
}

impl Frames {
    /// Reads the table of a file of `stored` bytes. Blocks.
    ///
    /// # Errors
    /// `Corrupt` when the table is not right.
    pub(super) fn open(file: File, stored: u64) -> Result<Self> {
        let size = content_size(&file, stored)?;
        let table_bytes = table_bytes(size.div_ceil(FRAME_BYTES as u64));
        let (start, length) = (stored - table_bytes, usize::try_from(table_bytes).map_err(|_| damaged())?);
        let table = read_at(&file, start, length)?;
        let entries = &table[SKIPPABLE_HEADER_BYTES..length - FOOTER_BYTES];
        let entries = entries.chunks_exact(TABLE_ENTRY_BYTES).map(entry_of);
        let lengths: Vec<u32> = entries.clone().map(|(stored, _)| stored).collect();
        let in_frames: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        let content: u64 = entries.map(|(_, content)| u64::from(content)).sum();
        let bound = zstd::zstd_safe::compress_bound(FRAME_BYTES);
        let is_bounded = lengths.iter().all(|length| *length as usize <= bound);
        if in_frames != start || content != size || !is_bounded {
            return Err(damaged());
        }
        Ok(Self { file: Arc::new(file), size, lengths })
    }

    /// The content from `start` on. Blocks for a small blob; a large one is decoded as it is read.
    ///
    /// # Errors
    /// `OutOfRange` when the start is past the end, `Corrupt` for a small blob that is damaged; a large one reports it as it is read.
    pub(super) fn into_blob(self, start: u64) -> Result<Blob> {
        let rest = self.size.checked_sub(start).ok_or_else(|| past_the_end(start, self.size))?;
        if rest == 0 {
            return Ok(Blob::Whole(Bytes::new()));
        }
        let (file, size) = (Arc::clone(&self.file), self.size);
        let mut frames = self.frames_from(start);
        if size <= WHOLE_MAX {
            let frame = frames.next().expect("a blob that is not empty has a frame");
            return Ok(Blob::Whole(frame.decode(&file)?));
        }
        Ok(Blob::Stream { size: rest, chunks: chunks(file, frames) })
    }

    /// The content in order, decoded as it is asked for. Blocks.
    pub(super) fn pieces(self) -> impl Iterator<Item = Result<Bytes>> {
        let file = Arc::clone(&self.file);
        self.frames_from(0).map(move |frame| frame.decode(&file))
    }

    /// The frames that hold the content from `start` on.
    fn frames_from(self, start: u64) -> impl Iterator<Item = Frame> + Send + 'static {
        let first = usize::try_from(start / FRAME_BYTES as u64).expect("the table fits into memory");
        let mut offset: u64 = self.lengths[..first].iter().map(|length| u64::from(*length)).sum();
        let mut left = self.size - first as u64 * FRAME_BYTES as u64;
        let mut skipped = (start % FRAME_BYTES as u64) as usize;
        self.lengths.into_iter().skip(first).map(move |stored| {
            let content = usize::try_from(left).map_or(FRAME_BYTES, |left| left.min(FRAME_BYTES));
            let frame =
                Frame { offset, stored: stored as usize, content, skipped: std::mem::take(&mut skipped) };
            offset += u64::from(stored);
            left -= content as u64;
            frame
        })
    }
}

fn chunks(file: Arc<File>, frames: impl Iterator<Item = Frame> + Send + 'static) -> Chunks {
    let decode = move |frame: Frame| {
        let file = Arc::clone(&file);
        tasks::blocking(move || frame.decode(&file))
    };
    stream::iter(frames).map(decode).buffered(1 + READ_AHEAD).map_ok(slices).try_flatten().boxed()
}

impl Frame {
    /// Blocks. Never makes more bytes than the frame should have.
    fn decode(self, file: &File) -> Result<Bytes> {
        let stored = read_at(file, self.offset, self.stored)?;
        let content = decompress(&stored, self.content).map_err(|error| damaged().with_source(error))?;
        if content.len() != self.content {
            return Err(damaged());
        }
        Ok(Bytes::from(content).slice(self.skipped..))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    /// Words in an order that the seed gives: they compress to about a third.
    fn text(size: usize, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut text = Vec::with_capacity(size + 16);
        while text.len() < size {
            write!(text, "{} word{} ", random.u8(..4), random.u16(..1000)).unwrap();
        }
        text.truncate(size);
        text
    }

    fn noise(size: usize) -> Vec<u8> {
        let mut noise = vec![0; size];
        fastrand::Rng::with_seed(7).fill(&mut noise);
        noise
    }

    /// What is stored for `content`, given in pieces, and the size that the packer tells.
    fn pack(content: &[u8], piece: usize) -> (Vec<u8>, Option<u64>) {
        let mut packer = Packer::compressing().unwrap();
        let mut stored = Vec::new();
        for piece in content.chunks(piece) {
            let packed = packer.pack(vec![Bytes::copy_from_slice(piece), Bytes::new()], false).unwrap();
            stored.extend(packed.concat());
        }
        stored.extend(packer.pack(Vec::new(), true).unwrap().concat());
        (stored, packer.content_size())
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    async fn unpack(stored: &[u8], size: usize, start: usize) -> Result<Bytes> {
        let frames = Frames::open(file_of(stored), stored.len() as u64)?;
        if frames.size != size as u64 {
            return Err(damaged());
        }
        let blob = frames.into_blob(start as u64)?;
        assert_eq!(blob.size(), (size - start) as u64);
        blob.into_bytes(u64::MAX).await
    }

    /// Sizes that end close to where a frame does.
    fn around_frames() -> impl Strategy<Value = usize> {
        (0_usize..4, 0_usize..200).prop_map(|(frames, more)| match frames {
            0 => 10_000 + more,
            frames => frames * FRAME_BYTES + more - 100,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_was_packed_is_read_from_every_offset(
            (size, offset, seed, piece) in (around_frames(), any::<prop::sample::Index>(), any::<u64>(), 100_000_usize..2_000_000)
        ) {
            let content = text(size, seed);
            let (stored, content_size) = pack(&content, piece);
            prop_assert_eq!(content_size, Some(size as u64));
            prop_assert_eq!(super::content_size(&file_of(&stored), stored.len() as u64).unwrap(), size as u64);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for start in [0, offset.index(size), size - 1, size] {
                let rest = runtime.block_on(unpack(&stored, size, start)).unwrap();
                prop_assert!(rest == content[start..], "{} bytes from {}", size, start);
            }
            let past_the_end = Frames::open(file_of(&stored), stored.len() as u64).unwrap().into_blob(size as u64 + 1);
            prop_assert_eq!(past_the_end.err().unwrap().kind(), Kind::OutOfRange);
        }
    }

    #[test]
    fn a_file_is_one_that_any_zstd_unpacks() {
        for size in [5_000, FRAME_BYTES, 2 * FRAME_BYTES + 1] {
            let content = text(size, 1);
            assert_eq!(zstd::stream::decode_all(&pack(&content, 300_000).0[..]).unwrap(), content);
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is_after_one_frame() {
        for size in [5_000, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES + 5] {
            let content = [noise(size.min(FRAME_BYTES)), text(size.saturating_sub(FRAME_BYTES), 1)].concat();
            for piece in [size, 100_000, FRAME_BYTES] {
                assert!(pack(&content, piece) == (content.clone(), None), "{size} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_small_blob_is_compressed_only_if_it_takes_fewer_blocks() {
        let content = [text(3_000, 1), noise(1_500)].concat();
        assert_eq!(pack(&content, 5_000).1, Some(4_500));
        let content = [text(3_000, 1), noise(4_700)].concat();
        assert_eq!(pack(&content, 5_000).1, None);
    }

    /// Each frame has a checksum, and the table must add up.
    #[tokio::test]
    async fn damage_anywhere_is_found_and_is_never_wrong_content() {
        let content = text(FRAME_BYTES + 50_000, 3);
        let (stored, _) = pack(&content, FRAME_BYTES);
        let table = stored.len() - table_bytes(2) as usize + SKIPPABLE_HEADER_BYTES;
        let in_frames = (0..table - SKIPPABLE_HEADER_BYTES).step_by(9_973);
        for at in in_frames.chain(table..stored.len()) {
            let mut damaged = stored.clone();
            damaged[at] ^= 0x40;
            let error = unpack(&damaged, content.len(), 0).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "byte {at} of {}: {}", stored.len(), error.chain());
        }
        for cut in [0, 5, 17, stored.len() - 1] {
            assert!(unpack(&stored[..cut], content.len(), 0).await.is_err(), "cut to {cut}");
            assert_eq!(content_size(&file_of(&stored[..cut]), cut as u64).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    #[ignore = "measures; it proves nothing about right or wrong"]
    fn speed() {
        let path =
            std::env::var_os("CROFT_SPEED_FILE").map_or_else(|| std::env::current_exe().unwrap(), Into::into);
        let content = std::fs::read(path).unwrap();
        for level in [1, 2, 3] {
            let mut compressor = Compressor::new(level).unwrap();
            compressor.set_parameter(CParameter::ChecksumFlag(true)).unwrap();
            let start = Instant::now();
            let frames: Vec<Vec<u8>> =
                content.chunks(FRAME_BYTES).map(|frame| compressor.compress(frame).unwrap()).collect();
            let packed = start.elapsed();
            let start = Instant::now();
            frames.iter().for_each(|frame| drop(decompress(frame, FRAME_BYTES).unwrap()));
            let stored: usize = frames.iter().map(Vec::len).sum();
            let megabytes = content.len() as f64 / 1e6;
            println!(
                "level {level}: {:.0} MB/s in, {:.0} MB/s out, {:.3} of {megabytes:.0} MB",
                megabytes / packed.as_secs_f64(),
                megabytes / start.elapsed().as_secs_f64(),
                stored as f64 / content.len() as f64
            );
        }
    }
}
