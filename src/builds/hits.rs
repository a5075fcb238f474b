//! Results that clients got from the action cache itself. There is no operation of them, so a build of which all is cached has nothing else.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use crate::digest::Digest;

/// Hits that are kept, of all invocations together: as many as operations. One takes about 150 bytes.
pub(super) const HITS_MAX: usize = 20_000;

/// A result that a client got from the action cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    pub instance: Arc<str>,
    pub action: Digest,
    /// Each is empty where the client does not say it.
    pub target: Arc<str>,
    pub mnemonic: Arc<str>,
    pub at: SystemTime,
}

/// The hits of each invocation, and the order in which they make room.
#[derive(Debug, Default)]
pub(super) struct Hits {
    by_invocation: HashMap<Arc<str>, VecDeque<Hit>>,
    /// Whose hit each is, the oldest first. Those of forgotten invocations count until they are the oldest.
    order: VecDeque<Arc<str>>,
}

impl Hits {
    /// Keeps a hit; the oldest of all makes room.
    pub(super) fn push(&mut self, invocation: &Arc<str>, hit: Hit) {
        if self.order.len() >= HITS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.drop_first(&oldest);
        }
        self.order.push_back(Arc::clone(invocation));
        self.by_invocation.entry(Arc::clone(invocation)).or_default().push_back(hit);
    }

    fn drop_first(&mut self, invocation: &Arc<str>) {
        let Some(hits) = self.by_invocation.get_mut(invocation) else { return };
        hits.pop_front();
        if hits.is_empty() {
            self.by_invocation.remove(invocation);
        }
    }

    /// Those of an invocation that are kept, the oldest first.
    pub(super) fn of(&self, invocation: &str) -> Vec<Hit> {
        self.by_invocation.get(invocation).into_iter().flatten().cloned().collect()
    }

    pub(super) fn forget(&mut self, invocation: &str) {
        self.by_invocation.remove(invocation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Function;

    fn hit(number: usize) -> Hit {
        Hit {
            instance: "".into(),
            action: Function::Sha256.hash(number.to_string().as_bytes()),
            target: "//a".into(),
            mnemonic: "CppCompile".into(),
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_oldest_hits_make_room_whoever_has_them() {
        let mut hits = Hits::default();
        let [small, large]: [Arc<str>; 2] = ["small".into(), "large".into()];
        hits.push(&small, hit(0));
        hits.push(&large, hit(1));
        hits.push(&small, hit(2));
        for number in 3..HITS_MAX + 1 {
            hits.push(&large, hit(number));
        }
        assert_eq!(hits.of("small"), [hit(2)]);
        assert_eq!(hits.of("large").len() + 1, HITS_MAX);
        hits.push(&large, hit(0));
        assert_eq!(hits.of("large")[0], hit(3));
        hits.push(&large, hit(0));
        assert!(hits.of("small").is_empty() && !hits.by_invocation.contains_key("small"));
    }

    #[test]
    fn what_is_forgotten_takes_no_room_and_stays_bounded_when_it_comes_again() {
        let mut hits = Hits::default();
        let name: Arc<str> = "build".into();
        for round in 0..3 {
            for number in 0..HITS_MAX {
                hits.push(&name, hit(number));
            }
            assert!(hits.of("build").len() <= HITS_MAX && hits.order.len() == HITS_MAX, "{round}");
            hits.forget("build");
            assert!(hits.by_invocation.is_empty());
        }
    }
}
