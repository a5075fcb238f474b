//! Eviction: the least recently used go first, off the queue, without a look at anything else.

use std::path::PathBuf;
use std::sync::Arc;

use super::files::Form;
use super::ledger::{Draft, QUEUE_START, Record};
use super::space::full;
use super::writer::Writer;
use super::{PROTECTED_MINUTES, Shared, keeper};
use crate::error::Result;
use crate::store::name::Name;

/// Names that are looked at in one commit.
const NAMES_MAX: usize = 200;

/// Evictions for one request for room. Each takes some commits, in which more can come into flight than it has made room for.
const ATTEMPTS_MAX: u32 = 10;

/// How far an eviction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Spares what was used in the last minutes: a client may have been told that it is there.
    Unused,
    /// Takes that, too: the alternative is to refuse a write.
    All,
}

impl Writer {
    /// One step of the way from the high mark to the low one.
    pub(super) fn evict_a_little(&mut self) {
        let wanted = self.shared.space.above_low();
        match self.evict_records(wanted, Reach::Unused, 1) {
            Ok(freed) if freed.is_finished || freed.bytes >= wanted => self.is_evicting = false,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("evict: {}", error.chain());
                self.is_evicting = false;
            }
        }
        self.shared.space.update(&self.totals, self.shared.ledger.index_bytes());
    }

    /// Evicts `bytes`, and what else it takes for all that is in flight to fit.
    pub(super) fn make_room(&mut self, bytes: u64) -> Result<()> {
        let mut wanted = bytes;
        let mut made = Ok(());
        for attempt in 1..=ATTEMPTS_MAX {
            let before = self.totals.bytes();
            made = self.make_room_once(wanted);
            if made.is_ok() || (wanted > 0 && self.totals.bytes() == before) {
                break;
            }
            // The index's file does not shrink: where inlined blobs were evicted, it has grown in the account as much.
            wanted = (self.shared.space.shortage(0)? << attempt).min(self.totals.bytes());
        }
        made
    }

    fn make_room_once(&mut self, bytes: u64) -> Result<()> {
        self.repair()?;
        let wanted = bytes.max(self.shared.space.shortage(0)?);
        if wanted > self.totals.bytes() {
            // What does not even fit into an empty store must not empty it.
            self.shared.space.check()?;
            return Err(full());
        }
        let mut freed = 0;
        for reach in [Reach::Unused, Reach::All] {
            if freed < wanted {
                freed += self.evict_records(wanted - freed, reach, usize::MAX)?.bytes;
            }
        }
        self.shared.space.update(&self.totals, self.shared.ledger.index_bytes());
        self.shared.space.check()
    }

    /// Works through the queue from its start, `steps` commits at most.
    fn evict_records(&mut self, wanted: u64, reach: Reach, steps: usize) -> Result<Freed> {
        let mut freed = Freed::default();
        let oldest_protected = self.shared.clock.minute().saturating_sub(PROTECTED_MINUTES);
        for _ in 0..steps {
            if freed.bytes >= wanted {
                return Ok(freed);
            }
            let record = self.shared.ledger.record(QUEUE_START)?;
            let is_evictable = |record: &Record| reach == Reach::All || record.minute <= oldest_protected;
            let Some(record) = record.filter(is_evictable) else {
                freed.is_finished = true;
                return Ok(freed);
            };
            freed.bytes += self.evict_record(&record, wanted - freed.bytes, reach)?;
        }
        Ok(freed)
    }

    /// Evicts names of one record until `wanted` bytes are free. Readers are kept out from the decision until the files have
    /// lost their names, so that nobody is told that a blob is there while it goes.
    fn evict_record(&mut self, record: &Record, wanted: u64, reach: Reach) -> Result<u64> {
        let shared = Arc::clone(&self.shared);
        let draft = self.draft();
        let gate = shared.close_gate();
        let mut eviction = Eviction { record, reach, draft, victims: Vec::new() };
        let (mut freed, mut taken) = (0, 0);
        for name in record.names.iter().take(NAMES_MAX) {
            if freed >= wanted {
                break;
            }
            taken += 1;
            freed += eviction.take(name, &shared)?;
        }
        let Eviction { mut draft, victims, .. } = eviction;
        draft.shorten(record, &record.names[taken..]);
        // The files go only when the index is known to have forgotten them: after a crash in between, they are merely left over.
        self.commit(draft, || drop(gate))?;
        let discarded: Vec<PathBuf> =
            victims.iter().filter_map(|(name, form)| shared.files.discard(name, *form)).collect();
        for path in discarded {
            match reach {
                Reach::Unused => self.delete(path),
                // Somebody waits for the room.
                Reach::All => keeper::delete(&path),
            }
        }
        Ok(freed)
    }
}

/// One commit's worth of eviction.
struct Eviction<'a> {
    record: &'a Record,
    reach: Reach,
    draft: Draft,
    /// Those that have a file.
    victims: Vec<(Name, Form)>,
}

impl Eviction<'_> {
    /// Evicts a name, unless it has a later place in the queue or gets one. Gives the bytes that become free.
    fn take(&mut self, name: &Name, shared: &Shared) -> Result<u64> {
        let Some(entry) = self.draft.entry(&shared.ledger, name)? else { return Ok(0) };
        if shared.ledger.last_use(name, &entry)? > self.record.minute {
            return Ok(0);
        }
        if self.reach == Reach::Unused && shared.marks.contains(name) {
            self.draft.note_use(name);
            return Ok(0);
        }
        shared.marks.forget(name);
        self.draft.remove(name, &entry);
        self.victims.extend(entry.location.file().map(|file| (*name, file.form)));
        Ok(entry.charge())
    }
}

#[derive(Default)]
struct Freed {
    bytes: u64,
    /// There is nothing more to evict.
    is_finished: bool,
}
