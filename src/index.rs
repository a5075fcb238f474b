//! The guard around sled 0.34, and its only home: bytes by bytes, durable when [`Index::commit`] returns.
//!
//! What the guard is for, all measured: `flush` alone loses the whole database in a power cut, because it syncs ranges and
//! not the file's metadata, so each commit ends with an `fdatasync` of our own; a commit must be small, or a torn log
//! segment takes older ones along; up to 26 neighbours that have more than 128 KiB together become a file of their own, which no
//! sync reaches, so a value has little more than 4 KiB; opening a damaged database may fail, panic or hang, so it happens on a thread of its
//! own, and the directory is moved aside when it does not work out.

#[cfg(test)]
pub(crate) mod crash;
#[cfg(test)]
pub(crate) mod power;

use std::fs::{self, File};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result};
use crate::tasks;

/// Operations and bytes of one commit. Larger ones have lost data in power cuts.
pub(crate) const COMMIT_OPERATIONS_MAX: usize = 500;
pub(crate) const COMMIT_BYTES_MAX: usize = 128 * 1024;

/// An index that is not open after this is taken to hang; 0.6 s per million entries is usual.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// How long to wait for a database that is still in use by its last readers.
const RELEASE_MAX: Duration = Duration::from_secs(5);
const RELEASE_POLL: Duration = Duration::from_millis(10);

/// A reclaim frees about five hundred pieces of memory; an operation replaces some ten of them. It costs next to nothing when
/// there is nothing to free, and it takes a few until a piece may be freed.
const OPERATIONS_PER_RECLAIM: usize = 16;
const RECLAIMS_MIN: usize = 8;

/// sled counts bytes on disk; the memory in use is 2 to 3 times this.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// Damaged indexes that are kept to be looked at.
const BAD_KEPT_MAX: u32 = 2;

const SCHEMA_KEY: &[u8] = b"mschema";
/// Changes with every change of what keys and values mean; an index of another schema is built anew.
const SCHEMA: &[u8] = b"croft index 3";

/// Is there until the owner of a new index has told it what it must know.
const UNFINISHED_KEY: &[u8] = b"munfinished";

/// An embedded database that answers errors where sled would panic, hang, or lose data.
pub(crate) struct Index {
    path: PathBuf,
    /// `None` only while it is being opened again.
    database: RwLock<Option<Arc<Database>>>,
    /// A read went wrong since it was opened.
    has_failed: AtomicBool,
    /// Runs in each commit between visible and durable.
    #[cfg(test)]
    pub(crate) before_sync: std::sync::Mutex<Option<BeforeSync>>,
}

/// May take its time, and may fail as the sync would.
#[cfg(test)]
pub(crate) type BeforeSync = Box<dyn FnMut() -> Result<()> + Send>;

/// How an index came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Existing,
    /// It does not know, or not completely, of what may be there beside it. So it stays, from start to start, until a commit with
    /// [`Batch::finish_index`].
    New,
}

struct Database {
    sled: sled::Db,
    /// A second handle of sled's file, for the sync that sled leaves out.
    file: File,
}

/// Changes that become visible and durable together.
#[derive(Default)]
pub(crate) struct Batch {
    batch: sled::Batch,
    operations: usize,
}

impl Batch {
    pub(crate) fn insert(&mut self, key: &[u8], value: Vec<u8>) {
        self.batch.insert(key, value);
        self.operations += 1;
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.batch.remove(key);
        self.operations += 1;
    }

    /// The index knows all that a new one has to be told: the next start finds [`Origin::Existing`].
    pub(crate) fn finish_index(&mut self) {
        self.remove(UNFINISHED_KEY);
    }
}

