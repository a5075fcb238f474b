//! Which blobs must stay where they are for the moment: inputs of running actions, and what is not yet copied to a durable tier.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Key;
use super::name::Name;

/// Enough that threads seldom meet.
const SHARDS: usize = 16;

/// The pins of one farm. Cheap to clone; all clones are one registry.
#[derive(Clone, Default)]
pub struct Pins {
    shards: Arc<[Mutex<HashMap<Name, u32>>; SHARDS]>,
}

/// Keeps its blobs pinned until it is dropped.
#[must_use = "dropping it takes the pins away"]
pub struct Pinned {
    pins: Pins,
    names: Vec<Name>,
}

impl Pins {
    /// Pins `keys`, present or not; a key that is pinned several times stays until the last one lets go.
    pub fn pin<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> Pinned {
        let names: Vec<Name> = keys.into_iter().map(Name::from).collect();
        for name in &names {
            *self.shard(name).entry(*name).or_default() += 1;
        }
        Pinned { pins: self.clone(), names }
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        self.shard(name).contains_key(name)
    }

    fn shard(&self, name: &Name) -> MutexGuard<'_, HashMap<Name, u32>> {
        // The last byte of a hash is as good as random.
        let last = name.as_bytes().last().copied().unwrap_or(0);
        // A count is right between any two steps that can panic.
        self.shards[usize::from(last) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for name in &self.names {
            let mut shard = self.pins.shard(name);
            if let Some(count) = shard.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    shard.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_pinned_until_the_last_pin_is_dropped() {
        let (pins, keys) = (Pins::default(), [Key::Asset([1; 32]), Key::Asset([2; 32])]);
        let names = keys.each_ref().map(Name::from);
        let both = pins.pin(&keys);
        let first = pins.pin(&keys[..1]);
        drop(both);
        assert_eq!(names.map(|name| pins.contains(&name)), [true, false]);
        drop(first);
        assert!(!pins.contains(&names[0]));
    }
}
