//! The one fill of a key: a task that no reader owns brings a blob up, and readers take a seat in it.
//!
//! What has arrived last is kept in a window. Readers take it from there at their own pace; one that falls out of the window is on
//! its own, so the fill never waits for a reader. A reader that is dropped changes nothing, and a fill that dies is noticed.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::Instrument;

use super::super::{Blob, Chunks, Key};
use super::read::Walk;
use super::{MUTABLE_MAX, Shared, WHOLE_MAX};
use crate::error::{Error, Kind, Result};
use crate::metrics::STORE_FILLS;
use crate::tasks::{self, Shutdown};

/// Fills that read and write at the same time; the others wait for their turn.
const FLYING_MAX: usize = 64;

/// Fills under way and waiting; beyond that readers go to the slow tier themselves.
const FLIGHTS_MAX: usize = 4096;

/// The last bytes of a large blob that are kept for its readers. With all fills under way that makes 128 MiB.
const WINDOW_BYTES: usize = 2 * 1024 * 1024;

/// All fills by key.
pub(super) struct Flights {
    flights: Mutex<HashMap<Key, Known>>,
    flying: Semaphore,
    next: AtomicU64,
}

struct Known {
    number: u64,
    progress: watch::Receiver<Progress>,
    cancel: Shutdown,
}

/// What the readers of a fill see of it.
#[derive(Default)]
struct Progress {
    answer: Option<Answer>,
    window: VecDeque<Bytes>,
    /// Where in the blob the window begins.
    window_start: u64,
    window_bytes: usize,
    end: Option<End>,
}

/// What a fill has found.
#[derive(Clone)]
pub(super) enum Answer {
    Absent,
    Failed(Kind, String),
    Whole(Bytes),
    /// So many bytes, which arrive one after the other.
    Streaming(u64),
    /// It is there, but not to be had from a fill.
    Elsewhere,
}

/// How a fill that streamed has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Filled,
    Failed,
    Corrupt,
}

/// What a reader finds at its place.
pub(super) enum Step {
    Chunk(Bytes),
    Wait,
    /// The window has moved on.
    Behind,
    Over(End),
}

/// A reader's view of a fill.
pub(super) struct Seat {
    progress: watch::Receiver<Progress>,
}

impl Default for Flights {
    fn default() -> Self {
        let flights = Mutex::new(HashMap::new());
        Self { flights, flying: Semaphore::new(FLYING_MAX), next: AtomicU64::new(0) }
    }
}

impl Flights {
    /// Ends the fill of `key`, if there is one: what it brings is not wanted, or it does not come.
    pub(super) fn cancel(&self, key: &Key) {
        self.cancel_all([key]);
    }

