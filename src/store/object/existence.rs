//! Which objects are known to exist, and until when that may be believed: in memory, and behind it on the disk.
//!
//! It only ever says yes or nothing. What it loses costs a request; what it should have forgotten is asked for again when its
//! time is over.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::digest::Function;
use crate::error::{Context, Error, Result};
use crate::index::{Batch, COMMIT_OPERATIONS_MAX, Index};
use crate::store::Key;
use crate::store::name::Name;
use crate::tasks;

/// Changes that wait for the disk. More are kept in memory only.
const PENDING_MAX: usize = 100_000;

/// How often changes go to the disk: each commit costs a sync.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Entries on the disk that are looked at for their age after each round of writes, so that old ones do not stay.
const SWEEP_ENTRIES: usize = 50;

/// Entries that share a place in the table; the one whose time ends first makes room.
const WAYS: usize = 8;

/// Enough that threads seldom meet.
const SHARDS: usize = 64;

/// Begins the keys on the disk.
const TAG: u8 = b'e';

/// 16 bytes of a hash of name and size: no client can find two blobs that share it, and none finds a blob under a size that it has not.
type Fingerprint = [u8; 16];

/// Seconds since 1970, for 80 more years; zero is never.
type Until = u32;

/// What is known to exist.
pub(super) struct Existence {
    shared: Arc<Shared>,
    /// Wakes the writer before its time, and ends it when it is dropped.
    wake: mpsc::SyncSender<()>,
}

struct Shared {
    table: Table,
    /// What is not yet on the disk; zero removes.
    pending: Mutex<HashMap<Fingerprint, Until>>,
    /// Set when it is open, which may take a while.
    index: OnceLock<Index>,
}

/// A set-associative table: its size is fixed, and it never stops to grow.
struct Table {
    shards: Box<[Mutex<Box<[Entry]>>]>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
struct Entry {
    fingerprint: Fingerprint,
    until: Until,
}

impl Existence {
    /// Remembers up to `entries` objects in memory and all of them in `directory`, which is made.
    pub(super) fn open(entries: usize, directory: &Path) -> Result<Self> {
        let shared = Arc::new(Shared {
            table: Table::new(entries),
            pending: Mutex::default(),
            index: OnceLock::new(),
        });
        let (wake, woken) = mpsc::sync_channel(1);
        let (writer, directory) = (Arc::clone(&shared), directory.to_owned());
        tasks::thread("object-existence", move || writer.write_until_dropped(directory, &woken))
            .context(|| "start a thread for the memory of objects")?;
        Ok(Self { shared, wake })
    }

    /// The object exists at least until `until`, in seconds since 1970.
    pub(super) fn learn(&self, key: &Key, until: u64) {
        let (fingerprint, until) = (fingerprint(key), Until::try_from(until).unwrap_or(Until::MAX));
        self.shared.table.set(fingerprint, until);
        self.note(fingerprint, until);
    }

    /// The object may be gone.
    pub(super) fn forget(&self, key: &Key) {
        let fingerprint = fingerprint(key);
        self.shared.table.set(fingerprint, 0);
        self.note(fingerprint, 0);
    }

    /// For each of `keys` whether it is known to exist at `now`.
    ///
    /// # Errors
    /// `Cancelled` when the process ends.
    pub(super) async fn known(&self, keys: &[Key], now: u64) -> Result<Vec<bool>> {
        let fingerprints: Vec<Fingerprint> = keys.iter().map(fingerprint).collect();
        let now = Until::try_from(now).unwrap_or(Until::MAX);
        let mut known: Vec<Option<bool>> =
            fingerprints.iter().map(|it| self.shared.in_memory(it).map(|until| until > now)).collect();
        if known.contains(&None) && self.shared.index.get().is_some() {
            let shared = Arc::clone(&self.shared);
            known = tasks::blocking(move || Ok(shared.on_disk(&fingerprints, known, now))).await?;
        }
        Ok(known.into_iter().map(|known| known == Some(true)).collect())
    }

    fn note(&self, fingerprint: Fingerprint, until: Until) {
        let mut pending = self.shared.pending();
        // What is to be forgotten has more room: to believe it costs a client its build.
        let room = if until == 0 { 2 * PENDING_MAX } else { PENDING_MAX };
        if pending.len() < room || pending.contains_key(&fingerprint) {
            pending.insert(fingerprint, until);
        }
        let is_much = pending.len() >= COMMIT_OPERATIONS_MAX;
        drop(pending);
        if is_much {
            // Full means that it is awake already.
            let _ = self.wake.try_send(());
        }
    }
}

impl Shared {
    /// Until when the object exists, as far as memory knows; zero when it is known that nothing is known.
    fn in_memory(&self, fingerprint: &Fingerprint) -> Option<Until> {
        self.table.get(fingerprint).or_else(|| self.pending().get(fingerprint).copied())
    }

