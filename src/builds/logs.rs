//! What running commands print, kept in memory while they run and a short while after.
//!
//! Each attempt has its own streams, since two may run at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::proto::worker::output::Stream;
use crate::scheduler::Lease;

/// Bytes of one stream that are kept: as many as a worker sends.
const STREAM_BYTES_MAX: usize = 1 << 20;

/// Bytes of all streams together. The oldest goes first, ended ones before those that still grow.
const TOTAL_BYTES_MAX: usize = 64 << 20;

/// What a stream counts on top of its text, so that their number is bounded, too.
const STREAM_OVERHEAD: usize = 1 << 10;

/// How long the output of an attempt that has ended stays. Its followers are done far sooner.
const ENDED_KEPT: Duration = Duration::from_secs(5 * 60);

/// Bytes of one message.
const CHUNK_BYTES: usize = 64 << 10;

/// The streams of running executions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    shelf: Arc<Mutex<Shelf>>,
}

type Key = (Lease, Stream);

#[derive(Debug, Default)]
struct Shelf {
    texts: BTreeMap<Key, Text>,
    /// What goes first comes first: the ended before the growing, the older before the younger.
    order: BTreeSet<(bool, u64, Key)>,
    /// What all texts count.
    bytes: usize,
    /// How many texts there have been.
    count: u64,
}

/// What one attempt has printed into one stream.
#[derive(Debug)]
struct Text {
    number: u64,
    bytes: Vec<u8>,
    /// What follows is left out: it is full, or something was missed.
    is_cut: bool,
    ended: Option<Instant>,
}

impl Logs {
    /// Takes more of what an attempt has printed.
    ///
    /// A piece that does not follow what is here is left out, and so is all that comes after it: what is here is always the beginning.
    pub fn append(&self, lease: Lease, stream: Stream, (offset, data): (u64, &[u8])) {
        let mut shelf = self.lock();
        let key = (lease, stream);
        if !shelf.texts.contains_key(&key) {
            shelf.begin(key);
        }
        shelf.extend(key, (offset, data));
        shelf.make_room(Instant::now());
    }

    /// An attempt has ended and prints no more.
    pub fn end(&self, lease: Lease) {
        let mut shelf = self.lock();
        for stream in [Stream::Stdout, Stream::Stderr] {
            shelf.end((lease, stream));
        }
    }

    /// What an attempt has printed from `offset` on, up to a chunk.
    pub fn read(&self, lease: Lease, stream: Stream, offset: u64) -> Option<Bytes> {
        let shelf = self.lock();
        let text = shelf.texts.get(&(lease, stream))?;
        let start = usize::try_from(offset).map_or(text.bytes.len(), |offset| offset.min(text.bytes.len()));
        let end = text.bytes.len().min(start + CHUNK_BYTES);
        Some(Bytes::copy_from_slice(&text.bytes[start..end]))
    }

