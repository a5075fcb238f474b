//! The one thread that changes the store: it commits what is waiting as a group, so that many puts share one sync.
//!
//! Names of files, entries and evictions all change here, one after the other, so no two of them can cross.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::oneshot;

use super::Shared;
use super::entry::{Entry, Location};
use super::evict::Evictions;
use super::files::{Form, Temporary, sync_directory};
use super::healing::{Damaged, Found};
use super::ledger::{Draft, Totals};
use super::rebuild;
use super::space::full;
use crate::error::{Error, Kind, Result};
use crate::index::{COMMIT_BYTES_MAX, COMMIT_OPERATIONS_MAX, Origin};
use crate::store::name::Name;

/// Inlined blobs of one request: they must fit into one commit, each with its entry, beside the totals and the queue.
pub(super) const CHANGES_MAX: usize = COMMIT_OPERATIONS_MAX / 2 - 1;
pub(super) const CHANGES_BYTES_MAX: usize = COMMIT_BYTES_MAX / 2;

/// How often an index that failed is opened again.
const REPAIR_EVERY: Duration = Duration::from_secs(1);

/// What the thread is asked to do.
pub(super) enum Request {
    /// Stores all of `changes`, which fit into one commit; the answers are in their order.
    Put { changes: Vec<Change>, done: Answer },
    /// Evicts until what is in flight fits, and at least `bytes`.
    MakeRoom { bytes: u64, done: oneshot::Sender<Result<()>> },
    /// Forgets a blob or a result.
    Remove { name: Name, done: oneshot::Sender<Result<()>> },
    /// Forgets a blob whose file is gone.
    Heal(Name),
    /// Takes up files that the index does not know, and tells how many there were.
    Adopt { found: Found, done: oneshot::Sender<Result<u64>> },
    /// The index knows all files, says the rebuilding of this number.
    Rebuilt(u32),
    /// Puts a damaged blob into quarantine, and tells whether it was still the same.
    Withdraw { damaged: Box<Damaged>, done: oneshot::Sender<Result<bool>> },
    /// Removes a file of a blob that the index has in another place, and tells whether there was one.
    RemoveSuperseded { name: Name, form: Form, done: oneshot::Sender<Result<bool>> },
    /// Writes down what a scrub wants to find again.
    NoteScrub(Vec<u8>),
    /// Time passes.
    Tick,
}

pub(super) struct Change {
    pub(super) name: Name,
    pub(super) content: Content,
}

pub(super) enum Content {
    Inline(Bytes),
    File(Temporary),
}

type Results = Vec<Result<()>>;
type Answer = oneshot::Sender<Results>;
type Put = (Vec<Change>, Answer);

/// The thread's state.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: Receiver<Request>,
    /// A request that was received but belongs to the next group.
    pub(super) held: Option<Request>,
    pub(super) totals: Totals,
    pub(super) sequence: u64,
    pub(super) is_evicting: bool,
    pub(super) evictions: Evictions,
    /// Uses are being written down.
    pub(super) is_noting: bool,
    /// Where files go that have lost their name.
    pub(super) trash: SyncSender<PathBuf>,
    pub(super) marks_rotated: u32,
    /// When a commit failed; nothing is written until the index is open again.
    pub(super) broken_since: Option<Instant>,
    /// Keeps other processes out until the last commit is done.
    pub(super) _lock: File,
}

/// What a group does to files beside its draft.
#[derive(Default)]
struct Names {
    folders: BTreeSet<PathBuf>,
    /// Files that the draft's entries do not refer to any more.
    obsolete: HashSet<(Name, Form)>,
}

impl Writer {
    /// Serves requests until the store is dropped.
    pub(super) fn run(mut self) {
        while let Some(request) = self.next() {
            self.serve(request);
            self.shared.space.update(&self.totals, self.shared.ledger.index_bytes());
            self.is_evicting |= self.shared.space.is_above_high();
            self.work_a_little();
        }
        self.note_all_uses();
    }

