//! Numbers by their keys, the lowest key first.
//!
//! A heap in one array, with the place of each number beside it: what is first is found without following a pointer, and a key
//! that changes moves a few entries that are near each other, where a tree takes one out, puts one in and balances twice.

/// Keys are unique. The numbers are small: memory goes with the largest.
#[derive(Debug)]
pub(super) struct Ranking<K> {
    /// No entry is before its parent, which is at half its place.
    heap: Vec<(K, u32)>,
    /// The place of each number in the heap.
    places: Vec<u32>,
}

/// The place of a number that is not ranked.
const NOWHERE: u32 = u32::MAX;

impl<K> Default for Ranking<K> {
    fn default() -> Self {
        Self { heap: Vec::new(), places: Vec::new() }
    }
}

impl<K: Ord + Copy> Ranking<K> {
    /// The lowest key with its number.
    pub(super) fn first(&self) -> Option<(K, u32)> {
        self.heap.first().copied()
    }

    /// All numbers, in an order that depends on nothing but what was done before.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.heap.iter().map(|(_, number)| *number)
    }

    /// Ranks a number, or moves it to another key.
    pub(super) fn set(&mut self, number: u32, key: K) {
        match self.place(number) {
            Some(place) => self.change(place, key),
            None => self.add(number, key),
        }
    }

    /// Takes a number out, if it is ranked.
    pub(super) fn remove(&mut self, number: u32) {
        let Some(place) = self.place(number) else { return };
        self.places[number as usize] = NOWHERE;
        let last = self.heap.pop().expect("a number with a place is in the heap");
        if place < self.heap.len() {
            self.fix(place, last);
        }
    }

    fn place(&self, number: u32) -> Option<usize> {
        let place = *self.places.get(number as usize)?;
        (place != NOWHERE).then_some(place as usize)
    }

    fn add(&mut self, number: u32, key: K) {
        if self.places.len() <= number as usize {
            self.places.resize(number as usize + 1, NOWHERE);
        }
        self.heap.push((key, number));
        self.rise(self.heap.len() - 1, (key, number));
    }

    fn change(&mut self, place: usize, key: K) {
        let number = self.heap[place].1;
        self.fix(place, (key, number));
    }

    /// Puts an entry where it belongs, at `place` or from there on.
    fn fix(&mut self, place: usize, entry: (K, u32)) {
        if place > 0 && entry.0 < self.heap[parent(place)].0 {
            self.rise(place, entry);
        } else {
            self.sink(place, entry);
        }
    }

    fn rise(&mut self, mut place: usize, entry: (K, u32)) {
        while place > 0 && entry.0 < self.heap[parent(place)].0 {
            self.put(place, self.heap[parent(place)]);
            place = parent(place);
        }
        self.put(place, entry);
    }

    fn sink(&mut self, mut place: usize, entry: (K, u32)) {
        loop {
            let left = 2 * place + 1;
            let Some(children) = self.heap.get(left..self.heap.len().min(left + 2)) else { break };
            let Some((index, least)) = children.iter().enumerate().min_by_key(|(_, child)| child.0) else {
                break;
            };
            if entry.0 < least.0 {
                break;
            }
            let (child, least) = (left + index, *least);
            self.put(place, least);
            place = child;
        }
        self.put(place, entry);
    }

    fn put(&mut self, place: usize, entry: (K, u32)) {
        self.places[entry.1 as usize] = u32::try_from(place).expect("there are fewer entries than numbers");
        self.heap[place] = entry;
    }
}

fn parent(place: usize) -> usize {
    (place - 1) / 2
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_ranks_as_a_sorted_map_does(steps in prop::collection::vec((0_u32..40, prop::option::of(0_u64..1000)), 0..300)) {
            let mut ranking = Ranking::default();
            let mut model = BTreeMap::new();
            for (number, key) in steps {
                model.remove(&number);
                match key {
                    // The number makes the key unique.
                    Some(key) => {
                        let key = (key, number);
                        model.insert(number, key);
                        ranking.set(number, key);
                    }
                    None => ranking.remove(number),
                }
                let first = model.iter().map(|(number, key)| (*key, *number)).min();
                prop_assert_eq!(ranking.first(), first);
                let mut numbers: Vec<u32> = ranking.numbers().collect();
                numbers.sort_unstable();
                prop_assert!(numbers.iter().eq(model.keys()));
            }
        }
    }
}
