//! The trees of the cache by the root they show, by their last use, and by the subdirectories that other roots may share.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::home::Home;
use super::tree::DirectoryEntry;
use crate::digest::Digest;

/// Subdirectories of a tree that it can be found by: the topmost ones, which are the largest.
const MARKS_MAX: usize = 512;
/// Trees that are remembered for one subdirectory. A toolchain is below every root; one tree with it is as good as another.
const SHARERS_MAX: usize = 4;
/// Trees that are considered because they were used last.
const RECENT_MAX: usize = 2;
/// Trees that are considered because they share subdirectories.
const ALIKE_MAX: usize = 2;

/// A tree of the cache. While it is held it stays.
pub(super) struct Cached {
    pub(super) root: Digest,
    pub(super) home: Home,
    /// What lies below it; only a tree without such can be one.
    pub(super) base: Option<Arc<Cached>>,
    /// How many entries the whole root has.
    pub(super) entries: usize,
}

/// All trees of the cache.
#[derive(Default)]
pub(super) struct Index {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    trees: HashMap<Digest, Known>,
    order: BTreeMap<u64, Digest>,
    clock: u64,
    /// Trees without a base by the marks of their subdirectories.
    sharers: HashMap<u64, Vec<Digest>>,
}

struct Known {
    tree: Arc<Cached>,
    stamp: u64,
    marks: Vec<u64>,
}

/// Trees and how much of a root they share.
pub(super) type Votes = HashMap<Digest, usize>;

/// A subdirectory at its path. Two that have the same by chance cost a comparison in vain.
pub(super) fn mark(path: &str, digest: &Digest) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, digest).hash(&mut hasher);
    hasher.finish()
}

/// The marks of a tree with these directories.
pub(super) fn marks(directories: &[DirectoryEntry]) -> Vec<u64> {
    directories.iter().skip(1).take(MARKS_MAX).map(|entry| mark(&entry.path, &entry.digest)).collect()
}

impl Index {
    /// The tree of `root`, which is used by this.
    pub(super) fn get(&self, root: &Digest) -> Option<Arc<Cached>> {
        let mut state = self.state();
        let tree = state.trees.get(root)?.tree.clone();
        state.touch(root);
        tree.base.iter().for_each(|base| state.touch(&base.root));
        Some(tree)
    }

    /// Adds a tree that was just made, unless its root has one; whether it did.
    pub(super) fn insert(&self, tree: Arc<Cached>, marks: Vec<u64>) -> bool {
        self.state().insert(tree, marks)
    }

    /// The trees that have a subdirectory with this mark; whether there are any.
    pub(super) fn vote(&self, mark: u64, votes: &mut Votes) -> bool {
        let state = self.state();
        let Some(sharers) = state.sharers.get(&mark) else { return false };
        sharers.iter().for_each(|root| *votes.entry(*root).or_default() += 1);
        true
    }

    /// Trees that `root` may differ little from: those with the most votes, then those used last.
    pub(super) fn bases(&self, root: &Digest, votes: &Votes) -> Vec<Arc<Cached>> {
        let state = self.state();
        let mut alike: Vec<(&Digest, usize)> = votes.iter().map(|(root, count)| (root, *count)).collect();
        alike.sort_by_key(|(root, count)| (usize::MAX - *count, **root));
        let alike = alike.into_iter().map(|(root, _)| root).take(ALIKE_MAX);
        let recent = state.order.values().rev().take(RECENT_MAX);
        let mut bases: Vec<Arc<Cached>> = Vec::new();
        for known in alike.chain(recent).filter_map(|root| state.trees.get(root)) {
            // The last used are often layers over the same base.
            let base = known.tree.base.as_ref().unwrap_or(&known.tree);
            let is_new = bases.iter().all(|other| other.root != base.root);
            if is_new && base.root.function() == root.function() {
                bases.push(base.clone());
            }
        }
        bases
    }

    /// Lets trees go that nobody uses, the least recently used first, until `bytes` are won or none is left. They are
    /// deleted when the answer is dropped.
    pub(super) fn evict(&self, bytes: u64) -> Vec<Arc<Cached>> {
        self.state().evict(bytes, 0)
    }

    /// Lets trees go as [`Index::evict`] does if there are more than `most`: so many that it is not needed again soon.
    pub(super) fn evict_above(&self, most: usize) -> Vec<Arc<Cached>> {
        let mut state = self.state();
        let surplus = state.trees.len().checked_sub(most).filter(|surplus| *surplus > 0);
        surplus.map(|surplus| state.evict(0, surplus + most / 8)).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between the maps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn touch(&mut self, root: &Digest) {
        let Some(known) = self.trees.get_mut(root) else { return };
        self.clock += 1;
        self.order.remove(&known.stamp);
        self.order.insert(self.clock, *root);
        known.stamp = self.clock;
    }

    fn insert(&mut self, tree: Arc<Cached>, marks: Vec<u64>) -> bool {
        let root = tree.root;
        if self.trees.contains_key(&root) {
            return false;
        }
        self.clock += 1;
        for mark in &marks {
            let sharers = self.sharers.entry(*mark).or_default();
            if sharers.len() >= SHARERS_MAX {
                sharers.remove(0);
            }
            sharers.push(root);
        }
        self.order.insert(self.clock, root);
        self.trees.insert(root, Known { tree, stamp: self.clock, marks });
        true
    }

    /// Lets go of `bytes` and of so many `trees`, if it can.
    fn evict(&mut self, bytes: u64, trees: usize) -> Vec<Arc<Cached>> {
        let (mut gone, mut won) = (Vec::new(), 0);
        // What is in use is skipped; that is as much as there are actions, and the trees below theirs.
        let oldest = self.order.values().filter_map(|root| self.trees.get(root));
        for Known { tree, .. } in oldest.filter(|known| Arc::strong_count(&known.tree) == 1) {
            if won >= bytes && gone.len() >= trees {
                break;
            }
            won += tree.home.cost();
            gone.push(tree.root);
        }
        let gone: Vec<Arc<Cached>> = gone.iter().filter_map(|root| self.remove(root)).collect();
        gone.iter().for_each(|tree| tree.home.let_go());
        gone
    }

    fn remove(&mut self, root: &Digest) -> Option<Arc<Cached>> {
        let Known { tree, stamp, marks } = self.trees.remove(root)?;
        self.order.remove(&stamp);
        for mark in marks {
            if let Some(sharers) = self.sharers.get_mut(&mark) {
                sharers.retain(|other| other != root);
                if sharers.is_empty() {
                    self.sharers.remove(&mark);
                }
            }
        }
        Some(tree)
    }
}
