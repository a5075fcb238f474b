//! A leaf on the local disk: small blobs in an embedded index, large ones in a file each.
//!
//! `ledger` is what we keep in the index, `files` the files, `writer` the one thread that
//! changes any of them, with `evict`; `upload` brings large blobs in. A put is acknowledged when a power cut cannot undo it.
//! The index is a cache of the disk: when it is lost, `rebuild` makes it anew from the files.

mod compressed;
#[cfg(test)]
mod crash;
mod entry;
mod evict;
mod files;
mod keeper;
mod ledger;
mod lock;
mod marks;
mod rebuild;
mod space;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
mod upload;
mod writeback;
mod writer;

use std::fs;
use std::ops::RangeFrom;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc as blocking};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};

use self::compressed::{Frames, Packer};
pub use self::entry::INLINE_MAX;
use self::entry::{Location, fits};
use self::files::{Files, Form, Stored, Temporary};
use self::ledger::Ledger;
use self::marks::Marks;
use self::space::Space;
pub use self::space::default_size;
use self::writer::{CHANGES_BYTES_MAX, CHANGES_MAX, Change, Content, Request, Writer};
use super::index::Origin;
use super::name::Name;
use super::{Blob, Key, Pins, Store};
use crate::error::{Context, Error, Kind, Result};
use crate::tasks;

/// Requests that wait for the writer, of at most a commit's size each: 16 MiB in all.
const REQUESTS_MAX: usize = 256;

/// Files that wait to be deleted.
const TRASH_MAX: usize = 4096;

/// The longest wait for the writer. It commits in milliseconds; this is for a disk that hangs.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// What was used in these last minutes is evicted only when a write would have to be refused otherwise.
const PROTECTED_MINUTES: u32 = 5;

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
    threads: Vec<JoinHandle<()>>,
}

/// What the readers and the threads have in common.
struct Shared {
    files: Files,
    ledger: Ledger,
    space: Arc<Space>,
    marks: Marks,
    clock: Clock,
    /// Held open by who tells that a blob is there, closed by eviction for the moment in which a blob goes.
    gate: RwLock<()>,
    requests: mpsc::WeakSender<Request>,
    compression: bool,
}

/// Minutes since 1970, and what a test adds.
#[derive(Default)]
struct Clock {
    ahead: AtomicU32,
}

impl Clock {
    fn minute(&self) -> u32 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Minutes overflow in the year 10136.
        u32::try_from(now.as_secs() / 60).unwrap_or(u32::MAX) + self.ahead.load(Ordering::Relaxed)
    }
}

/// What a store on disk is told.
#[derive(Clone)]
pub struct Options {
    /// The bytes that it may take on the disk.
    pub size_bytes: u64,
    /// How long a blob stays that was put, read or reported present, unless a write would have to be refused otherwise.
    pub lease: Duration,
    /// Whether blobs are compressed where that saves space.
    pub compression: bool,
    /// What is not evicted at all.
    pub pins: Pins,
}

impl Options {
    /// At most `size_bytes`, no lease, nothing compressed, nothing pinned.
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, lease: Duration::ZERO, compression: false, pins: Pins::default() }
    }
}

impl Disk {
    /// Opens the store in `directory`, which is made if it is not there. Blocks while the index is opened; no file is looked at.
    ///
    /// # Errors
    /// `Unavailable` when another process uses the directory, and what the file system reports.
    pub fn open(directory: &Path, options: Options) -> Result<Self> {
        fs::create_dir_all(directory).context(|| "make the data directory")?;
        let lock = lock::acquire(directory)?;
        let files = Files::open(directory)?;
        let space = Arc::new(Space::new(directory, options.size_bytes)?);
        let (ledger, origin) = Ledger::open(&directory.join("index"))?;
        let totals = ledger.totals()?;
        space.update(&totals, ledger.index_bytes());
        space.keep_reserve();
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let (trash, discarded) = blocking::sync_channel(TRASH_MAX);
        let (marks, clock, gate) = Default::default();
        let weak = requests.downgrade();
        let (compression, requests_of_readers) = (options.compression, weak.clone());
        #[rustfmt::skip]
        let shared = Arc::new(Shared {
            files, ledger, space, marks, clock, gate, requests: requests_of_readers, compression,
        });
        let marks_rotated = shared.clock.minute();
        let (held, is_evicting, broken_since, sequence) = (None, false, None, first_sequence());
        #[rustfmt::skip]
        let writer = Writer {
            shared: Arc::clone(&shared), requests: receiver, held, totals, sequence, is_evicting, trash,
            marks_rotated, broken_since, _lock: lock,
        };
        let threads = vec![
            tasks::thread("disk-writer", move || writer.run()).context(|| "start the writer")?,
            tasks::thread("disk-keeper", move || keeper::run(&discarded, &weak))
                .context(|| "start the keeper")?,
        ];
        match origin {
            Origin::Existing => {}
            Origin::New => rebuild::begin(directory, &shared.requests)?,
        }
        Ok(Self { shared, requests: Some(requests), threads })
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
            Err(error) => (0..count).map(|_| Err(Error::new(error.kind(), error.to_string()))).collect(),
        }
    }

    async fn publish(&self, name: Name, temporary: Temporary) -> Result<()> {
        self.change_one(Change { name, content: Content::File(temporary) }).await
    }

    async fn change_one(&self, change: Change) -> Result<()> {
        let result = self.change(vec![change]).await.pop();
        result.unwrap_or_else(|| Err(Error::bug("the writer gave no answer")))
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
        self.requests = None;
        for thread in self.threads.drain(..) {
            // A panic of a thread has ended the process.
            let _ = thread.join();
        }
    }
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
        let Some(entry) = self.ledger.entry(&name)?.filter(|entry| fits(key, entry.size())) else {
            return Ok(Found::Nothing);
        };
        self.marks.mark(&name, entry.size());
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

    /// Whether a blob of this size is there in full, which marks it; results are never taken to be the same. Blocks.
    fn is_present(&self, name: &Name, size: u64) -> Result<bool> {
        let _open = self.open_gate();
        if !name.is_blob() {
            return Ok(false);
        }
        let Some(entry) = self.ledger.entry(name)?.filter(|entry| entry.size() == size) else {
            return Ok(false);
        };
        self.marks.mark(name, size);
        let Some(file) = entry.location.file() else { return Ok(false) };
        Ok(self.files.read(name, file)?.is_some())
    }

    /// The absent ones; the others are marked. Blocks.
    fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let mut missing = Vec::new();
        for some in keys.chunks(LOOKUPS_MAX) {
            let _open = self.open_gate();
            for key in some {
                let name = Name::from(key);
                if self.marks.renew(&name).is_some_and(|size| fits(key, size)) {
                    continue;
                }
                match self.ledger.size(&name)?.filter(|size| fits(key, *size)) {
                    Some(size) => self.marks.mark(&name, size),
                    None => missing.push(key.clone()),
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
        let (shared, wanted) = (self.shared(), key.clone());
        match tasks::blocking(move || shared.find(&wanted, range.start)).await? {
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
        let (shared, keys) = (self.shared(), keys.to_vec());
        tasks::blocking(move || shared.missing(&keys)).await
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        let name = Name::from(key);
        self.ask(|done| Request::Remove { name, done }).await?
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
