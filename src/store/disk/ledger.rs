//! What the store knows about its blobs, written into the index.
//!
//! Five kinds of record, told apart by the first byte of the key: `e` the entry of a name; `i` its inlined bytes, which are apart so
//! that look-ups and scans of many entries do not drag them along; `u` the minute of its last noted use;
//! `q` the queue of eviction, which has for a minute and a number the names that were put or used then; `m` the totals and notes.
//! A name may stand in the queue several times; only the place of its latest use counts. So neither a put nor an eviction ever
//! looks at more than the names that it is about, and the totals are right without a scan, because they change with the entries.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;

use super::entry::{Entry, HEADER_BYTES, Location};
use crate::error::Result;
use crate::index::{Batch, COMMIT_BYTES_MAX, COMMIT_OPERATIONS_MAX, Index, Origin};
use crate::store::name::Name;

const ENTRY: u8 = b'e';
const INLINED: u8 = b'i';
const USE: u8 = b'u';
const QUEUE: u8 = b'q';
const TOTALS_KEY: &[u8] = b"mtotals";
const SCRUB_KEY: &[u8] = b"mscrub";

/// Attempts to read an entry that is replaced again and again meanwhile.
const READS_MAX: usize = 10;

/// Where a scan of the queue begins.
pub(super) const QUEUE_START: &[u8] = &[QUEUE];

/// The sums of what all entries take from the disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) files: u64,
    pub(super) inline: u64,
}

impl Totals {
    pub(super) fn bytes(&self) -> u64 {
        self.files + self.inline
    }

    fn of(&mut self, entry: &Entry) -> &mut u64 {
        match entry.location {
            Location::File { .. } | Location::Compressed { .. } => &mut self.files,
            Location::Inline(_) => &mut self.inline,
        }
    }
}

/// A piece of the queue: names in the order in which they were put or used.
pub(super) struct Record {
    pub(super) key: Vec<u8>,
    pub(super) minute: u32,
    /// Grows from draft to draft.
    pub(super) sequence: u64,
    pub(super) names: Vec<Name>,
}

/// The index, read and written as entries.
pub(super) struct Ledger {
    index: Index,
}

impl Ledger {
    pub(super) fn open(path: &Path) -> Result<(Self, Origin)> {
        let (index, origin) = Index::open(path)?;
        Ok((Self { index }, origin))
    }

    /// Whether the index could not be read and should be opened again.
    pub(super) fn has_failed(&self) -> bool {
        self.index.has_failed()
    }

    pub(super) fn reopen(&self) -> Result<Origin> {
        self.index.reopen()
    }

    /// Has each commit run `pause` between visible and durable.
    #[cfg(test)]
    pub(super) fn before_sync(&self, pause: Option<crate::index::BeforeSync>) {
        *self.index.before_sync.lock().unwrap() = pause;
    }

    /// The bytes that the index itself takes from the disk.
    pub(super) fn index_bytes(&self) -> u64 {
        self.index.bytes()
    }

