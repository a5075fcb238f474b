//! What is kept of each holder, and whose makes room when there is too much in all: that of whoever has most.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// Items, each with a weight and a holder. What is taken out first is the item of the heaviest holder that was put in longest ago, so that
/// among `n` holders each keeps an `n`th part of what is kept of all, whatever the others do. Each call takes the logarithm of the items.
#[derive(Debug)]
pub(super) struct Shares<T> {
    places: HashMap<T, Place>,
    holders: HashMap<Arc<str>, Share<T>>,
    ranks: BTreeSet<Rank>,
    weight: usize,
    turns: u64,
}

/// Where an item is.
#[derive(Debug)]
struct Place {
    holder: Arc<str>,
    turn: u64,
    weight: usize,
}

/// What one holder has, by turn; it is never empty.
#[derive(Debug)]
struct Share<T> {
    items: BTreeMap<u64, T>,
    weight: usize,
}

/// The heaviest holder is the last; of two the one whose first item is older.
type Rank = (usize, Reverse<u64>, Arc<str>);

impl<T> Default for Shares<T> {
    fn default() -> Self {
        Self { places: HashMap::new(), holders: HashMap::new(), ranks: BTreeSet::new(), weight: 0, turns: 0 }
    }
}

impl<T: Clone + Eq + Hash> Shares<T> {
    /// The weight of all items.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// Puts an item last in the line of its holder; one that is known moves there.
    pub(super) fn put(&mut self, holder: &Arc<str>, item: T, weight: usize) {
        self.remove(&item);
        self.turns += 1;
        let turn = self.turns;
        let mut share = self.take(holder);
        share.items.insert(turn, item.clone());
        share.weight += weight;
        self.weight += weight;
        self.give(holder, share);
        self.places.insert(item, Place { holder: Arc::clone(holder), turn, weight });
    }

    /// Takes an item out. Returns whether there was one.
    pub(super) fn remove(&mut self, item: &T) -> bool {
        let Some(Place { holder, turn, weight }) = self.places.remove(item) else { return false };
        let mut share = self.take(&holder);
        share.items.remove(&turn);
        share.weight -= weight;
        self.weight -= weight;
        self.give(&holder, share);
        true
    }

    /// Takes out what is the next to make room.
    pub(super) fn pop(&mut self) -> Option<T> {
        let (.., holder) = self.ranks.last()?;
        let (_, item) = self.holders.get(holder)?.items.first_key_value()?;
        let item = item.clone();
        self.remove(&item);
        Some(item)
    }

    /// The share of a holder, to be given back when it is changed.
    fn take(&mut self, holder: &Arc<str>) -> Share<T> {
        let share = self.holders.remove(holder);
        if let Some(rank) = share.as_ref().and_then(|share| rank(holder, share)) {
            self.ranks.remove(&rank);
        }
        share.unwrap_or_else(|| Share { items: BTreeMap::new(), weight: 0 })
    }

    fn give(&mut self, holder: &Arc<str>, share: Share<T>) {
        let Some(rank) = rank(holder, &share) else { return };
        self.ranks.insert(rank);
        self.holders.insert(Arc::clone(holder), share);
    }
}

/// None for who has nothing.
fn rank<T>(holder: &Arc<str>, share: &Share<T>) -> Option<Rank> {
    let (first, _) = share.items.first_key_value()?;
    Some((share.weight, Reverse(*first), Arc::clone(holder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(items: &[(&str, u32, usize)]) -> Shares<u32> {
        let mut shares = Shares::default();
        for (holder, item, weight) in items {
            shares.put(&Arc::from(*holder), *item, *weight);
        }
        shares
    }

    fn drained(mut shares: Shares<u32>) -> Vec<u32> {
        let all = std::iter::from_fn(|| shares.pop()).collect();
        assert!(shares.weight == 0 && shares.places.is_empty());
        assert!(shares.holders.is_empty() && shares.ranks.is_empty());
        all
    }

    #[test]
    fn the_oldest_of_whoever_has_most_makes_room() {
        let all = shares(&[("a", 1, 1), ("b", 2, 1), ("b", 3, 1), ("b", 4, 1), ("a", 5, 1)]);
        assert_eq!(all.weight(), 5);
        assert_eq!(drained(all), [2, 1, 3, 4, 5]);
        let heavy = shares(&[("a", 1, 2), ("b", 2, 9), ("a", 3, 2)]);
        assert_eq!((heavy.weight(), drained(heavy)), (13, vec![2, 1, 3]));
    }

    #[test]
    fn what_is_put_again_is_the_last_with_its_new_holder_and_weight() {
        let mut all = shares(&[("a", 1, 1), ("a", 2, 1), ("a", 1, 1)]);
        assert_eq!(all.weight(), 2);
        all.put(&"b".into(), 2, 7);
        assert!(all.remove(&1) && !all.remove(&1));
        assert_eq!((all.weight(), drained(all)), (7, vec![2]));
    }
}
