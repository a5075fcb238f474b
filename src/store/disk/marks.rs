//! Which blobs were used in the last minutes, in memory: a read must not cost a write.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::name::Name;

/// Enough that readers seldom meet.
const SHARDS: usize = 16;

/// Names of one generation, in all shards: 64 MiB of memory at most. Uses beyond that are not remembered.
const NAMES_MAX: usize = 1_000_000;

/// Two generations of names with their sizes; the older one is taken out to be written down.
///
/// A name that is marked is in the index, because whoever takes it from there takes the mark, too, while readers are kept out.
/// So a client that asks for the same blobs again and again is answered from here.
#[derive(Default)]
pub(super) struct Marks {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    current: HashMap<Name, u64>,
    previous: HashMap<Name, u64>,
}

impl Marks {
    pub(super) fn mark(&self, name: &Name, size: u64) {
        self.shard(name).mark(name, size);
    }

    /// The size of a blob that is marked, which marks it again.
    pub(super) fn renew(&self, name: &Name) -> Option<u64> {
        let mut shard = self.shard(name);
        if let Some(size) = shard.current.get(name) {
            return Some(*size);
        }
        let size = *shard.previous.get(name)?;
        shard.mark(name, size);
        Some(size)
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        let shard = self.shard(name);
        shard.current.contains_key(name) || shard.previous.contains_key(name)
    }

    /// Takes the mark of a blob that goes.
    pub(super) fn forget(&self, name: &Name) {
        let mut shard = self.shard(name);
        shard.current.remove(name);
        shard.previous.remove(name);
    }

    pub(super) fn forget_all(&self) {
        self.shards.iter().for_each(|shard| *lock(shard) = Shard::default());
    }

    /// Begins a new generation and gives out the one before the last.
    pub(super) fn rotate(&self) -> Vec<Name> {
        let mut names = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            let current = std::mem::take(&mut shard.current);
            names.extend(std::mem::replace(&mut shard.previous, current).into_keys());
        }
        names
    }

    fn shard(&self, name: &Name) -> MutexGuard<'_, Shard> {
        // The last byte of a hash is as good as random.
        let last = name.as_bytes().last().copied().unwrap_or(0);
        lock(&self.shards[usize::from(last) % SHARDS])
    }
}

impl Shard {
    fn mark(&mut self, name: &Name, size: u64) {
        if self.current.len() < NAMES_MAX / SHARDS {
            self.current.insert(*name, size);
        }
    }
}

/// A map is whole between any two steps that can panic.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    #[test]
    fn a_mark_lasts_for_two_generations() {
        let (marks, name) = (Marks::default(), Name::from(&Key::Asset([3; 32])));
        marks.mark(&name, 5);
        assert!(marks.rotate().is_empty());
        assert!(marks.contains(&name));
        assert_eq!(marks.rotate(), [name]);
        assert!(!marks.contains(&name));
    }

    #[test]
    fn a_mark_is_renewed_by_use_and_gone_when_forgotten() {
        let (marks, name) = (Marks::default(), Name::from(&Key::Asset([3; 32])));
        assert_eq!(marks.renew(&name), None);
        marks.mark(&name, 5);
        for _ in 0..3 {
            marks.rotate();
            assert_eq!(marks.renew(&name), Some(5));
        }
        marks.forget(&name);
        assert_eq!(marks.renew(&name), None);
    }
}
