//! Zstandard on the wire: blobs are compressed and decompressed as they stream by, in constant memory.
//!
//! What a client declares is never believed: output is made only as input gives it, and a stream that gives more than its digest
//! says is refused with the first byte too many. So a small frame that inflates to gigabytes costs one buffer.

use std::io;

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, TryStreamExt, stream};
use zstd::stream::raw::{self, DParameter, InBuffer, Operation, OutBuffer};

use super::{CHUNK_BYTES, Chunks};
use crate::error::{Error, Result};
use crate::tasks;

/// Faster than a link of 1 Gb/s on one core; higher levels save a few percent at a multiple of the time.
const LEVEL: i32 = 1;

/// The window that we decode with, 8 MiB: what RFC 8878 asks of every decoder and all levels up to 19 make do with. Each upload that
/// is under way may take as much memory.
const WINDOW_LOG_MAX: u32 = 23;

/// Blobs up to this are compressed on the task that has them: 0.2 ms, less than handing them to another thread and back under load.
const IN_PLACE_MAX: u64 = 64 * 1024;

/// Below this a frame's header and a client's work are more than what compression saves.
const WORTHWHILE_MIN: usize = 256;

/// Bytes that a compressed upload of a blob of `size` bytes may have. Incompressible content grows by less than 1 %, and encoders that
/// flush often add some bytes each time; what is more are frames without content, which could go on for ever.
pub fn compressed_max(size: u64) -> u64 {
    size.saturating_add(size / 4).saturating_add(64 * 1024)
}

/// `chunks`, which are `size` bytes, as one frame.
pub fn compressed(size: u64, chunks: Chunks) -> Chunks {
    let source = Source { chunks: Some(chunks), is_small: size <= IN_PLACE_MAX, input: Bytes::new() };
    Encoder::new(size).map_or_else(failed, |encoder| encoded(encoder, source))
}

/// The blob of `size` bytes that the frames in `chunks` hold.
///
/// The stream ends with `Invalid` when the frames are damaged or cut off or hold another number of bytes.
pub fn decompressed(size: u64, chunks: Chunks) -> Chunks {
    let source = Source { chunks: Some(chunks), is_small: size <= IN_PLACE_MAX, input: Bytes::new() };
    Decoder::new(size).map_or_else(failed, |decoder| decoded(decoder, source))
}

/// The blob of `size` bytes that the frames in `input` hold. It takes as long as `size` demands, so it is for small blobs.
///
/// # Errors
/// `Invalid` as for [`decompressed`].
pub fn decompress(size: u64, mut input: Bytes) -> Result<Bytes> {
    let mut decoder = Decoder::new(size)?;
    let mut output = Vec::new();
    while let Some(piece) = decoder.step(&mut input)? {
        output.extend_from_slice(&piece);
    }
    decoder.finish()?;
    Ok(output.into())
}

/// Each of `blobs` compressed where that makes it smaller by an eighth or more, which pays for decompression. Blocks.
///
/// # Errors
/// `Exhausted` when there is no memory for a compressor.
pub fn compress_all(blobs: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
    let mut encoder = Encoder::new(0)?;
    let compressed = blobs.iter().map(|blob| {
        if blob.len() < WORTHWHILE_MIN {
            return Ok(None);
        }
        encoder.begin(blob.len() as u64)?;
        let mut output = encoder.step(blob)?;
        encoder.end(&mut output)?;
        Ok((output.len() <= blob.len() - blob.len() / 8).then(|| Bytes::from(output)))
    });
    compressed.collect()
}

/// What goes into an encoder or decoder.
struct Source {
    /// `None` when they have ended.
    chunks: Option<Chunks>,
    input: Bytes,
    is_small: bool,
}

impl Source {
    /// Fetches input unless there is some; false at the end.
    async fn fill(&mut self) -> Result<bool> {
        while self.input.is_empty() {
            let Some(chunks) = &mut self.chunks else { return Ok(false) };
            match chunks.try_next().await? {
                Some(chunk) => self.input = chunk,
                None => self.chunks = None,
            }
        }
        Ok(true)
    }
}

