//! Looks at all that is stored, slowly: are the bytes those that their digests say, and do index and files agree?
//!
//! One thread does it, in passes: first all entries in the order of their keys, a page at a time, then all files that no entry
//! speaks of, then what is left of temporary files. It changes nothing itself but asks the writer, which looks again. Readers
//! are never kept waiting. A pass in the background notes its place and goes on there after a restart.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::compressed::Frames;
use super::entry::{Entry, Location};
use super::files::Form;
use super::healing::{Damaged, Found};
use super::pace::{Halt, Pace};
use super::rebuild::{self, Listed};
use super::writer::Request;
use super::{Options, Shared};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::metrics::{self, Counter};
use crate::store::blob::read_at;
use crate::store::name::{Family, Name};

/// The start has other work for the disk.
const FIRST_AFTER: Duration = Duration::from_secs(5 * 60);

/// How long after the end of a pass the next one begins.
const EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often it is looked whether a pass is due.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// How often the place of a pass is written down.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Entries that are in memory at once, with up to 4 KiB each.
const PAGE_ENTRIES: usize = 128;

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// What the look at a blob costs at least, so that many small ones keep to the rate as well.
const BLOB_COST: u64 = 4096;

/// What a scrub found and put right.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Blobs, results and assets that were looked at.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs whose content was not what their digest says; they are gone, and some are kept in `quarantine`.
    pub damaged: u64,
    /// Entries of the index without a file of their size; they are gone.
    pub lost: u64,
    /// Files that the index did not know and now does.
    pub adopted: u64,
    /// Temporary files that nobody wrote, and files of blobs that the index has in another place.
    pub removed_temporary: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Somebody wants a whole pass at once.
pub(super) struct Order {
    /// Bytes per second; `None` for as fast as can be.
    pub(super) rate: Option<u64>,
    pub(super) done: oneshot::Sender<Result<ScrubReport>>,
}

pub(super) fn under_way() -> Error {
    Error::new(Kind::Unavailable, "a scrub is under way")
}

/// The thread's state.
pub(super) struct Scrubber {
    shared: Arc<Shared>,
    orders: Receiver<Order>,
    rate: u64,
    tier: String,
    scrubbed_bytes: Counter,
}

/// What is written down of passes in the background.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Note {
    /// When the last one ended, in seconds since 1970.
    ended: u64,
    /// The last entry that the one under way has looked at.
    place: Option<Name>,
}

impl Note {
    fn encode(self) -> Vec<u8> {
        let place = self.place.as_ref().map_or(&[][..], Name::as_bytes);
        [&self.ended.to_be_bytes(), place].concat()
    }

    fn decode(bytes: &[u8]) -> Self {
        let Some((ended, place)) = bytes.split_first_chunk() else { return Self::default() };
        Self { ended: u64::from_be_bytes(*ended), place: Name::parse_all(place).next() }
    }
}

impl Scrubber {
    pub(super) fn new(shared: Arc<Shared>, orders: Receiver<Order>, options: &Options) -> Self {
        let scrubbed_bytes = metrics::SCRUBBED_BYTES.with_label_values(&[&options.name]);
        Self { shared, orders, rate: options.scrub_rate, tier: options.name.clone(), scrubbed_bytes }
    }

