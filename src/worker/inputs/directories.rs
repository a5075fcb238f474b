//! Directory messages, the last used of them in memory: one action's input root has most of its directories from the one before.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;
use crate::error::Result;
use crate::proto::rev2;
use crate::store::{Cas, tree};

/// Bytes of encoded messages that are kept, which take several times as much when they are decoded: some 300,000 entries.
const BYTES_MAX: u64 = 32 << 20;

/// Reads directories and remembers them.
pub(super) struct Directories {
    cas: Cas,
    recent: Mutex<Recent>,
}

/// Messages by digest and by the order of their use.
#[derive(Default)]
struct Recent {
    messages: HashMap<Digest, (Arc<rev2::Directory>, u64)>,
    order: BTreeMap<u64, Digest>,
    clock: u64,
    bytes: u64,
}

impl Directories {
    pub(super) fn new(cas: Cas) -> Self {
        Self { cas, recent: Mutex::default() }
    }

    pub(super) fn cas(&self) -> &Cas {
        &self.cas
    }

    /// The directory, or `None` if it is absent.
    ///
    /// # Errors
    /// As [`tree::directory`].
    pub(super) async fn get(&self, digest: &Digest) -> Result<Option<Arc<rev2::Directory>>> {
        if let Some(directory) = self.recent().get(digest) {
            return Ok(Some(directory));
        }
        let Some(directory) = tree::directory(&self.cas, digest).await? else { return Ok(None) };
        let directory = Arc::new(directory);
        self.recent().insert(*digest, directory.clone());
        Ok(Some(directory))
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        // Nothing panics between the two maps.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn get(&mut self, digest: &Digest) -> Option<Arc<rev2::Directory>> {
        let (directory, stamp) = self.messages.get_mut(digest)?;
        self.clock += 1;
        self.order.remove(stamp);
        self.order.insert(self.clock, *digest);
        *stamp = self.clock;
        Some(directory.clone())
    }

    fn insert(&mut self, digest: Digest, directory: Arc<rev2::Directory>) {
        if self.messages.contains_key(&digest) {
            return;
        }
        self.clock += 1;
        self.bytes += digest.size();
        self.order.insert(self.clock, digest);
        self.messages.insert(digest, (directory, self.clock));
        while self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.messages.remove(&oldest);
            self.bytes -= oldest.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Function;

    #[test]
    fn the_messages_in_memory_have_a_bound_and_the_last_used_stay() {
        let mut recent = Recent::default();
        let sized = |number: u8| Digest::new(Function::Sha256, &[number; 32], BYTES_MAX / 4);
        for number in 0..4 {
            recent.insert(sized(number), Arc::default());
        }
        assert!(recent.get(&sized(0)).is_some());
        recent.insert(sized(4), Arc::default());
        let kept: Vec<bool> = (0..5).map(|number| recent.messages.contains_key(&sized(number))).collect();
        assert_eq!(kept, [true, false, true, true, true]);
        assert_eq!((recent.bytes, recent.order.len()), (BYTES_MAX, 4));
    }
}
