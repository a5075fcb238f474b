//! Each key on all of several stores: written to all, read from any, repaired when a reader finds it missing on one.
//!
//! What was acknowledged is on at least `minimum` of them. So an absence is certain only when fewer than `minimum` could not be
//! asked; else one of those may have the blob, and the answer is `Unavailable`. Two answers need no certainty: a result that looks
//! absent costs one run of its action, a blob that `missing` names is sent again.

use std::collections::HashSet;
use std::ops::RangeFrom;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;

use super::repairs::{Repair, Repairs, copy};
use super::reusable::Reusable;
use crate::digest::Function;
use crate::error::{Error, Kind, Result};
use crate::store::health::Health;
use crate::store::{Blob, Key, Store};

/// A stream up to this size is held in memory and sent to all replicas at once; a larger one is sent to one and copied from there.
const SPOOL_BYTES_MAX: u64 = 1 << 20;

/// Stores that each hold everything.
pub(super) struct Replicas {
    replicas: Vec<Replica>,
    minimum: usize,
    /// Spreads the reads.
    next: AtomicUsize,
    repairs: Arc<Repairs>,
}

/// One of them.
pub(super) struct Replica {
    pub(super) store: Arc<dyn Store>,
    pub(super) health: Arc<Health>,
}

impl Replicas {
    /// `minimum` is how many must have stored a blob before the write is acknowledged.
    pub(super) fn new(replicas: Vec<Replica>, minimum: usize) -> Self {
        Self { replicas, minimum, next: AtomicUsize::new(0), repairs: Repairs::new() }
    }

    /// The places of the replicas, the next in turn first, those that seem to be away last.
    fn order(&self) -> Vec<usize> {
        let (count, first) = (self.replicas.len(), self.next.fetch_add(1, Ordering::Relaxed));
        let mut order: Vec<usize> = (0..count).map(|step| (first.wrapping_add(step)) % count).collect();
        order.sort_by_key(|place| !self.replicas[*place].health.is_up());
        order
    }

    fn stores(&self) -> impl Iterator<Item = &dyn Store> {
        self.replicas.iter().map(|replica| &*replica.store)
    }

    fn repair(&self, key: &Key, from: usize, to: usize) {
        let store = |place: usize| Arc::clone(&self.replicas[place].store);
        self.repairs.begin(Repair { key: key.clone(), from: store(from), to: store(to), place: to });
    }

    /// Whether what is absent from all that answered is absent, when `failures` did not answer.
    fn is_certain(&self, key: &Key, failures: usize) -> bool {
        match key {
            Key::Blob(_) | Key::Asset(_) => failures < self.minimum,
            Key::Action(_) => true,
        }
    }

