//! Which worker was the last to have a tree: what an input root shares with earlier ones is there already.

use crate::scheduler::task::NEIGHBOURS_MAX;

/// Trees that are remembered: the input roots of some ten thousand actions. Two trees that fall on one place keep it to the later
/// one, so what is not used any more gives way.
const TREES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Locality {
    places: Box<[Last]>,
}

/// The tree that was last seen of those that fall on a place.
#[derive(Debug, Clone, Copy)]
struct Last {
    /// The half of its hash that does not say the place.
    tree: u32,
    /// The number of the worker that had it. Another worker may have that number since, which makes a bad guess and no mistake.
    worker: u32,
}

const NOBODY: u32 = u32::MAX;

impl Default for Locality {
    fn default() -> Self {
        Self { places: vec![Last { tree: 0, worker: NOBODY }; TREES_MAX].into_boxed_slice() }
    }
}

impl Locality {
    /// The worker has these trees from here on.
    pub(super) fn note(&mut self, worker: u32, trees: &[u64]) {
        for hash in trees.iter().take(NEIGHBOURS_MAX) {
            let (place, tree) = split(*hash);
            self.places[place] = Last { tree, worker };
        }
    }

    /// The numbers of the workers that had some of the trees, the one with most of them first.
    pub(super) fn workers(&self, trees: &[u64]) -> impl Iterator<Item = u32> {
        let mut counts = [(0_u32, NOBODY); NEIGHBOURS_MAX];
        let mut length = 0;
        for worker in trees.iter().take(NEIGHBOURS_MAX).filter_map(|hash| self.worker(*hash)) {
            match counts[..length].iter_mut().find(|(_, known)| *known == worker) {
                Some((count, _)) => *count += 1,
                None => {
                    counts[length] = (1, worker);
                    length += 1;
                }
            }
        }
        counts[..length].sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        counts.into_iter().take(length).map(|(_, worker)| worker)
    }

    fn worker(&self, hash: u64) -> Option<u32> {
        let (place, tree) = split(hash);
        let last = self.places[place];
        (last.tree == tree && last.worker != NOBODY).then_some(last.worker)
    }
}

/// The place of a tree, and the rest of its hash.
fn split(hash: u64) -> (usize, u32) {
    ((hash % TREES_MAX as u64) as usize, (hash >> 32) as u32)
}
