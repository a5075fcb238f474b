//! Eviction: the least recently used go first, off the queue, without a look at anything else.
//!
//! What was put, read or reported present stays for the lease. When a write would have to be refused otherwise, leases are
//! broken, the longest unused first; that is counted. What is pinned stays in any case.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::Entry;
use super::files::Form;
use super::ledger::{Draft, QUEUE_START, Record};
use super::space::full;
use super::writer::Writer;
use super::{Shared, USE_GRAIN_MINUTES, keeper};
use crate::error::{Error, Kind, Result};
use crate::metrics::{self, Counter};
use crate::store::name::Name;

/// Names that are looked at in one commit: each may take three operations.
const NAMES_MAX: usize = 150;

/// After a search that found only what is pinned, writes are refused for this long without another search.
const SEARCH_EVERY: Duration = Duration::from_secs(1);

/// Commits of a search that spares what was used most recently. It may have to write down each use that it comes across, and
/// whoever waits for the room must not wait for all of a large store: after a second or so the place in the queue decides.
const SPARING_STEPS_MAX: usize = 128;

/// The log is told of broken leases at most this often.
const BREAKS_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Bytes of one commit, at least, or there would be too many of them: the index's file does not shrink, so where inlined blobs
/// are evicted, it has grown in the account as much, and the shortage stays until half of the limit is reached.
const STEP_BYTES_MIN: u64 = 256 * 1024;

/// When an eviction ends.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// So many bytes are evicted.
    Bytes(u64),
    /// All that is in flight fits, and at least so many bytes are evicted.
    Room { at_least: u64 },
}

/// How far an eviction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// What nobody was promised.
    Unleased,
    /// Breaks leases, but of what was used in the last minutes only when its place in the queue says so, too.
    Leased,
    /// Everything that is not pinned.
    Unpinned,
}

/// What evictions have done, for metrics and log.
pub(super) struct Evictions {
    count: Counter,
    bytes: Counter,
    lease_breaks: Counter,
    /// Broken leases that the log has not been told of, and their bytes.
    breaks: u64,
    broken_bytes: u64,
    breaks_logged: Option<Instant>,
    /// When a search found nothing but what is pinned.
    fruitless: Option<Instant>,
}

impl Evictions {
    /// `tier` is the label of the metrics.
    pub(super) fn new(tier: &str) -> Self {
        Self {
            count: metrics::EVICTIONS.with_label_values(&[tier]),
            bytes: metrics::EVICTED_BYTES.with_label_values(&[tier]),
            lease_breaks: metrics::LEASE_BREAKS.with_label_values(&[tier]),
            breaks: 0,
            broken_bytes: 0,
            breaks_logged: None,
            fruitless: None,
        }
    }

    fn note(&mut self, freed: &Freed) {
        self.count.inc_by(freed.count);
        self.bytes.inc_by(freed.bytes);
        self.lease_breaks.inc_by(freed.breaks);
        self.breaks += freed.breaks;
        self.broken_bytes += freed.broken_bytes;
    }

    /// Tells the log of broken leases, unless it was told a moment ago.
    pub(super) fn log_breaks(&mut self) {
        let is_due = self.breaks_logged.is_none_or(|logged| logged.elapsed() >= BREAKS_LOGGED_EVERY);
        if self.breaks > 0 && is_due {
            let (blobs, bytes) = (self.breaks, self.broken_bytes);
            tracing::warn!(
                blobs,
                bytes,
                "the store is too small: blobs were evicted before their lease ended"
            );
            (self.breaks, self.broken_bytes, self.breaks_logged) = (0, 0, Some(Instant::now()));
        }
    }
}

