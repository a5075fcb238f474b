//! The way in: a write is acknowledged when every durable tier has it, or when the first has it and the journal knows of the others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::super::{Blob, Key};
use super::flight::watched;
use super::pending::Target;
use super::read::Walk;
use super::{MUTABLE_MAX, Shared, WHOLE_MAX};
use crate::error::{Error, Kind, Result};
use crate::metrics::STORE_BACK_PRESSURE;
use crate::tasks;

/// Attempts to copy a blob from one durable tier to another while its writer waits, and the pause between them.
const COPY_ATTEMPTS: usize = 3;
const COPY_PAUSE: Duration = Duration::from_millis(100);

/// What came of a copy.
pub(super) enum Copied {
    Done,
    /// There is nothing to copy.
    Absent,
}

/// Where a blob goes: the durable tiers that it waits for, and those that may get it later.
struct Route {
    first: usize,
    others: Vec<usize>,
}

impl Shared {
    pub(super) async fn put(self: &Arc<Self>, key: &Key, blob: Blob) -> Result<()> {
        if key.is_mutable() {
            let bytes = blob.into_bytes(MUTABLE_MAX).await?;
            let (shared, key) = (self.clone(), key.clone());
            // A result that is only half replaced must not stay behind when whoever wrote it goes.
            let put = tasks::spawn("put a result", async move { shared.put_mutable(&key, bytes).await });
            return put.await.map_err(|_| Error::new(Kind::Cancelled, "the farm is stopping"))?;
        }
        let size = blob.size();
        let route = self.route(size)?;
        if size <= WHOLE_MAX || matches!(blob, Blob::Whole(_)) {
            let bytes = blob.into_bytes(size).await?;
            return self.put_one(key, bytes).await;
        }
        let _pinned = self.pins.pin([key]);
        self.tiers[route.first].put(key, blob).await?;
        self.bring_down(key, size, &route).await?;
        self.flights.cancel(key);
        Ok(())
    }

    async fn put_one(&self, key: &Key, bytes: Bytes) -> Result<()> {
        let result = self.put_blobs(vec![(key.clone(), bytes)]).await.pop();
        result.unwrap_or_else(|| Err(Error::bug("a batch of one gave no result")))
    }

    pub(super) async fn put_all(self: &Arc<Self>, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        if blobs.iter().any(|(key, _)| key.is_mutable()) {
            return join_all(
                blobs.into_iter().map(async |(key, bytes)| self.put(&key, Blob::Whole(bytes)).await),
            )
            .await;
        }
        self.put_blobs(blobs).await
    }

    /// The durable tiers that can hold `size` bytes.
    fn route(&self, size: u64) -> Result<Route> {
        let mut durable =
            (0..self.tiers.len()).filter(|at| self.tiers[*at].is_durable() && self.tiers[*at].admits(size));
        let full = || Error::new(Kind::Exhausted, format!("no tier takes a blob of {size} bytes"));
        let first = durable.next().ok_or_else(full)?;
        Ok(Route { first, others: durable.collect() })
    }

    /// Stores blobs that are in memory: one batch for each tier.
    async fn put_blobs(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        let _pinned = self.pins.pin(blobs.iter().map(|(key, _)| key));
        let routes: Vec<Result<Route>> =
            blobs.iter().map(|(_, bytes)| self.route(bytes.len() as u64)).collect();
        let mut batch = Batch::new(blobs);
        for (place, route) in routes.iter().enumerate() {
            match route {
                Ok(route) if self.journal.is_some() => batch.send(place, &[route.first]),
                Ok(route) => {
                    batch.send(place, &[route.first]);
                    batch.send(place, &route.others);
                }
                Err(error) => batch.results[place] = Err(again(error)),
            }
        }
        batch.flush(self).await;
        if self.journal.is_some() {
            self.put_later(&mut batch, &routes).await;
        }
        self.warm(&batch).await;
        // A fill that looked before may be about to say that they are absent.
        self.flights.cancel_all(batch.blobs.iter().map(|(key, _)| key));
        batch.results
    }

