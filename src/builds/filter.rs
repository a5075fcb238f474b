//! Which operations and invocations somebody looks for.

use std::sync::Arc;

use crate::scheduler::OperationId;

use super::answers::Answer;
use super::invocation::{Invocation, Outcome};
use super::record::{Record, State};

/// Digits from which on a text may be the beginning of a digest or of an identifier, too: shorter ones are in too many of them.
const HEX_MIN: usize = 6;

/// Which operations are wanted. What is absent does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    state: Option<State>,
    text: Option<String>,
    /// The text as digits from 0 to 15, if it may be of a digest or an identifier.
    digits: Option<Vec<u8>>,
}

/// Which invocations are wanted. What is absent does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InvocationFilter {
    pub outcome: Option<Outcome>,
    /// A part of the identifier, of the command, or of whoever runs it and where.
    pub text: Option<String>,
    /// The name of one that is left out.
    pub without: Option<&'static str>,
}

impl Filter {
    /// `text` is a part of the target, of the mnemonic or of the worker's name, or the beginning of the digest of the action or of the
    /// operation's identifier.
    pub fn new(state: Option<State>, text: Option<&str>) -> Self {
        Self { state, text: text.map(str::to_owned), digits: text.and_then(digits) }
    }

    pub fn state(&self) -> Option<State> {
        self.state
    }

    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    pub fn admits(&self, record: &Record) -> bool {
        let named = [&record.client.target, &record.client.mnemonic, &record.worker];
        let is_it = || {
            let digits = self.digits.as_ref()?;
            let id = OperationId::number(record.operation).to_be_bytes();
            Some(begins(record.action.hash(), digits) || begins(&id, digits))
        };
        self.state.is_none_or(|state| state == record.state)
            && (self.is_in(&named) || is_it().unwrap_or(false))
    }

    /// A hit is looked for as what is cached, a miss stands nowhere.
    pub fn admits_answer(&self, answer: &Answer) -> bool {
        let is_it = || self.digits.as_ref().is_some_and(|digits| begins(answer.action.hash(), digits));
        self.state.is_none_or(|state| state == State::Cached && answer.is_hit)
            && (self.is_in(&[&answer.target, &answer.mnemonic]) || is_it())
    }

    fn is_in(&self, named: &[&Arc<str>]) -> bool {
        self.text.as_ref().is_none_or(|text| named.iter().any(|one| one.contains(text)))
    }
}

/// The digits of a digest, with or without its size, or of an identifier; none for what is too short or something else.
fn digits(text: &str) -> Option<Vec<u8>> {
    let hash = text.split(['/', '-']).next().unwrap_or_default();
    let digit = |character: char| character.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Vec<u8> = hash.chars().map(digit).collect::<Option<_>>()?;
    (digits.len() >= HEX_MIN).then_some(digits)
}

fn begins(bytes: &[u8], digits: &[u8]) -> bool {
    let mut own = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.iter().all(|digit| own.next() == Some(*digit))
}

impl InvocationFilter {
    pub(super) fn admits(&self, invocation: &Invocation) -> bool {
        let is_left_out = self.without.is_some_and(|name| *invocation.id == *name);
        !is_left_out
            && self.outcome.is_none_or(|outcome| outcome == invocation.outcome())
            && self.text.as_ref().is_none_or(|text| is_said(invocation, text))
    }
}

fn is_said(invocation: &Invocation, text: &str) -> bool {
    let publisher = invocation.publisher.as_deref().unwrap_or_default();
    let own = [&*invocation.id, &invocation.identity, &invocation.tool, publisher];
    let is_told = || {
        let told = invocation.told.as_deref()?;
        let names = [&told.command, &told.workspace.user, &told.workspace.host];
        let texts =
            names.into_iter().chain(&told.patterns).chain(told.metadata.iter().map(|(_, value)| value));
        Some(texts.into_iter().any(|one| one.contains(text)))
    };
    own.iter().any(|one| one.contains(text)) || is_told().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_found_by_its_beginning_and_by_all_of_it() {
        let bytes = [0xab, 0xcd, 0xef, 0x01];
        for text in ["abcdef", "ABCDEF0", "abcdef01", "abcdef01/142", "abcdef01-142"] {
            assert!(begins(&bytes, &digits(text).unwrap()), "{text}");
        }
        for text in ["abcdee", "abcdef012", "bcdef01"] {
            assert!(!begins(&bytes, &digits(text).unwrap()), "{text}");
        }
        for text in ["abcde", "", "//net:abcdef", "abcdefg", "éabcdef"] {
            assert_eq!(digits(text), None, "{text}");
        }
    }
}