impl Writer {
    /// One step of the way from the high mark to the low one.
    pub(super) fn evict_a_little(&mut self) {
        let wanted = self.shared.space.above_low();
        match self.evict_records(Goal::Bytes(wanted), Reach::Unleased, 1) {
            Ok(freed) if freed.is_finished || freed.bytes >= wanted => self.is_evicting = false,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("evict: {}", error.chain());
                self.is_evicting = false;
            }
        }
        self.shared.space.update(&self.totals, self.shared.ledger.index_bytes());
    }

    /// Evicts `bytes`, and what else it takes for all that is in flight to fit, but no more: each blob more is a lease more.
    pub(super) fn make_room(&mut self, bytes: u64) -> Result<()> {
        self.repair()?;
        let wanted = bytes.max(self.shared.space.shortage(0)?);
        if wanted > self.totals.bytes() {
            // What does not even fit into an empty store must not empty it.
            self.shared.space.check()?;
            return Err(full());
        }
        if wanted > 0 && self.evictions.fruitless.is_some_and(|since| since.elapsed() < SEARCH_EVERY) {
            return Err(all_pinned());
        }
        let mut freed = Freed::default();
        for reach in [Reach::Unleased, Reach::Leased, Reach::Unpinned] {
            let steps = match reach {
                Reach::Leased => SPARING_STEPS_MAX,
                Reach::Unleased | Reach::Unpinned => usize::MAX,
            };
            let goal = Goal::Room { at_least: bytes.saturating_sub(freed.bytes) };
            freed.add(self.evict_records(goal, reach, steps)?);
        }
        self.evictions.log_breaks();
        let is_short = freed.bytes < bytes || self.shared.space.shortage(0)? > 0;
        if is_short && freed.pinned > 0 {
            self.evictions.fruitless = Some(Instant::now());
            return Err(all_pinned());
        }
        self.evictions.fruitless = None;
        self.shared.space.check()
    }

    /// The bytes to evict in the next commit.
    fn left(&self, goal: Goal, freed: &Freed) -> Result<u64> {
        self.shared.space.update(&self.totals, self.shared.ledger.index_bytes());
        match goal {
            Goal::Bytes(wanted) => Ok(wanted.saturating_sub(freed.bytes)),
            Goal::Room { at_least } => {
                let shortage = self.shared.space.shortage(0)?;
                let shortage = if shortage > 0 { shortage.max(STEP_BYTES_MIN) } else { 0 };
                Ok(at_least.saturating_sub(freed.bytes).max(shortage))
            }
        }
    }

    /// Works through the queue from its start, `steps` commits at most.
    fn evict_records(&mut self, goal: Goal, reach: Reach, steps: usize) -> Result<Freed> {
        let mut freed = Freed::default();
        let mut run = Run { reach, lease_end: self.lease_end(), from: QUEUE_START.to_vec(), kept: 0 };
        // Names that this run moves to the end of the queue are not looked at again, or it might never end.
        let before = self.sequence;
        for _ in 0..steps {
            let left = self.left(goal, &freed)?;
            if left == 0 {
                return Ok(freed);
            }
            let Some(record) = self.shared.ledger.record(&run.from)?.filter(|it| run.reaches(it)) else {
                freed.is_finished = true;
                return Ok(freed);
            };
            if (before + 1..=self.sequence).contains(&record.sequence) {
                run.pass(&record);
                continue;
            }
            let evicted = self.evict_record(&record, &mut run, left)?;
            self.evictions.note(&evicted);
            freed.add(evicted);
        }
        Ok(freed)
    }

    /// What was used in this minute or before has no lease any more. A use is noted with a grain, which the lease is longer by.
    fn lease_end(&self) -> u32 {
        self.shared.clock.minute().saturating_sub(self.shared.lease_minutes + USE_GRAIN_MINUTES)
    }

    /// Evicts names of one record, behind those that were kept there, until `wanted` bytes are free. Readers are kept out from the
    /// decision until the index has forgotten the names, so that nobody is told that a blob is there while it goes.
    fn evict_record(&mut self, record: &Record, run: &mut Run, wanted: u64) -> Result<Freed> {
        let shared = Arc::clone(&self.shared);
        let draft = self.draft();
        let gate = shared.close_gate();
        let mut eviction = Eviction {
            run,
            minute: record.minute,
            draft,
            victims: Vec::new(),
            kept: Vec::new(),
            freed: Freed::default(),
        };
        let (seen, names) = record.names.split_at(eviction.run.kept);
        let mut taken = 0;
        for name in names.iter().take(NAMES_MAX) {
            if eviction.freed.bytes >= wanted {
                break;
            }
            taken += 1;
            eviction.take(name, &shared)?;
        }
        let Eviction { mut draft, victims, kept, freed, .. } = eviction;
        let rest = &names[taken..];
        if kept.len() < taken {
            draft.shorten(record, &[seen, &kept, rest].concat());
        }
        if rest.is_empty() {
            run.pass(record)
        } else {
            run.stay(record, seen.len() + kept.len())
        }
        // The files go only when the index is known to have forgotten them: after a crash in between, they are merely left over.
        self.commit(draft, || drop(gate))?;
        let discarded: Vec<PathBuf> =
            victims.iter().filter_map(|(name, form)| shared.files.discard(name, *form)).collect();
        for path in discarded {
            match run.reach {
                Reach::Unleased => self.delete(path),
                // Somebody waits for the room.
                Reach::Leased | Reach::Unpinned => keeper::delete(&path),
            }
        }
        Ok(freed)
    }
}

