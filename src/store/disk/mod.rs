//! A leaf on the local disk: small blobs in an embedded index, large ones in a file each.
//!
//! `ledger` is what we keep in the index, `files` the files, `writer` the one thread that changes any of them, with `evict`,
//! `noting` and `healing`; `upload` brings large blobs in. A put is acknowledged, and a blob reported present, when a power cut
//! cannot undo it (`unsettled`).
//! The index is a cache of the disk: when it is lost, `rebuild` makes it anew from the files. `scrub` finds what was damaged or lost.

mod clock;
mod compressed;
#[cfg(test)]
mod compressed_tests;
#[cfg(test)]
mod crash;
mod entry;
mod evict;
#[cfg(test)]
mod evict_tests;
mod files;
mod healing;
mod keeper;
mod ledger;
mod lock;
mod marks;
mod noting;
mod options;
mod pace;
mod quarantine;
mod rebuild;
mod scrub;
#[cfg(test)]
mod scrub_tests;
mod space;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
mod unsettled;
mod upload;
mod writeback;
mod writer;

use std::fs;
use std::ops::RangeFrom;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc as blocking};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};

use self::clock::Clock;
use self::compressed::{Frames, Packer};
pub use self::entry::INLINE_MAX;
use self::entry::Location;
use self::evict::Evictions;
use self::files::{Files, Form, Stored, Temporary};
use self::ledger::Ledger;
use self::marks::Marks;
pub use self::options::Options;
pub use self::scrub::ScrubReport;
use self::scrub::{Order, Scrubber};
use self::space::Space;
pub use self::space::default_size;
use self::unsettled::{Patience, Unsettled};
use self::writer::{CHANGES_BYTES_MAX, CHANGES_MAX, Change, Content, Request, Writer};
use super::name::{Family, Name};
use super::{Blob, Key, Pins, Store};
use crate::digest::Function;
use crate::error::{Context, Error, Kind, Result};
use crate::index::Origin;
use crate::tasks;

/// Requests that wait for the writer, of at most a commit's size each: 16 MiB in all.
const REQUESTS_MAX: usize = 256;

/// Files that wait to be deleted.
const TRASH_MAX: usize = 4096;

/// The longest wait for the writer. It commits in milliseconds; this is for a disk that hangs.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// How long a generation of marks is.
const MARKS_MINUTES: u32 = 5;

/// The grain of the order of use on the disk.
const USE_GRAIN_MINUTES: u32 = 10;

/// Keys that are looked up without letting an eviction in.
const LOOKUPS_MAX: usize = 256;

/// Looks at an entry and then at its file, between which a put may replace both.
const LOOKS_MAX: usize = 4;

/// Pieces of a batch that are stored at the same time.
const PIECES_MAX: usize = 32;

/// Blobs on the local disk. Dropping it waits for the last commit.
pub struct Disk {
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    /// `None` only while it is dropped.
    scrubs: Option<blocking::SyncSender<Order>>,
    threads: Vec<JoinHandle<()>>,
}

/// What the readers and the threads have in common.
struct Shared {
    files: Files,
    ledger: Ledger,
    space: Arc<Space>,
    marks: Marks,
    unsettled: Unsettled,
    pins: Pins,
    lease_minutes: u32,
    /// There may be files that the index does not know.
    is_rebuilding: AtomicBool,
    /// How many rebuildings have begun.
    rebuildings: AtomicU32,
    clock: Clock,
    /// Held open by who tells that a blob is there, closed by eviction for the moment in which a blob goes.
    gate: RwLock<()>,
    requests: mpsc::WeakSender<Request>,
    compression: bool,
}

