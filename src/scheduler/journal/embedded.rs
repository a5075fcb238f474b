//! Records in the embedded database, for a scheduler on one machine.
//!
//! A value that is too large for one safe commit (an answer may name 100,000 outputs) is written in parts beforehand, and its
//! record only says how many there are. Parts that no record names are left from a crash and go at the next start.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::super::record::{Record, RecordKey};
use super::codec::{self, Reader};
use super::{Change, GROUP_BYTES_MAX, Journal};
use crate::error::{Error, Kind, Result};
use crate::index::{Batch, COMMIT_BYTES_MAX, COMMIT_OPERATIONS_MAX, Index, Origin};
use crate::metrics;

/// How many entries are read at once when the journal is loaded.
const PAGE_ENTRIES: usize = 1000;

/// The largest value that is written whole: with it a group is still no larger than what is committed safely.
const VALUE_BYTES_MAX: usize = GROUP_BYTES_MAX / 2;

/// Bytes of one part.
const PART_BYTES: usize = COMMIT_BYTES_MAX / 2;

/// Parts are kept under this letter, the key of their record and their number.
const PART: u8 = b'p';

/// What stands in place of the value of a record that has parts: no version of the codec, and the number of parts.
const IN_PARTS: u8 = 0;

/// For the log, when a farm starts empty that was not new.
const LOST: &str = "the scheduler's journal is lost: what was queued and running is unknown, and clients will ask for it again";

pub(in super::super) struct Embedded {
    index: Index,
    /// How many parts the large records have. There are few of them: no more than finished operations.
    large: Mutex<BTreeMap<RecordKey, u32>>,
}

impl Embedded {
    /// Opens the journal in `path`, or begins a new one when there is none or it is damaged. Blocks.
    ///
    /// # Errors
    /// `Exhausted` when the disk is full, `Unavailable` when another process uses it or the medium fails.
    pub(in super::super) fn open(path: &Path) -> Result<Self> {
        let existed = path.exists();
        let (index, origin) = Index::open(path)?;
        let journal = Self { index, large: Mutex::default() };
        if origin == Origin::New {
            if existed {
                tracing::error!("{LOST}");
            }
            journal.finish()?;
        }
        Ok(journal)
    }

    /// A new journal is complete as it is: there is nothing beside it that it should know of.
    fn finish(&self) -> Result<()> {
        let mut batch = Batch::default();
        batch.finish_index();
        self.index.commit(batch, || {})
    }

    pub(super) fn begin_anew(&self) -> Result<()> {
        tracing::error!("{LOST}");
        self.large().clear();
        self.index.begin_anew()?;
        self.finish()
    }

