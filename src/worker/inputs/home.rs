//! Directories of the cache from their reservation to their deletion: every byte counts until it is gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::files::Files;
use crate::error::{Context, Result};
use crate::metrics::WORKER_INPUT_BYTES;
use crate::tasks;
use crate::worker::directory::remove_all;

/// How much of the cache is in use.
pub(super) struct Ledger {
    limit: u64,
    account: Mutex<Account>,
    /// Woken when room is given back.
    pub(super) room: Notify,
}

/// Bytes that are taken, and those of them that are about to be given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) used: u64,
    pub(super) leaving: u64,
}

/// Room that is taken until it is dropped.
pub(super) struct Reservation {
    ledger: Arc<Ledger>,
    bytes: u64,
    is_leaving: AtomicBool,
}

/// A directory of the cache. When it is dropped it is deleted in the background, unless it is to be kept.
pub(super) struct Home {
    path: PathBuf,
    is_kept: AtomicBool,
    reservation: Option<Reservation>,
    janitor: Janitor,
}

/// Deletes directories in the background. Cheap to clone; ends with the last clone.
#[derive(Clone)]
pub(super) struct Janitor {
    /// Not bounded by itself: each directory of the cache, whose number the ledger bounds, goes in once.
    waste: Sender<Waste>,
    trash: PathBuf,
    next: Arc<AtomicU64>,
}

/// A directory to delete and the room that this gives back.
struct Waste {
    path: PathBuf,
    /// Where it is to be moved first, if that has not been done: a start believes in whatever has the name of a tree.
    aside: Option<PathBuf>,
    _reservation: Option<Reservation>,
}