    pub(super) fn entry(&self, name: &Name) -> Result<Option<Entry>> {
        for _ in 0..READS_MAX {
            let Some(header) = self.index.get(&key(ENTRY, name))? else { return Ok(None) };
            if let Some(entry) = self.with_inlined(name, &header)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The entry with its inlined bytes; `None` when the two do not fit, because a commit came between their reads.
    fn with_inlined(&self, name: &Name, header: &[u8]) -> Result<Option<Entry>> {
        if let Some(entry) = Entry::decode(header) {
            return Ok(Some(entry));
        }
        let inlined = self.index.get(&key(INLINED, name))?;
        Ok(inlined.and_then(|inlined| Entry::decode(&[header, &inlined].concat())))
    }

    /// The size of a blob, without its bytes.
    pub(super) fn size(&self, name: &Name) -> Result<Option<u64>> {
        let value = self.index.get(&key(ENTRY, name))?;
        Ok(value.and_then(|value| Entry::decode_size(&value)))
    }

    /// The next `count` names after `after`, in an order of their own, with their entries; `None` for what is no entry.
    pub(super) fn page(&self, after: Option<&Name>, count: usize) -> Result<Vec<(Name, Option<Entry>)>> {
        let from = after.map_or_else(|| vec![ENTRY], |name| key(ENTRY, name));
        let page = self.index.page(Bound::Excluded(&from), ENTRY, count)?;
        let mut entries = Vec::with_capacity(page.len());
        for (key, header) in page {
            if let Some(name) = Name::parse_all(&key[1..]).next() {
                entries.push((name, self.with_inlined(&name, &header)?));
            }
        }
        Ok(entries)
    }

    /// What a scrub has noted about itself.
    pub(super) fn scrub_note(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.index.get(SCRUB_KEY)?.map(|note| note.to_vec()))
    }

    /// The minute of the latest use that is written down.
    pub(super) fn last_use(&self, name: &Name, entry: &Entry) -> Result<u32> {
        let value = self.index.get(&key(USE, name))?;
        let noted = value.and_then(|value| value.first_chunk().map(|minute| u32::from_be_bytes(*minute)));
        Ok(noted.unwrap_or(0).max(entry.minute))
    }

    pub(super) fn totals(&self) -> Result<Totals> {
        let Some(value) = self.index.get(TOTALS_KEY)? else { return Ok(Totals::default()) };
        let mut numbers = value.as_chunks::<8>().0.iter().map(|number| u64::from_be_bytes(*number));
        let (files, inline) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Ok(Totals { files, inline })
    }

    /// The first record of the queue from `from` on.
    pub(super) fn record(&self, from: &[u8]) -> Result<Option<Record>> {
        let Some((key, names)) = self.index.first(from, QUEUE)? else { return Ok(None) };
        let minute = key.get(1..).and_then(|key| key.first_chunk()).map_or(0, |it| u32::from_be_bytes(*it));
        let sequence = key.last_chunk().map_or(0, |it| u64::from_be_bytes(*it));
        Ok(Some(Record { key: key.to_vec(), minute, sequence, names: Name::parse_all(&names).collect() }))
    }

    /// Makes the draft visible, calls `between`, and makes the draft durable. Gives the totals after it.
    pub(super) fn commit(&self, draft: Draft, between: impl FnOnce()) -> Result<Totals> {
        let totals = draft.totals;
        self.index.commit(draft.into_batch(), between)?;
        Ok(totals)
    }
}

/// Changes that are committed together.
pub(super) struct Draft {
    batch: Batch,
    minute: u32,
    /// Makes the queue's keys unique within a minute.
    sequence: u64,
    queued: Vec<Name>,
    /// What the draft makes of entries, so that its later changes see the earlier ones.
    entries: HashMap<Name, Option<Entry>>,
    totals: Totals,
    bytes: usize,
}

impl Draft {
    /// A draft at `minute` on top of `totals`; `sequence` must be another for each draft of a minute.
    pub(super) fn new(totals: Totals, minute: u32, sequence: u64) -> Self {
        let (batch, queued, entries) = (Batch::default(), Vec::new(), HashMap::new());
        Self { batch, minute, sequence, queued, entries, totals, bytes: 0 }
    }

    /// Whether `operations` more with `bytes` fit into one commit.
    pub(super) fn has_room_for(&self, operations: usize, bytes: usize) -> bool {
        // Each is an entry and its bytes; the queue's record and the totals are written besides.
        2 * (self.entries.len() + operations) + 2 <= COMMIT_OPERATIONS_MAX
            && self.bytes + bytes <= COMMIT_BYTES_MAX
    }

    pub(super) fn minute(&self) -> u32 {
        self.minute
    }

    /// The entry as it will be.
    pub(super) fn entry(&self, ledger: &Ledger, name: &Name) -> Result<Option<Entry>> {
        match self.entries.get(name) {
            Some(entry) => Ok(entry.clone()),
            None => ledger.entry(name),
        }
    }

