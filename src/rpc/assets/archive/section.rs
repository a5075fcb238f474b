//! A part of a file as a reader of its own.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::broken;

/// `size` bytes of a file, read from its own position; all clones share the file and nothing else.
#[derive(Debug, Clone)]
pub(super) struct Section {
    file: Arc<File>,
    start: u64,
    size: u64,
    position: u64,
}

impl Section {
    pub(super) fn new(file: Arc<File>, start: u64, size: u64) -> Self {
        Self { file, start, size, position: 0 }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// A part of this part, or `None` where it does not lie inside.
    pub(super) fn part(&self, start: u64, size: u64) -> Option<Self> {
        let end = start.checked_add(size)?;
        (end <= self.size).then(|| Self::new(Arc::clone(&self.file), self.start + start, size))
    }

    /// The first `count` bytes, or all where there are fewer.
    pub(super) fn beginning(&self, count: usize) -> crate::error::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(count);
        let mut first = Self { position: 0, ..self.clone() }.take(count as u64);
        first.read_to_end(&mut bytes).map_err(broken)?;
        Ok(bytes)
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = self.size.saturating_sub(self.position);
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..wanted], self.start + self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
