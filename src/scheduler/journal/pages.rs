//! Where in the embedded log each record stands, so that the log does not grow beyond what is alive in it.
//!
//! The log is a sequence of pages, and a page a sequence of entries: a key with its record, or with word that it is erased. The last
//! entry of a key counts. Pages leave at the front alone: so an entry that erases outlives whatever it erases.

use std::collections::{BTreeMap, HashMap};

use super::super::record::RecordKey;

/// What is dead in the log at most before what is alive at its front is written again to make room: a small log is not worth it.
/// Tests have small logs.
const DEAD_BYTES_MIN: usize = if cfg!(test) { 32 << 10 } else { 4 << 20 };

/// What is known of the pages and of the records in them.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pages: BTreeMap<u64, Page>,
    /// The last entry of each key that is not erased.
    places: HashMap<RecordKey, Place>,
    bytes: usize,
    live_bytes: usize,
}

#[derive(Debug, Default)]
struct Page {
    bytes: usize,
    live_bytes: usize,
}

/// A page and a number of bytes, in one word: there may be some million places.
#[derive(Debug, Clone, Copy)]
struct Place(u64);

/// An entry is far smaller than 1 MiB; and a petabyte of pages takes no more than the rest of the bits.
const BYTES_BITS: u32 = 20;

/// The page that is next to leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Front {
    pub(super) number: u64,
    /// The bytes of what is alive in it.
    pub(super) live_bytes: usize,
}

impl Place {
    fn new(page: u64, bytes: usize) -> Self {
        Self(page << BYTES_BITS | bytes as u64 & ((1 << BYTES_BITS) - 1))
    }

    fn page(self) -> u64 {
        self.0 >> BYTES_BITS
    }

    fn bytes(self) -> usize {
        (self.0 & ((1 << BYTES_BITS) - 1)) as usize
    }
}

impl Pages {
    /// The number of the page after the last.
    pub(super) fn next_number(&self) -> u64 {
        self.pages.last_key_value().map_or(0, |(number, _)| number.saturating_add(1))
    }

    /// Adds a page behind all that are there.
    pub(super) fn add(&mut self, number: u64) {
        self.pages.insert(number, Page::default());
    }

    /// Notes an entry with a record in a page that was added.
    pub(super) fn keep(&mut self, key: RecordKey, page: u64, bytes: usize) {
        self.fill(page, bytes);
        if let Some(page) = self.pages.get_mut(&page) {
            page.live_bytes += bytes;
        }
        self.live_bytes += bytes;
        if let Some(old) = self.places.insert(key, Place::new(page, bytes)) {
            self.bury(old);
        }
    }

    /// Notes that a record is erased. Returns whether there was one.
    pub(super) fn erase(&mut self, key: &RecordKey) -> bool {
        let old = self.places.remove(key);
        old.map(|old| self.bury(old)).is_some()
    }

    /// Notes bytes of a page that are not alive.
    pub(super) fn fill(&mut self, page: u64, bytes: usize) {
        if let Some(page) = self.pages.get_mut(&page) {
            page.bytes += bytes;
            self.bytes += bytes;
        }
    }

    fn bury(&mut self, old: Place) {
        self.live_bytes -= old.bytes();
        if let Some(page) = self.pages.get_mut(&old.page()) {
            page.live_bytes -= old.bytes();
        }
    }

    /// Whether the entry of a key in this page is the one that counts.
    pub(super) fn counts(&self, key: &RecordKey, page: u64) -> bool {
        self.places.get(key).is_some_and(|place| place.page() == page)
    }

    /// The first page, if it is worth dropping: nothing is alive in it, or too much is dead in the log.
    pub(super) fn droppable_front(&self) -> Option<Front> {
        let (number, page) = self.pages.first_key_value()?;
        let is_wasteful = self.bytes - self.live_bytes > self.live_bytes.max(DEAD_BYTES_MIN);
        (page.live_bytes == 0 || is_wasteful)
            .then_some(Front { number: *number, live_bytes: page.live_bytes })
    }

    /// Forgets the first page, in which nothing is alive any more.
    pub(super) fn drop_front(&mut self) {
        if let Some((_, page)) = self.pages.pop_first() {
            self.bytes -= page.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::id::{ExecutionId, OperationId};
    use super::*;

    fn key(number: u128) -> RecordKey {
        RecordKey::Operation(OperationId::new(number))
    }

    #[test]
    fn the_last_entry_of_a_key_counts() {
        let mut pages = Pages::default();
        for page in [0, 1] {
            assert_eq!(pages.next_number(), page);
            pages.add(page);
            pages.keep(key(1), page, 10);
        }
        assert!(!pages.counts(&key(1), 0) && pages.counts(&key(1), 1));
        assert_eq!(pages.droppable_front().unwrap().number, 0);
        pages.drop_front();
        assert!(pages.droppable_front().is_none());
        assert!(pages.erase(&key(1)) && !pages.erase(&key(1)));
        assert_eq!(pages.droppable_front().unwrap().live_bytes, 0);
    }

    #[test]
    fn what_is_alive_leaves_the_front_when_too_much_is_dead_behind_it() {
        let mut pages = Pages::default();
        pages.add(0);
        pages.keep(RecordKey::Execution(ExecutionId::new(1)), 0, 10);
        pages.add(1);
        pages.fill(1, DEAD_BYTES_MIN);
        assert!(pages.droppable_front().is_none());
        pages.fill(1, 1);
        let front = pages.droppable_front().unwrap();
        assert_eq!((front.number, front.live_bytes), (0, 10));
    }
}
