//! Entries of a page: keys with their values, or with word that they are erased.
//!
//! Each is the length of its key, that of its value (with one added; zero says that the key is erased), and then both.

use super::checked;
use crate::error::Result;

/// Bytes of the lengths: a worker's name is the longest key.
const KEY_LENGTH: usize = 2;
const VALUE_LENGTH: usize = 4;

/// A key and its value.
pub(in super::super) type Entry<'a> = (&'a [u8], Option<&'a [u8]>);

/// How many bytes an entry takes.
pub(in super::super) fn entry_bytes(key: &[u8], value: Option<&[u8]>) -> usize {
    KEY_LENGTH + VALUE_LENGTH + key.len() + value.map_or(0, <[u8]>::len)
}

/// Appends an entry.
pub(in super::super) fn write_entry(key: &[u8], value: Option<&[u8]>, page: &mut Vec<u8>) {
    let key_length = u16::try_from(key.len()).expect("no name of a worker has more than 256 bytes");
    let value_length = value.map_or(0, |value| value.len() + 1);
    let value_length = u32::try_from(value_length).expect("larger values are written in parts");
    page.extend_from_slice(&key_length.to_be_bytes());
    page.extend_from_slice(&value_length.to_be_bytes());
    page.extend_from_slice(key);
    page.extend_from_slice(value.unwrap_or_default());
}

/// The entries of a page, up to the first that is broken.
pub(in super::super) struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    pub(in super::super) fn of(page: &'a [u8]) -> Self {
        Self(page)
    }

    fn entry(&mut self) -> Option<Entry<'a>> {
        let (key_length, rest) = self.0.split_first_chunk()?;
        let (value_length, rest) = rest.split_first_chunk()?;
        let (key, rest) = rest.split_at_checked(u16::from_be_bytes(*key_length).into())?;
        let value_length = usize::try_from(u32::from_be_bytes(*value_length)).ok()?;
        let (value, rest) = match value_length.checked_sub(1) {
            None => (None, rest),
            Some(length) => rest.split_at_checked(length).map(|(value, rest)| (Some(value), rest))?,
        };
        self.0 = rest;
        Some((key, value))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let entry = checked(self.entry(), "a broken page");
        if entry.is_err() {
            self.0 = &[];
        }
        Some(entry)
    }
}