    /// Fills the gaps of `known` from the disk; blocks.
    fn on_disk(
        &self,
        fingerprints: &[Fingerprint],
        mut known: Vec<Option<bool>>,
        now: Until,
    ) -> Vec<Option<bool>> {
        let Some(index) = self.index.get() else { return known };
        for (fingerprint, known) in fingerprints.iter().zip(&mut known).filter(|(_, known)| known.is_none()) {
            // An index that does not answer knows nothing.
            let Ok(Some(value)) = index.get(&key(fingerprint)) else { continue };
            let Some(until) = value.first_chunk().map(|bytes| Until::from_le_bytes(*bytes)) else { continue };
            if until > now {
                self.table.set(*fingerprint, until);
                *known = Some(true);
            }
        }
        known
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<Fingerprint, Until>> {
        // A map is right between any two steps that can panic.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's life.
    fn write_until_dropped(&self, directory: PathBuf, woken: &mpsc::Receiver<()>) {
        if let Err(error) = self.open_index(&directory) {
            tracing::error!("what exists in the bucket is remembered in memory only: {}", error.chain());
            return;
        }
        let mut swept = Vec::from([TAG]);
        loop {
            let ended = matches!(woken.recv_timeout(WRITE_EVERY), Err(RecvTimeoutError::Disconnected));
            if let Err(error) = self.write_pending() {
                tracing::warn!("what exists in the bucket is not on the disk: {}", error.chain());
            }
            if ended {
                return;
            }
            swept = self.sweep(&swept).unwrap_or_else(|_| Vec::from([TAG]));
        }
    }

    fn open_index(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory).context(|| "make the directory of the memory of objects")?;
        let (index, _) = Index::open(&directory.join("index"))?;
        self.index.set(index).map_err(|_| Error::bug("the memory of objects is opened twice"))
    }

    /// Takes what is pending in commits of the size that the index takes; only this thread commits.
    fn write_pending(&self) -> Result<()> {
        let Some(index) = self.index.get() else { return Ok(()) };
        loop {
            let changes: Vec<(Fingerprint, Until)> = self
                .pending()
                .iter()
                .take(COMMIT_OPERATIONS_MAX)
                .map(|(key, until)| (*key, *until))
                .collect();
            if changes.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::default();
            for (fingerprint, until) in &changes {
                match until {
                    0 => batch.remove(&key(fingerprint)),
                    until => batch.insert(&key(fingerprint), until.to_le_bytes().to_vec()),
                }
            }
            if let Err(error) = index.commit(batch, || ()) {
                // What to forget is tried again: to believe it costs a client its build.
                self.settle(changes.iter().filter(|(_, until)| *until != 0));
                index.reopen()?;
                return Err(error);
            }
            self.settle(&changes);
        }
    }

    /// Takes what was written out of what is pending, unless it changed meanwhile.
    fn settle<'a>(&self, changes: impl IntoIterator<Item = &'a (Fingerprint, Until)>) {
        let mut pending = self.pending();
        for (fingerprint, until) in changes {
            if pending.get(fingerprint) == Some(until) {
                pending.remove(fingerprint);
            }
        }
    }

    /// Looks at some entries from `from` on and notes those for removal whose time is over; returns where to go on.
    fn sweep(&self, from: &[u8]) -> Result<Vec<u8>> {
        let Some(index) = self.index.get() else { return Ok(from.to_vec()) };
        let now = super::clock::Clock::default().now();
        let mut next = from.to_vec();
        for _ in 0..SWEEP_ENTRIES {
            let Some((key, value)) = index.first(&next, TAG)? else { return Ok(Vec::from([TAG])) };
            let until = value.first_chunk().map_or(0, |bytes| Until::from_le_bytes(*bytes));
            if u64::from(until) <= now
                && let Some(fingerprint) = key[1..].first_chunk()
            {
                self.pending().entry(*fingerprint).or_insert(0);
            }
            next = key.to_vec();
            next.push(0);
        }
        Ok(next)
    }
}

impl Table {
    fn new(entries: usize) -> Self {
        let per_shard = entries.div_ceil(SHARDS).next_multiple_of(WAYS);
        let shard = |_| Mutex::new(vec![Entry::default(); per_shard].into_boxed_slice());
        Self { shards: (0..SHARDS).map(shard).collect() }
    }

    fn get(&self, fingerprint: &Fingerprint) -> Option<Until> {
        let (mut shard, place) = self.place(fingerprint);
        let found = shard[place..place + WAYS].iter_mut().find(|entry| entry.fingerprint == *fingerprint);
        found.map(|entry| entry.until)
    }