    /// Remembers what the slower tiers lack, or brings it there at once when the journal does not take it.
    async fn put_later(&self, batch: &mut Batch, routes: &[Result<Route>]) {
        let Some(journal) = &self.journal else { return };
        let mut targets = Vec::new();
        for (place, route) in routes.iter().enumerate() {
            let (Ok(route), Ok(())) = (route, &batch.results[place]) else { continue };
            let (key, bytes) = &batch.blobs[place];
            targets.extend(route.others.iter().map(|tier| (target(*tier, key), bytes.len() as u64)));
        }
        let Err(error) = journal.add(&targets).await else { return };
        STORE_BACK_PRESSURE.inc();
        tracing::debug!("write through for once: {}", error.chain());
        for (place, route) in routes.iter().enumerate() {
            if let (Ok(route), true) = (route, batch.results[place].is_ok()) {
                batch.send(place, &route.others);
            }
        }
        batch.flush(self).await;
    }

    /// Brings a blob that the first durable tier has to the others, or remembers to.
    async fn bring_down(&self, key: &Key, size: u64, route: &Route) -> Result<()> {
        if let Some(journal) = &self.journal {
            let targets: Vec<_> = route.others.iter().map(|tier| (target(*tier, key), size)).collect();
            match journal.add(&targets).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!("write through for once: {}", error.chain()),
            }
            STORE_BACK_PRESSURE.inc();
        }
        join_all(route.others.iter().map(|to| self.copy(key, *to))).await.into_iter().collect()
    }

    /// Copies a blob to the tier `to` from a faster one, unless it is there. What can be read again can be tried again.
    pub(super) async fn copy(&self, key: &Key, to: usize) -> Result<()> {
        let tier = &self.tiers[to];
        let missing = tier.missing_in_time(std::slice::from_ref(key), self.patience.stall).await;
        if missing.is_ok_and(|missing| missing.is_empty()) {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            match self.copy_once(key, to).await {
                Err(error) if error.kind().is_retryable() && attempt < COPY_ATTEMPTS => {
                    tier.report("a copy failed and is tried again", &error);
                    tokio::time::sleep(COPY_PAUSE).await;
                    attempt += 1;
                }
                Ok(Copied::Done) => return Ok(()),
                Ok(Copied::Absent) => {
                    return Err(Error::new(Kind::Unavailable, "a blob went while it was copied"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One attempt to copy what the tiers above `to` have.
    ///
    /// # Errors
    /// What the tiers report; a copy that turns out to be damaged is removed, and the next attempt finds another or none.
    pub(super) async fn copy_once(&self, key: &Key, to: usize) -> Result<Copied> {
        // A cache may have an older result, and so may every tier but the first durable one that answers.
        let start =
            if key.is_mutable() { self.tiers.iter().position(|tier| tier.is_durable()) } else { None };
        let mut walk = Walk::new(self, key);
        let found = walk.down(start.unwrap_or(0)..to, 0).await?;
        let found = found.filter(|_| !(key.is_mutable() && walk.is_in_doubt()));
        let Some((from, blob)) = found else {
            walk.absent::<()>()?;
            return Ok(Copied::Absent);
        };
        let (blob, failure) = watched(self.tiers[from].source(key, blob));
        let copied = self.tiers[to].put_in_time(key, blob).await;
        if copied.is_err() && failure.get() == Some(&Kind::Corrupt) {
            self.discard(from, key).await;
            return Err(Error::new(Kind::Unavailable, "a copy of a blob is damaged"));
        }
        copied.map(|()| Copied::Done)
    }

    /// Replaces a result everywhere. Caches come last, and before the acknowledgement, so that none keeps an older one.
    async fn put_mutable(&self, key: &Key, bytes: Bytes) -> Result<()> {
        let route = self.route(bytes.len() as u64)?;
        let _turn = self.turns.change(key).await?;
        self.flights.cancel(key);
        self.tiers[route.first].put(key, Blob::Whole(bytes.clone())).await?;
        let targets: Vec<_> =
            route.others.iter().map(|tier| (target(*tier, key), bytes.len() as u64)).collect();
        let is_later = match &self.journal {
            Some(journal) => journal.add(&targets).await.is_ok(),
            None => false,
        };
        let now: &[usize] = if is_later { &[] } else { &route.others };
        let puts = now.iter().map(|tier| self.tiers[*tier].put_in_time(key, Blob::Whole(bytes.clone())));
        join_all(puts).await.into_iter().collect::<Result<()>>()?;
        for tier in self.tiers.iter().filter(|tier| !tier.is_durable()) {
            let put = async {
                if tier.admits(bytes.len() as u64) {
                    return tier.put(key, Blob::Whole(bytes.clone())).await;
                }
                tier.remove(key).await
            };
            let late = |_| Error::new(Kind::Timeout, "a tier does not answer");
            let put = tokio::time::timeout(self.patience.stall, put).await.map_err(late);
            if let Err(error) = put.and_then(|put| put) {
                tier.report("a cache may keep an older result", &error);
            }
        }
        Ok(())
    }

    /// Gives what was stored to the caches. What does not work there does not matter.
    async fn warm(&self, batch: &Batch) {
        for (at, tier) in self.tiers.iter().enumerate().filter(|(_, tier)| !tier.is_durable()) {
            let stored = batch.blobs.iter().zip(&batch.results);
            let wanted =
                stored.filter(|((_, bytes), result)| result.is_ok() && tier.admits(bytes.len() as u64));
            let wanted: Vec<_> = wanted.map(|(blob, _)| blob.clone()).collect();
            if wanted.is_empty() {
                continue;
            }
            if tier.is_local() {
                tell(tier, tier.put_all(wanted).await);
            } else {
                self.warm_beside(at, wanted);
            }
        }
    }

    fn warm_beside(&self, at: usize, wanted: Vec<(Key, Bytes)>) {
        let Ok(permit) = self.beside.clone().try_acquire_owned() else { return };
        let (tier, stop, stall) = (self.tiers[at].clone(), self.stop.clone(), self.patience.stall);
        tasks::spawn("write into a cache", async move {
            let _permit = permit;
            tokio::select! {
                put = tokio::time::timeout(stall, tier.put_all(wanted)) => tell(&tier, put.unwrap_or_default()),
                () = stop.cancelled() => {}
            }
        });
    }
}

/// Counts what a cache did not take.
fn tell(tier: &super::Tier, results: Vec<Result<()>>) {
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        tier.report("a cache cannot be written", error);
    }
}

pub(super) fn target(tier: usize, key: &Key) -> Target {
    Target { tier, key: key.clone() }
}

/// The same error for one more of those that it concerns.
fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.public_message())
}

/// Blobs on their way to several tiers, and what came of each.
struct Batch {
    blobs: Vec<(Key, Bytes)>,
    results: Vec<Result<()>>,
    /// For each tier the places of the blobs that it gets next.
    next: Vec<(usize, Vec<usize>)>,
}

impl Batch {
    fn new(blobs: Vec<(Key, Bytes)>) -> Self {
        let results = blobs.iter().map(|_| Ok(())).collect();
        Self { blobs, results, next: Vec::new() }
    }

    fn send(&mut self, place: usize, tiers: &[usize]) {
        for tier in tiers {
            match self.next.iter_mut().find(|(known, _)| known == tier) {
                Some((_, places)) => places.push(place),
                None => self.next.push((*tier, vec![place])),
            }
        }
    }

    /// Gives each tier its blobs, all tiers at the same time. A blob is stored when all of its tiers have it.
    async fn flush(&mut self, shared: &Shared) {
        let next = std::mem::take(&mut self.next);
        let puts = next.iter().map(|(tier, places)| {
            let blobs = places.iter().map(|place| self.blobs[*place].clone()).collect();
            shared.tiers[*tier].put_all_in_time(blobs)
        });
        let answers = join_all(puts).await;
        for ((_, places), results) in next.into_iter().zip(answers) {
            let mut results = results.into_iter();
            for place in places {
                let none = || Err(Error::bug("a store gave fewer results than blobs"));
                let result = results.next().unwrap_or_else(none);
                if self.results[place].is_ok() {
                    self.results[place] = result;
                }
            }
        }
    }
}