    /// Whether nothing will come to what is here, even if the attempt goes on to print.
    pub fn is_cut(&self, lease: Lease, stream: Stream) -> bool {
        self.lock().texts.get(&(lease, stream)).is_some_and(|text| text.is_cut)
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn begin(&mut self, key: Key) {
        self.count += 1;
        self.bytes += STREAM_OVERHEAD;
        self.order.insert((true, self.count, key));
        self.texts.insert(key, Text { number: self.count, bytes: Vec::new(), is_cut: false, ended: None });
    }

    fn extend(&mut self, key: Key, (offset, data): (u64, &[u8])) {
        let Some(text) = self.texts.get_mut(&key) else { return };
        let known = text.bytes.len();
        // A worker that connects again may say something twice.
        let Some(skip) = usize::try_from(offset).ok().and_then(|offset| known.checked_sub(offset)) else {
            text.is_cut = true;
            return;
        };
        let fresh = data.get(skip..).unwrap_or_default();
        let fresh = &fresh[..fresh.len().min(STREAM_BYTES_MAX - known)];
        // A worker sends no more either.
        text.is_cut |= known + fresh.len() == STREAM_BYTES_MAX;
        text.bytes.extend_from_slice(fresh);
        self.bytes += fresh.len();
    }

    fn end(&mut self, key: Key) {
        let Some(text) = self.texts.get_mut(&key) else { return };
        text.ended = Some(Instant::now());
        let number = text.number;
        self.order.remove(&(true, number, key));
        self.order.insert((false, number, key));
    }

    /// Drops what ended long ago, and what is first in order until the rest is within the bound.
    fn make_room(&mut self, now: Instant) {
        while let Some(&(_, _, key)) = self.order.first() {
            let ended = self.texts.get(&key).and_then(|text| text.ended);
            let is_old = ended.is_some_and(|ended| now - ended > ENDED_KEPT);
            if !is_old && self.bytes <= TOTAL_BYTES_MAX {
                return;
            }
            self.remove(key);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(text) = self.texts.remove(&key) {
            self.order.remove(&(text.ended.is_none(), text.number, key));
            self.bytes -= text.bytes.len() + STREAM_OVERHEAD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::ExecutionId;

    fn lease(execution: u128, attempt: u32) -> Lease {
        Lease { execution: ExecutionId::new(execution), attempt }
    }

    fn read(logs: &Logs, (execution, attempt): (u128, u32), offset: u64) -> Option<Bytes> {
        logs.read(lease(execution, attempt), Stream::Stdout, offset)
    }

    #[test]
    fn what_is_said_twice_is_kept_once_and_a_gap_ends_the_text() {
        let logs = Logs::default();
        for piece in [(0, &b"ab"[..]), (0, b"abc"), (1, b"b"), (9, b"late"), (3, b"d")] {
            logs.append(lease(1, 1), Stream::Stdout, piece);
        }
        assert_eq!(read(&logs, (1, 1), 1).unwrap(), "bcd");
        assert_eq!(read(&logs, (1, 1), 99).unwrap(), "");
        assert_eq!(read(&logs, (2, 1), 0), None);
        assert!(logs.is_cut(lease(1, 1), Stream::Stdout) && !logs.is_cut(lease(1, 1), Stream::Stderr));
    }

    #[test]
    fn what_is_full_is_known_to_get_no_more() {
        let logs = Logs::default();
        let all = vec![b'x'; STREAM_BYTES_MAX];
        logs.append(lease(1, 1), Stream::Stdout, (0, &all[1..]));
        assert!(!logs.is_cut(lease(1, 1), Stream::Stdout));
        logs.append(lease(1, 1), Stream::Stdout, (0, &all));
        assert!(logs.is_cut(lease(1, 1), Stream::Stdout));
    }

    #[test]
    fn two_attempts_that_run_at_once_are_kept_apart() {
        let logs = Logs::default();
        logs.append(lease(1, 1), Stream::Stdout, (0, b"first"));
        logs.append(lease(1, 2), Stream::Stdout, (0, b"second"));
        logs.append(lease(1, 1), Stream::Stdout, (5, b" goes on"));
        assert_eq!(read(&logs, (1, 1), 0).unwrap(), "first goes on");
        assert_eq!(read(&logs, (1, 2), 0).unwrap(), "second");
    }

    #[test]
    fn a_stream_and_all_together_are_bounded_and_the_ended_go_first() {
        let logs = Logs::default();
        let megabyte = vec![b'x'; 2 << 20];
        for execution in 0..100 {
            logs.append(lease(execution, 1), Stream::Stdout, (0, &megabyte));
            if execution >= 50 {
                logs.end(lease(execution, 1));
            }
        }
        let shelf = logs.lock();
        assert!(shelf.bytes <= TOTAL_BYTES_MAX);
        assert_eq!(shelf.texts.len(), shelf.order.len());
        assert_eq!(shelf.bytes, shelf.texts.len() * (STREAM_BYTES_MAX + STREAM_OVERHEAD));
        assert!((0..50).all(|execution| shelf.texts.contains_key(&(lease(execution, 1), Stream::Stdout))));
    }

    #[test]
    fn what_ended_long_ago_goes() {
        let logs = Logs::default();
        logs.append(lease(1, 1), Stream::Stdout, (0, b"x"));
        logs.end(lease(1, 1));
        logs.lock().make_room(Instant::now() + ENDED_KEPT / 2);
        assert!(read(&logs, (1, 1), 0).is_some());
        logs.lock().make_room(Instant::now() + ENDED_KEPT * 2);
        assert!(read(&logs, (1, 1), 0).is_none());
        let shelf = logs.lock();
        assert_eq!((shelf.bytes, shelf.order.len()), (0, 0));
    }
}