    /// Serves orders, and scrubs in the background, until the store is dropped.
    pub(super) fn run(self) {
        let mut wait = FIRST_AFTER;
        loop {
            let order = match self.orders.recv_timeout(wait) {
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => self.scrub_in_the_background(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(order) = order {
                self.obey(order);
            }
            wait = LOOK_EVERY;
        }
    }

    fn obey(&self, order: Order) {
        let is_wanted = || !order.done.is_closed();
        let mut pass = self.pass(Pace::ordered(&self.orders, order.rate, &is_wanted), Note::default());
        pass.notes_place = false;
        let report = match pass.run() {
            Ok(()) => Ok(pass.report),
            Err(Halt::Failed(error)) => Err(error),
            Err(Halt::Stopped | Halt::Interrupted(_)) => Err(super::stopped()),
        };
        if let Ok(report) = &report {
            self.tell(report);
        }
        // Whoever asked and is gone needs no answer.
        let _ = order.done.send(report);
    }

    /// One pass or the rest of one, if it is due. Gives the order that interrupts it.
    pub(super) fn scrub_in_the_background(&self) -> Option<Order> {
        let note = match self.shared.ledger.scrub_note() {
            Ok(note) => note.map_or_else(Note::default, |note| Note::decode(&note)),
            Err(error) => {
                tracing::warn!("no scrub: {}", error.chain());
                return None;
            }
        };
        let is_due = note.place.is_some() || now().saturating_sub(note.ended) >= EVERY.as_secs();
        if self.rate == 0 || !is_due || self.shared.is_rebuilding.load(std::sync::atomic::Ordering::Acquire) {
            return None;
        }
        let mut pass = self.pass(Pace::in_the_background(&self.orders, self.rate), note);
        match pass.run() {
            Ok(()) => self.tell(&pass.report),
            Err(Halt::Interrupted(order)) => return Some(order),
            Err(Halt::Stopped) => {}
            Err(Halt::Failed(error)) => tracing::warn!("a scrub ended early: {}", error.chain()),
        }
        None
    }

    fn pass<'a>(&'a self, pace: Pace<'a>, note: Note) -> Pass<'a> {
        let started = Instant::now();
        Pass {
            scrubber: self,
            pace,
            note,
            notes_place: true,
            noted: started,
            started,
            report: ScrubReport::default(),
        }
    }

    fn tell(&self, report: &ScrubReport) {
        let ScrubReport { blobs, bytes, damaged, lost, adopted, removed_temporary, seconds } = report;
        tracing::info!(blobs, bytes, damaged, lost, adopted, removed_temporary, seconds, "scrubbed");
    }

    fn count(&self, finding: &str, count: u64) {
        metrics::SCRUB_FINDINGS.with_label_values(&[&self.tier, finding]).inc_by(count);
    }
}

/// One way through the store.
struct Pass<'a> {
    scrubber: &'a Scrubber,
    pace: Pace<'a>,
    note: Note,
    notes_place: bool,
    noted: Instant,
    started: Instant,
    report: ScrubReport,
}

/// What a look at an entry tells.
enum Verdict {
    Sound,
    /// A medium that fails may be repaired, so what it holds is neither lost nor damaged.
    Unreadable,
    Lost,
    /// With the file, if it is in one, and its inode.
    Damaged(Option<(Form, Option<u64>)>),
}

impl Pass<'_> {
    fn run(&mut self) -> Result<(), Halt> {
        self.entries()?;
        self.files()?;
        let swept = self.shared().files.sweep()?;
        self.report.removed_temporary += swept;
        self.scrubber.count("temporary", swept);
        self.report.seconds = self.started.elapsed().as_secs_f64();
        self.note = Note { ended: now(), place: None };
        self.write_note();
        Ok(())
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.scrubber.shared
    }

    fn entries(&mut self) -> Result<(), Halt> {
        loop {
            let page = self.shared().ledger.page(self.note.place.as_ref(), PAGE_ENTRIES)?;
            if page.is_empty() {
                return Ok(());
            }
            for (name, entry) in page {
                if let Some(entry) = entry {
                    self.entry(name, entry)?;
                }
                self.note.place = Some(name);
                if self.notes_place && self.noted.elapsed() >= NOTE_EVERY {
                    self.noted = Instant::now();
                    self.write_note();
                }
            }
        }
    }

    fn entry(&mut self, name: Name, entry: Entry) -> Result<(), Halt> {
        self.report.blobs += 1;
        self.report.bytes += entry.size();
        let verdict = match &entry.location {
            Location::Inline(bytes) => {
                self.pace.spend(BLOB_COST)?;
                if is_right(&name, bytes) { Verdict::Sound } else { Verdict::Damaged(None) }
            }
            Location::File { .. } | Location::Compressed { .. } => self.in_file(&name, &entry.location)?,
        };
        match verdict {
            Verdict::Sound | Verdict::Unreadable => Ok(()),
            // A page takes its time: meanwhile the blob may have been evicted or replaced.
            Verdict::Lost if self.shared().ledger.entry(&name)?.as_ref() != Some(&entry) => Ok(()),
            Verdict::Lost => {
                self.report.lost += 1;
                self.scrubber.count("lost", 1);
                self.send(Request::Heal(name))
            }
            Verdict::Damaged(file) => self.withdraw(Damaged { name, entry: Some(entry), file }),
        }
    }

    fn in_file(&mut self, name: &Name, location: &Location) -> Result<Verdict, Halt> {
        let Some(stored) = location.file() else { return Ok(Verdict::Sound) };
        let file = match self.shared().files.read(name, stored) {
            Ok(Some((file, _))) => file,
            Ok(None) => return Ok(Verdict::Lost),
            Err(error) => return Ok(unreadable(name, &error)),
        };
        let inode = file.metadata().ok().map(|metadata| metadata.ino());
        // Results and assets have no digest; that their file has its size is all there is to know.
        let Family::Blob(function) = name.family() else {
            self.pace.spend(BLOB_COST)?;
            return Ok(Verdict::Sound);
        };
        let hasher = function.hasher(location.size());
        let hash = match location {
            Location::Compressed { stored, .. } => match Frames::open(file, *stored) {
                Ok(frames) => self.hash(hasher, frames.pieces())?,
                Err(error) => Err(error),
            },
            Location::File { size } => self.hash(hasher, pieces(&file, *size))?,
            Location::Inline(_) => return Ok(Verdict::Sound),
        };
        Ok(match hash {
            Ok(digest) if digest.hash() == name.hash() => Verdict::Sound,
            Err(error) if error.kind() != Kind::Corrupt => unreadable(name, &error),
            Ok(_) | Err(_) => Verdict::Damaged(Some((stored.form, inode))),
        })
    }

