//! Where two files differ: the line of a text, the sections of an ELF file, the members of an archive, else the byte.
//!
//! Both files are chosen by whoever builds, so all that is shown of them is short and escaped.

use std::fmt;

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::store::{Cas, Chunks};
use crate::tasks;

use super::objects;
use super::printable;

/// Bytes of a file that is looked into as a whole: two of them are in memory for each audit that runs.
const WHOLE_BYTES_MAX: u64 = 32 << 20;

/// Bytes of a file that is compared byte by byte: it is read from the store, and perhaps from far away, for a number.
const STREAMED_BYTES_MAX: u64 = 1 << 30;

/// Bytes from the start of a file in which a NUL shows that it is no text, as git does it.
const TEXT_BYTES_LOOKED_AT: usize = 8000;

/// Bytes of a line that are shown before and from its first difference.
const BEFORE_BYTES_MAX: usize = 40;
const SHOWN_BYTES_MAX: usize = 80;

/// Where two files differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "lowercase")]
pub enum Location {
    /// The first line that differs, from 1, and what is in it about there.
    Text { line: u64, before: String, again: String },
    /// Sections by name, the first few; none when only headers differ.
    Elf { sections: Vec<String>, unlisted: usize },
    /// Members of an `ar` archive by name, the first few, each with what differs in it; none when only the archive's index does.
    Archive { members: Vec<String>, unlisted: usize },
    /// The first byte that differs, from 0; how many do of those that both have; and both sizes.
    Bytes { offset: u64, differing: u64, before_bytes: u64, again_bytes: u64 },
}

/// Where the contents of two blobs differ; `None` when they are too large to look, or gone.
///
/// # Errors
/// What the store reports.
pub(super) async fn find(cas: &Cas, (before, again): (Digest, Digest)) -> Result<Option<Location>> {
    let largest = before.size().max(again.size());
    if largest > STREAMED_BYTES_MAX {
        return Ok(None);
    }
    if largest > WHOLE_BYTES_MAX {
        let (Some(one), Some(other)) = (cas.open(&before, 0).await?, cas.open(&again, 0).await?) else {
            return Ok(None);
        };
        return streamed((before.size(), again.size()), one.into_chunks(), other.into_chunks())
            .await
            .map(Some);
    }
    let one = cas.read(&before, WHOLE_BYTES_MAX).await?;
    let (Some(one), Some(other)) = (one, cas.read(&again, WHOLE_BYTES_MAX).await?) else { return Ok(None) };
    tasks::blocking(move || Ok(Some(within(&one, &other)))).await
}

/// Where two contents differ.
pub(super) fn within(before: &[u8], again: &[u8]) -> Location {
    let as_objects = || objects::archives(before, again).or_else(|| objects::elves(before, again));
    // The reader of objects must not end the farm with a panic, whatever somebody has built.
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(as_objects)).ok().flatten();
    found.or_else(|| text(before, again)).unwrap_or_else(|| bytes(before, again))
}

fn text(before: &[u8], again: &[u8]) -> Option<Location> {
    let is_text = |content: &[u8]| !content.iter().take(TEXT_BYTES_LOOKED_AT).any(|byte| *byte == 0);
    if !is_text(before) || !is_text(again) {
        return None;
    }
    let place = first_difference(before, again);
    let line = before[..place].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
    let start = before[..place].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let start = start.max(place.saturating_sub(BEFORE_BYTES_MAX));
    let shown = |content: &[u8]| {
        let rest = &content[start.min(content.len())..];
        let rest = &rest[..rest.len().min(place - start + SHOWN_BYTES_MAX)];
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        printable(&String::from_utf8_lossy(&rest[..end]))
    };
    Some(Location::Text { line, before: shown(before), again: shown(again) })
}

fn bytes(before: &[u8], again: &[u8]) -> Location {
    let mut difference = Counted::default();
    difference.count(before, again);
    difference.location((before.len() as u64, again.len() as u64))
}

fn first_difference(before: &[u8], again: &[u8]) -> usize {
    let common = before.len().min(again.len());
    before.iter().zip(again).position(|(one, other)| one != other).unwrap_or(common)
}

/// Bytes of two contents that were compared so far.
#[derive(Debug, Default)]
struct Counted {
    compared: u64,
    first: Option<u64>,
    differing: u64,
}

impl Counted {
    fn count(&mut self, before: &[u8], again: &[u8]) {
        if before != again {
            let first = self.compared + first_difference(before, again) as u64;
            self.first.get_or_insert(first);
            self.differing += before.iter().zip(again).filter(|(one, other)| one != other).count() as u64;
        }
        self.compared += before.len().min(again.len()) as u64;
    }

    fn location(self, (before_bytes, again_bytes): (u64, u64)) -> Location {
        let offset = self.first.unwrap_or(self.compared);
        Location::Bytes { offset, differing: self.differing, before_bytes, again_bytes }
    }
}

async fn streamed(sizes: (u64, u64), mut before: Chunks, mut again: Chunks) -> Result<Location> {
    let (mut counted, common) = (Counted::default(), sizes.0.min(sizes.1));
    let (mut one, mut other) = (bytes::Bytes::new(), bytes::Bytes::new());
    while counted.compared < common {
        for (rest, chunks) in [(&mut one, &mut before), (&mut other, &mut again)] {
            while rest.is_empty() {
                let ended = || Error::new(Kind::Unavailable, "an output ended early while it was compared");
                *rest = chunks.try_next().await?.ok_or_else(ended)?;
            }
        }
        let length = one.len().min(other.len());
        counted.count(&one.split_to(length), &other.split_to(length));
    }
    Ok(counted.location(sizes))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &[String], unlisted: &usize| {
            let more = if *unlisted > 0 { format!(" and {unlisted} more") } else { String::new() };
            names.join(", ") + &more
        };
        match self {
            Self::Text { line, before, again } => write!(f, "line {line}: `{before}`, then `{again}`"),
            Self::Elf { sections, .. } if sections.is_empty() => {
                f.write_str("in the headers of the ELF file")
            }
            Self::Elf { sections, unlisted } => write!(f, "in ELF sections {}", list(sections, unlisted)),
            Self::Archive { members, .. } if members.is_empty() => f.write_str("in the index of the archive"),
            Self::Archive { members, unlisted } => {
                write!(f, "in archive members {}", list(members, unlisted))
            }
            Self::Bytes { offset, differing, before_bytes, again_bytes } => {
                write!(f, "from byte {offset} on, {differing} bytes differ; ")?;
                write!(f, "it has {before_bytes} bytes, then {again_bytes}")
            }
        }
    }
}

#[cfg(test)]
#[path = "locate_tests.rs"]
mod tests;