    fn set(&self, fingerprint: Fingerprint, until: Until) {
        let (mut shard, place) = self.place(&fingerprint);
        let ways = &mut shard[place..place + WAYS];
        let known = ways.iter().position(|entry| entry.fingerprint == fingerprint);
        let first_to_end = (0..WAYS).min_by_key(|way| ways[*way].until);
        let way = known.or(first_to_end).expect("there are several ways");
        ways[way] = Entry { fingerprint, until };
    }

    /// The shard, and where in it the entries begin that `fingerprint` can be in.
    fn place(&self, fingerprint: &Fingerprint) -> (MutexGuard<'_, Box<[Entry]>>, usize) {
        let number = u64::from_le_bytes(*fingerprint.first_chunk().expect("it has 16 bytes"));
        let shard = &self.shards[number as usize % SHARDS];
        // An entry is right between any two steps that can panic.
        let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let sets = shard.len() / WAYS;
        let set = (number as usize / SHARDS) % sets;
        (shard, set * WAYS)
    }
}

fn fingerprint(key: &Key) -> Fingerprint {
    let size = key.size().unwrap_or(0);
    let named = [Name::from(key).as_bytes(), &size.to_le_bytes()].concat();
    *Function::Blake3.hash(&named).hash().first_chunk().expect("BLAKE3 has 32 bytes")
}

fn key(fingerprint: &Fingerprint) -> [u8; 17] {
    let mut key = [TAG; 17];
    key[1..].copy_from_slice(fingerprint);
    key
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tempfile::TempDir;

    use super::*;
    const NOW: u64 = 2_000_000_000;

    fn blob(number: u32) -> Key {
        Key::Blob(Function::Sha256.hash(&number.to_le_bytes()))
    }

    fn blobs(range: std::ops::Range<u32>) -> Vec<Key> {
        range.map(blob).collect()
    }

    async fn count(existence: &Existence, keys: &[Key], now: u64) -> usize {
        existence.known(keys, now).await.unwrap().into_iter().filter(|known| *known).count()
    }

    /// Waits until the index is open and all is on the disk.
    async fn settled(existence: &Existence) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while existence.shared.index.get().is_none() || !existence.shared.pending().is_empty() {
            assert!(Instant::now() < deadline, "it does not settle");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[test]
    fn an_entry_has_twenty_bytes() {
        assert_eq!(size_of::<Entry>(), 20);
    }

    #[tokio::test]
    async fn what_is_learnt_is_known_until_its_time_and_unless_forgotten() {
        let directory = TempDir::new().unwrap();
        let existence = Existence::open(1_000, directory.path()).unwrap();
        existence.learn(&blob(1), NOW + 10);
        existence.learn(&blob(2), NOW + 10);
        existence.forget(&blob(2));
        assert_eq!(existence.known(&blobs(1..4), NOW).await.unwrap(), [true, false, false]);
        assert_eq!(count(&existence, &blobs(1..4), NOW + 10).await, 0);
    }

    #[tokio::test]
    async fn the_disk_remembers_more_than_memory_and_for_the_next_process() {
        let directory = TempDir::new().unwrap();
        for _ in 0..2 {
            let existence = Existence::open(64, directory.path()).unwrap();
            for key in blobs(0..3_000) {
                existence.learn(&key, NOW + 10);
            }
            existence.forget(&blob(7));
            settled(&existence).await;
            assert_eq!(count(&existence, &blobs(0..4_000), NOW).await, 2_999);
        }
        let existence = Existence::open(64, directory.path()).unwrap();
        settled(&existence).await;
        assert_eq!(count(&existence, &blobs(0..4_000), NOW).await, 2_999);
    }

    #[tokio::test]
    async fn what_is_too_old_leaves_the_disk() {
        let directory = TempDir::new().unwrap();
        let existence = Existence::open(64, directory.path()).unwrap();
        existence.learn(&blob(1), 5);
        settled(&existence).await;
        let deadline = Instant::now() + Duration::from_secs(30);
        let index = existence.shared.index.get().unwrap();
        while index.get(&key(&fingerprint(&blob(1)))).unwrap().is_some() {
            assert!(Instant::now() < deadline, "it stays");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[test]
    fn the_table_keeps_what_lasts_longest() {
        let table = Table::new(64);
        let fingerprints: Vec<Fingerprint> = blobs(0..10_000).iter().map(fingerprint).collect();
        for (number, fingerprint) in fingerprints.iter().enumerate() {
            table.set(*fingerprint, 1 + number as u32);
        }
        let kept = fingerprints.iter().filter(|fingerprint| table.get(fingerprint).is_some()).count();
        assert_eq!(kept, table.shards.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>());
        assert!(table.get(fingerprints.last().unwrap()).is_some());
    }
}