/// Runs `work` here for a small blob, else on a thread for what takes its time.
async fn run<T: Send + 'static>(
    is_small: bool,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if is_small { work() } else { tasks::blocking(work).await }
}

fn failed(error: Error) -> Chunks {
    stream::iter([Err(error)]).boxed()
}

fn encoded(encoder: Encoder, source: Source) -> Chunks {
    stream::try_unfold(Some((encoder, source)), |state| async move {
        let Some((mut encoder, mut source)) = state else { return Ok(None) };
        loop {
            let has_input = source.fill().await?;
            let input = std::mem::take(&mut source.input);
            let (output, returned) = run(source.is_small, move || {
                let mut output = encoder.step(&input)?;
                if !has_input {
                    encoder.end(&mut output)?;
                }
                Ok((Bytes::from(output), encoder))
            })
            .await?;
            encoder = returned;
            if !has_input {
                return Ok(Some((output, None)));
            }
            // The encoder keeps a block back until it is full.
            if !output.is_empty() {
                return Ok(Some((output, Some((encoder, source)))));
            }
        }
    })
    .boxed()
}

fn decoded(decoder: Decoder, source: Source) -> Chunks {
    stream::try_unfold((decoder, source), |(mut decoder, mut source)| async move {
        loop {
            if !decoder.has_more && !source.fill().await? {
                decoder.finish()?;
                return Ok(None);
            }
            let mut input = std::mem::take(&mut source.input);
            let (output, returned, rest) = run(source.is_small, move || {
                let output = decoder.step(&mut input)?;
                Ok((output, decoder, input))
            })
            .await?;
            (decoder, source.input) = (returned, rest);
            if let Some(output) = output {
                return Ok(Some((output, (decoder, source))));
            }
        }
    })
    .boxed()
}

struct Encoder {
    raw: raw::Encoder<'static>,
}

impl Encoder {
    /// An encoder of a frame of `size` bytes.
    fn new(size: u64) -> Result<Self> {
        let mut encoder = Self { raw: raw::Encoder::new(LEVEL).map_err(no_memory)? };
        encoder.begin(size)?;
        Ok(encoder)
    }

    /// Begins a frame of `size` bytes; a frame of known size carries it and needs no larger window.
    fn begin(&mut self, size: u64) -> Result<()> {
        self.raw.reinit().map_err(no_memory)?;
        self.raw.set_pledged_src_size(Some(size)).map_err(no_memory)
    }

    /// What the encoder gives out for all of `input`, which may be nothing yet.
    fn step(&mut self, input: &[u8]) -> Result<Vec<u8>> {
        let mut output = Vec::new();
        let mut source = InBuffer::around(input);
        while source.pos() < input.len() {
            self.write(&mut output, |raw, space| raw.run(&mut source, space))?;
        }
        Ok(output)
    }

    /// Ends the frame.
    fn end(&mut self, output: &mut Vec<u8>) -> Result<()> {
        while self.write(output, |raw, space| raw.finish(space, true))? > 0 {}
        Ok(())
    }

    /// Lets the encoder write behind what is in `output`.
    fn write(
        &mut self,
        output: &mut Vec<u8>,
        operation: impl FnOnce(&mut raw::Encoder<'static>, &mut OutBuffer<'_, Vec<u8>>) -> io::Result<usize>,
    ) -> Result<usize> {
        const SPACE: usize = 32 * 1024;
        output.reserve(SPACE);
        let written = output.len();
        operation(&mut self.raw, &mut OutBuffer::around_pos(output, written)).map_err(no_memory)
    }
}

struct Decoder {
    raw: raw::Decoder<'static>,
    size: u64,
    /// Bytes of the blob that have not come out yet.
    left: u64,
    is_between_frames: bool,
    /// The output was full, so there may be more without input.
    has_more: bool,
}

