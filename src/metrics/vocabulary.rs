//! Values of a label that clients choose: the first few words have series of their own, all others share one.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

/// Words with series of their own. A rule set for one language has some ten mnemonics, a large repository some fifty.
const WORDS_MAX: usize = 64;

/// Bytes of a word; the mnemonics of Bazel's own rules have up to 40.
const WORD_BYTES_MAX: usize = 64;

/// For who says nothing, and for all that have no series of their own. A client that says one of these is counted there.
const NONE: &str = "none";
const OTHER: &str = "other";

/// The words seen so far.
#[derive(Debug, Default)]
pub struct Vocabulary {
    words: RwLock<BTreeSet<String>>,
}

impl Vocabulary {
    pub const fn new() -> Self {
        Self { words: RwLock::new(BTreeSet::new()) }
    }

    /// The label for `word`: one of at most [`WORDS_MAX`] and two more, whatever is said.
    pub fn label<'a>(&self, word: &'a str) -> Cow<'a, str> {
        if word.is_empty() {
            return NONE.into();
        }
        let is_word = word.len() <= WORD_BYTES_MAX && word.bytes().all(is_of_a_word);
        if is_word && self.knows(word) { word.into() } else { OTHER.into() }
    }

    /// Whether it is among the words; there may be room for it yet.
    fn knows(&self, word: &str) -> bool {
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
        if words.contains(word) || words.len() >= WORDS_MAX {
            return words.contains(word);
        }
        drop(words);
        let mut words = self.words.write().unwrap_or_else(PoisonError::into_inner);
        if words.len() < WORDS_MAX {
            words.insert(word.to_owned());
        }
        words.contains(word)
    }
}

fn is_of_a_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_are_kept_and_the_rest_share_a_label() {
        let vocabulary = Vocabulary::new();
        assert_eq!(vocabulary.label("CppCompile"), "CppCompile");
        let labels: BTreeSet<String> =
            (0..10_000).map(|number| vocabulary.label(&format!("Word{number}")).into_owned()).collect();
        assert_eq!(labels.len(), WORDS_MAX);
        assert_eq!(vocabulary.label("CppCompile"), "CppCompile");
        assert_eq!(vocabulary.label("TooLate"), "other");
    }

    #[test]
    fn what_is_no_word_takes_no_room() {
        let vocabulary = Vocabulary::new();
        assert_eq!(vocabulary.label(""), "none");
        for odd in ["a b", "a\nb", "<script>", "ä", &"x".repeat(WORD_BYTES_MAX + 1)] {
            assert_eq!(vocabulary.label(odd), "other");
        }
        assert!(vocabulary.words.read().unwrap().is_empty());
    }
}
