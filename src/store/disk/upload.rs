//! Receives a large blob: the next buffer is gathered, and hashed on its way, while the last one is written.

use std::pin::pin;

use bytes::Bytes;
use futures_util::future::join;
use futures_util::{FutureExt, TryStreamExt};

use super::Disk;
use super::compressed::Packer;
use super::files::Temporary;
use super::space::{Reservation, full};
use super::writer::Request;
use crate::error::{Error, Kind, Result};
use crate::store::name::Name;
use crate::store::{Blob, Chunks};
use crate::tasks;

/// Bytes that are handed over to a writing thread at once: at least, unless the blob ends, and at most. Two such buffers are in
/// memory for each blob on its way in.
const BUFFER_BYTES: usize = 512 * 1024;
const BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes for which room is kept before they come.
const AHEAD_BYTES: u64 = 16 * 1024 * 1024;

/// Stores `blob` as a file. A dropped future leaves nothing, because whatever runs then owns the temporary file and removes it.
pub(super) async fn put(disk: &Disk, name: Name, blob: Blob) -> Result<()> {
    let size = blob.size();
    if is_present(disk, name, size).await? {
        return Ok(());
    }
    let mut incoming = Incoming::admit(disk, size).await?;
    let temporary = incoming.receive(blob.into_chunks()).await?;
    disk.publish(name, temporary).await
}

/// A blob whose file is there is only marked; a result may be another one of the same size.
async fn is_present(disk: &Disk, name: Name, size: u64) -> Result<bool> {
    let shared = disk.shared();
    tasks::blocking(move || shared.is_present(&name, size)).await
}

/// A blob on its way in, and the room that is kept for it: for what has come and a little more. A client that declares much and sends
/// little must not empty the store.
struct Incoming<'a> {
    disk: &'a Disk,
    size: u64,
    received: u64,
    reservation: Reservation,
    packer: Packer,
}

impl<'a> Incoming<'a> {
    async fn admit(disk: &'a Disk, size: u64) -> Result<Self> {
        let space = &disk.shared.space;
        if size > space.limit() {
            let limit = space.limit();
            let message = format!("a blob of {size} bytes does not fit into a store of {limit} bytes");
            return Err(Error::new(Kind::Exhausted, message));
        }
        if !space.could_hold(size)? {
            return Err(full());
        }
        let (reservation, packer) = (space.reserve(0), disk.shared().packer()?);
        let mut incoming = Self { disk, size, received: 0, reservation, packer };
        incoming.cover(0).await?;
        Ok(incoming)
    }

    /// Finds room for what comes after the first `received` bytes.
    async fn cover(&mut self, received: u64) -> Result<()> {
        if self.reservation.bytes() >= self.size.min(received + AHEAD_BYTES / 2) {
            return Ok(());
        }
        self.reservation.grow_to(self.size.min(received + AHEAD_BYTES));
        if self.disk.shared().space.shortage(0)? > 0 {
            make_room(self.disk, 0).await?;
        }
        Ok(())
    }

    async fn receive(&mut self, mut chunks: Chunks) -> Result<Temporary> {
        let shared = self.disk.shared();
        let create = tasks::blocking(move || shared.files.create());
        let (temporary, first) = join(create, gather(&mut chunks)).await;
        let (mut temporary, mut buffer) = (temporary?, first?);
        loop {
            let is_last = buffer.is_last;
            let write = self.write(temporary, buffer);
            if is_last {
                let mut temporary = write.await?;
                self.packer.content_size().into_iter().for_each(|size| temporary.set_compressed(size));
                return Ok(temporary);
            }
            (temporary, buffer) = gather_during(write, &mut chunks).await?;
        }
    }

    /// Writes the buffer, and syncs the file after the last one. A full disk gets one chance to be emptied.
    async fn write(&mut self, temporary: Temporary, buffer: Buffer) -> Result<Temporary> {
        self.received += buffer.length as u64;
        self.cover(self.received).await?;
        let buffer = self.pack(buffer).await?;
        match attempt(temporary, buffer).await? {
            Attempt::Done(temporary) => Ok(temporary),
            Attempt::Full(temporary, rest) => {
                make_room(self.disk, rest.length as u64).await?;
                match attempt(temporary, rest).await? {
                    Attempt::Done(temporary) => Ok(temporary),
                    Attempt::Full(..) => Err(full()),
                }
            }
        }
    }