    /// Success when enough have it.
    fn acknowledged(&self, results: impl IntoIterator<Item = Result<()>>) -> Result<()> {
        let (mut stored, mut failure) = (0, None);
        for result in results {
            match result {
                Ok(()) => stored += 1,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            Some(error) if stored < self.minimum => {
                let count = self.replicas.len();
                Err(error.context(format!("{stored} of {count} replicas stored it, {} must", self.minimum)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Stores what can be read only once: on one replica, and from there on the others.
    async fn put_stream(&self, key: &Key, blob: Blob) -> Result<()> {
        let first = self.order()[0];
        let source = &*self.replicas[first].store;
        source.put(key, blob).await?;
        let others = self.replicas.iter().enumerate().filter(|(place, _)| *place != first);
        let copies = others.map(|(_, replica)| copy(key, source, &*replica.store));
        self.acknowledged(join_all(copies).await.into_iter().chain([Ok(())]))
    }
}

#[async_trait]
impl Store for Replicas {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        let (mut lacking, mut failures) = (Vec::new(), Vec::new());
        for place in self.order() {
            match self.replicas[place].store.get(key, range.clone()).await {
                Ok(Some(blob)) => {
                    lacking.into_iter().for_each(|lack| self.repair(key, place, lack));
                    return Ok(Some(blob));
                }
                Ok(None) => lacking.push(place),
                Err(error) if error.kind() == Kind::OutOfRange => return Err(error),
                Err(error) => failures.push(error),
            }
        }
        let is_certain = !lacking.is_empty() && self.is_certain(key, failures.len());
        match failures.pop() {
            Some(error) if !is_certain => Err(error),
            Some(_) | None => Ok(None),
        }
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        let blob = match blob {
            Blob::Stream { size, .. } if size <= SPOOL_BYTES_MAX => {
                Blob::Whole(blob.into_bytes(SPOOL_BYTES_MAX).await?)
            }
            blob @ (Blob::Whole(_) | Blob::Stream { .. } | Blob::File { .. }) => blob,
        };
        match Reusable::new(blob) {
            Ok(blob) => {
                let puts: Vec<_> = self.stores().map(|store| store.put(key, blob.blob())).collect();
                self.acknowledged(join_all(puts).await)
            }
            Err(blob) => self.put_stream(key, blob).await,
        }
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let answers = join_all(self.stores().map(|store| store.missing(keys))).await;
        let (mut lacks, mut failure) = (Vec::new(), None);
        for (place, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(missing) => lacks.push((place, missing.into_iter().collect::<HashSet<Key>>())),
                Err(error) => failure = Some(error),
            }
        }
        if lacks.is_empty() {
            return Err(failure.unwrap_or_else(|| Error::bug("a farm tier has no replicas")));
        }
        let mut missing = Vec::new();
        for key in keys {
            let Some((holder, _)) = lacks.iter().find(|(_, lack)| !lack.contains(key)) else {
                missing.push(key.clone());
                continue;
            };
            let lacking = lacks.iter().filter(|(_, lack)| lack.contains(key));
            lacking.for_each(|(place, _)| self.repair(key, *holder, *place));
        }
        Ok(missing)
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        let removals = join_all(self.stores().map(|store| store.remove(key))).await;
        removals.into_iter().collect()
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        let mut failures = Vec::new();
        for place in self.order() {
            match self.replicas[place].store.size_of(function, hash).await {
                Ok(Some(size)) => return Ok(Some(size)),
                Ok(None) => {}
                Err(error) => failures.push(error),
            }
        }
        // As for a blob: one that could not be asked may have it.
        let is_certain = failures.len() < self.minimum;
        match failures.pop() {
            Some(error) if !is_certain => Err(error),
            Some(_) | None => Ok(None),
        }
    }

    async fn finds_by_hash(&self) -> bool {
        join_all(self.stores().map(|store| store.finds_by_hash())).await.into_iter().any(|finds| finds)
    }

    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        let puts = join_all(self.stores().map(|store| store.put_all(blobs.clone()))).await;
        let mut outcomes: Vec<_> = puts.into_iter().map(Vec::into_iter).collect();
        let results = blobs.iter().map(|_| self.acknowledged(outcomes.iter_mut().filter_map(Iterator::next)));
        results.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{Subject, holds};
    use crate::store::{ActionKey, Faulty, Memory, Rates};

    /// Some replicas that work and some that always fail.
    fn replicas(working: usize, failing: usize, minimum: usize) -> Replicas {
        let rates = |place| Rates { before: if place < working { 0.0 } else { 1.0 }, ..Rates::default() };
        let replica = |place| {
            let store = Arc::new(Faulty::new(Arc::new(Memory::new(1 << 30)), 1, rates(place)));
            Replica { store, health: Arc::default() }
        };
        Replicas::new((0..working + failing).map(replica).collect(), minimum)
    }

    fn blob() -> (Key, Bytes) {
        let bytes = Bytes::from_static(b"content");
        (Key::Blob(Function::Sha256.hash(&bytes)), bytes)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn replicas_in_memory_keep_the_contract() {
        let fresh = async || Subject { store: Arc::new(replicas(3, 0, 3)), kept: Box::new(()) };
        holds("replicas in memory", fresh).await;
    }

    #[tokio::test]
    async fn an_absence_is_certain_only_when_no_silent_replicas_can_hold_the_blob() {
        let (key, _) = blob();
        let action = Key::Action(ActionKey { instance: "".into(), digest: Function::Sha256.hash(b"action") });
        for (working, failing, minimum, is_certain) in [
            (3, 0, 1, true),
            (2, 1, 3, true),
            (2, 1, 2, true),
            (2, 1, 1, false),
            (1, 2, 2, false),
            (1, 2, 3, true),
        ] {
            let store = replicas(working, failing, minimum);
            match store.get(&key, 0..).await {
                Ok(found) => assert!(is_certain && found.is_none(), "{working} {failing} {minimum}"),
                Err(error) => assert!(!is_certain && error.kind() == Kind::Unavailable, "{error}"),
            }
            assert!(store.get(&action, 0..).await.unwrap().is_none());
            let keys = [key.clone(), action.clone()];
            assert_eq!(store.missing(&keys).await.unwrap(), keys);
        }
        let none = replicas(0, 2, 2);
        for key in [&key, &action] {
            assert_eq!(none.get(key, 0..).await.err().unwrap().kind(), Kind::Unavailable);
            assert_eq!(none.missing(std::slice::from_ref(key)).await.unwrap_err().kind(), Kind::Unavailable);
        }
    }

    #[tokio::test]
    async fn a_write_is_acknowledged_when_enough_replicas_have_it() {
        let (key, bytes) = blob();
        for (working, failing, minimum) in [(2, 1, 3), (2, 1, 2), (2, 1, 1), (1, 1, 2), (0, 2, 1)] {
            let store = replicas(working, failing, minimum);
            let results = [
                store.put(&key, Blob::Whole(bytes.clone())).await,
                store.put_all(vec![(key.clone(), bytes.clone())]).await.remove(0),
            ];
            for result in results {
                match result {
                    Ok(()) => assert!(working >= minimum),
                    Err(error) => assert!(working < minimum && error.kind() == Kind::Unavailable, "{error}"),
                }
            }
        }
    }
}