    /// Sets the entry of `name`, which was `old`, and queues it at `entry.minute` or the draft's.
    pub(super) fn insert(&mut self, name: &Name, old: Option<&Entry>, location: Location) {
        let entry = Entry { location, minute: self.minute };
        self.subtract(old);
        *self.totals.of(&entry) += entry.charge();
        let encoded = entry.encode();
        self.bytes += encoded.len() + 4 * Name::BYTES_MAX;
        let is_inline = matches!(entry.location, Location::Inline(_));
        let (header, inlined) = encoded.split_at(if is_inline { HEADER_BYTES } else { encoded.len() });
        self.batch.insert(&key(ENTRY, name), header.to_vec());
        if !inlined.is_empty() {
            self.batch.insert(&key(INLINED, name), inlined.to_vec());
        } else if old.is_some_and(|old| matches!(old.location, Location::Inline(_))) {
            self.batch.remove(&key(INLINED, name));
        }
        self.queued.push(*name);
        self.entries.insert(*name, Some(entry));
    }

    pub(super) fn remove(&mut self, name: &Name, old: &Entry) {
        self.subtract(Some(old));
        self.bytes += 3 * Name::BYTES_MAX;
        self.batch.remove(&key(ENTRY, name));
        if matches!(old.location, Location::Inline(_)) {
            self.batch.remove(&key(INLINED, name));
        }
        self.batch.remove(&key(USE, name));
        self.entries.insert(*name, None);
    }

    /// Notes a use at the draft's minute.
    pub(super) fn note_use(&mut self, name: &Name) {
        self.bytes += 3 * Name::BYTES_MAX;
        self.batch.insert(&key(USE, name), self.minute.to_be_bytes().to_vec());
        self.queued.push(*name);
    }

    /// Notes what a scrub wants to find again.
    pub(super) fn note_scrub(&mut self, note: Vec<u8>) {
        self.batch.insert(SCRUB_KEY, note);
    }

    /// The index knows all files.
    pub(super) fn finish_index(&mut self) {
        self.batch.finish_index();
    }

    /// The names whose entries the draft sets.
    pub(super) fn inserted(&self) -> impl Iterator<Item = Name> {
        self.entries.iter().filter(|(_, entry)| entry.is_some()).map(|(name, _)| *name)
    }

    /// Whether the draft sets or removes the entry of `name`.
    pub(super) fn changes(&self, name: &Name) -> bool {
        self.entries.contains_key(name)
    }

    /// Leaves only `rest` in a record of the queue.
    pub(super) fn shorten(&mut self, record: &Record, rest: &[Name]) {
        if rest.is_empty() {
            self.batch.remove(&record.key);
        } else {
            self.batch.insert(&record.key, concatenated(rest));
        }
    }

    fn subtract(&mut self, old: Option<&Entry>) {
        if let Some(old) = old {
            let total = self.totals.of(old);
            *total = total.saturating_sub(old.charge());
        }
    }

    fn into_batch(mut self) -> Batch {
        if !self.queued.is_empty() {
            let mut key = vec![QUEUE];
            key.extend_from_slice(&self.minute.to_be_bytes());
            key.extend_from_slice(&self.sequence.to_be_bytes());
            self.batch.insert(&key, concatenated(&self.queued));
        }
        if !self.entries.is_empty() {
            let totals = [self.totals.files.to_be_bytes(), self.totals.inline.to_be_bytes()].concat();
            self.batch.insert(TOTALS_KEY, totals);
        }
        self.batch
    }
}

fn key(kind: u8, name: &Name) -> Vec<u8> {
    [&[kind], name.as_bytes()].concat()
}

fn concatenated(names: &[Name]) -> Vec<u8> {
    names.iter().flat_map(|name| name.as_bytes()).copied().collect()
}