impl Ledger {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, account: Mutex::default(), room: Notify::new() })
    }

    /// Takes room for `bytes`, if there is so much.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut account = self.lock();
        account.used = account.used.checked_add(bytes).filter(|after| *after <= self.limit)?;
        account.show();
        drop(account);
        Some(Reservation { ledger: self.clone(), bytes, is_leaving: AtomicBool::new(false) })
    }

    /// Takes room for what is there already, even if that is too much.
    pub(super) fn recognise(self: &Arc<Self>, bytes: u64) -> Reservation {
        let mut account = self.lock();
        account.used += bytes;
        account.show();
        drop(account);
        Reservation { ledger: self.clone(), bytes, is_leaving: AtomicBool::new(false) }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn account(&self) -> Account {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// Bytes that stay.
    pub(super) fn staying(self) -> u64 {
        self.used - self.leaving
    }

    fn show(self) {
        WORKER_INPUT_BYTES.set(i64::try_from(self.used).unwrap_or(i64::MAX));
    }
}

impl Reservation {
    /// Says that it is about to be dropped, so that nobody makes the same room again.
    fn leave(&self) {
        if !self.is_leaving.swap(true, Ordering::Relaxed) {
            self.ledger.lock().leaving += self.bytes;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut account = self.ledger.lock();
        account.used -= self.bytes;
        if *self.is_leaving.get_mut() {
            account.leaving -= self.bytes;
        }
        account.show();
        drop(account);
        self.ledger.room.notify_waiters();
    }
}

impl Home {
    /// Takes over the directory at `path`, to be deleted.
    pub(super) fn new(path: PathBuf, reservation: Option<Reservation>, janitor: Janitor) -> Self {
        Self { path, is_kept: AtomicBool::new(false), reservation, janitor }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the directory another name, unless there is such a directory: one that was let go and is not gone yet. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub(super) fn rename(mut self, path: PathBuf) -> io::Result<Self> {
        match rustix::fs::renameat_with(CWD, &self.path, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => self.path = path,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(self)
    }

    /// Has it stay when it is dropped.
    pub(super) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    /// Has it deleted when it is dropped, which will be soon.
    pub(super) fn let_go(&self) {
        self.is_kept.store(false, Ordering::Relaxed);
        self.reservation.iter().for_each(Reservation::leave);
    }

    /// What is reserved for it in bytes.
    pub(super) fn cost(&self) -> u64 {
        self.reservation.as_ref().map_or(0, |reservation| reservation.bytes)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Relaxed) {
            self.janitor.discard(&self.path, self.reservation.take());
        }
    }
}

impl Janitor {
    /// Starts to delete what is discarded, and what is in `trash` already. Afterwards it lets `files` go that nothing links to.
    ///
    /// # Errors
    /// When the file system or the machine fails.
    pub(super) fn start(trash: PathBuf, files: Arc<Files>) -> Result<Self> {
        let (waste, wasted) = channel();
        for entry in fs::read_dir(&trash).context(|| "list what is to be deleted")? {
            let path = entry.context(|| "list what is to be deleted")?.path();
            // The receiver is in scope.
            let _ = waste.send(Waste { path, aside: None, _reservation: None });
        }
        tasks::thread("inputs janitor", move || clean(&wasted, &files)).context(|| "start a thread")?;
        Ok(Self { waste, trash, next: Arc::default() })
    }

    /// Takes `path` out of the way at once and deletes it later. Whoever still writes there by its name fails.
    pub(super) fn discard(&self, path: &Path, reservation: Option<Reservation>) {
        reservation.iter().for_each(Reservation::leave);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let aside = self.trash.join(format!("{}-{number}", std::process::id()));
        let mut waste = Waste { path: path.to_owned(), aside: Some(aside), _reservation: reservation };
        // What cannot be moved is tried again by the janitor, and again with what comes after it.
        let _ = waste.move_aside();
        // The janitor is gone only when the process ends; the next start deletes what is left.
        let _ = self.waste.send(waste);
    }
}

impl Waste {
    /// Takes it out of the way, if it is not yet.
    fn move_aside(&mut self) -> io::Result<()> {
        let Some(aside) = &self.aside else { return Ok(()) };
        match fs::rename(&self.path, aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.path.clone_from(aside);
        self.aside = None;
        Ok(())
    }

    /// Moves it aside and deletes it; whether it is out of the way.
    fn delete(&mut self) -> bool {
        let moved = self.move_aside();
        let is_moved = moved.is_ok();
        if let Err(error) = moved.and_then(|()| remove_all(&self.path)) {
            tracing::warn!(%error, "a part of the input cache could not be deleted");
        }
        is_moved
    }
}

fn clean(wasted: &Receiver<Waste>, files: &Files) {
    let mut left: Vec<Waste> = Vec::new();
    while let Ok(first) = wasted.recv() {
        // One look through the files for all that is to be deleted now; the room is given back after it.
        let mut batch = std::mem::take(&mut left);
        batch.extend(std::iter::once(first).chain(wasted.try_iter()));
        left.extend(batch.extract_if(.., |waste| !waste.delete()));
        if let Err(error) = files.sweep() {
            tracing::warn!(%error, "files of the input cache that nothing uses could not be deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::sandbox::Ownership;

    #[test]
    fn a_tree_that_cannot_be_moved_aside_is_not_deleted_piece_by_piece() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["files", "temporary", "tree"] {
            fs::create_dir(path(name)).expect("mkdir");
        }
        fs::write(path("tree/file"), "x").expect("write");
        fs::write(path("trash"), "in the way").expect("write");
        let files = Files::open(path("files"), path("temporary"), Ownership::Same).expect("opened");
        let discard_and_clean = || {
            let (waste, wasted) = channel();
            Janitor { waste, trash: path("trash"), next: Arc::default() }.discard(&path("tree"), None);
            clean(&wasted, &files);
        };
        discard_and_clean();
        assert!(path("tree/file").exists(), "the next start would believe in what is left");
        fs::remove_file(path("trash")).expect("removed");
        fs::create_dir(path("trash")).expect("mkdir");
        discard_and_clean();
        assert!(!path("tree").exists());
        assert_eq!(fs::read_dir(path("trash")).expect("list").count(), 0);
    }
}
