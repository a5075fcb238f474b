//! The order of writes to what can change: one at a time for each key, and a fill that was overtaken is given up.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::Key;
use crate::error::{Error, Kind, Result};

/// Enough that two keys seldom wait for each other.
const STRIPES: usize = 256;

/// A write that waits longer for the one before is refused: that one hangs in a tier.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Turns by key.
pub(super) struct Turns {
    stripes: Vec<Stripe>,
    hasher: RandomState,
}

struct Stripe {
    turn: Semaphore,
    /// Grows at the beginning and at the end of each change, so that whoever read meanwhile knows.
    version: AtomicU64,
}

/// The right to change what is stored under a key, until it is dropped.
pub(super) struct Turn<'a> {
    stripe: &'a Stripe,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.stripe.version.fetch_add(1, Ordering::SeqCst);
    }
}

impl Default for Turns {
    fn default() -> Self {
        let stripe = || Stripe { turn: Semaphore::new(1), version: AtomicU64::new(0) };
        let stripes = std::iter::repeat_with(stripe).take(STRIPES).collect();
        Self { stripes, hasher: RandomState::new() }
    }
}

impl Turns {
    /// What to compare when a value that is read from here on shall be stored elsewhere.
    pub(super) fn version(&self, key: &Key) -> u64 {
        self.stripe(key).version.load(Ordering::SeqCst)
    }

    /// Waits for the turn to change the value.
    ///
    /// # Errors
    /// `Unavailable` after [`WAIT_MAX`].
    pub(super) async fn change(&self, key: &Key) -> Result<Turn<'_>> {
        let stripe = self.stripe(key);
        let permit = stripe.take().await?;
        stripe.version.fetch_add(1, Ordering::SeqCst);
        Ok(Turn { stripe, _permit: permit })
    }

    /// Waits for the turn to copy a value that was read at `version`; `None` when it may have changed since.
    ///
    /// # Errors
    /// `Unavailable` after [`WAIT_MAX`].
    pub(super) async fn copy(&self, key: &Key, version: u64) -> Result<Option<SemaphorePermit<'_>>> {
        let permit = self.stripe(key).take().await?;
        Ok((self.version(key) == version).then_some(permit))
    }

    fn stripe(&self, key: &Key) -> &Stripe {
        &self.stripes[(self.hasher.hash_one(key) as usize) % STRIPES]
    }
}

impl Stripe {
    async fn take(&self) -> Result<SemaphorePermit<'_>> {
        let late = |_| Error::new(Kind::Unavailable, "an earlier write of the same key does not end");
        let permit = tokio::time::timeout(WAIT_MAX, self.turn.acquire()).await.map_err(late)?;
        Ok(permit.expect("nothing closes the semaphore"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_that_was_read_during_or_before_a_change_is_not_copied() {
        let (turns, key) = (Turns::default(), Key::Asset([1; 32]));
        let before = turns.version(&key);
        let turn = turns.change(&key).await.unwrap();
        let during = turns.version(&key);
        drop(turn);
        assert!(turns.copy(&key, before).await.unwrap().is_none());
        assert!(turns.copy(&key, during).await.unwrap().is_none());
        let after = turns.version(&key);
        assert!(turns.copy(&key, after).await.unwrap().is_some());
    }
}
