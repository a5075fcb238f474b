//! The way down: local tiers are asked by each reader, what is behind them once for all of them.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::super::{Blob, Chunks, Key};
use super::flight::{Answer, End, Seat, Step};
use super::journal::Journal;
use super::write::target;
use super::{Shared, WHOLE_MAX, flight};
use crate::digest::Function;
use crate::error::{Error, Kind, Result};
use crate::tasks;

/// Fills that a reader waits for before it reads on its own: the first, and the one that takes over when that fails.
const FLIGHTS_TRIED: usize = 2;

/// A search through tiers. One that fails is passed over; its error counts only when no other tier has the blob.
pub(super) struct Walk<'a> {
    shared: &'a Shared,
    key: &'a Key,
    error: Option<Error>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(shared: &'a Shared, key: &'a Key) -> Self {
        Self { shared, key, error: None }
    }

    /// The first of `tiers` that has the blob, and the blob from `start`.
    ///
    /// # Errors
    /// `OutOfRange` only.
    pub(super) async fn down(&mut self, tiers: Range<usize>, start: u64) -> Result<Option<(usize, Blob)>> {
        for at in tiers {
            let tier = &self.shared.tiers[at];
            if self.error.is_some() && self.shared.is_outdated(at, self.key) {
                continue;
            }
            match tier.open(self.key, start, self.shared.patience.stall).await {
                Ok(Some(blob)) => return Ok(Some((at, blob))),
                Ok(None) => {}
                Err(error) if error.kind() == Kind::OutOfRange => return Err(error),
                Err(error) if error.kind() == Kind::Corrupt => {
                    tier.report("a damaged copy", &error);
                    if !self.shared.discard(at, self.key).await {
                        self.error.get_or_insert(error);
                    }
                }
                Err(error) => {
                    tier.report("a tier cannot be read", &error);
                    self.error.get_or_insert(error);
                }
            }
        }
        Ok(None)
    }

    /// Whether a tier has failed so far.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.error.is_some()
    }

    /// That nobody had it is only sure when everybody was asked.
    ///
    /// # Errors
    /// That of the first tier that failed.
    pub(super) fn absent<T>(self) -> Result<Option<T>> {
        self.error.map_or(Ok(None), Err)
    }
}

impl Shared {
    pub(super) async fn get(self: &Arc<Self>, key: &Key, start: u64) -> Result<Option<Blob>> {
        let mut walk = Walk::new(self, key);
        if let Some((at, blob)) = walk.down(0..self.near, start).await? {
            if start == 0 && self.is_admitted(0..at, blob.size()) {
                // Nobody waits for it: the blob is at hand.
                let _ = flight::board(self, key, at);
            }
            return Ok(Some(blob));
        }
        match self.get_far(key, start).await? {
            Some(blob) => Ok(Some(blob)),
            None => walk.absent(),
        }
    }

    async fn get_far(self: &Arc<Self>, key: &Key, start: u64) -> Result<Option<Blob>> {
        for _ in 0..FLIGHTS_TRIED {
            if !self.is_worth_a_fill(key, start) {
                break;
            }
            let Some(mut seat) = flight::board(self, key, self.near) else { break };
            match seat.answer(self.patience.stall).await {
                Some(Answer::Absent) => return Ok(None),
                Some(Answer::Failed(kind, message)) => return Err(Error::new(kind, message)),
                Some(Answer::Whole(bytes)) => return Blob::Whole(bytes).starting_at(start).map(Some),
                Some(Answer::Streaming(size)) if start == 0 => {
                    let cursor = Cursor {
                        shared: self.clone(),
                        key: key.clone(),
                        seat,
                        offset: 0,
                        size,
                        direct: None,
                    };
                    return Ok(Some(Blob::Stream { size, chunks: cursor.into_chunks() }));
                }
                Some(Answer::Streaming(_) | Answer::Elsewhere) => break,
                None => {}
            }
        }
        let mut walk = Walk::new(self, key);
        match walk.down(self.near..self.tiers.len(), start).await? {
            Some((at, blob)) => Ok(Some(self.discarding(at, key, blob))),
            None => walk.absent(),
        }
    }

    /// The blob, whose copy is removed when it turns out to be damaged: else it would count as present for ever.
    fn discarding(self: &Arc<Self>, at: usize, key: &Key, blob: Blob) -> Blob {
        let size = blob.size();
        match blob {
            Blob::Stream { chunks, .. } => {
                let (shared, key) = (self.clone(), key.clone());
                let chunks = chunks.or_else(move |error| {
                    let (shared, key) = (shared.clone(), key.clone());
                    async move {
                        if error.kind() == Kind::Corrupt {
                            shared.discard(at, &key).await;
                        }
                        Err(error)
                    }
                });
                Blob::Stream { size, chunks: chunks.boxed() }
            }
            blob @ (Blob::Whole(_) | Blob::File { .. }) => blob,
        }
    }