    fn load_all(&self) -> Result<Vec<Record>> {
        let (mut reader, mut records, mut broken) = (Reader::default(), Vec::new(), Vec::new());
        for prefix in codec::PREFIXES {
            self.scan(prefix, |key, value| {
                match self.read(&mut reader, key, value) {
                    Ok(record) => records.push(record),
                    Err(error) if error.kind() == Kind::Corrupt => {
                        tracing::error!("a record of the journal is dropped: {}", error.chain());
                        broken.push(key.to_vec());
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            })?;
        }
        metrics::JOURNAL_DROPPED.inc_by(broken.len() as u64);
        self.remove(&broken)?;
        self.remove_orphans()?;
        Ok(records)
    }

    /// Hands every entry whose key begins with `prefix` to `each`.
    fn scan(&self, prefix: u8, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut last = vec![prefix];
        let mut from = Bound::Included(last.as_slice());
        loop {
            let page = self.index.page(from, prefix, PAGE_ENTRIES)?;
            for (key, value) in &page {
                each(key, value)?;
            }
            let Some((key, _)) = page.last() else { return Ok(()) };
            last = key.to_vec();
            from = Bound::Excluded(last.as_slice());
        }
    }

    /// Reads what stands under a key, from its parts if it has some.
    fn read(&self, reader: &mut Reader, key: &[u8], value: &[u8]) -> Result<Record> {
        let Some(count) = parts_of(value) else { return reader.record(key, value) };
        let mut whole = Vec::new();
        for number in 0..count {
            let part = self.index.get(&part_key(key, number))?;
            whole.extend_from_slice(&part.ok_or_else(|| Error::new(Kind::Corrupt, "a part is missing"))?);
        }
        let record = reader.record(key, &whole)?;
        self.large().insert(record.key(), count);
        Ok(record)
    }

    /// Removes parts whose record was never written, or was dropped.
    fn remove_orphans(&self) -> Result<()> {
        let named: BTreeMap<Vec<u8>, u32> =
            self.large().iter().map(|(key, count)| (codec::key(key), *count)).collect();
        let mut orphans = Vec::new();
        self.scan(PART, |key, _| {
            let is_named = key[1..].split_last_chunk().is_some_and(|(record, number)| {
                named.get(record).is_some_and(|count| u32::from_be_bytes(*number) < *count)
            });
            if !is_named {
                orphans.push(key.to_vec());
            }
            Ok(())
        })?;
        self.remove(&orphans)
    }

    fn remove(&self, keys: &[Vec<u8>]) -> Result<()> {
        for some in keys.chunks(COMMIT_OPERATIONS_MAX) {
            let mut batch = Batch::default();
            for key in some {
                batch.remove(key);
            }
            self.index.commit(batch, || {})?;
        }
        Ok(())
    }

    /// Adds one change to the batch; parts of a large value are committed at once, before the record that names them.
    ///
    /// An operation finishes once, so a large record is never replaced by another that has different parts.
    fn stage(&self, batch: &mut Batch, (key, record): &Change) -> Result<()> {
        let name = codec::key(key);
        let parts = match record.as_ref().map(codec::value) {
            None => {
                batch.remove(&name);
                0
            }
            Some(value) if value.len() <= VALUE_BYTES_MAX => {
                batch.insert(&name, value);
                0
            }
            Some(value) => {
                let count = self.write_parts(&name, &value)?;
                batch.insert(&name, in_parts(count));
                count
            }
        };
        let old = if parts == 0 { self.large().remove(key) } else { self.large().insert(key.clone(), parts) };
        for number in parts..old.unwrap_or(0) {
            batch.remove(&part_key(&name, number));
        }
        Ok(())
    }

    fn write_parts(&self, name: &[u8], value: &[u8]) -> Result<u32> {
        let mut count = 0;
        for part in value.chunks(PART_BYTES) {
            let mut batch = Batch::default();
            batch.insert(&part_key(name, count), part.to_vec());
            self.index.commit(batch, || {})?;
            count += 1;
        }
        Ok(count)
    }

    fn large(&self) -> std::sync::MutexGuard<'_, BTreeMap<RecordKey, u32>> {
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for Embedded {
    fn load(&self) -> Result<Vec<Record>> {
        match self.load_all() {
            // A farm that does not start is worse than one that starts empty: clients send again what they still want.
            Err(error) if self.index.has_failed() => {
                tracing::error!("the scheduler's journal cannot be read: {}", error.chain());
                self.begin_anew()?;
                Ok(Vec::new())
            }
            loaded => loaded,
        }
    }

    fn commit(&self, changes: &[Change]) -> Result<()> {
        let mut batch = Batch::default();
        for change in changes {
            self.stage(&mut batch, change)?;
        }
        self.index.commit(batch, || {})
    }
}

fn part_key(name: &[u8], number: u32) -> Vec<u8> {
    [&[PART], name, &number.to_be_bytes()].concat()
}

fn in_parts(count: u32) -> Vec<u8> {
    [&[IN_PARTS][..], &count.to_be_bytes()].concat()
}

fn parts_of(value: &[u8]) -> Option<u32> {
    let (first, count) = value.split_first()?;
    let count = count.try_into().ok().filter(|_| *first == IN_PARTS)?;
    Some(u32::from_be_bytes(count))
}