impl Disk {
    /// Opens the store in `directory`, which is made if it is not there. Blocks while the index is opened; no file is looked at.
    ///
    /// # Errors
    /// `Unavailable` when another process uses the directory, and what the file system reports.
    pub fn open(directory: &Path, options: Options) -> Result<Self> {
        fs::create_dir_all(directory).context(|| "make the data directory")?;
        let lock = lock::acquire(directory)?;
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let (shared, origin) = Shared::open(directory, &options, requests.downgrade())?;
        let totals = shared.ledger.totals()?;
        shared.space.keep_reserve();
        shared.space.measure_kept();
        shared.space.update(&totals, shared.ledger.index_bytes());
        let (trash, discarded) = blocking::sync_channel(TRASH_MAX);
        let (marks_rotated, sequence) = (shared.clock.minute(), first_sequence());
        let (held, is_evicting, is_noting, broken_since) = (None, false, false, None);
        let evictions = Evictions::new(&options.name);
        #[rustfmt::skip]
        let writer = Writer {
            shared: Arc::clone(&shared), requests: receiver, held, totals, sequence, is_evicting, evictions, is_noting,
            trash, marks_rotated, broken_since, _lock: lock,
        };
        let weak = requests.downgrade();
        let (scrubs, orders) = blocking::sync_channel(1);
        let scrubber = Scrubber::new(Arc::clone(&shared), orders, &options);
        let threads = vec![
            tasks::thread("disk-writer", move || writer.run()).context(|| "start the writer")?,
            tasks::thread("disk-keeper", move || keeper::run(&discarded, &weak))
                .context(|| "start the keeper")?,
            tasks::thread("disk-scrub", move || scrubber.run()).context(|| "start the scrubber")?,
        ];
        match origin {
            Origin::Existing => {}
            Origin::New => rebuild::begin(&shared)?,
        }
        Ok(Self { shared, requests: Some(requests), scrubs: Some(scrubs), threads })
    }

    /// Verifies all that is stored, with at most `rate` bytes per second, and puts right what is found. When the future is
    /// dropped, the scrub ends soon.
    ///
    /// # Errors
    /// `Unavailable` when another scrub was asked for and is under way, or when the store cannot be read.
    pub async fn scrub(&self, rate: Option<u64>) -> Result<ScrubReport> {
        let (done, answer) = oneshot::channel();
        let scrubs = self.scrubs.as_ref().expect("it is taken only by drop");
        scrubs.try_send(Order { rate, done }).map_err(|_| scrub::under_way())?;
        answer.await.map_err(|_| stopped())?
    }

    fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Asks the writer and waits for its answer.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T> {
        let (done, answer) = oneshot::channel();
        let requests = self.requests.as_ref().expect("it is taken only by drop");
        let asked = async {
            requests.send(request(done)).await.map_err(|_| stopped())?;
            answer.await.map_err(|_| stopped())
        };
        let late = |_| Error::new(Kind::Unavailable, "the disk does not answer");
        tokio::time::timeout(ANSWER_MAX, asked).await.map_err(late)?
    }

    async fn change(&self, changes: Vec<Change>) -> Vec<Result<()>> {
        let count = changes.len();
        match self.ask(|done| Request::Put { changes, done }).await {
            Ok(results) => results,
            Err(error) => (0..count).map(|_| Err(error.repeated())).collect(),
        }
    }

    async fn publish(&self, name: Name, temporary: Temporary) -> Result<()> {
        self.change_one(Change { name, content: Content::File(temporary) }).await
    }

    async fn change_one(&self, change: Change) -> Result<()> {
        let result = self.change(vec![change]).await.pop();
        result.unwrap_or_else(|| Err(Error::bug("the writer gave no answer")))
    }

    async fn find(&self, key: &Key, start: u64) -> Result<Found> {
        let (shared, key, is_small) = (self.shared(), key.clone(), is_small(key));
        let find = move || shared.find(&key, start);
        let found = if is_small { tasks::brief(find).await } else { tasks::blocking(find).await };
        // A medium that fails is for the operator to see, whatever the caller makes of it.
        found.inspect_err(|error| tracing::error!("a blob cannot be read: {}", error.chain()))
    }

    async fn absent(&self, keys: Vec<Key>) -> Result<Vec<Key>> {
        let shared = self.shared();
        tasks::blocking(move || shared.missing(&keys)).await
    }

    async fn size(&self, name: Name) -> Result<Option<u64>> {
        let shared = self.shared();
        tasks::brief(move || shared.ledger.size(&name)).await
    }

