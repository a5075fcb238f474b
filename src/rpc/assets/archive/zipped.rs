//! Reads archives of zip, entry by entry along their directory.
//!
//! Crates for zip hold the whole directory in memory, and reserve room for as many entries as an archive of a few bytes claims to
//! have. What is needed of the format is little: the directory at the end, and entries that are stored or deflated.

use std::io::{BufReader, Read};

use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::outbox::Outbox;
use super::section::Section;
use super::tree::{File, PATH_BYTES_MAX, Tree};
use super::{broken, refused};
use crate::error::{Error, Result};

/// The record at the end of an archive, without the comment behind it; and the longest comment.
const END_BYTES: usize = 22;
const COMMENT_BYTES_MAX: usize = 65_535;

/// The pointer to the larger record at the end, which stands before the small one, and that record.
const LOCATOR_BYTES: u64 = 20;
const LARGE_END_BYTES: u64 = 56;

/// An entry of the directory, and the header before an entry's content, both without what has a variable length.
const RECORD_BYTES: usize = 46;
const LOCAL_BYTES: u64 = 30;

/// Stands in a field that is too small for its value, which stands elsewhere then.
const ELSEWHERE: u64 = 0xffff_ffff;

/// The block of an entry's extra fields that has the large values.
const LARGE_VALUES: u64 = 1;

/// Set in the flags of an entry that is encrypted.
const ENCRYPTED: u64 = 1;

/// The system in an entry's version that means that the attributes have a mode of Unix.
const UNIX: u64 = 3;

/// The mode's bits for the type of a file, and the types that are unpacked; 0 is a mode without a type.
const TYPE_MASK: u64 = 0o170_000;
const TYPE_SYMLINK: u64 = 0o120_000;
const TYPE_FILE: u64 = 0o100_000;
const TYPE_FOLDER: u64 = 0o040_000;
const EXECUTABLE: u64 = 0o100;

/// Where the directory is.
struct Directory {
    section: Section,
    entries: u64,
}

/// An entry of the directory.
#[derive(Debug)]
struct Record {
    path: Vec<u8>,
    mode: u64,
    flags: u64,
    method: u64,
    crc: u64,
    packed_size: u64,
    size: u64,
    offset: u64,
}

/// Adds all that the archive holds to the tree.
///
/// # Errors
/// `Aborted` when the archive is broken, encrypted, packed in a way that we do not know, or holds what is no file, directory or link.
pub(super) fn read(archive: &Section, tree: &mut Tree, outbox: &mut Outbox) -> Result<()> {
    let directory = locate(archive)?;
    let (mut records, mut packed_left) = (BufReader::new(directory.section), archive.size());
    for _ in 0..directory.entries {
        let record = Record::read(&mut records)?;
        outbox.charge(RECORD_BYTES as u64)?;
        // Entries that share their content would have us unpack it for each, all of an archive a million times.
        packed_left = packed_left
            .checked_sub(record.packed_size)
            .ok_or_else(|| refused("the entries of the archive overlap"))?;
        add(archive, &record, (tree, outbox))?;
    }
    Ok(())
}

fn add(archive: &Section, record: &Record, (tree, outbox): (&mut Tree, &mut Outbox)) -> Result<()> {
    if record.path.ends_with(b"/") {
        return tree.add_folder(&record.path);
    }
    let mut content = Content { inner: record.open(archive)?, crc: Crc::new() };
    match record.mode & TYPE_MASK {
        TYPE_SYMLINK => {
            let mut target = Vec::new();
            let longest = PATH_BYTES_MAX as u64 + 1;
            content.by_ref().take(longest).read_to_end(&mut target).map_err(broken)?;
            tree.add_symlink(&record.path, &target)?;
        }
        0 | TYPE_FILE => {
            let digest = outbox.file(record.size, &mut content)?;
            tree.add_file(&record.path, File { digest, is_executable: record.mode & EXECUTABLE != 0 })?;
        }
        TYPE_FOLDER => return tree.add_folder(&record.path),
        _ => {
            let path = String::from_utf8_lossy(&record.path).into_owned();
            return Err(refused(format!("the archive holds what is no file, directory or link: `{path}`")));
        }
    }
    if u64::from(content.crc.sum()) == record.crc { Ok(()) } else { Err(malformed()) }
}

