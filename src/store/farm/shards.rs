//! Each key on one of several stores, chosen by rendezvous hashing: a store that comes or goes moves only its share.

use std::collections::HashSet;
use std::ops::RangeFrom;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};

use crate::digest::Function;
use crate::error::Result;
use crate::store::name::{Family, Name};
use crate::store::{Blob, Key, Store};

/// Stores that share the keys among them. One that is away makes its keys unavailable, never absent.
pub(super) struct Shards {
    shards: Vec<Shard>,
}

struct Shard {
    /// The start of its name's hash: what decides its share. Order and number of the others do not matter.
    seed: u64,
    store: Arc<dyn Store>,
}

impl Shards {
    pub(super) fn new(stores: impl IntoIterator<Item = (String, Arc<dyn Store>)>) -> Self {
        let shards = stores.into_iter().map(|(name, store)| Shard { seed: seed(&name), store });
        Self { shards: shards.collect() }
    }

    /// The shard that has the highest score for the key.
    fn place(&self, key: &Key) -> usize {
        self.place_of(&Name::from(key))
    }

    fn place_of(&self, name: &Name) -> usize {
        let key = key_number(name);
        let scores = self.shards.iter().enumerate().map(|(place, shard)| (score(shard.seed, key), place));
        scores.max().map_or(0, |(_, place)| place)
    }

    fn store(&self, key: &Key) -> &dyn Store {
        &*self.shards[self.place(key)].store
    }

    /// The places of `keys` in their list, by shard; no shard without a key.
    fn groups<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> Vec<(&dyn Store, Vec<usize>)> {
        let mut groups: Vec<Vec<usize>> = vec![Vec::new(); self.shards.len()];
        for (number, key) in keys.enumerate() {
            groups[self.place(key)].push(number);
        }
        let stores = self.shards.iter().map(|shard| &*shard.store);
        stores.zip(groups).filter(|(_, group)| !group.is_empty()).collect()
    }
}

fn seed(name: &str) -> u64 {
    first_number(Function::Sha256.hash(name.as_bytes()).hash())
}

/// Keys are named by hashes, so a part of one is as random as another hash of it.
fn key_number(name: &Name) -> u64 {
    first_number(name.hash())
}

fn first_number(hash: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = hash.len().min(bytes.len());
    bytes[..length].copy_from_slice(&hash[..length]);
    u64::from_le_bytes(bytes)
}

/// Mixes both so that each bit of either decides about half of the result's bits (the end of SplitMix64).
fn score(seed: u64, key: u64) -> u64 {
    let mut number = seed ^ key;
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[async_trait]
impl Store for Shards {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        self.store(key).get(key, range).await
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        self.store(key).put(key, blob).await
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let questions = self.groups(keys.iter()).into_iter().map(async |(store, group)| {
            let asked: Vec<Key> = group.into_iter().map(|number| keys[number].clone()).collect();
            store.missing(&asked).await
        });
        let missing: HashSet<Key> = try_join_all(questions).await?.into_iter().flatten().collect();
        Ok(keys.iter().filter(|key| missing.contains(*key)).cloned().collect())
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.store(key).remove(key).await
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        let Some(name) = Name::new(Family::Blob(function), hash) else { return Ok(None) };
        self.shards[self.place_of(&name)].store.size_of(function, hash).await
    }

    async fn finds_by_hash(&self) -> bool {
        join_all(self.shards.iter().map(|shard| shard.store.finds_by_hash()))
            .await
            .into_iter()
            .all(|finds| finds)
    }

    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        let groups = self.groups(blobs.iter().map(|(key, _)| key)).into_iter().map(async |(store, group)| {
            let batch = group.iter().map(|number| blobs[*number].clone()).collect();
            let outcomes = store.put_all(batch).await;
            (group, outcomes)
        });
        let mut results: Vec<Result<()>> = blobs.iter().map(|_| Ok(())).collect();
        for (group, outcomes) in join_all(groups).await {
            group.into_iter().zip(outcomes).for_each(|(number, outcome)| results[number] = outcome);
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::store::contract::{Subject, holds};
    use crate::store::{Faulty, Memory, Rates};

    fn shards(names: &[&str]) -> Shards {
        Shards::new(names.iter().map(|name| ((*name).to_owned(), memory())))
    }

    fn memory() -> Arc<dyn Store> {
        Arc::new(Memory::new(1 << 30))
    }

    fn keys(count: u32) -> Vec<Key> {
        (0..count).map(|number| Key::Blob(Function::Sha256.hash(&number.to_le_bytes()))).collect()
    }

    #[test]
    fn a_shard_more_takes_its_share_and_moves_nothing_else() {
        let (before, after) = (shards(&["a", "b", "c", "d"]), shards(&["a", "b", "c", "d", "e"]));
        let keys = keys(20_000);
        let moved: Vec<&Key> = keys.iter().filter(|key| before.place(key) != after.place(key)).collect();
        assert!(moved.iter().all(|key| after.place(key) == 4), "a key moved between old shards");
        let share = moved.len() as f64 / keys.len() as f64;
        assert!((0.18..0.22).contains(&share), "{share}");
        for place in 0..5 {
            let share = keys.iter().filter(|key| after.place(key) == place).count();
            assert!((3_600..4_400).contains(&share), "{place}: {share}");
        }
    }

    #[test]
    fn the_order_of_shards_does_not_matter() {
        let (names, reversed) = (["a", "b", "c"], ["c", "b", "a"]);
        let (one, other) = (shards(&names), shards(&reversed));
        for key in keys(1_000) {
            assert_eq!(names[one.place(&key)], reversed[other.place(&key)]);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn shards_in_memory_keep_the_contract() {
        let fresh = async || Subject { store: Arc::new(shards(&["a", "b", "c"])), kept: Box::new(()) };
        holds("shards in memory", fresh).await;
    }

    #[tokio::test]
    async fn a_shard_that_fails_makes_its_keys_unavailable_and_no_others() {
        let rates = Rates { before: 1.0, ..Rates::default() };
        let failing: Arc<dyn Store> = Arc::new(Faulty::new(memory(), 1, rates));
        let shards = Shards::new([("good".to_owned(), memory()), ("bad".to_owned(), failing)]);
        let keys = keys(100);
        let (good, bad): (Vec<Key>, Vec<Key>) = keys.iter().cloned().partition(|key| shards.place(key) == 0);
        assert_eq!(shards.missing(&good).await.unwrap(), good);
        assert_eq!(shards.missing(&keys).await.unwrap_err().kind(), Kind::Unavailable);
        assert!(shards.get(&good[0], 0..).await.unwrap().is_none());
        assert_eq!(shards.get(&bad[0], 0..).await.err().unwrap().kind(), Kind::Unavailable);
        let batch = keys.iter().map(|key| (key.clone(), Bytes::from_static(b"x"))).collect();
        let stored: Vec<bool> =
            shards.put_all(batch).await.iter().map(|result: &Result<()>| result.is_ok()).collect();
        let is_good: Vec<bool> = keys.iter().map(|key| good.contains(key)).collect();
        // Faulty keeps the trait's own `put_all`, which fails each put for itself.
        assert_eq!(stored, is_good);
    }
}
