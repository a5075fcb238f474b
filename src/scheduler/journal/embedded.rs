//! Records in the embedded database, for a scheduler on one machine.
//!
//! A record has no entry of its own there: one takes the database ten times as long as all that is ours. Changes are written one
//! after the other into pages of some KiB, and [`Pages`] knows which of them still count. The pages of one commit are written one by
//! one, because a batch would hold up every reader of the store: the last of them says that it is, and those of a commit without
//! such a page are left from a crash.
//!
//! A value that is larger than a page (an answer may name 100,000 outputs) is written in parts beforehand, and its record only says
//! which they are. Parts that no record names are left from a crash and go at the next start.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::record::{Record, RecordKey};
use super::codec::{self, Entries, Reader};
use super::pages::Pages;
use super::{Change, Journal};
use crate::error::{Error, Kind, Result};
use crate::index::{Batch, COMMIT_BYTES_MAX, COMMIT_OPERATIONS_MAX, Index, Origin};
use crate::metrics;

/// How many entries of the database are read at once when the journal is loaded: at most 4 MiB, with a few exceptions.
const ENTRIES_AT_ONCE: usize = 1000;

/// Bytes of a page that is full, and of a part. The database writes up to 26 neighbours as one piece; one of more than 128 KiB becomes a
/// file of its own, which no sync of ours reaches, and a power cut takes the whole database with it.
const PAGE_BYTES: usize = 4 << 10;

/// The largest value that is written whole.
const VALUE_BYTES_MAX: usize = PAGE_BYTES;

/// Bytes of parts that are committed at once when there are more of them than one commit takes beside its pages.
const PARTS_BYTES: usize = COMMIT_BYTES_MAX / 2;

/// A record whose parts have reached this number begins again at zero: no record has half as many.
const PART_NUMBER_MAX: u32 = 1 << 30;

/// Pages that one commit drops at most, so that there is room for those that it writes.
const DROPPED_MAX: usize = COMMIT_OPERATIONS_MAX / 2;

/// Pages are kept under this letter and their number.
const PAGE: u8 = b'g';

/// The first byte of a page: whether it is the last one of its commit.
const MORE: u8 = 0;
const LAST: u8 = 1;

/// Parts are kept under this letter, the key of their record and their number.
const PART: u8 = b'p';

/// What stands in place of the value of a record that has parts: no version of the codec, and the numbers of its parts.
const IN_PARTS: u8 = 0;

/// Under this key stands how everything else is written. Changes when an old journal means something else to a new program.
const FORMAT_KEY: &[u8] = b"mjournal";
const FORMAT: &[u8] = b"croft journal 2";

/// For the log, when a farm starts empty that was not new.
const LOST: &str = "the scheduler's journal is lost: what was queued and running is unknown, and clients will ask for it again";

pub(in super::super) struct Embedded {
    index: Index,
    /// `None` until the records of a journal that was there are loaded.
    books: Mutex<Option<Books>>,
    /// Every change of the database, in their order.
    #[cfg(test)]
    pub(super) written: Mutex<Vec<Written>>,
}

/// A key of the database with its value, or with word that it goes.
pub(super) type Written = (Vec<u8>, Option<Vec<u8>>);

/// What is known of the journal without reading it.
#[derive(Default)]
struct Books {
    pages: Pages,
    /// The numbers of the parts that large records have. There are few such records.
    large: BTreeMap<RecordKey, Range<u32>>,
}

impl Embedded {
    /// Opens the journal in `path`, or begins a new one when there is none or it is damaged. Blocks.
    ///
    /// # Errors
    /// `Exhausted` when the disk is full, `Unavailable` when another process uses it or the medium fails.
    pub(in super::super) fn open(path: &Path) -> Result<Self> {
        let existed = path.exists();
        let (index, origin) = Index::open(path)?;
        let journal = Self {
            index,
            books: Mutex::default(),
            #[cfg(test)]
            written: Mutex::default(),
        };
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
        batch.insert(FORMAT_KEY, FORMAT.to_vec());
        batch.finish_index();
        self.index.commit(batch, || {})?;
        *self.books() = Some(Books::default());
        Ok(())
    }

    pub(super) fn begin_anew(&self) -> Result<()> {
        tracing::error!("{LOST}");
        self.index.begin_anew()?;
        self.finish()
    }