    /// A reader has found that a file is gone. When the writer is busy, the next reader tells it.
    fn heal(&self, name: Name) {
        if let Some(requests) = &self.requests {
            let _ = requests.try_send(Request::Heal(name));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        (self.requests, self.scrubs) = (None, None);
        for thread in self.threads.drain(..) {
            // A panic of a thread has ended the process.
            let _ = thread.join();
        }
    }
}

/// Whether a blob is in the index, which is mostly in memory. Of a result the size is not known, and few are so large.
fn is_small(key: &Key) -> bool {
    let Key::Blob(digest) = key else { return true };
    digest.size() <= INLINE_MAX
}

fn stopped() -> Error {
    Error::new(Kind::Unavailable, "the store is stopping")
}

/// The keys of the queue must differ from those of an earlier process in the same minute.
fn first_sequence() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(0)
}

/// What a look-up finds.
enum Found {
    Nothing,
    Blob(Blob),
    /// There is an entry, but not the file that it speaks of.
    Lost,
}

impl Shared {
    fn open(
        directory: &Path,
        options: &Options,
        requests: mpsc::WeakSender<Request>,
    ) -> Result<(Arc<Self>, Origin)> {
        let files = Files::open(directory)?;
        let space = Arc::new(Space::new(directory, options.size_bytes, &options.name)?);
        let (ledger, origin) = Ledger::open(&directory.join("index"))?;
        let (marks, unsettled, is_rebuilding, rebuildings, clock, gate) = Default::default();
        let (pins, lease_minutes, compression) =
            (options.pins.clone(), options.lease_minutes(), options.compression);
        #[rustfmt::skip]
        let shared = Self {
            files, ledger, space, marks, unsettled, pins, lease_minutes, compression, is_rebuilding, rebuildings, clock, gate,
            requests,
        };
        Ok((Arc::new(shared), origin))
    }

    /// How new files are written.
    fn packer(&self) -> Result<Packer> {
        if self.compression { Packer::compressing() } else { Ok(Packer::Plain) }
    }

    /// Looks up a blob from `start` on, and marks it as used; blocks.
    fn find(&self, key: &Key, start: u64) -> Result<Found> {
        for _ in 1..LOOKS_MAX {
            match self.look(key, start)? {
                Found::Lost => {}
                found @ (Found::Nothing | Found::Blob(_)) => return Ok(found),
            }
        }
        self.look(key, start)
    }

    fn look(&self, key: &Key, start: u64) -> Result<Found> {
        let name = Name::from(key);
        let _open = self.open_gate();
        let Some(entry) = self.ledger.entry(&name)?.filter(|entry| key.fits(entry.size())) else {
            return Ok(Found::Nothing);
        };
        // What is not yet there to stay may be read; it was put a moment ago and needs no mark.
        if !self.unsettled.contains(&name) {
            self.mark(&name, entry.size());
        }
        let read = |form, bytes| self.files.read(&name, Stored { form, bytes });
        let blob = match entry.location {
            Location::Inline(bytes) => Some(Blob::Whole(bytes).starting_at(start)),
            Location::File { size } => read(Form::Plain, size)?
                .map(|(file, size)| Blob::File { file: Arc::new(file), offset: 0, size }.starting_at(start)),
            Location::Compressed { stored, .. } => read(Form::Compressed, stored)?
                .map(|(file, stored)| Frames::open(file, stored)?.into_blob(start)),
        };
        blob.map_or(Ok(Found::Lost), |blob| Ok(Found::Blob(blob?)))
    }

    /// Notes a use. When there are so many that they cannot be noted, the writer is told to write some down.
    fn mark(&self, name: &Name, size: u64) {
        if !self.marks.mark(name, size)
            && let Some(requests) = self.requests.upgrade()
        {
            // A writer that is so busy that its queue is full finds out by itself.
            let _ = requests.try_send(Request::Tick);
        }
    }

    /// Whether a blob of this size is there in full and to stay, which marks it; results are never taken to be the same. Blocks.
    fn is_present(&self, name: &Name, size: u64) -> Result<bool> {
        let _open = self.open_gate();
        if !name.is_blob() {
            return Ok(false);
        }
        let Some(entry) = self.ledger.entry(name)?.filter(|entry| entry.size() == size) else {
            return Ok(false);
        };
        let Some(file) = entry.location.file() else { return Ok(false) };
        if !self.unsettled.is_settled(name, &mut Patience::new()) {
            return Ok(false);
        }
        self.mark(name, size);
        Ok(self.files.read(name, file)?.is_some())
    }