    /// As [`Flights::cancel`], for each of `keys`.
    pub(super) fn cancel_all<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) {
        let mut flights = self.lock();
        if flights.is_empty() {
            return;
        }
        let known: Vec<Known> = keys.into_iter().filter_map(|key| flights.remove(key)).collect();
        drop(flights);
        known.iter().for_each(|known| known.cancel.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        // An entry is inserted and removed in one step.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A seat in the fill of `key`, which is begun if there is none: it looks for the blob in the tiers from `from` on. `None` when too
/// many fills are under way.
pub(super) fn board(shared: &Arc<Shared>, key: &Key, from: usize) -> Option<Seat> {
    let mut flights = shared.flights.lock();
    let is_full = flights.len() >= FLIGHTS_MAX;
    let vacant = match flights.entry(key.clone()) {
        Entry::Occupied(known) => return Some(Seat { progress: known.get().progress.clone() }),
        Entry::Vacant(_) if is_full => return None,
        Entry::Vacant(vacant) => vacant,
    };
    let (sender, progress) = watch::channel(Progress::default());
    let (number, cancel) = (shared.flights.next.fetch_add(1, Ordering::Relaxed), shared.stop.child_token());
    vacant.insert(Known { number, progress: progress.clone(), cancel: cancel.clone() });
    drop(flights);
    let flight = Flight { shared: shared.clone(), key: key.clone(), number, progress: sender };
    let filling = async move {
        tokio::select! {
            () = flight.fly(from) => {}
            () = cancel.cancelled() => {}
        }
    };
    tasks::spawn("fill a faster tier", filling.in_current_span());
    Some(Seat { progress })
}

struct Flight {
    shared: Arc<Shared>,
    key: Key,
    number: u64,
    progress: watch::Sender<Progress>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.retire();
    }
}

impl Flight {
    async fn fly(&self, from: usize) {
        let _flying = self.shared.flights.flying.acquire().await.expect("nothing closes the semaphore");
        let version = self.shared.turns.version(&self.key);
        let mut walk = Walk::new(&self.shared, &self.key);
        let found = walk.down(from..self.shared.tiers.len(), 0).await;
        let (at, blob) =
            match found.and_then(|found| found.map_or_else(|| walk.absent(), |found| Ok(Some(found)))) {
                Ok(Some(found)) => found,
                Ok(None) => return self.answer(Answer::Absent),
                Err(error) => return self.answer(Answer::Failed(error.kind(), error.public_message())),
            };
        let blob = self.shared.tiers[at].source(&self.key, blob);
        let size = blob.size();
        let targets: Vec<usize> = (0..at).filter(|at| self.shared.tiers[*at].admits(size)).collect();
        let local = targets.iter().rev().find(|target| self.shared.tiers[**target].is_local());
        let whole_max = if self.key.is_mutable() { MUTABLE_MAX } else { WHOLE_MAX };
        let filled = match local.or(targets.last()) {
            _ if size <= whole_max => self.bring_whole(blob, at, (&targets, version)).await,
            Some(target) if !self.key.is_mutable() => self.bring_stream(blob, at, *target).await,
            Some(_) | None => return self.answer(Answer::Elsewhere),
        };
        if let Err(error) = &filled {
            self.shared.tiers[at].report("a fill failed", error);
        }
        STORE_FILLS.with_label_values(&[if filled.is_ok() { "ok" } else { "error" }]).inc();
    }

    /// Lets nobody board any more.
    fn retire(&self) {
        if let Entry::Occupied(known) = self.shared.flights.lock().entry(self.key.clone())
            && known.get().number == self.number
        {
            known.remove();
        }
    }

    fn answer(&self, answer: Answer) {
        if !matches!(answer, Answer::Whole(_) | Answer::Streaming(_)) {
            // Whoever asks from here on must not get an answer from before.
            self.retire();
        }
        self.progress.send_modify(|progress| progress.answer = Some(answer));
    }

    /// Readers have the blob as soon as it is here; then all faster tiers get it.
    async fn bring_whole(&self, blob: Blob, at: usize, (targets, version): (&[usize], u64)) -> Result<()> {
        let bytes = match self.collect(blob).await {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() == Kind::Corrupt {
                    self.shared.discard(at, &self.key).await;
                }
                return Err(error);
            }
        };
        self.answer(Answer::Whole(bytes.clone()));
        let _turn = match self.key.is_mutable() {
            true => match self.shared.turns.copy(&self.key, version).await? {
                Some(turn) => Some(turn),
                None => return Ok(()),
            },
            false => None,
        };
        let fills = targets
            .iter()
            .map(|target| self.shared.tiers[*target].put_in_time(&self.key, Blob::Whole(bytes.clone())));
        join_all(fills).await.into_iter().collect()
    }

    async fn collect(&self, blob: Blob) -> Result<Bytes> {
        let size = blob.size();
        match blob {
            Blob::Whole(bytes) => Ok(bytes),
            blob @ (Blob::Stream { .. } | Blob::File { .. }) => {
                let chunks = patient(blob.into_chunks(), self.shared.patience.stall).boxed();
                Blob::Stream { size, chunks }.into_bytes(size).await
            }
        }
    }

    /// Readers have the blob as it arrives, while one tier gets it: the slowest local one, from where the next reader fills others.
    async fn bring_stream(&self, blob: Blob, at: usize, target: usize) -> Result<()> {
        let (blob, failure) = watched(blob);
        let size = blob.size();
        self.answer(Answer::Streaming(size));
        let progress = self.progress.clone();
        let chunks = patient(blob.into_chunks(), self.shared.patience.stall).inspect_ok(move |chunk| {
            progress.send_modify(|progress| progress.push(chunk.clone()));
        });
        let blob = Blob::Stream { size, chunks: chunks.boxed() };
        let filled = self.shared.tiers[target].put_in_time(&self.key, blob).await;
        let end = match (&filled, failure.get()) {
            (Ok(()), _) => End::Filled,
            (Err(_), Some(Kind::Corrupt)) => End::Corrupt,
            (Err(_), _) => End::Failed,
        };
        self.retire();
        if end == End::Corrupt {
            self.shared.discard(at, &self.key).await;
        }
        self.progress.send_modify(|progress| progress.end = Some(end));
        filled
    }
}