/// A way through the queue, and how far it has come.
struct Run {
    reach: Reach,
    lease_end: u32,
    /// The key of the next record, or one before it.
    from: Vec<u8>,
    /// Names at the start of that record that were seen and kept.
    kept: usize,
}

impl Run {
    fn reaches(&self, record: &Record) -> bool {
        self.reach != Reach::Unleased || record.minute <= self.lease_end
    }

    fn pass(&mut self, record: &Record) {
        (self.from, self.kept) = ([&record.key[..], &[0]].concat(), 0);
    }

    fn stay(&mut self, record: &Record, kept: usize) {
        (self.from, self.kept) = (record.key.clone(), kept);
    }
}

/// One commit's worth of eviction.
struct Eviction<'a> {
    run: &'a Run,
    /// The place in the queue that the names are taken from.
    minute: u32,
    draft: Draft,
    /// Those that have a file.
    victims: Vec<(Name, Form)>,
    /// Those that stay in the record.
    kept: Vec<Name>,
    freed: Freed,
}

impl Eviction<'_> {
    /// Evicts a name, unless it has a later place in the queue, gets one, or must stay.
    fn take(&mut self, name: &Name, shared: &Shared) -> Result<()> {
        let Some(entry) = self.draft.entry(&shared.ledger, name)? else { return Ok(()) };
        let last_use = shared.ledger.last_use(name, &entry)?;
        if last_use > self.minute {
            return Ok(());
        }
        if shared.pins.contains(name) {
            self.spare_pinned(name);
            return Ok(());
        }
        let is_marked = shared.marks.contains(name);
        let is_spared = match self.run.reach {
            Reach::Unleased => is_marked,
            Reach::Leased => is_marked && last_use + USE_GRAIN_MINUTES <= self.draft.minute(),
            Reach::Unpinned => false,
        };
        if is_spared {
            self.draft.note_use(name);
            return Ok(());
        }
        shared.marks.forget(name);
        self.evict(name, &entry, is_marked || last_use > self.run.lease_end);
        Ok(())
    }

    /// It gets a later place where that saves the next eviction the look at it. Whoever breaks leases comes again and again, and
    /// must not write each time.
    fn spare_pinned(&mut self, name: &Name) {
        self.freed.pinned += 1;
        match self.run.reach {
            Reach::Unleased => self.draft.note_use(name),
            Reach::Leased | Reach::Unpinned => self.kept.push(*name),
        }
    }

    fn evict(&mut self, name: &Name, entry: &Entry, is_leased: bool) {
        self.draft.remove(name, entry);
        self.victims.extend(entry.location.file().map(|file| (*name, file.form)));
        let bytes = entry.charge();
        self.freed.count += 1;
        self.freed.bytes += bytes;
        if is_leased {
            self.freed.breaks += 1;
            self.freed.broken_bytes += bytes;
        }
    }
}

#[derive(Default)]
struct Freed {
    count: u64,
    bytes: u64,
    /// Those of them whose lease had not ended.
    breaks: u64,
    broken_bytes: u64,
    /// Names that stay because they are pinned.
    pinned: u64,
    /// There is nothing more to evict.
    is_finished: bool,
}

impl Freed {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
        self.breaks += other.breaks;
        self.broken_bytes += other.broken_bytes;
        self.pinned += other.pinned;
    }
}

fn all_pinned() -> Error {
    Error::new(Kind::Exhausted, "the store is full of what is pinned")
}
