//! Texts that many records have in common.

use std::collections::HashSet;
use std::sync::Arc;

/// Texts that records may share. When there are more, sharing begins anew; what is shared stays as long as a record has it.
const TEXTS_MAX: usize = 10_000;

/// Characters of a text of a client that are kept: labels of targets are rarely longer than 200.
pub(super) const TEXT_CHARS_MAX: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Texts(HashSet<Arc<str>>);

impl Texts {
    /// The text, cut to what is kept, as one that all records with it share.
    pub(super) fn share(&mut self, text: &str) -> Arc<str> {
        let text = cut(text);
        if let Some(shared) = self.0.get(text) {
            return Arc::clone(shared);
        }
        if self.0.len() >= TEXTS_MAX {
            self.0.clear();
        }
        let text: Arc<str> = text.into();
        self.0.insert(Arc::clone(&text));
        text
    }
}

/// What is kept of a text of a client.
pub fn cut(text: &str) -> &str {
    let end = text.char_indices().nth(TEXT_CHARS_MAX).map_or(text.len(), |(end, _)| end);
    &text[..end]
}