    fn next(&mut self) -> Option<Request> {
        if let Some(request) = self.held.take() {
            return Some(request);
        }
        while self.is_evicting || self.is_noting {
            match self.requests.try_recv() {
                Ok(request) => return Some(request),
                Err(TryRecvError::Empty) => self.work_a_little(),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
        self.requests.blocking_recv()
    }

    /// A step of what nobody waits for.
    fn work_a_little(&mut self) {
        if self.is_evicting {
            self.evict_a_little();
        }
        if self.is_noting {
            self.note_some_uses();
        }
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Put { changes, done } => self.put((changes, done)),
            // Whoever asked and is gone needs no answer.
            Request::MakeRoom { bytes, done } => drop(done.send(self.make_room(bytes))),
            Request::Remove { name, done } => drop(done.send(self.remove(&name))),
            Request::Adopt { found, done } => drop(done.send(self.adopt(&found))),
            Request::Withdraw { damaged, done } => drop(done.send(self.withdraw(&damaged))),
            Request::RemoveSuperseded { name, form, done } => {
                drop(done.send(self.remove_superseded(&name, form)));
            }
            Request::Heal(name) => self.report("forget a blob whose file is gone", |it| it.heal(&name)),
            Request::Rebuilt(number) => self.report("finish the index", |it| it.finish_index(number)),
            Request::NoteScrub(note) => self.report("note the place of a scrub", |it| it.note_scrub(note)),
            Request::Tick => self.tick(),
        }
    }

    pub(super) fn report(&mut self, what: &str, work: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = work(self) {
            tracing::warn!("{what}: {}", error.chain());
        }
    }

    fn tick(&mut self) {
        self.report("open the index again", Self::repair);
        let is_due = self.shared.clock.minute() >= self.marks_rotated + super::MARKS_MINUTES;
        if is_due || self.shared.marks.is_crowded() {
            self.rotate_marks();
        }
        self.evictions.log_breaks();
        self.shared.space.keep_reserve();
        self.shared.space.measure_kept();
    }

    /// Commits this put and those that wait behind it.
    fn put(&mut self, first: Put) {
        if let Err(error) = self.repair().and_then(|()| self.ensure_room(&first)) {
            return refuse(first, &error);
        }
        // What makes the room changes the totals, which the draft begins with.
        let mut draft = self.draft();
        let mut names = Names::default();
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some((changes, done)) = next.take() {
            let results = changes.into_iter().map(|it| self.stage(it, &mut draft, &mut names)).collect();
            answers.push((results, done));
            next = self.next_put(&draft);
        }
        let committed = names.sync().and_then(|()| self.commit(draft, || {}));
        if committed.is_ok() {
            names.obsolete.iter().for_each(|(name, form)| self.discard(name, *form));
        }
        answer(answers, committed);
    }

    /// The next put, if it fits into the draft; anything else is held for the next turn.
    fn next_put(&mut self, draft: &Draft) -> Option<Put> {
        match self.requests.try_recv().ok()? {
            Request::Put { changes, done } if draft.has_room_for(changes.len(), bytes(&changes)) => {
                Some((changes, done))
            }
            request @ (Request::Put { .. }
            | Request::MakeRoom { .. }
            | Request::Remove { .. }
            | Request::Heal(_)
            | Request::Adopt { .. }
            | Request::Rebuilt(_)
            | Request::Withdraw { .. }
            | Request::RemoveSuperseded { .. }
            | Request::NoteScrub(_)
            | Request::Tick) => {
                self.held = Some(request);
                None
            }
        }
    }

    /// Inlined blobs are not announced, so the room for a group of them is made here.
    fn ensure_room(&mut self, (changes, _): &Put) -> Result<()> {
        if !changes.iter().any(|it| matches!(it.content, Content::Inline(_))) {
            return Ok(());
        }
        match self.shared.space.shortage(2 * COMMIT_BYTES_MAX as u64)? {
            0 => Ok(()),
            _ => self.make_room(0),
        }
    }

    fn stage(&mut self, change: Change, draft: &mut Draft, names: &mut Names) -> Result<()> {
        let name = change.name;
        let old = draft.entry(&self.shared.ledger, &name)?;
        let location = match change.content {
            Content::Inline(bytes) => {
                if is_same_blob(&name, old.as_ref(), bytes.len() as u64) {
                    // What this very draft brings is not there to stay yet.
                    if !draft.changes(&name) {
                        self.shared.mark(&name, bytes.len() as u64);
                    }
                    return Ok(());
                }
                Location::Inline(bytes)
            }
            Content::File(temporary) => {
                let location = temporary.location();
                names.folders.insert(self.shared.files.publish(temporary, &name)?);
                location
            }
        };
        names.replace(name, old.as_ref().map(|old| &old.location), &location);
        draft.insert(&name, old.as_ref(), location);
        Ok(())
    }

    pub(super) fn draft(&mut self) -> Draft {
        let minute = self.shared.clock.minute();
        self.draft_at(minute)
    }

    pub(super) fn draft_at(&mut self, minute: u32) -> Draft {
        self.sequence += 1;
        Draft::new(self.totals, minute, self.sequence)
    }

    /// Commits the draft. After a failure nothing more is written until [`Writer::repair`] succeeds: a later commit that went
    /// well would make the names of the failed one look durable.
    pub(super) fn commit(&mut self, draft: Draft, between: impl FnOnce()) -> Result<()> {
        if self.broken_since.is_some() {
            return Err(being_repaired());
        }
        self.shared.unsettled.begin(draft.inserted());
        match self.shared.ledger.commit(draft, between) {
            Ok(totals) => {
                self.shared.unsettled.end();
                self.totals = totals;
                Ok(())
            }
            Err(error) => {
                self.shared.unsettled.fail();
                tracing::error!("the index failed and will be opened again: {}", error.chain());
                self.broken_since = Some(Instant::now());
                // A mark may be of an entry that was about to be written.
                self.shared.marks.forget_all();
                Err(error)
            }
        }
    }

    /// Opens an index that failed again, once there is room for it. Until then reads go on with what is there.
    pub(super) fn repair(&mut self) -> Result<()> {
        if self.shared.ledger.has_failed() {
            self.broken_since.get_or_insert_with(Instant::now);
        }
        let Some(since) = self.broken_since else { return Ok(()) };
        if since.elapsed() < REPAIR_EVERY {
            return Err(being_repaired());
        }
        self.broken_since = Some(Instant::now());
        self.shared.space.give_up_reserve()?;
        if self.shared.space.shortage_of_disk(0)? > 0 {
            return Err(full());
        }
        let origin = self.shared.ledger.reopen()?;
        self.totals = self.shared.ledger.totals()?;
        self.broken_since = None;
        self.shared.unsettled.end();
        tracing::info!("the index is open again");
        match origin {
            Origin::Existing => Ok(()),
            Origin::New => {
                self.shared.marks.forget_all();
                rebuild::begin(&self.shared)
            }
        }
    }

    /// Deletes a file of `name`, now or soon.
    pub(super) fn discard(&self, name: &Name, form: Form) {
        if let Some(path) = self.shared.files.discard(name, form) {
            self.delete(path);
        }
    }

    /// Hands a file over to be deleted, and does it here when there are too many.
    pub(super) fn delete(&self, path: PathBuf) {
        if let Err(error) = self.trash.try_send(path) {
            let (std::sync::mpsc::TrySendError::Full(path)
            | std::sync::mpsc::TrySendError::Disconnected(path)) = error;
            super::keeper::delete(&path);
        }
    }
}

impl Names {
    /// Remembers the file that `new` leaves without an entry.
    fn replace(&mut self, name: Name, old: Option<&Location>, new: &Location) {
        self.obsolete.extend(old.and_then(Location::file).map(|file| (name, file.form)));
        if let Some(file) = new.file() {
            self.obsolete.remove(&(name, file.form));
        }
    }

