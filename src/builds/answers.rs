//! What the action cache itself has answered to clients. There is no operation of that, so a build of which all is cached, and one that
//! executes by itself, have nothing else.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use crate::digest::Digest;

/// Answers that are kept, of all invocations together: as many as operations. One takes about 150 bytes.
pub(super) const ANSWERS_MAX: usize = 20_000;

/// What a client that asked for the result of an action was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub instance: Arc<str>,
    pub action: Digest,
    /// Each is empty where the client does not say it.
    pub target: Arc<str>,
    pub mnemonic: Arc<str>,
    pub at: SystemTime,
    /// There was one.
    pub is_hit: bool,
}

/// The answers to each invocation, and the order in which they make room.
#[derive(Debug, Default)]
pub(super) struct Answers {
    by_invocation: HashMap<Arc<str>, VecDeque<Answer>>,
    /// Whose answer each is, the oldest first. Those of forgotten invocations count until they are the oldest.
    order: VecDeque<Arc<str>>,
}

impl Answers {
    /// Keeps an answer; the oldest of all makes room.
    pub(super) fn push(&mut self, invocation: &Arc<str>, answer: Answer) {
        if self.order.len() >= ANSWERS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.drop_first(&oldest);
        }
        self.order.push_back(Arc::clone(invocation));
        self.by_invocation.entry(Arc::clone(invocation)).or_default().push_back(answer);
    }

    fn drop_first(&mut self, invocation: &Arc<str>) {
        let Some(answers) = self.by_invocation.get_mut(invocation) else { return };
        answers.pop_front();
        if answers.is_empty() {
            self.by_invocation.remove(invocation);
        }
    }

    /// Those of an invocation that are kept, the oldest first.
    pub(super) fn of(&self, invocation: &str) -> Vec<Answer> {
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

    fn answer(number: usize) -> Answer {
        Answer {
            instance: "".into(),
            action: Function::Sha256.hash(number.to_string().as_bytes()),
            target: "//a".into(),
            mnemonic: "CppCompile".into(),
            at: SystemTime::UNIX_EPOCH,
            is_hit: true,
        }
    }

    #[test]
    fn the_oldest_answers_make_room_whoever_has_them() {
        let mut answers = Answers::default();
        let [small, large]: [Arc<str>; 2] = ["small".into(), "large".into()];
        answers.push(&small, answer(0));
        answers.push(&large, answer(1));
        answers.push(&small, answer(2));
        for number in 3..ANSWERS_MAX + 1 {
            answers.push(&large, answer(number));
        }
        assert_eq!(answers.of("small"), [answer(2)]);
        assert_eq!(answers.of("large").len() + 1, ANSWERS_MAX);
        answers.push(&large, answer(0));
        assert_eq!(answers.of("large")[0], answer(3));
        answers.push(&large, answer(0));
        assert!(answers.of("small").is_empty() && !answers.by_invocation.contains_key("small"));
    }

    #[test]
    fn what_is_forgotten_takes_no_room_and_stays_bounded_when_it_comes_again() {
        let mut answers = Answers::default();
        let name: Arc<str> = "build".into();
        for round in 0..3 {
            for number in 0..ANSWERS_MAX {
                answers.push(&name, answer(number));
            }
            assert!(
                answers.of("build").len() <= ANSWERS_MAX && answers.order.len() == ANSWERS_MAX,
                "{round}"
            );
            answers.forget("build");
            assert!(answers.by_invocation.is_empty());
        }
    }
}