/// Finds the directory by the record at the archive's end.
fn locate(archive: &Section) -> Result<Directory> {
    let tail_bytes = archive.size().min((END_BYTES + COMMENT_BYTES_MAX) as u64);
    let tail_start = archive.size() - tail_bytes;
    let tail = bytes(archive, tail_start, tail_bytes)?;
    let is_end = |start: &usize| {
        let record = &tail[*start..];
        record.starts_with(b"PK\x05\x06") && number(record, 20, 2) == (record.len() - END_BYTES) as u64
    };
    let last = tail.len().checked_sub(END_BYTES).ok_or_else(malformed)?;
    let start = (0..=last).rev().find(is_end).ok_or_else(malformed)?;
    let record = &tail[start..];
    let (entries, size, offset) = (number(record, 10, 2), number(record, 12, 4), number(record, 16, 4));
    if entries == 0xffff || size == ELSEWHERE || offset == ELSEWHERE {
        return locate_large(archive, tail_start + start as u64);
    }
    Ok(Directory { section: archive.part(offset, size).ok_or_else(malformed)?, entries })
}

/// The same for an archive that is too large for the small record, which begins at `end`.
fn locate_large(archive: &Section, end: u64) -> Result<Directory> {
    let locator_start = end.checked_sub(LOCATOR_BYTES).ok_or_else(malformed)?;
    let locator = bytes(archive, locator_start, LOCATOR_BYTES)?;
    let record = bytes(archive, number(&locator, 8, 8), LARGE_END_BYTES)?;
    if !locator.starts_with(b"PK\x06\x07") || !record.starts_with(b"PK\x06\x06") {
        return Err(malformed());
    }
    let (entries, size, offset) = (number(&record, 32, 8), number(&record, 40, 8), number(&record, 48, 8));
    Ok(Directory { section: archive.part(offset, size).ok_or_else(malformed)?, entries })
}

impl Record {
    fn read(records: &mut impl Read) -> Result<Self> {
        let fixed = exactly(records, RECORD_BYTES)?;
        if !fixed.starts_with(b"PK\x01\x02") {
            return Err(malformed());
        }
        let length = |at| number(&fixed, at, 2) as usize;
        let path = exactly(records, length(28))?;
        let extra = exactly(records, length(30))?;
        exactly(records, length(32))?;
        let has_mode = number(&fixed, 5, 1) == UNIX;
        let mut record = Self {
            path,
            mode: if has_mode { number(&fixed, 40, 2) } else { 0 },
            flags: number(&fixed, 8, 2),
            method: number(&fixed, 10, 2),
            crc: number(&fixed, 16, 4),
            packed_size: number(&fixed, 20, 4),
            size: number(&fixed, 24, 4),
            offset: number(&fixed, 42, 4),
        };
        record.take_large_values(&extra)?;
        Ok(record)
    }

    /// The values that do not fit into their fields stand in a block of their own, in this order and only they.
    fn take_large_values(&mut self, extra: &[u8]) -> Result<()> {
        let mut large = block(extra, LARGE_VALUES);
        for value in [&mut self.size, &mut self.packed_size, &mut self.offset] {
            if *value == ELSEWHERE {
                let (first, rest) = large.split_at_checked(8).ok_or_else(malformed)?;
                (*value, large) = (number(first, 0, 8), rest);
            }
        }
        Ok(())
    }

    /// The content, unpacked. It stands behind a header of its own, of which only the length matters.
    fn open(&self, archive: &Section) -> Result<Box<dyn Read>> {
        if self.flags & ENCRYPTED != 0 {
            return Err(refused("the archive is encrypted"));
        }
        let local = bytes(archive, self.offset, LOCAL_BYTES)?;
        if !local.starts_with(b"PK\x03\x04") {
            return Err(malformed());
        }
        let start = self.offset + LOCAL_BYTES + number(&local, 26, 2) + number(&local, 28, 2);
        let packed = BufReader::new(archive.part(start, self.packed_size).ok_or_else(malformed)?);
        match self.method {
            0 => Ok(Box::new(packed)),
            8 => Ok(Box::new(DeflateDecoder::new(packed))),
            _ => Err(refused("the archive has a file that is neither stored nor deflated")),
        }
    }
}

/// Content whose checksum is kept.
struct Content {
    inner: Box<dyn Read>,
    crc: Crc,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.crc.update(&buffer[..count]);
        Ok(count)
    }
}

/// The first extra block with this mark; empty where there is none.
fn block(mut extra: &[u8], mark: u64) -> &[u8] {
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((content, next)) = rest.split_at_checked(number(head, 2, 2) as usize) else { break };
        if number(head, 0, 2) == mark {
            return content;
        }
        extra = next;
    }
    &[]
}

fn bytes(archive: &Section, start: u64, count: u64) -> Result<Vec<u8>> {
    let mut part = archive.part(start, count).ok_or_else(malformed)?;
    exactly(&mut part, count as usize)
}

/// `count` comes of fields of two bytes or of the constants above, so it is small.
fn exactly(source: &mut impl Read, count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    source.read_exact(&mut bytes).map_err(broken)?;
    Ok(bytes)
}

/// The number of `width` bytes at `at`, the lowest byte first. The caller has as many.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn malformed() -> Error {
    refused("the archive of zip is malformed")
}
