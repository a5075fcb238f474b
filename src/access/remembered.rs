//! Credentials that were verified a moment ago, so that a client pays for it once and not with every request.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::error::Result;

use super::identity::Identity;
use super::token;

/// Credentials that are remembered, at most: more than a farm has clients at a time, at some 300 bytes each.
const REMEMBERED_MAX: usize = 8192;

/// The name of a credential: a hash under a key that only this process has, so that what stands in memory cannot be tried out elsewhere.
type Key = token::Hash;

/// Verified credentials. Those that nobody has used while half of all places were taken by others are forgotten first.
#[derive(Debug)]
pub(super) struct Remembered {
    key: Key,
    halves: Mutex<Halves>,
}

#[derive(Debug, Default)]
struct Halves {
    young: HashMap<Key, Entry>,
    old: HashMap<Key, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    identity: Arc<Identity>,
    until: Instant,
}

impl Remembered {
    /// # Errors
    /// `Bug` when the system has no random numbers.
    pub(super) fn new() -> Result<Self> {
        Ok(Self { key: token::Hash(token::random()?), halves: Mutex::default() })
    }

    /// Whose credential it is, if that was verified and still holds.
    pub(super) fn find(&self, credential: &[u8], now: Instant) -> Option<Arc<Identity>> {
        let key = self.key_of(credential);
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match halves.young.get(&key) {
            Some(entry) => entry.clone(),
            None => {
                let entry = halves.old.remove(&key)?;
                halves.insert(key, entry.clone());
                entry
            }
        };
        (entry.until > now).then_some(entry.identity)
    }

    pub(super) fn insert(&self, credential: &[u8], identity: Arc<Identity>, until: Instant) {
        let key = self.key_of(credential);
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        halves.insert(key, Entry { identity, until });
    }

    fn key_of(&self, credential: &[u8]) -> Key {
        token::hash(&[&self.key.0[..], credential].concat())
    }
}

impl Halves {
    fn insert(&mut self, key: Key, entry: Entry) {
        if self.young.len() >= REMEMBERED_MAX / 2 {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::access::identity::Proof;

    #[test]
    fn a_credential_is_remembered_until_its_time_is_over_and_no_more_than_fit() {
        let (remembered, now) = (Remembered::new().unwrap(), Instant::now());
        let identity = Arc::new(Identity::new(Proof::Basic, "ann", vec![]));
        let until = now + Duration::from_secs(60);
        remembered.insert(b"ann:secret", identity.clone(), until);
        assert_eq!(remembered.find(b"ann:secret", now).as_ref(), Some(&identity));
        assert!(remembered.find(b"ann:other", now).is_none());
        for number in 0..3 * REMEMBERED_MAX {
            remembered.insert(&number.to_be_bytes(), identity.clone(), until);
            assert!(number % 100 != 0 || remembered.find(b"ann:secret", now).is_some(), "it is in use");
        }
        let halves = remembered.halves.lock().unwrap();
        assert!(halves.young.len() + halves.old.len() <= REMEMBERED_MAX);
        drop(halves);
        assert!(remembered.find(b"ann:secret", until).is_none());
    }
}
