//! Which worker was the last to have a tree: what an input root shares with earlier ones is there already.

use crate::scheduler::id::WorkerId;
use crate::scheduler::lookup::Recent;
use crate::scheduler::task::NEIGHBOURS_MAX;

/// Trees that are remembered: the input roots of some ten thousand actions, in about 4 MiB.
const TREES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Locality {
    last: Recent<u64, WorkerId>,
}

impl Default for Locality {
    fn default() -> Self {
        Self { last: Recent::new(TREES_MAX) }
    }
}

impl Locality {
    /// The worker has these trees from here on.
    pub(super) fn note(&mut self, worker: WorkerId, trees: &[u64]) {
        for tree in trees.iter().take(NEIGHBOURS_MAX) {
            self.last.insert(*tree, worker);
        }
    }

    /// The workers that had some of the trees, the one with most of them first.
    pub(super) fn workers(&self, trees: &[u64]) -> impl Iterator<Item = WorkerId> {
        let mut counts = [(0_u32, WorkerId::new(0)); NEIGHBOURS_MAX];
        let mut length = 0;
        for worker in trees.iter().take(NEIGHBOURS_MAX).filter_map(|tree| self.last.get(tree)) {
            match counts[..length].iter_mut().find(|(_, known)| known == worker) {
                Some((count, _)) => *count += 1,
                None => {
                    counts[length] = (1, *worker);
                    length += 1;
                }
            }
        }
        counts[..length].sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        counts.into_iter().take(length).map(|(_, worker)| worker)
    }
}