impl Decoder {
    fn new(size: u64) -> Result<Self> {
        let mut raw = raw::Decoder::new().map_err(no_memory)?;
        raw.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(no_memory)?;
        Ok(Self { raw, size, left: size, is_between_frames: true, has_more: false })
    }

    /// The next piece of the blob, at most [`CHUNK_BYTES`] of it. `input` loses what was read; `None` when more input is needed.
    fn step(&mut self, input: &mut Bytes) -> Result<Option<Bytes>> {
        // Room for one byte too many shows the blob that is too long.
        let room = usize::try_from(self.left).map_or(CHUNK_BYTES, |left| CHUNK_BYTES.min(left + 1));
        let mut output = Vec::with_capacity(room);
        while output.len() < room && (self.has_more || !input.is_empty()) {
            let mut source = InBuffer::around(input);
            let written = output.len();
            let hint = self
                .raw
                .run(&mut source, &mut OutBuffer::around_pos(&mut output, written))
                .map_err(|error| self.damaged(error))?;
            let read = source.pos();
            input.advance(read);
            let was_idle = read == 0 && output.len() == written;
            self.is_between_frames = if was_idle { self.is_between_frames } else { hint == 0 };
            self.has_more = output.len() == output.capacity() && !self.is_between_frames;
            if was_idle {
                break;
            }
        }
        self.left = self.left.checked_sub(output.len() as u64).ok_or_else(|| self.too_long())?;
        if output.is_empty() {
            return Ok(None);
        }
        // A short piece must not hold a large buffer for as long as somebody holds the piece.
        let is_sparse = output.len() < output.capacity() / 2;
        Ok(Some(if is_sparse { Bytes::copy_from_slice(&output) } else { output.into() }))
    }

    fn finish(&self) -> Result<()> {
        if self.is_between_frames && self.left == 0 {
            return Ok(());
        }
        let (size, got) = (self.size, self.size - self.left);
        Err(Error::invalid(format!("a compressed blob of {size} bytes ended after {got} bytes")))
    }

    fn too_long(&self) -> Error {
        Error::invalid(format!("a compressed blob of {} bytes goes on beyond its size", self.size))
    }

    fn damaged(&self, error: io::Error) -> Error {
        let message = format!(
            "a compressed blob of {} bytes is not zstd, is damaged or needs a window over {} MiB",
            self.size,
            (1 << WINDOW_LOG_MAX) >> 20
        );
        Error::invalid(message).with_source(error)
    }
}

