//! Files as they were at one moment: read whole, and told apart by their contents.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};

/// The largest file that is read. The authorities of a whole system take 250 KiB; a revocation list of 20,000 certificates, 1 MiB.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A file, and the key of the configuration that names it, as in `public.tls.key`.
#[derive(Debug, Clone)]
pub struct NamedFile {
    pub key: String,
    pub path: PathBuf,
}

/// A file with what it held. Not printable, since that may be a private key.
pub struct Content {
    file: NamedFile,
    bytes: Result<Vec<u8>>,
}

/// Tells contents apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity([u8; 32]);

impl NamedFile {
    /// Reads the file through whatever symlinks lead to it at this moment.
    pub fn read(&self) -> Content {
        Content { file: self.clone(), bytes: self.bytes() }
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(&self.path).context(|| self.names("it cannot be opened"))?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).context(|| self.names("it cannot be read"))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Error::invalid(self.names(&format!("it has more than {FILE_BYTES_MAX} bytes"))));
        }
        Ok(bytes)
    }

    fn names(&self, problem: &str) -> String {
        format!("{}: {}: {problem}", self.key, self.path.display())
    }
}

impl Identity {
    /// Of all these files together. One that cannot be read has another identity than any that can.
    pub(super) fn of(contents: &[Content]) -> Self {
        let mut hash = Sha256::new();
        for content in contents {
            let bytes = content.bytes.as_deref().map_err(|_| ());
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hash.update(length.to_le_bytes());
            hash.update(bytes.unwrap_or_default());
        }
        Self(hash.finalize().into())
    }
}

impl Content {
    /// What the file held.
    ///
    /// # Errors
    /// `Invalid` when it could not be read.
    pub fn bytes(&self) -> Result<&[u8]> {
        self.bytes.as_deref().map_err(|error| Error::invalid(error.chain()))
    }

    /// An error about this file. Of a key nothing but the kind of mistake is told.
    pub fn wrong(&self, problem: &str) -> Error {
        Error::invalid(self.file.names(problem))
    }
}