    fn load_all(&self) -> Result<Vec<Record>> {
        let mut books = Books { pages: self.read_pages()?, large: BTreeMap::new() };
        let (mut reader, mut records, mut broken) = (Reader::default(), Vec::new(), Vec::new());
        self.scan(PAGE, |name, page| {
            let number = page_number(name);
            for (name, value) in entries(page).filter_map(Result::ok) {
                let (Some(value), Ok(key)) = (value, codec::read_key(name)) else { continue };
                if !books.pages.counts(&key, number) {
                    continue;
                }
                match self.read(&mut reader, (name, value), &mut books) {
                    Ok(record) => records.push(record),
                    Err(error) if error.kind() == Kind::Corrupt => {
                        tracing::error!("a record of the journal is dropped: {}", error.chain());
                        broken.push((key, None));
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })?;
        self.remove_orphans(&books)?;
        *self.books() = Some(books);
        metrics::JOURNAL_DROPPED.inc_by(broken.len() as u64);
        for some in broken.chunks(COMMIT_OPERATIONS_MAX) {
            self.commit(some)?;
        }
        Ok(records)
    }

    /// Finds out which entries count, and removes the pages of a commit that did not come to its end.
    fn read_pages(&self) -> Result<Pages> {
        let (mut pages, mut commit) = (Pages::default(), Vec::new());
        self.scan(PAGE, |name, page| {
            commit.push((page_number(name), page.to_vec()));
            if page.first() != Some(&MORE) {
                commit.drain(..).for_each(|(number, page)| note_page(&mut pages, number, &page));
            }
            Ok(())
        })?;
        let unfinished: Vec<Vec<u8>> = commit.iter().map(|(number, _)| page_key(*number).to_vec()).collect();
        self.remove(&unfinished)?;
        Ok(pages)
    }

    /// Hands every entry whose key begins with `prefix` to `each`.
    fn scan(&self, prefix: u8, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut last = vec![prefix];
        let mut from = Bound::Included(last.as_slice());
        loop {
            let page = self.index.page(from, prefix, ENTRIES_AT_ONCE)?;
            for (key, value) in &page {
                each(key, value)?;
            }
            let Some((key, _)) = page.last() else { return Ok(()) };
            last = key.to_vec();
            from = Bound::Excluded(last.as_slice());
        }
    }

    /// Whether what is there is written in the way of this program. Nothing but the key is looked at.
    fn has_known_format(&self) -> Result<bool> {
        Ok(self.index.get(FORMAT_KEY)?.is_some_and(|format| *format == *FORMAT))
    }

    /// Reads a record, from its parts if it has some.
    fn read(&self, reader: &mut Reader, (name, value): (&[u8], &[u8]), books: &mut Books) -> Result<Record> {
        let Some(parts) = parts_of(value) else { return reader.record(name, value) };
        let mut whole = Vec::new();
        for number in parts.clone() {
            let part = self.index.get(&part_key(name, number))?;
            whole.extend_from_slice(&part.ok_or_else(|| Error::new(Kind::Corrupt, "a part is missing"))?);
        }
        let record = reader.record(name, &whole)?;
        books.large.insert(record.key(), parts);
        Ok(record)
    }

    /// Removes parts whose record was never written, or was dropped.
    fn remove_orphans(&self, books: &Books) -> Result<()> {
        let named: BTreeMap<Vec<u8>, &Range<u32>> =
            books.large.iter().map(|(key, parts)| (codec::key(key), parts)).collect();
        let mut orphans = Vec::new();
        self.scan(PART, |key, _| {
            let is_named = key[1..].split_last_chunk().is_some_and(|(record, number)| {
                named.get(record).is_some_and(|parts| parts.contains(&u32::from_be_bytes(*number)))
            });
            if !is_named {
                orphans.push(key.to_vec());
            }
            Ok(())
        })?;
        self.remove(&orphans)
    }

    fn remove(&self, keys: &[Vec<u8>]) -> Result<()> {
        keys.chunks(COMMIT_OPERATIONS_MAX)
            .try_for_each(|some| self.append(some.iter().map(|key| (key.clone(), None)).collect()))
    }

    /// Makes changes durable, one after the other.
    fn append(&self, changes: Vec<Written>) -> Result<()> {
        #[cfg(test)]
        self.written.lock().expect("no test panics with the lock").extend(changes.iter().cloned());
        self.index.append(changes)
    }

    /// Adds one change to a commit; parts of a large value come before the record that names them, and if there are many they are committed
    /// at once. Those that its key has already stay beside them until then.
    fn stage(&self, writing: &mut Writing, (key, record): &Change) -> Result<()> {
        let mut parts = None;
        match record {
            None => writing.erase(key),
            Some(record) => {
                let mut value = std::mem::take(&mut writing.value);
                value.clear();
                codec::write_value(record, &mut value);
                if value.len() > VALUE_BYTES_MAX {
                    let written = self.write_parts(writing, key, &value)?;
                    value = in_parts(&written);
                    parts = Some(written);
                }
                writing.keep(key, &value);
                writing.value = value;
            }
        }
        writing.note_parts(key, parts);
        Ok(())
    }

    /// Drops pages at the front of the log, as many as there is room for what is alive in them.
    fn shorten(&self, writing: &mut Writing) -> Result<()> {
        for _ in 0..DROPPED_MAX {
            let Some(front) = writing.books.pages.droppable_front() else { break };
            if front.number >= writing.first || writing.size() + front.live_bytes > COMMIT_BYTES_MAX {
                break;
            }
            if front.live_bytes > 0 {
                let page = self.index.get(&page_key(front.number))?;
                writing.move_up(front.number, &page.unwrap_or_default());
            }
            writing.books.pages.drop_front();
            writing.removed.push(page_key(front.number).to_vec());
        }
        Ok(())
    }

    /// Writes the parts of a value. Returns their numbers.
    fn write_parts(&self, writing: &mut Writing, key: &RecordKey, value: &[u8]) -> Result<Range<u32>> {
        let (first, name) = (writing.books.first_part(key), codec::key(key));
        let mut next = first;
        for part in value.chunks(PAGE_BYTES) {
            writing.parts.push((part_key(&name, next), Some(part.to_vec())));
            next += 1;
            if writing.parts.len() * PAGE_BYTES >= PARTS_BYTES {
                self.append(std::mem::take(&mut writing.parts))?;
            }
        }
        Ok(first..next)
    }

    fn books(&self) -> MutexGuard<'_, Option<Books>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for Embedded {
    fn load(&self) -> Result<Vec<Record>> {
        match self.has_known_format().and_then(|is_known| is_known.then(|| self.load_all()).transpose()) {
            Ok(None) => {
                tracing::error!("the scheduler's journal was written by another version of this program");
                self.begin_anew()?;
                Ok(Vec::new())
            }
            Ok(Some(records)) => Ok(records),
            // A farm that does not start is worse than one that starts empty: clients send again what they still want.
            Err(error) if self.index.has_failed() => {
                tracing::error!("the scheduler's journal cannot be read: {}", error.chain());
                self.begin_anew()?;
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    fn commit(&self, changes: &[Change]) -> Result<()> {
        let mut books = self.books();
        let books = books.as_mut().ok_or_else(|| Error::bug("write a journal that was not loaded"))?;
        let mut writing = Writing::new(books);
        for change in changes {
            self.stage(&mut writing, change)?;
        }
        self.shorten(&mut writing)?;
        let changes = writing.finish();
        changes.chunks(COMMIT_OPERATIONS_MAX).try_for_each(|some| self.append(some.to_vec()))
    }
}

impl Books {
    /// A number from which on the key has no parts.
    fn first_part(&self, key: &RecordKey) -> u32 {
        let end = self.large.get(key).map_or(0, |parts| parts.end);
        if end < PART_NUMBER_MAX { end } else { 0 }
    }
}

/// One commit that is being put together.
struct Writing<'a> {
    books: &'a mut Books,
    /// Parts, the pages after them in their order, and what is removed after those.
    parts: Vec<Written>,
    pages: Vec<Written>,
    removed: Vec<Vec<u8>>,
    /// The first page that it writes.
    first: u64,
    /// The page in hand and its number.
    page: Vec<u8>,
    number: u64,
    /// The bytes of all entries.
    bytes: usize,
    /// Where values are put together.
    value: Vec<u8>,
}

impl<'a> Writing<'a> {
    fn new(books: &'a mut Books) -> Self {
        let first = books.pages.next_number();
        Self {
            books,
            parts: Vec::new(),
            pages: Vec::new(),
            removed: Vec::new(),
            first,
            page: Vec::new(),
            number: first,
            bytes: 0,
            value: Vec::new(),
        }
    }

    /// About how many bytes it has.
    fn size(&self) -> usize {
        self.bytes + self.parts.len() * PAGE_BYTES
    }

    fn keep(&mut self, key: &RecordKey, value: &[u8]) {
        let bytes = self.write(&codec::key(key), Some(value));
        self.books.pages.keep(key.clone(), self.number, bytes);
    }

    /// What was never written, or is erased already, needs no word.
    fn erase(&mut self, key: &RecordKey) {
        if self.books.pages.erase(key) {
            let bytes = self.write(&codec::key(key), None);
            self.books.pages.fill(self.number, bytes);
        }
    }

    /// Writes what still counts of a page once more.
    fn move_up(&mut self, number: u64, page: &[u8]) {
        for (name, value) in entries(page).filter_map(Result::ok) {
            if let (Some(value), Ok(key)) = (value, codec::read_key(name))
                && self.books.pages.counts(&key, number)
            {
                self.keep(&key, value);
            }
        }
    }

    fn write(&mut self, name: &[u8], value: Option<&[u8]>) -> usize {
        let bytes = codec::entry_bytes(name, value);
        if !self.page.is_empty() && self.page.len() + bytes > PAGE_BYTES {
            self.finish_page();
        }
        if self.page.is_empty() {
            self.page.push(MORE);
            self.books.pages.add(self.number);
        }
        codec::write_entry(name, value, &mut self.page);
        self.bytes += bytes;
        bytes
    }

    fn finish_page(&mut self) {
        let page = std::mem::replace(&mut self.page, Vec::with_capacity(PAGE_BYTES));
        self.pages.push((page_key(self.number).to_vec(), Some(page)));
        self.number += 1;
    }

    /// The parts that a record has from here on; those that it had go.
    fn note_parts(&mut self, key: &RecordKey, parts: Option<Range<u32>>) {
        let large = &mut self.books.large;
        let old = match parts {
            None => large.remove(key),
            Some(parts) => large.insert(key.clone(), parts),
        };
        let name = codec::key(key);
        self.removed.extend(old.into_iter().flatten().map(|number| part_key(&name, number)));
    }

    /// All changes of the database, in their order.
    fn finish(mut self) -> Vec<Written> {
        if let Some(first) = self.page.first_mut() {
            *first = LAST;
            self.finish_page();
        } else if let Some((_, Some(page))) = self.pages.last_mut() {
            page[0] = LAST;
        }
        let removed = self.removed.into_iter().map(|key| (key, None));
        self.parts.into_iter().chain(self.pages).chain(removed).collect()
    }
}

/// What comes after a break in a page is lost, and told.
fn note_page(pages: &mut Pages, number: u64, page: &[u8]) {
    pages.add(number);
    for entry in entries(page) {
        let read = entry.and_then(|(name, value)| Ok((codec::read_key(name)?, name, value)));
        match read {
            Ok((key, name, Some(value))) => pages.keep(key, number, codec::entry_bytes(name, Some(value))),
            Ok((key, name, None)) => {
                pages.erase(&key);
                pages.fill(number, codec::entry_bytes(name, None));
            }
            Err(error) => {
                tracing::error!("records of the journal are dropped: {}", error.chain());
                metrics::JOURNAL_DROPPED.inc();
            }
        }
    }
}

fn entries(page: &[u8]) -> Entries<'_> {
    Entries::of(page.get(1..).unwrap_or_default())
}

fn page_key(number: u64) -> [u8; 9] {
    let mut key = [PAGE; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Pages are only ever written under a number; whatever else is there comes first.
fn page_number(name: &[u8]) -> u64 {
    name.get(1..).and_then(|number| number.try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn part_key(name: &[u8], number: u32) -> Vec<u8> {
    [&[PART], name, &number.to_be_bytes()].concat()
}

fn in_parts(parts: &Range<u32>) -> Vec<u8> {
    [&[IN_PARTS][..], &parts.start.to_be_bytes(), &parts.end.to_be_bytes()].concat()
}

fn parts_of(value: &[u8]) -> Option<Range<u32>> {
    let numbers = value.strip_prefix(&[IN_PARTS])?;
    let (start, end) = numbers.split_first_chunk()?;
    Some(u32::from_be_bytes(*start)..u32::from_be_bytes(end.try_into().ok()?))
}