    fn sync(&self) -> Result<()> {
        self.folders.iter().try_for_each(|folder| sync_directory(folder))
    }
}

fn is_same_blob(name: &Name, old: Option<&Entry>, size: u64) -> bool {
    name.is_blob() && old.is_some_and(|old| matches!(old.location, Location::Inline(_)) && old.size() == size)
}

fn bytes(changes: &[Change]) -> usize {
    let bytes = |change: &Change| match &change.content {
        Content::Inline(bytes) => bytes.len() + 4 * Name::BYTES_MAX,
        Content::File(_) => 4 * Name::BYTES_MAX,
    };
    changes.iter().map(bytes).sum()
}

fn answer(answers: Vec<(Results, Answer)>, committed: Result<()>) {
    for (mut results, done) in answers {
        if let Err(error) = &committed {
            results.iter_mut().filter(|result| result.is_ok()).for_each(|it| *it = Err(again(error)));
        }
        // Whoever asked and is gone needs no answer.
        let _ = done.send(results);
    }
}

fn being_repaired() -> Error {
    Error::new(Kind::Unavailable, "the store is being repaired")
}

/// The same error for one more of those that it concerns. What went wrong with the index is no client's fault, and may pass.
fn again(error: &Error) -> Error {
    if error.kind() == Kind::Exhausted {
        return full();
    }
    Error::new(Kind::Unavailable, "the store cannot write at present")
}

/// Refuses a put before anything was done. Those behind it may have their room already and are asked on their own.
fn refuse((changes, done): Put, error: &Error) {
    let results = changes.iter().map(|_| Err(error.repeated())).collect();
    // Whoever asked and is gone needs no answer.
    let _ = done.send(results);
}
