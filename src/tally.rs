//! How much of something each of its holders has, so that none of them takes what is there for all.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The holders that have any, and how much. There are no more of them than there are shares at the moment.
#[derive(Debug)]
pub struct Tally<K: Eq + Hash> {
    each_max: u32,
    counts: Mutex<HashMap<K, u32>>,
}

/// One of what a holder has. Dropping it gives it back.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    tally: Arc<Tally<K>>,
    holder: K,
}

impl<K: Clone + Eq + Hash> Tally<K> {
    /// Each may have `each_max` at a time.
    pub fn new(each_max: u32) -> Arc<Self> {
        Arc::new(Self { each_max, counts: Mutex::default() })
    }

    /// One more for `holder`; `None` when it has as much as it may.
    pub fn take(self: &Arc<Self>, holder: K) -> Option<Share<K>> {
        let mut counts = self.lock();
        let count = counts.get(&holder).copied().unwrap_or_default();
        if count >= self.each_max {
            return None;
        }
        counts.insert(holder.clone(), count + 1);
        drop(counts);
        Some(Share { tally: Arc::clone(self), holder })
    }
}

impl<K: Eq + Hash> Tally<K> {
    /// What each may have at a time.
    pub fn each_max(&self) -> u32 {
        self.each_max
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut counts = self.tally.lock();
        if let Some(count) = counts.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_share_and_who_has_nothing_is_forgotten() {
        let tally = Tally::new(2);
        let (first, second) = (tally.take("ci").unwrap(), tally.take("ci").unwrap());
        assert!(tally.take("ci").is_none());
        let other = tally.take("developer").unwrap();
        drop(first);
        let third = tally.take("ci").expect("one was given back");
        drop((second, third, other));
        assert!(tally.lock().is_empty());
    }

    #[test]
    fn who_may_have_nothing_leaves_no_trace() {
        let tally = Tally::new(0);
        assert!(tally.take("ci").is_none());
        assert!(tally.lock().is_empty());
    }
}
