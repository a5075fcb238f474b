//! Values of a label that clients choose: the first few words have series of their own, all others share one.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Words with series of their own. A rule set for one language has some ten mnemonics, a large repository some fifty.
const WORDS_MAX: usize = 64;

/// Bytes of a word; the mnemonics of Bazel's own rules have up to 40.
const WORD_BYTES_MAX: usize = 64;

/// For who says nothing, and for all that have no series of their own. A client that says one of these is counted there.
const NONE: &str = "none";
const OTHER: &str = "other";

/// The words seen so far, and what there is of each: made as a whole when it is first seen, so that no series of a word comes later
/// than another.
#[derive(Debug)]
pub struct Vocabulary<T> {
    make: fn(&str) -> T,
    words: RwLock<BTreeMap<String, Arc<T>>>,
}

impl<T> Vocabulary<T> {
    /// `make` is called with each label once.
    pub const fn new(make: fn(&str) -> T) -> Self {
        Self { make, words: RwLock::new(BTreeMap::new()) }
    }

    /// What there is of `word`: one of at most [`WORDS_MAX`] and two more, whatever is said.
    pub fn of(&self, word: &str) -> Arc<T> {
        let word = label(word);
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
        let shared = || words.get(OTHER).filter(|_| words.len() >= WORDS_MAX + 2);
        if let Some(known) = words.get(word).or_else(shared) {
            return Arc::clone(known);
        }
        drop(words);
        self.learn(word)
    }

    /// Adds a word if there is room for it.
    fn learn(&self, word: &str) -> Arc<T> {
        let mut words = self.words.write().unwrap_or_else(PoisonError::into_inner);
        for always in [NONE, OTHER] {
            words.entry(always.to_owned()).or_insert_with(|| Arc::new((self.make)(always)));
        }
        let is_full = words.len() >= WORDS_MAX + 2 && !words.contains_key(word);
        let word = if is_full { OTHER } else { word };
        Arc::clone(words.entry(word.to_owned()).or_insert_with(|| Arc::new((self.make)(word))))
    }
}

/// What `word` may be called.
fn label(word: &str) -> &str {
    let is_word = word.len() <= WORD_BYTES_MAX && word.bytes().all(is_of_a_word);
    match word {
        "" => NONE,
        word if is_word => word,
        _ => OTHER,
    }
}

fn is_of_a_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn labels() -> Vocabulary<String> {
        Vocabulary::new(str::to_owned)
    }

    #[test]
    fn the_first_words_are_kept_and_the_rest_share_a_label() {
        let vocabulary = labels();
        assert_eq!(*vocabulary.of("CppCompile"), "CppCompile");
        let labels: BTreeSet<String> =
            (0..10_000).map(|number| vocabulary.of(&format!("Word{number}")).to_string()).collect();
        assert_eq!(labels.len(), WORDS_MAX);
        assert_eq!(*vocabulary.of("CppCompile"), "CppCompile");
        assert_eq!(*vocabulary.of("TooLate"), "other");
        assert_eq!(*vocabulary.of(""), "none");
        assert_eq!(vocabulary.words.read().unwrap().len(), WORDS_MAX + 2);
    }

    #[test]
    fn what_is_no_word_takes_no_room() {
        let vocabulary = labels();
        assert_eq!(*vocabulary.of(""), "none");
        for odd in ["a b", "a\nb", "<script>", "ä", &"x".repeat(WORD_BYTES_MAX + 1)] {
            assert_eq!(*vocabulary.of(odd), "other");
        }
        assert_eq!(vocabulary.words.read().unwrap().len(), 2);
    }
}
