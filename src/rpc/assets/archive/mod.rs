//! Archives as trees of directories in the CAS.
//!
//! A thread reads the archive once from its beginning and hands over what it finds; the store takes that as it comes. In memory are
//! only the names, and all that an archive can make large has a bound.

mod outbox;
mod section;
mod tarball;
mod tree;
mod zipped;

use std::io::BufReader;

use flate2::read::MultiGzDecoder;
use futures_util::TryStreamExt;
use tokio::sync::mpsc;

use self::outbox::{Outbox, PIECES_MAX};
use self::section::Section;
use self::tree::Tree;
use super::spool::{Expected, Spool, Spools};
use super::{Parts, Wanted};
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::store::{Blob, Cas};
use crate::tasks;

/// The largest window of zstd that is decoded, as a power of two: 128 MiB, what its own tool takes without being asked.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Bytes at the beginning that tell the format: a header of tar.
const MAGIC_BYTES: usize = 512;

/// The kinds of archive that are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Tar,
    TarGzip,
    TarZstd,
    Zip,
}

impl Format {
    /// The format that the qualifier `resource_type` names.
    pub(super) fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/x-tar" => Some(Self::Tar),
            "application/gzip" | "application/x-gzip" => Some(Self::TarGzip),
            "application/zstd" => Some(Self::TarZstd),
            "application/zip" | "application/x-zip-compressed" => Some(Self::Zip),
            _ => None,
        }
    }

    fn of_content(beginning: &[u8]) -> Option<Self> {
        match beginning {
            [0x1f, 0x8b, ..] => Some(Self::TarGzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::TarZstd),
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Some(Self::Zip),
            _ => beginning.get(257..).is_some_and(|rest| rest.starts_with(b"ustar")).then_some(Self::Tar),
        }
    }

    /// Old archives of tar have no mark of their own.
    fn of_uri(uri: &str) -> Option<Self> {
        let path = uri.split(['?', '#']).next().unwrap_or_default();
        path.ends_with(".tar").then_some(Self::Tar)
    }
}

/// What the thread needs to read an archive.
struct Unpacking {
    section: Section,
    /// The format that the client says it is.
    named: Option<Format>,
    /// The format that an archive without a mark of its own has.
    unmarked: Option<Format>,
    directory: Option<String>,
    outbox: Outbox,
}

/// Stores all that the archive holds, and returns the digest of its root directory or of the directory that is wanted.
///
/// # Errors
/// `Aborted` when the archive is broken or holds what a tree of directories must not hold, `Exhausted` when it holds too much,
/// `NotFound` when it does not have the directory; what the store reports.
pub(super) async fn unpack(parts: &Parts, wanted: &Wanted, archive: &Digest) -> Result<Digest> {
    let cas = &parts.stored.cas;
    let section = open(cas, archive, parts.origin.spools()).await?;
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let unpacking = Unpacking {
        section,
        named: wanted.qualifiers.format,
        unmarked: Format::of_uri(&wanted.uri),
        directory: wanted.qualifiers.directory.clone(),
        outbox: Outbox {
            function: wanted.function,
            spools: parts.origin.spools().clone(),
            bytes_left: parts.config.size_max.as_u64(),
            sender,
        },
    };
    // When this future is dropped, so is the receiver, and the thread ends at the next thing that it hands over.
    let reading = tasks::blocking(move || unpacking.run());
    let stored = outbox::store(cas, receiver).await;
    let root = reading.await;
    stored?;
    root
}

/// The archive as a file; one that the store does not have as a file is copied to one.
async fn open(cas: &Cas, archive: &Digest, spools: &Spools) -> Result<Section> {
    let Some(blob) = cas.open(archive, 0).await? else {
        return Err(Error::new(Kind::Unavailable, "the archive was evicted before it could be unpacked"));
    };
    let blob = match blob {
        Blob::File { .. } => blob,
        blob @ (Blob::Whole(_) | Blob::Stream { .. }) => {
            let size = blob.size();
            let expected =
                Expected { function: archive.function(), integrity: None, size: Some(size), size_max: size };
            let (mut spool, mut chunks) = (Spool::new(spools, &expected)?, blob.into_chunks());
            while let Some(chunk) = chunks.try_next().await? {
                spool = tasks::blocking(move || spool.write(&chunk).map(|()| spool)).await?;
            }
            tasks::blocking(|| spool.finish()).await?.1
        }
    };
    match blob {
        Blob::File { file, offset, size } => Ok(Section::new(file, offset, size)),
        Blob::Whole(_) | Blob::Stream { .. } => Err(Error::bug("a spool is a file")),
    }
}

impl Unpacking {
    fn run(mut self) -> Result<Digest> {
        let format = self.format()?;
        let mut tree = Tree::default();
        let source = BufReader::new(self.section.clone());
        let outbox = &mut self.outbox;
        match format {
            Format::Tar => tarball::read(source, &mut tree, outbox)?,
            Format::TarGzip => tarball::read(MultiGzDecoder::new(source), &mut tree, outbox)?,
            Format::TarZstd => tarball::read(zstd_decoder(source)?, &mut tree, outbox)?,
            Format::Zip => zipped::read(&self.section, &mut tree, outbox)?,
        }
        tree.store(self.directory.as_deref(), &mut self.outbox)
    }

    fn format(&self) -> Result<Format> {
        let marked = Format::of_content(&self.section.beginning(MAGIC_BYTES)?);
        if self.named.is_some() && marked.is_some() && self.named != marked {
            return Err(refused("the archive is not of the kind that resource_type says"));
        }
        let none = || refused("the content is no archive of tar (plain, gzip or zstd) or zip");
        self.named.or(marked).or(self.unmarked).ok_or_else(none)
    }
}

fn zstd_decoder(source: BufReader<Section>) -> Result<impl std::io::Read> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(broken)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(broken)?;
    Ok(decoder)
}

/// The error for an archive that does not read.
fn broken(error: std::io::Error) -> Error {
    refused("the archive is broken").with_source(error)
}

/// The error for an archive that must not be unpacked.
fn refused(message: impl Into<String>) -> Error {
    Error::new(Kind::Aborted, message)
}

#[cfg(test)]
mod tests;