    /// The digest of the pieces, or the error of one that cannot be read.
    fn hash(
        &mut self,
        mut hasher: Hasher,
        pieces: impl Iterator<Item = Result<Bytes>>,
    ) -> Result<Result<Digest>, Halt> {
        for piece in pieces {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Ok(Err(error)),
            };
            self.pace.spend((piece.len() as u64).max(BLOB_COST))?;
            hasher.update(&piece);
            self.scrubber.scrubbed_bytes.inc_by(piece.len() as u64);
        }
        Ok(Ok(hasher.finish()))
    }

    /// Takes up files that no entry speaks of: a crash came between their name and their commit.
    fn files(&mut self) -> Result<(), Halt> {
        for family in Family::all() {
            for byte in 0..=u8::MAX {
                let folder = format!("{}/{byte:02x}", family.folder());
                for listed in rebuild::list(&self.shared().files.directory().join(folder), family)? {
                    self.stray(&listed)?;
                }
            }
        }
        Ok(())
    }

    fn stray(&mut self, listed: &Listed) -> Result<(), Halt> {
        self.pace.spend(BLOB_COST)?;
        let Listed { name, location, minute } = listed;
        let (name, minute) = (*name, *minute);
        if let Some(known) = self.shared().ledger.entry(&name)? {
            return self.superseded(name, &known, location);
        }
        match self.in_file(&name, location)? {
            Verdict::Sound => {}
            // A lost one was evicted or replaced since it was listed.
            Verdict::Unreadable | Verdict::Lost => return Ok(()),
            Verdict::Damaged(file) => return self.withdraw(Damaged { name, entry: None, file }),
        }
        let found = Found { files: vec![(name, location.clone())], minute };
        let adopted = self.ask(|done| Request::Adopt { found, done })?;
        self.report.adopted += adopted;
        self.scrubber.count("adopted", adopted);
        Ok(())
    }

    /// A crash came between a commit and the end of the file that it replaced, which had another form.
    fn superseded(&mut self, name: Name, known: &Entry, listed: &Location) -> Result<(), Halt> {
        let form = |location: &Location| location.file().map(|file| file.form);
        if let Some(form) = form(listed).filter(|listed| form(&known.location) != Some(*listed)) {
            let is_removed = self.ask(|done| Request::RemoveSuperseded { name, form, done })?;
            self.report.removed_temporary += u64::from(is_removed);
            self.scrubber.count("temporary", u64::from(is_removed));
        }
        Ok(())
    }

    fn withdraw(&mut self, damaged: Damaged) -> Result<(), Halt> {
        let damaged = Box::new(damaged);
        let withdrawn = u64::from(self.ask(|done| Request::Withdraw { damaged, done })?);
        self.report.damaged += withdrawn;
        self.scrubber.count("damaged", withdrawn);
        Ok(())
    }

    fn write_note(&self) {
        // The next note says more than this one, should the writer be gone.
        let _ = self.send(Request::NoteScrub(self.note.encode()));
    }

    fn send(&self, request: Request) -> Result<(), Halt> {
        let requests = self.shared().requests.upgrade().ok_or(Halt::Stopped)?;
        requests.blocking_send(request).map_err(|_| Halt::Stopped)
    }

    fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T, Halt> {
        let (done, answer) = oneshot::channel();
        self.send(request(done))?;
        Ok(answer.blocking_recv().map_err(|_| Halt::Stopped)??)
    }
}

/// The content of a file, in order. A file that ends early is damaged.
fn pieces(file: &File, size: u64) -> impl Iterator<Item = Result<Bytes>> {
    (0..size).step_by(BUFFER_BYTES).map(move |offset| {
        let length = usize::try_from(size - offset).map_or(BUFFER_BYTES, |rest| rest.min(BUFFER_BYTES));
        read_at(file, offset, length)
    })
}

/// Whether inlined bytes are what their name says; what has no digest is.
fn is_right(name: &Name, bytes: &[u8]) -> bool {
    match name.family() {
        Family::Blob(function) => function.hash(bytes).hash() == name.hash(),
        Family::Action | Family::Asset => true,
    }
}

fn unreadable(name: &Name, error: &Error) -> Verdict {
    tracing::error!(blob = name.hex(), "a stored blob cannot be read: {}", error.chain());
    Verdict::Unreadable
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    #[test]
    fn a_note_is_read_back() {
        for place in [None, Some(Name::from(&Key::Asset([7; 32])))] {
            let note = Note { ended: 12, place };
            assert_eq!(Note::decode(&note.encode()), note);
        }
        assert_eq!(Note::decode(b"?"), Note::default());
    }
}