/// Compression fails for want of memory only.
fn no_memory(error: io::Error) -> Error {
    Error::new(crate::error::Kind::Exhausted, "zstd could not go on").with_source(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;

    fn chunks(bytes: &[u8], piece: usize) -> Chunks {
        let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces).boxed()
    }

    async fn all(chunks: Chunks) -> Result<Vec<u8>> {
        let pieces: Vec<Bytes> = chunks.try_collect().await?;
        assert!(pieces.iter().all(|piece| !piece.is_empty() || pieces.len() == 1));
        Ok(pieces.concat())
    }

    /// Half of it repeats, half does not.
    fn content(size: usize, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..size)
            .map(|place| if (place / 1000) % 2 == 0 { (place % 7) as u8 } else { random.u8(..) })
            .collect()
    }

    fn block<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_compressed_is_read_back(size in 0..700_000_usize, cut in 1..300_000_usize, seed in any::<u64>()) {
            let content = content(size, seed);
            let frames = block(all(compressed(size as u64, chunks(&content, cut)))).unwrap();
            prop_assert_eq!(&zstd::decode_all(&frames[..]).unwrap(), &content);
            prop_assert!((frames.len() as u64) < compressed_max(size as u64));
            let cut = cut.min(frames.len() / 3 + 1);
            let decoded = block(all(decompressed(size as u64, chunks(&frames, cut)))).unwrap();
            prop_assert!(decoded == content);
            prop_assert!(decompress(size as u64, frames.clone().into()).unwrap() == content);
            // One byte more or less than it says, and one less than it has.
            prop_assert!(decompress(size as u64 + 1, frames.clone().into()).is_err());
            prop_assert!(size == 0 || decompress(size as u64 - 1, frames.clone().into()).is_err());
            prop_assert!(decompress(size as u64, Bytes::from(frames.clone()).split_to(frames.len() - 1)).is_err());
        }

        #[test]
        fn garbage_is_invalid_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 1..2000), size in 0..5000_u64) {
            let _ = decompress(size, Bytes::from(bytes.clone()));
            let mut damaged = zstd::encode_all(&content(3000, 1)[..], 3).unwrap();
            let place = usize::from(bytes[0]) % damaged.len();
            damaged[place] ^= bytes[bytes.len() / 2] | 1;
            if let Err(error) = decompress(3000, damaged.into()) {
                prop_assert_eq!(error.kind(), Kind::Invalid);
            }
        }
    }

    #[test]
    fn several_frames_are_one_blob() {
        let parts = [content(5000, 1), Vec::new(), content(30_000, 2)];
        let frames: Vec<u8> = parts.iter().flat_map(|part| zstd::encode_all(&part[..], 3).unwrap()).collect();
        let whole = parts.concat();
        assert_eq!(decompress(whole.len() as u64, frames.clone().into()).unwrap(), whole);
        for piece in [1, 17, 100_000] {
            assert_eq!(block(all(decompressed(whole.len() as u64, chunks(&frames, piece)))).unwrap(), whole);
        }
        let mut trailing = frames.clone();
        trailing.extend_from_slice(b"garbage");
        assert_eq!(decompress(whole.len() as u64, trailing.into()).unwrap_err().kind(), Kind::Invalid);
        let cut = Bytes::from(frames).split_to(2000);
        assert_eq!(decompress(whole.len() as u64, cut).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn the_empty_blob_may_come_as_an_empty_frame_or_as_nothing() {
        let frame = zstd::encode_all(&b""[..], 3).unwrap();
        assert_eq!(decompress(0, frame.into()).unwrap(), "");
        assert_eq!(decompress(0, Bytes::new()).unwrap(), "");
        assert_eq!(zstd::decode_all(&block(all(compressed(0, chunks(b"", 1)))).unwrap()[..]).unwrap(), b"");
    }

    /// 12 KiB that inflate to 128 MiB.
    fn bomb() -> Vec<u8> {
        zstd::encode_all(io::Read::take(io::repeat(0), 128 << 20), 1).unwrap()
    }

    #[test]
    fn a_bomb_is_refused_at_the_first_byte_too_many() {
        let bomb = bomb();
        assert!(bomb.len() < 16 << 10, "{}", bomb.len());
        for size in [100, 1_000_000] {
            let mut given = 0;
            let mut stream = decompressed(size, chunks(&bomb, 10_000));
            let error = loop {
                match block(stream.try_next()) {
                    Ok(piece) => given += piece.unwrap().len() as u64,
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(given <= size, "{given}");
        }
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(WINDOW_LOG_MAX + 2).unwrap();
        io::Write::write_all(&mut encoder, &content(300_000, 1)).unwrap();
        let error = decompress(300_000, encoder.finish().unwrap().into()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("over 8 MiB"), "{error}");
    }

    #[test]
    fn only_what_shrinks_is_compressed_in_a_batch() {
        let random = content(2000, 9)[1000..2000].to_vec();
        let blobs = [vec![7; 5000], random, vec![7; 10], content(9000, 3)].map(Bytes::from);
        let compressed = compress_all(&blobs).unwrap();
        let shrunk: Vec<bool> = compressed.iter().map(Option::is_some).collect();
        assert_eq!(shrunk, [true, false, false, true]);
        for (blob, compressed) in blobs.iter().zip(compressed) {
            let Some(compressed) = compressed else { continue };
            assert_eq!(decompress(blob.len() as u64, compressed).unwrap(), *blob);
        }
    }
}