impl Index {
    /// Opens the index at `path`, or begins a new one. Blocks, up to [`OPEN_MAX`].
    ///
    /// # Errors
    /// `Exhausted` when the disk is full, `Unavailable` when not even a new index can be opened.
    pub(crate) fn open(path: &Path) -> Result<(Self, Origin)> {
        let (database, origin) = match Database::open_within_limit(path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == Kind::Corrupt => {
                let moved = move_aside(path)?;
                tracing::error!(moved_to = %moved.display(), "the index cannot be used: {}", error.chain());
                let (database, _) = Database::open_within_limit(path)?;
                (database, Origin::New)
            }
            Err(error) => return Err(error),
        };
        let index = Self {
            path: path.to_owned(),
            database: RwLock::new(Some(Arc::new(database))),
            has_failed: AtomicBool::new(false),
            #[cfg(test)]
            before_sync: std::sync::Mutex::default(),
        };
        Ok((index, origin))
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// `Unavailable`, whatever is wrong with the index: what cannot be read is neither absent nor damaged.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>> {
        let database = self.database()?;
        self.noticed(guarded("read the index", || database.sled.get(key)))
    }

    /// The first key that is not before `from` and begins with `prefix`, and its value.
    ///
    /// # Errors
    /// As [`Index::get`].
    pub(crate) fn first(&self, from: &[u8], prefix: u8) -> Result<Option<(sled::IVec, sled::IVec)>> {
        Ok(self.page(Bound::Included(from), prefix, 1)?.pop())
    }

    /// Up to `count` keys from `from` on that begin with `prefix`, and their values, in the order of the keys.
    ///
    /// # Errors
    /// As [`Index::get`].
    pub(crate) fn page(
        &self,
        from: Bound<&[u8]>,
        prefix: u8,
        count: usize,
    ) -> Result<Vec<(sled::IVec, sled::IVec)>> {
        let database = self.database()?;
        let end = [prefix + 1];
        let range = (from, Bound::Excluded(&end[..]));
        self.noticed(guarded("scan the index", || {
            database.sled.range::<&[u8], _>(range).take(count).collect()
        }))
    }

    /// Whether a read went wrong, so that the index should be opened again.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Notes that a read went wrong; the log is told of the first one.
    fn noticed<T>(&self, read: Result<T>) -> Result<T> {
        read.map_err(|error| {
            if !self.has_failed.swap(true, Ordering::Relaxed) {
                tracing::error!("the index cannot be read: {}", error.chain());
            }
            Error::new(Kind::Unavailable, "the index cannot be read").with_source(error)
        })
    }

    /// Makes the changes visible, calls `between`, and makes the changes durable. Only one thread may commit.
    ///
    /// # Errors
    /// The changes may be visible or not, and durable or not; nothing can be committed until [`Index::reopen`] succeeds.
    pub(crate) fn commit(&self, batch: Batch, between: impl FnOnce()) -> Result<()> {
        if batch.operations == 0 {
            between();
            return Ok(());
        }
        let (database, operations) = (self.database()?, batch.operations);
        guarded("write the index", || database.sled.apply_batch(batch.batch))?;
        between();
        self.sync(&database, operations)
    }

