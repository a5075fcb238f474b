//! Which blobs were used in the last minutes, in memory: a read must not cost a write.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::name::Name;

/// Enough that readers seldom meet.
const SHARDS: usize = 16;

/// Names of one generation, in all shards: 64 MiB of memory at most. When one is full, the next begins early.
const NAMES_MAX: usize = 1_000_000;

/// Two generations of names with their sizes, and those that left the older one and are being written down.
///
/// A name that is marked is in the index, because whoever takes it from there takes the mark, too, while readers are kept out.
/// So a client that asks for the same blobs again and again is answered from here.
#[derive(Default)]
pub(super) struct Marks {
    shards: [Mutex<Shard>; SHARDS],
    /// A use could not be remembered.
    is_crowded: AtomicBool,
}

#[derive(Default)]
struct Shard {
    current: HashMap<Name, u64>,
    previous: HashMap<Name, u64>,
    leaving: HashSet<Name>,
}

impl Marks {
    /// False when there is no room for the mark until the generation changes.
    pub(super) fn mark(&self, name: &Name, size: u64) -> bool {
        let is_marked = self.shard(name).mark(name, size);
        if !is_marked {
            self.is_crowded.store(true, Ordering::Relaxed);
        }
        is_marked
    }

    /// The size of a blob that is marked, which marks it again.
    pub(super) fn renew(&self, name: &Name) -> Option<u64> {
        let mut shard = self.shard(name);
        if let Some(size) = shard.current.get(name) {
            return Some(*size);
        }
        let size = *shard.previous.get(name)?;
        shard.mark(name, size).then_some(size)
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        let shard = self.shard(name);
        shard.current.contains_key(name) || shard.previous.contains_key(name) || shard.leaving.contains(name)
    }

    /// Takes the mark of a blob that goes.
    pub(super) fn forget(&self, name: &Name) {
        let mut shard = self.shard(name);
        shard.current.remove(name);
        shard.previous.remove(name);
        shard.leaving.remove(name);
    }

    pub(super) fn forget_all(&self) {
        self.shards.iter().for_each(|shard| *lock(shard) = Shard::default());
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.is_crowded.load(Ordering::Relaxed)
    }

    /// Begins a new generation; the one before the last is to be written down.
    pub(super) fn rotate(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            let current = std::mem::take(&mut shard.current);
            let previous = std::mem::replace(&mut shard.previous, current);
            shard.leaving.extend(previous.into_keys());
        }
        self.is_crowded.store(false, Ordering::Relaxed);
    }

    /// Up to `count` names that are to be written down. They stay marked until [`Marks::let_go`].
    pub(super) fn leaving(&self, count: usize) -> Vec<Name> {
        let mut names = Vec::new();
        for shard in &self.shards {
            names.extend(lock(shard).leaving.iter().take(count - names.len()));
        }
        names
    }

    /// Ends the marks of names that were written down.
    pub(super) fn let_go(&self, names: &[Name]) {
        for name in names {
            self.shard(name).leaving.remove(name);
        }
    }

    fn shard(&self, name: &Name) -> MutexGuard<'_, Shard> {
        // The last byte of a hash is as good as random.
        let last = name.as_bytes().last().copied().unwrap_or(0);
        lock(&self.shards[usize::from(last) % SHARDS])
    }
}

impl Shard {
    fn mark(&mut self, name: &Name, size: u64) -> bool {
        if self.current.len() >= NAMES_MAX / SHARDS && !self.current.contains_key(name) {
            return false;
        }
        self.current.insert(*name, size);
        true
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
    fn a_mark_lasts_for_two_generations_and_until_it_is_written_down() {
        let (marks, name) = (Marks::default(), Name::from(&Key::Asset([3; 32])));
        assert!(marks.mark(&name, 5));
        marks.rotate();
        assert!(marks.leaving(9).is_empty());
        marks.rotate();
        assert_eq!(marks.leaving(9), [name]);
        assert!(marks.contains(&name) && marks.renew(&name).is_none());
        marks.let_go(&[name]);
        assert!(!marks.contains(&name));
    }

    #[test]
    fn a_generation_that_is_full_says_so_until_the_next_one() {
        let marks = Marks::default();
        // All in one shard: their last byte is the same.
        let name = |number: usize| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            Name::from(&Key::Asset(hash))
        };
        assert!((0..NAMES_MAX / SHARDS).all(|number| marks.mark(&name(number), 1)));
        assert!(!marks.mark(&name(NAMES_MAX), 1) && marks.is_crowded());
        marks.rotate();
        assert!(marks.mark(&name(NAMES_MAX), 1) && !marks.is_crowded());
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
