//! The one error type: a kind, chosen where the error is born, a sentence, and the cause.

use std::error::Error as StdError;
use std::fmt;

use crate::digest::Digest;

pub type Result<T, E = Error> = std::result::Result<T, E>;
type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, as far as a caller can act on it. `status.rs` turns it into a gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong and stays wrong.
    Invalid,
    /// The request is right, but not in the present state (wrong type of an output, a property nobody offers).
    Precondition,
    /// Blobs that the request depends on are absent; the error carries their digests.
    MissingInput,
    OutOfRange,
    Unauthenticated,
    Denied,
    NotFound,
    Exists,
    /// A limit of ours is reached, or the disk is full.
    Exhausted,
    /// Something we depend on does not answer; the same request may work later.
    Unavailable,
    Timeout,
    Cancelled,
    /// What somebody else sent is not what it should be; nothing of it is kept.
    Aborted,
    /// Stored bytes are not what they should be.
    Corrupt,
    /// We do not do that.
    Unsupported,
    /// Our own fault.
    Bug,
}

impl Kind {
    /// Whether the same request may succeed later without a change.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::Exhausted | Self::Timeout)
    }
}

/// An error with its kind, a message for the client (no path, no host name) and its cause for the log.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    missing: Vec<Digest>,
    source: Option<BoxError>,
}

/// Characters of what a client sent that a message repeats.
const SHOWN_CHARS_MAX: usize = 200;

/// What a client sent, as far as a message repeats it.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), missing: Vec::new(), source: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }

    /// `FAILED_PRECONDITION` with one `MISSING` violation per digest, as REv2 demands of `Execute`.
    pub fn missing_input(missing: Vec<Digest>) -> Self {
        let message = match missing.as_slice() {
            [one] => format!("blob {one} is missing from the CAS"),
            many => format!("{} blobs are missing from the CAS", many.len()),
        };
        Self { missing, ..Self::new(Kind::MissingInput, message) }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The absent blobs of a `MissingInput`; empty for every other kind.
    pub fn missing(&self) -> &[Digest] {
        &self.missing
    }

    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error, told from further up: `context` becomes the message and the old error its cause.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        let missing = std::mem::take(&mut self.missing);
        Self { kind: self.kind, message: context.into(), missing, source: Some(Box::new(self)) }
    }

    /// The same error for one more of those that it concerns, without its causes.
    #[must_use]
    pub fn repeated(&self) -> Self {
        Self::new(self.kind, self.message.clone())
    }

    /// The message and all causes, for the log and the terminal.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// What a client may read: our own sentences, without the causes that libraries and the system report.
    pub fn public_message(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(own) = cause.and_then(|cause| cause.downcast_ref::<Self>()) {
            text.push_str(": ");
            text.push_str(&own.message);
            cause = own.source();
        }
        text
    }

    /// The exit code of the process, after sysexits.h: 64 for a name that the farm does not know, 78 for a configuration or an argument
    /// that is malformed, 70 for everything else.
    pub fn exit_code(&self) -> u8 {
        if self.kind == Kind::NotFound {
            64
        } else if self.kind == Kind::Invalid {
            78
        } else {
            70
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// The kind of an I/O error; a full disk is told apart because callers make room for it.
fn kind_of(error: &std::io::Error) -> Kind {
    use std::io::ErrorKind;
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) {
        return Kind::Exhausted;
    }
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Kind::Exhausted,
        // A medium that fails may be repaired or replaced; what it holds is neither absent nor our fault.
        Some(libc::EIO) => Kind::Unavailable,
        _ => Kind::Bug,
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::new(kind_of(&error), sentence_of(&error)).with_source(error)
    }
}

/// What an operator can mend is named; the rest stays in the log.
fn sentence_of(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::StorageFull, _) => "the disk is full",
        (ErrorKind::QuotaExceeded, _) => "the disk quota is used up",
        (ErrorKind::ReadOnlyFilesystem, _) => "the file system is read-only",
        (_, Some(libc::EMFILE | libc::ENFILE)) => "too many files are open",
        (_, Some(libc::EIO)) => "the disk failed",
        _ => "input or output failed",
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::from(std::io::Error::from(errno))
    }
}

/// Adds where an error happened.
pub trait Context<T> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| error.into().context(message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_kind_and_the_missing_digests() {
        let digest = Digest::empty(crate::digest::Function::Sha256);
        let error = Error::missing_input(vec![digest]).context("fetch the inputs");
        assert_eq!(error.kind(), Kind::MissingInput);
        assert_eq!(error.missing(), [digest]);
        assert!(error.chain().starts_with("fetch the inputs: blob e3b0c442"), "{}", error.chain());
    }

    #[test]
    fn a_full_disk_is_exhausted() {
        let error = Error::from(std::io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(error.kind(), Kind::Exhausted);
    }
}