    /// Makes the changes, which insert a value or remove a key, durable one after the other: after a crash those up to some one of
    /// them are there. Only one thread may call it.
    ///
    /// It holds up nobody, unlike [`Index::commit`]: while sled applies a batch, no index of the process can be read.
    ///
    /// # Errors
    /// As [`Index::commit`].
    pub(crate) fn append(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<()> {
        let (database, operations) = (self.database()?, changes.len());
        if operations == 0 {
            return Ok(());
        }
        for (key, value) in changes {
            guarded("write the index", || match value {
                Some(value) => database.sled.insert(key, value),
                None => database.sled.remove(key),
            })?;
        }
        self.sync(&database, operations)
    }

    fn sync(&self, database: &Database, operations: usize) -> Result<()> {
        #[cfg(test)]
        if let Some(pause) = &mut *self.before_sync.lock().unwrap_or_else(PoisonError::into_inner) {
            pause()?;
        }
        guarded("flush the index", || database.sled.flush())?;
        database.file.sync_data().context(|| "sync the index")?;
        reclaim(operations);
        Ok(())
    }

    /// Gives up a database that failed and opens it again; readers get an error meanwhile.
    ///
    /// # Errors
    /// As [`Index::open`]; readers get an error until another attempt succeeds.
    pub(crate) fn reopen(&self) -> Result<Origin> {
        let old = self.write().take();
        if let Some(old) = old {
            release(old);
        }
        let (index, origin) = Self::open(&self.path)?;
        *self.write() = index.write().take();
        self.has_failed.store(false, Ordering::Relaxed);
        Ok(origin)
    }

    /// Moves a database that cannot be read aside, to be looked at, and begins a new one.
    ///
    /// # Errors
    /// As [`Index::open`]; readers get an error until `reopen` succeeds.
    pub(crate) fn begin_anew(&self) -> Result<()> {
        let old = self.write().take();
        if let Some(old) = old {
            release(old);
        }
        move_aside(&self.path)?;
        self.reopen().map(drop)
    }

    /// The bytes that the index takes from the disk.
    pub(crate) fn bytes(&self) -> u64 {
        let length = |database: Arc<Database>| database.file.metadata().map_or(0, |metadata| metadata.len());
        self.database().map_or(0, length)
    }

    fn database(&self) -> Result<Arc<Database>> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.clone().ok_or_else(|| Error::new(Kind::Unavailable, "the index is being opened again"))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Option<Arc<Database>>> {
        self.database.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the last reader has let go, because a database that is open is locked.
fn release(mut database: Arc<Database>) {
    let deadline = Instant::now() + RELEASE_MAX;
    while Instant::now() < deadline {
        match Arc::try_unwrap(database) {
            Ok(database) => {
                if catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
                    tracing::warn!("the index panicked while it was closed");
                }
                return;
            }
            Err(shared) => database = shared,
        }
        std::thread::sleep(RELEASE_POLL);
    }
}

impl Database {
    /// Opens on another thread, since a damaged database can hang. That thread is then left behind.
    fn open_within_limit(path: &Path) -> Result<(Self, Origin)> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let owned = path.to_owned();
        let open = move || {
            let opened = catch_unwind(AssertUnwindSafe(|| Self::open_when_unlocked(&owned)));
            let panicked = |_| Err(Error::new(Kind::Corrupt, "the index panicked while it was opened"));
            // Nobody listens any more after the time-out.
            let _ = sender.send(opened.unwrap_or_else(panicked));
        };
        tasks::thread("index-open", open).context(|| "start a thread for the index")?;
        match receiver.recv_timeout(OPEN_MAX) {
            Ok(opened) => opened,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(Error::new(Kind::Corrupt, format!("the index was not open after {OPEN_MAX:?}")))
            }
        }
    }

    /// A database that was closed a moment ago may still be locked by its last readers.
    fn open_when_unlocked(path: &Path) -> Result<(Self, Origin)> {
        let deadline = Instant::now() + RELEASE_MAX;
        loop {
            match Self::open(path) {
                Err(error) if error.kind() == Kind::Unavailable && Instant::now() < deadline => {
                    std::thread::sleep(RELEASE_POLL);
                }
                other => return other,
            }
        }
    }

    fn open(path: &Path) -> Result<(Self, Origin)> {
        let sled = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()
            .map_err(opening_error)?;
        let file = File::open(path.join("db")).context(|| "open the index's file")?;
        let database = Self { sled, file };
        // A panic here is a damaged database, and told as such by the caller.
        let read = |key| database.sled.get(key).map_err(opening_error);
        match (read(SCHEMA_KEY)?, read(UNFINISHED_KEY)?) {
            (Some(schema), None) if *schema == *SCHEMA => Ok((database, Origin::Existing)),
            (Some(schema), Some(_)) if *schema == *SCHEMA => Ok((database, Origin::New)),
            (None, None) if database.sled.is_empty() => {
                database.begin(path)?;
                Ok((database, Origin::New))
            }
            (Some(_) | None, _) => Err(Error::new(Kind::Corrupt, "the index has another schema")),
        }
    }

    /// Makes a new database durable: its files, their names, and its schema.
    fn begin(&self, path: &Path) -> Result<()> {
        let mut batch = sled::Batch::default();
        batch.insert(SCHEMA_KEY, SCHEMA);
        batch.insert(UNFINISHED_KEY, b"");
        guarded("begin the index", || self.sled.apply_batch(batch))?;
        guarded("flush the index", || self.sled.flush())?;
        self.file.sync_all().context(|| "sync the index")?;
        for file in [&path.join("conf"), path] {
            File::open(file).and_then(|file| file.sync_all()).context(|| "sync the index's directory")?;
        }
        let parent = path.parent().map_or(Ok(()), |parent| File::open(parent).and_then(|it| it.sync_all()));
        parent.context(|| "sync the directory of the index")
    }
}

