//! A blob that can be sent more than once: to several servers, or again over another connection.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

use crate::store::Blob;

/// A blob that is no stream.
pub(super) enum Reusable {
    Whole(Bytes),
    File { file: Arc<File>, offset: u64, size: u64 },
}

impl Reusable {
    /// # Errors
    /// The blob itself, when it can be read only once.
    pub(super) fn new(blob: Blob) -> Result<Self, Blob> {
        match blob {
            Blob::Whole(bytes) => Ok(Self::Whole(bytes)),
            Blob::File { file, offset, size } => Ok(Self::File { file, offset, size }),
            blob @ Blob::Stream { .. } => Err(blob),
        }
    }

    pub(super) fn blob(&self) -> Blob {
        match self {
            Self::Whole(bytes) => Blob::Whole(bytes.clone()),
            Self::File { file, offset, size } => {
                Blob::File { file: Arc::clone(file), offset: *offset, size: *size }
            }
        }
    }
}