/// The blob, and where the kind of its stream's error will be.
pub(super) fn watched(blob: Blob) -> (Blob, Arc<OnceLock<Kind>>) {
    let failure = Arc::new(OnceLock::new());
    let (size, noted) = (blob.size(), failure.clone());
    let blob = match blob {
        Blob::Whole(bytes) => Blob::Whole(bytes),
        Blob::Stream { .. } | Blob::File { .. } => {
            // There is one error at most.
            let chunks = blob.into_chunks().inspect_err(move |error| {
                let _ = noted.set(error.kind());
            });
            Blob::Stream { size, chunks: chunks.boxed() }
        }
    };
    (blob, failure)
}

impl Progress {
    fn push(&mut self, chunk: Bytes) {
        self.window_bytes += chunk.len();
        self.window.push_back(chunk);
        while self.window_bytes > WINDOW_BYTES {
            let Some(oldest) = self.window.pop_front() else { return };
            self.window_bytes -= oldest.len();
            self.window_start += oldest.len() as u64;
        }
    }

    fn step(&self, offset: u64) -> Step {
        let Some(mut skip) = offset.checked_sub(self.window_start) else { return Step::Behind };
        for chunk in &self.window {
            match usize::try_from(skip).ok().filter(|skip| *skip < chunk.len()) {
                Some(skip) => return Step::Chunk(chunk.slice(skip..)),
                None => skip -= chunk.len() as u64,
            }
        }
        self.end.map_or(Step::Wait, Step::Over)
    }
}

impl Seat {
    /// What the fill has found; `None` when it died or says nothing for `stall`.
    pub(super) async fn answer(&mut self, stall: Duration) -> Option<Answer> {
        let found = timeout(stall, self.progress.wait_for(|progress| progress.answer.is_some())).await;
        found.ok()?.ok()?.answer.clone()
    }

    pub(super) fn step(&mut self, offset: u64) -> Step {
        let step = self.progress.borrow_and_update().step(offset);
        match step {
            // A fill that is gone without a word was cancelled.
            Step::Wait if self.progress.has_changed().is_err() => Step::Over(End::Failed),
            step @ (Step::Chunk(_) | Step::Wait | Step::Behind | Step::Over(_)) => step,
        }
    }

    /// Waits for progress; false when there is none for `stall`.
    pub(super) async fn changed(&mut self, stall: Duration) -> bool {
        timeout(stall, self.progress.changed()).await.is_ok()
    }

    /// Waits for the end, up to `limit`; `None` when it did not come or nobody was left to tell.
    pub(super) async fn end(&mut self, limit: Duration) -> Option<End> {
        timeout(limit, self.progress.wait_for(|progress| progress.end.is_some())).await.ok()?.ok()?.end
    }
}

/// `chunks` as long as none takes longer than `stall`.
fn patient(chunks: Chunks, stall: Duration) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::try_unfold(chunks, move |mut chunks| async move {
        let late = |_| Error::new(Kind::Timeout, "a tier stopped in the middle of a blob");
        let chunk = timeout(stall, chunks.try_next()).await.map_err(late)??;
        Ok(chunk.map(|chunk| (chunk, chunks)))
    })
}