/// Frees what earlier commits have replaced. sled leaves that to every 128th of its calls, which frees some hundred pieces of
/// memory; a commit is one call and replaces thousands.
fn reclaim(operations: usize) {
    for _ in 0..RECLAIMS_MIN + operations / OPERATIONS_PER_RECLAIM {
        sled::pin().flush();
    }
}

/// Runs a call of sled so that neither its panics nor its errors get further than an [`Error`].
fn guarded<T>(what: &str, call: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error_of(error).context(what)),
        Err(_) => Err(Error::new(Kind::Unavailable, format!("{what}: it panicked"))),
    }
}

fn error_of(error: sled::Error) -> Error {
    let kind = match &error {
        sled::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => Kind::Exhausted,
        sled::Error::Io(error) if error.kind() == std::io::ErrorKind::QuotaExceeded => Kind::Exhausted,
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => Kind::Unavailable,
        sled::Error::CollectionNotFound(_)
        | sled::Error::Unsupported(_)
        | sled::Error::ReportableBug(_)
        | sled::Error::Corruption { .. } => Kind::Corrupt,
        // What a torn database gives; the others (no descriptors, no permission) are no damage.
        sled::Error::Io(error) if is_torn(error) => Kind::Corrupt,
        sled::Error::Io(_) => Kind::Unavailable,
    };
    Error::new(kind, "the index failed").with_source(error)
}

fn is_torn(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::NotADirectory)
}

/// What says that the database is damaged, as opposed to a full disk or a lock.
fn opening_error(error: sled::Error) -> Error {
    error_of(error).context("open the index")
}

/// Renames a damaged index to `index.bad-<n>` and deletes the oldest of those that were kept.
fn move_aside(path: &Path) -> Result<PathBuf> {
    let bad = |number: u32| path.with_extension(format!("bad-{number}"));
    let siblings = path.parent().map(fs::read_dir).transpose().context(|| "list the store's directory")?;
    let kept = siblings.into_iter().flatten().flatten().filter_map(|sibling| bad_number(&sibling.path()));
    let number = kept.max().map_or(1, |newest| newest.saturating_add(1));
    let target = bad(number);
    fs::rename(path, &target).context(|| "move the index aside")?;
    if let Some(old) = number.checked_sub(BAD_KEPT_MAX) {
        // It is only there to be looked at; the next one that is moved aside tries again.
        let _ = fs::remove_dir_all(bad(old));
    }
    Ok(target)
}

fn bad_number(path: &Path) -> Option<u32> {
    path.extension()?.to_str()?.strip_prefix("bad-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_medium_that_fails_is_no_damage() {
        let kind = |error: io::Error| error_of(sled::Error::Io(error)).kind();
        assert_eq!(kind(io::Error::from_raw_os_error(libc::EIO)), Kind::Unavailable);
        assert_eq!(kind(io::Error::from_raw_os_error(libc::ENOSPC)), Kind::Exhausted);
        assert_eq!(kind(io::ErrorKind::UnexpectedEof.into()), Kind::Corrupt);
    }

    #[test]
    fn an_index_that_cannot_be_read_is_unavailable_until_it_is_opened_again() {
        let directory = tempfile::TempDir::new().unwrap();
        let (index, _) = Index::open(&directory.path().join("index")).unwrap();
        let error = index.noticed::<()>(Err(Error::new(Kind::Corrupt, "torn"))).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(index.has_failed());
        index.reopen().unwrap();
        assert!(!index.has_failed());
    }

    #[test]
    fn an_index_is_new_until_it_is_finished() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("index");
        for _ in 0..2 {
            assert_eq!(Index::open(&path).unwrap().1, Origin::New);
        }
        let (index, _) = Index::open(&path).unwrap();
        let mut batch = Batch::default();
        batch.finish_index();
        index.commit(batch, || {}).unwrap();
        drop(index);
        assert_eq!(Index::open(&path).unwrap().1, Origin::Existing);
    }
}
