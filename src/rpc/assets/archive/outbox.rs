//! The way of content from the thread that reads an archive to the store.

use std::io::Read;

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, Sender};

use super::super::spool::{Expected, Spool, Spools};
use super::{broken, refused};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::store::{Blob, CHUNK_BYTES, Cas};

/// Blobs between the thread and the store: together with [`SMALL_BYTES_MAX`] the memory of one unpacking, 8 MiB.
pub(super) const PIECES_MAX: usize = 32;

/// Files up to this size go through memory, larger ones through a file of their own.
const SMALL_BYTES_MAX: u64 = CHUNK_BYTES as u64;

/// A blob of the tree.
pub(super) type Piece = (Digest, Blob);

/// Where the thread leaves what it has read. All of it blocks.
pub(super) struct Outbox {
    pub(super) function: Function,
    pub(super) spools: Spools,
    /// What the archive may still unpack to.
    pub(super) bytes_left: u64,
    pub(super) sender: Sender<Piece>,
}

impl Outbox {
    /// Counts bytes of the unpacked archive, before they are read.
    ///
    /// # Errors
    /// `Exhausted` when the archive holds more than it may, `Cancelled` when nobody waits for it any more: an archive of names alone
    /// hands nothing over for a long time.
    pub(super) fn charge(&mut self, size: u64) -> Result<()> {
        if self.sender.is_closed() {
            return Err(abandoned());
        }
        let left = self.bytes_left.checked_sub(size);
        self.bytes_left = left
            .ok_or_else(|| Error::new(Kind::Exhausted, "the archive unpacks to more bytes than are taken"))?;
        Ok(())
    }

    /// Takes a file of exactly `size` bytes.
    ///
    /// # Errors
    /// `Aborted` when it has fewer or more, `Exhausted` when the archive holds too much.
    pub(super) fn file(&mut self, size: u64, mut content: impl Read) -> Result<Digest> {
        self.charge(size)?;
        let (digest, blob) = if size <= SMALL_BYTES_MAX {
            let bytes = read_small(size, content)?;
            (self.function.hash(&bytes), Blob::Whole(bytes))
        } else {
            self.spool(size, &mut content)?
        };
        self.send((digest, blob))?;
        Ok(digest)
    }

    pub(super) fn message(&mut self, bytes: Bytes) -> Result<Digest> {
        let digest = self.function.hash(&bytes);
        self.send((digest, Blob::Whole(bytes)))?;
        Ok(digest)
    }

    fn spool(&self, size: u64, content: &mut impl Read) -> Result<Piece> {
        let expected =
            Expected { function: self.function, integrity: None, size: Some(size), size_max: size };
        let (mut spool, mut buffer, mut left) =
            (Spool::new(&self.spools, &expected)?, vec![0; CHUNK_BYTES], size);
        loop {
            let count = content.read(&mut buffer).map_err(broken)?;
            left = match (count, left) {
                (0, 0) => return spool.finish(),
                (0, _) => return Err(wrong_size()),
                (count, left) => left.checked_sub(count as u64).ok_or_else(wrong_size)?,
            };
            spool.write(&buffer[..count])?;
        }
    }

    fn send(&self, piece: Piece) -> Result<()> {
        self.sender.blocking_send(piece).map_err(|_| abandoned())
    }
}

fn abandoned() -> Error {
    Error::new(Kind::Cancelled, "nobody waits for the archive any more")
}

fn read_small(size: u64, content: impl Read) -> Result<Bytes> {
    let mut bytes = Vec::new();
    // One byte more shows that there is more.
    content.take(size + 1).read_to_end(&mut bytes).map_err(broken)?;
    if bytes.len() as u64 == size { Ok(bytes.into()) } else { Err(wrong_size()) }
}

fn wrong_size() -> Error {
    refused("a file of the archive does not have the size that the archive says")
}

/// Stores what comes until nothing more does.
///
/// # Errors
/// What the store reports.
pub(super) async fn store(cas: &Cas, mut receiver: Receiver<Piece>) -> Result<()> {
    let mut pieces = Vec::with_capacity(PIECES_MAX);
    while receiver.recv_many(&mut pieces, PIECES_MAX).await > 0 {
        let mut small = Vec::with_capacity(pieces.len());
        for (digest, blob) in pieces.drain(..) {
            match blob {
                Blob::Whole(bytes) => small.push((digest, bytes)),
                large @ (Blob::File { .. } | Blob::Stream { .. }) => cas.put(&digest, large).await?,
            }
        }
        cas.put_all(small).await.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}
