//! Counts look-ups of action results by what clients say that they build.

use tonic::metadata::MetadataMap;

use crate::error::Result;
use crate::metrics::{ACTION_CACHE_LOOKUPS, Vocabulary};
use crate::proto;
use crate::proto::rev2::RequestMetadata;

static MNEMONICS: Vocabulary = Vocabulary::new();

/// What the client says of its request; nothing when it is malformed.
pub(super) fn request_metadata(metadata: &MetadataMap) -> RequestMetadata {
    proto::request_metadata(metadata.as_ref()).unwrap_or_default()
}

/// Counts a look-up by `method` for an action of this mnemonic.
pub(super) fn count<T>(method: &str, mnemonic: &str, found: &Result<Option<T>>) {
    let outcome = match found {
        Ok(Some(_)) => "hit",
        Ok(None) => "miss",
        Err(_) => "error",
    };
    ACTION_CACHE_LOOKUPS.with_label_values(&[&*MNEMONICS.label(mnemonic), method, outcome]).inc();
}
