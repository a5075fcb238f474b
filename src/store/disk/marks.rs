//! Which blobs were used in the last minutes, in memory: a read must not cost a write.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::entry::Name;

/// Enough that readers seldom meet.
const SHARDS: usize = 16;

/// Names of one generation, in all shards: 64 MiB of memory at most. Uses beyond that are not remembered.
const NAMES_MAX: usize = 1_000_000;

/// Two generations of names; the older one is taken out to be written down.
#[derive(Default)]
pub(super) struct Marks {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    current: HashSet<Name>,
    previous: HashSet<Name>,
}

impl Marks {
    pub(super) fn mark(&self, name: &Name) {
        let mut shard = self.shard(name);
        if shard.current.len() < NAMES_MAX / SHARDS {
            shard.current.insert(*name);
        }
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        let shard = self.shard(name);
        shard.current.contains(name) || shard.previous.contains(name)
    }

    /// Begins a new generation and gives out the one before the last.
    pub(super) fn rotate(&self) -> Vec<Name> {
        let mut names = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            let current = std::mem::take(&mut shard.current);
            names.extend(std::mem::replace(&mut shard.previous, current));
        }
        names
    }

    fn shard(&self, name: &Name) -> MutexGuard<'_, Shard> {
        // The last byte of a hash is as good as random.
        let last = name.as_bytes().last().copied().unwrap_or(0);
        lock(&self.shards[usize::from(last) % SHARDS])
    }
}

/// A set is whole between any two steps that can panic.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::entry::Family;
    use super::*;

    #[test]
    fn a_mark_lasts_for_two_generations() {
        let (marks, name) = (Marks::default(), Name::new(Family::Sha256, &[3; 32]));
        marks.mark(&name);
        assert!(marks.rotate().is_empty());
        assert!(marks.contains(&name));
        assert_eq!(marks.rotate(), [name]);
        assert!(!marks.contains(&name));
    }
}