    /// What the fastest tier that knows says. One that fails counts only when no other knows.
    pub(super) async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        let mut failure = None;
        for tier in &self.tiers {
            match tier.size_in_time(function, hash, self.patience.stall).await {
                Ok(Some(size)) => return Ok(Some(size)),
                Ok(None) => {}
                Err(error) => {
                    tier.report("a tier cannot tell a blob's size", &error);
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Whether a durable tier does: what only caches find may be gone at once.
    pub(super) async fn finds_by_hash(&self) -> bool {
        for tier in self.tiers.iter().filter(|tier| tier.is_durable()) {
            if tier.finds_by_hash_in_time(self.patience.stall).await {
                return true;
            }
        }
        false
    }

    /// A blob that no faster tier takes is read past them; so is the rest of a large one, which alone would not fill anything.
    fn is_worth_a_fill(&self, key: &Key, start: u64) -> bool {
        let last = self.tiers.len().saturating_sub(1);
        let is_short = key.size().is_none_or(|size| size <= WHOLE_MAX);
        (start == 0 || is_short)
            && self.near < self.tiers.len()
            && self.is_admitted(0..last, key.size().unwrap_or(0))
    }

    /// Whether the tier may have an older result than a faster one.
    fn is_outdated(&self, at: usize, key: &Key) -> bool {
        let is_pending = |journal: &Journal| journal.pending().contains(&target(at, key));
        key.is_mutable() && self.journal.as_ref().is_some_and(is_pending)
    }

    pub(super) fn is_admitted(&self, tiers: Range<usize>, size: u64) -> bool {
        self.tiers[tiers].iter().any(|tier| tier.admits(size))
    }

    /// Removes a damaged copy, so that the next fill repairs it; false when that does not work.
    pub(super) async fn discard(&self, at: usize, key: &Key) -> bool {
        let removed = self.tiers[at].remove(key).await;
        if let Err(error) = &removed {
            self.tiers[at].report("a damaged copy cannot be removed", error);
        }
        removed.is_ok()
    }

    pub(super) async fn remove(self: &Arc<Self>, key: &Key) -> Result<()> {
        let (shared, key) = (self.clone(), key.clone());
        // What is only removed from some tiers must not stay behind when whoever wanted it goes.
        let removed = tasks::spawn("remove", async move { shared.remove_everywhere(&key).await });
        removed.await.map_err(|_| Error::new(Kind::Cancelled, "the farm is stopping"))?
    }

    async fn remove_everywhere(&self, key: &Key) -> Result<()> {
        let _turn = if key.is_mutable() { Some(self.turns.change(key).await?) } else { None };
        if key.is_mutable() {
            self.remove_below(key).await?;
        }
        if let Some(journal) = &self.journal {
            let stopping = || Error::new(Kind::Unavailable, "the farm is stopping");
            tokio::select! {
                biased;
                withdrawn = journal.withdraw(key) => withdrawn?,
                // Uploads that were stopped are let go by nobody.
                () = self.stop.cancelled() => return Err(stopping()),
            }
        }
        let mut result = Ok(());
        for tier in &self.tiers {
            result = result.and(tier.remove(key).await);
        }
        self.flights.cancel(key);
        result
    }

    /// Removes a result from all behind the first durable tier, from slow to fast, and gives up where that fails: a newer value that only
    /// the faster tiers have must not go before an older one, which would be found again. What is written back meanwhile is removed
    /// with the rest.
    async fn remove_below(&self, key: &Key) -> Result<()> {
        let first = self.tiers.iter().position(|tier| tier.is_durable()).unwrap_or(0);
        for tier in self.tiers.iter().skip(first + 1).rev() {
            tier.remove(key).await?;
        }
        Ok(())
    }
}

/// A reader of a blob that is being filled: it takes the bytes as they arrive. When it is too slow or the fill ends early, it goes
/// on from whichever tier has the blob.
struct Cursor {
    shared: Arc<Shared>,
    key: Key,
    seat: Seat,
    offset: u64,
    size: u64,
    /// What is read instead of the fill.
    direct: Option<Chunks>,
}

impl Cursor {
    fn into_chunks(self) -> Chunks {
        stream::try_unfold(
            self,
            |mut cursor| async move { Ok(cursor.next().await?.map(|chunk| (chunk, cursor))) },
        )
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.offset == self.size {
            return Ok(None);
        }
        let chunk = match &mut self.direct {
            Some(chunks) => chunks.try_next().await?,
            None => match self.arrived().await? {
                Some(chunk) => Some(chunk),
                None => self.go_on_alone().await?.try_next().await?,
            },
        };
        let gone = || Error::new(Kind::Unavailable, "a blob went while it was read");
        let chunk = chunk.ok_or_else(gone)?;
        self.offset += chunk.len() as u64;
        Ok(Some(chunk))
    }

    /// The next bytes that the fill brings, or `None` when it brings none for this reader.
    async fn arrived(&mut self) -> Result<Option<Bytes>> {
        let patience = self.shared.patience;
        loop {
            match self.seat.step(self.offset) {
                Step::Chunk(chunk) => return Ok(Some(chunk)),
                Step::Behind => {
                    return self.seat.end(patience.behind).await.map_or(Ok(None), Self::after);
                }
                Step::Over(end) => return Self::after(end),
                Step::Wait if self.seat.changed(patience.stall).await => {}
                Step::Wait => {
                    self.shared.flights.cancel(&self.key);
                    return Ok(None);
                }
            }
        }
    }

    /// Whether another copy can go on where the fill ended.
    fn after(end: End) -> Result<Option<Bytes>> {
        match end {
            End::Filled | End::Failed => Ok(None),
            // What the reader has may be wrong.
            End::Corrupt => {
                let message = "the blob is damaged; it can be read again from its start";
                Err(Error::new(Kind::Corrupt, message))
            }
        }
    }

    async fn go_on_alone(&mut self) -> Result<&mut Chunks> {
        let mut walk = Walk::new(&self.shared, &self.key);
        let found = walk.down(0..self.shared.tiers.len(), self.offset).await?;
        let blob = match found {
            Some((_, blob)) => blob,
            None => {
                walk.absent::<()>()?;
                return Err(Error::new(Kind::Unavailable, "a blob went while it was read"));
            }
        };
        Ok(self.direct.insert(blob.into_chunks()))
    }
}