    /// What is to be written of the buffer at this time.
    async fn pack(&mut self, buffer: Buffer) -> Result<Buffer> {
        let mut packer = std::mem::replace(&mut self.packer, Packer::Plain);
        if matches!(packer, Packer::Plain) {
            return Ok(buffer);
        }
        let pack = move || {
            let pieces = packer.pack(buffer.pieces, buffer.is_last)?;
            let length = pieces.iter().map(Bytes::len).sum();
            Ok((packer, Buffer { pieces, length, is_last: buffer.is_last }))
        };
        let (packer, buffer) = tasks::blocking(pack).await?;
        self.packer = packer;
        Ok(buffer)
    }
}

async fn make_room(disk: &Disk, bytes: u64) -> Result<()> {
    disk.ask(|done| Request::MakeRoom { bytes, done }).await?
}

/// Gathers the next buffer while the last one is written. The longer that takes, the larger the buffer becomes, so that a busy
/// machine does not make many slow steps.
async fn gather_during(
    write: impl Future<Output = Result<Temporary>>,
    chunks: &mut Chunks,
) -> Result<(Temporary, Buffer)> {
    let mut write = pin!(write.fuse());
    let mut buffer = Buffer::default();
    let mut written = None;
    loop {
        let wants_more = !buffer.is_last
            && (buffer.length < BUFFER_BYTES || (written.is_none() && buffer.length < BUFFER_BYTES_MAX));
        match (wants_more, written.take()) {
            (false, Some(temporary)) => return Ok((temporary, buffer)),
            (false, None) => written = Some(write.as_mut().await?),
            (true, Some(temporary)) => {
                buffer.push(chunks.try_next().await?);
                written = Some(temporary);
            }
            (true, None) => tokio::select! {
                temporary = &mut write => written = Some(temporary?),
                chunk = chunks.try_next() => buffer.push(chunk?),
            },
        }
    }
}

/// Some bytes of a blob; the last ones end it.
#[derive(Default)]
struct Buffer {
    pieces: Vec<Bytes>,
    length: usize,
    is_last: bool,
}

impl Buffer {
    fn push(&mut self, chunk: Option<Bytes>) {
        self.is_last = chunk.is_none();
        self.length += chunk.as_ref().map_or(0, Bytes::len);
        self.pieces.extend(chunk);
    }
}

async fn gather(chunks: &mut Chunks) -> Result<Buffer> {
    let mut buffer = Buffer::default();
    while !buffer.is_last && buffer.length < BUFFER_BYTES {
        buffer.push(chunks.try_next().await?);
    }
    Ok(buffer)
}

enum Attempt {
    Done(Temporary),
    /// The disk is full; these bytes are not yet written.
    Full(Temporary, Buffer),
}

async fn attempt(mut temporary: Temporary, buffer: Buffer) -> Result<Attempt> {
    tasks::blocking(move || {
        let before = temporary.size();
        let written = temporary.write(&buffer.pieces);
        match written {
            // The kernel tells of a failed write-back once, so a sync that failed must not be tried again.
            Ok(()) if buffer.is_last => temporary.finish().map(|()| Attempt::Done(temporary)),
            Ok(()) => Ok(Attempt::Done(temporary)),
            Err(error) if error.kind() == Kind::Exhausted => {
                let rest = without(buffer, temporary.size() - before);
                Ok(Attempt::Full(temporary, rest))
            }
            Err(error) => Err(error),
        }
    })
    .await
}

/// The buffer after its first `written` bytes.
fn without(mut buffer: Buffer, mut written: u64) -> Buffer {
    for piece in &mut buffer.pieces {
        let cut = usize::try_from(written).map_or(piece.len(), |written| written.min(piece.len()));
        written -= cut as u64;
        *piece = piece.slice(cut..);
    }
    buffer.pieces.retain(|piece| !piece.is_empty());
    buffer.length = buffer.pieces.iter().map(Bytes::len).sum();
    buffer
}