    /// The absent ones; the others are marked. Blocks.
    fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let (mut missing, mut patience) = (Vec::new(), Patience::new());
        for some in keys.chunks(LOOKUPS_MAX) {
            let _open = self.open_gate();
            for key in some {
                let name = Name::from(key);
                if self.marks.renew(&name).is_some_and(|size| key.fits(size)) {
                    continue;
                }
                // The writer needs no gate while it makes a commit durable, so waiting for that holds up nobody.
                match self.ledger.size(&name)?.filter(|size| key.fits(*size)) {
                    Some(size) if self.unsettled.is_settled(&name, &mut patience) => self.mark(&name, size),
                    Some(_) | None => missing.push(key.clone()),
                }
            }
        }
        Ok(missing)
    }

    fn open_gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_gate(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for Disk {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        // Asked before the index is, because the rebuilding may end in between.
        let is_rebuilding = self.shared.is_rebuilding.load(Ordering::Acquire);
        let mut found = self.find(key, range.start).await?;
        if is_rebuilding && matches!(found, Found::Nothing) {
            rebuild::take_up(self, vec![Name::from(key)]).await?;
            found = self.find(key, range.start).await?;
        }
        match found {
            Found::Nothing => Ok(None),
            Found::Blob(blob) => Ok(Some(blob)),
            Found::Lost => {
                self.heal(Name::from(key));
                Ok(None)
            }
        }
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        let name = Name::from(key);
        if blob.size() > INLINE_MAX {
            return upload::put(self, name, blob).await;
        }
        let bytes = blob.into_bytes(INLINE_MAX).await?;
        self.change_one(Change { name, content: Content::Inline(bytes) }).await
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let is_rebuilding = self.shared.is_rebuilding.load(Ordering::Acquire);
        let missing = self.absent(keys.to_vec()).await?;
        if !is_rebuilding || missing.is_empty() {
            return Ok(missing);
        }
        rebuild::take_up(self, missing.iter().map(Name::from).collect()).await?;
        self.absent(missing).await
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        let name = Name::from(key);
        self.ask(|done| Request::Remove { name, done }).await?
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        let Some(name) = Name::new(Family::Blob(function), hash) else { return Ok(None) };
        let is_rebuilding = self.shared.is_rebuilding.load(Ordering::Acquire);
        let size = self.size(name).await?;
        if !is_rebuilding || size.is_some() {
            return Ok(size);
        }
        rebuild::take_up(self, vec![name]).await?;
        self.size(name).await
    }

    async fn finds_by_hash(&self) -> bool {
        true
    }

    /// Small blobs go to the writer in groups instead of one by one.
    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        let pieces = stream::iter(pieces(blobs)).map(|piece| async {
            match piece {
                Piece::Small(changes) => self.change(changes).await,
                Piece::Large(key, bytes) => vec![self.put(&key, Blob::Whole(bytes)).await],
            }
        });
        pieces.buffered(PIECES_MAX).map(stream::iter).flatten().collect().await
    }
}

/// A part of a batch.
enum Piece {
    Small(Vec<Change>),
    Large(Key, Bytes),
}

/// Cuts a batch, in its order, into what goes to the writer at once and what is a file.
fn pieces(blobs: Vec<(Key, Bytes)>) -> Vec<Piece> {
    let (mut pieces, mut changes, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (key, content) in blobs {
        let size = content.len();
        let is_large = size as u64 > INLINE_MAX;
        if !changes.is_empty()
            && (is_large || changes.len() == CHANGES_MAX || bytes + size > CHANGES_BYTES_MAX)
        {
            pieces.push(Piece::Small(std::mem::take(&mut changes)));
            bytes = 0;
        }
        if is_large {
            pieces.push(Piece::Large(key, content));
            continue;
        }
        bytes += size;
        changes.push(Change { name: Name::from(&key), content: Content::Inline(content) });
    }
    if !changes.is_empty() {
        pieces.push(Piece::Small(changes));
    }
    pieces
}
