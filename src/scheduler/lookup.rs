//! Hash maps for the pure core: a hash that is the same for the whole life of the process, and no way to walk through them.
//!
//! The core keeps up to a million entries under random identifiers. A tree costs a cache miss for each of its levels; a hash map costs one or
//! two. What makes a hash map unfit for a run that must be repeatable is its order, and nobody can see that here.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::mem;
use std::sync::LazyLock;

/// A map without an order.
#[derive(Debug)]
pub(super) struct Lookup<K, V>(HashMap<K, V, Seeded>);

impl<K, V> Default for Lookup<K, V> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<K: Eq + Hash, V> Lookup<K, V> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    pub(super) fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert(key, value)
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.0.remove(key)
    }

    /// Removes the entry of a key if its value is what is looked for.
    pub(super) fn remove_if(&mut self, key: K, is_meant: impl FnOnce(&V) -> bool) {
        if let Entry::Occupied(entry) = self.0.entry(key)
            && is_meant(entry.get())
        {
            entry.remove();
        }
    }

    /// The keys in their own order, for tests.
    #[cfg(test)]
    pub(super) fn sorted_keys(&self) -> Vec<&K>
    where
        K: Ord,
    {
        let mut keys: Vec<&K> = self.0.keys().collect();
        keys.sort();
        keys
    }
}

/// What was asked for lately: two generations of at most so many entries each. When the young one is full it becomes the old
/// one, and what nobody has asked for since is dropped.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    young: Lookup<K, V>,
    old: Lookup<K, V>,
    generation_max: usize,
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// Keeps at most `entries_max` entries.
    pub(super) fn new(entries_max: usize) -> Self {
        Self { young: Lookup::default(), old: Lookup::default(), generation_max: entries_max / 2 }
    }

    #[cfg(test)]
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.generation_max && self.young.get(&key).is_none() {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// The value of a key, moved to the young generation; `make` makes an absent one.
    pub(super) fn get_or_insert<Q: Eq + Hash + ?Sized>(&mut self, key: &Q, make: impl FnOnce() -> (K, V)) -> V
    where
        K: Borrow<Q>,
    {
        let made: Result<V, Infallible> = self.get_or_try_insert(key, || Ok(make()));
        made.unwrap_or_else(|never| match never {})
    }

    /// As `get_or_insert`, where `make` may fail.
    ///
    /// # Errors
    /// That of `make`; nothing is kept then.
    pub(super) fn get_or_try_insert<Q: Eq + Hash + ?Sized, E>(
        &mut self,
        key: &Q,
        make: impl FnOnce() -> Result<(K, V), E>,
    ) -> Result<V, E>
    where
        K: Borrow<Q>,
    {
        if let Some(value) = self.young.get(key) {
            return Ok(value.clone());
        }
        let (key, value) = match self.old.0.remove_entry(key) {
            Some(known) => known,
            None => make()?,
        };
        self.insert(key, value.clone());
        Ok(value)
    }
}

/// The hash of a value, the same for the whole life of the process.
pub(super) fn fingerprint(value: &(impl Hash + ?Sized)) -> u64 {
    Seeded::default().hash_one(value)
}

/// Clients choose names of invocations and platform properties, and could choose a great many with one hash if they knew the seed. Tests
/// need a seed that is always the same, since runs of equal hashes are taken for runs of one kind.
static SEED: LazyLock<u64> = LazyLock::new(|| if cfg!(test) { PI } else { RandomState::new().hash_one(PI) });

#[derive(Debug, Clone, Copy)]
struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Self(*SEED)
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// Multiplies and folds, eight bytes at a time. Identifiers are random and digests are hashes already, so this need only spread
/// what differs, and differently for each seed.
#[derive(Debug, Clone, Copy)]
struct Folded(u64);

/// The digits of pi, as numbers that nobody has chosen.
const PI: u64 = 0x243f_6a88_85a3_08d3;
const FACTOR: u64 = 0x1319_8a2e_0370_7345;

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.write_u64(u64::from_le_bytes(chunk.try_into().expect("a chunk has 8 bytes")));
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.write_u64(u64::from_le_bytes(last));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * u128::from(FACTOR);
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u128(&mut self, number: u128) {
        // Identifiers are random in all their bits and made by the farm, so one step mixes them enough.
        self.write_u64(number as u64 ^ ((number >> 64) as u64).rotate_left(32));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_lately_is_kept_and_the_rest_is_bounded() {
        let mut recent = Recent::new(8);
        for number in 0..1000_u64 {
            recent.insert(number, number);
            assert_eq!(recent.get_or_insert(&0, || (0, 0)), 0);
        }
        assert_eq!(recent.get(&999), Some(&999));
        assert_eq!(recent.get(&500), None);
        assert!(recent.young.len() + recent.old.len() <= 8);
    }

    #[test]
    fn numbers_in_a_row_spread_over_a_table() {
        let mut seen = [0_u32; 1024];
        for number in 0..1024_u128 {
            seen[(fingerprint(&number) % 1024) as usize] += 1;
        }
        assert!(seen.iter().all(|count| *count < 10), "{seen:?}");
    }
}
