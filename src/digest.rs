//! Digests: which function, the hash, the size. Parsed once at the edge, trusted from there on.

use std::fmt;

use sha2::Digest as _;

use crate::proto::rev2;

/// The digest functions that we serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Function {
    Sha256,
    Blake3,
}

/// Bytes of the longest hash of any function of the protocol.
pub const HASH_BYTES_MAX: usize = 64;

/// A blob's name: the function, its hash of the blob and the blob's size in bytes (REv2, message `Digest`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    function: Function,
    /// The hash, and zeros behind it where the function's are shorter.
    hash: [u8; HASH_BYTES_MAX],
    size: u64,
}

/// Why a digest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("the digest is not set")]
    Absent,
    #[error("hash `{0}` is not {1} lower-case hexadecimal characters")]
    Hash(String, usize),
    #[error("size {0} is negative")]
    Size(i64),
    #[error("digest function {0} is not one of SHA256, BLAKE3")]
    Function(String),
    #[error("hash {0} is the hash of the empty blob, but the size is {1}")]
    Empty(String, i64),
}

impl Function {
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Blake3];

    /// The function of a request. Unset means SHA-256, as REv2 infers from the length of the hash; BLAKE3 is never inferred.
    pub fn from_proto(value: i32) -> Result<Self, ParseError> {
        use rev2::digest_function::Value;
        match Value::try_from(value) {
            Ok(Value::Unknown | Value::Sha256) => Ok(Self::Sha256),
            Ok(Value::Blake3) => Ok(Self::Blake3),
            Ok(other) => Err(ParseError::Function(other.as_str_name().to_owned())),
            Err(_) => Err(ParseError::Function(value.to_string())),
        }
    }

    pub fn to_proto(self) -> rev2::digest_function::Value {
        match self {
            Self::Sha256 => rev2::digest_function::Value::Sha256,
            Self::Blake3 => rev2::digest_function::Value::Blake3,
        }
    }

    /// The function of a name as the protocol has it, in capitals or not.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.to_proto().as_str_name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a hash.
    pub fn hash_bytes(self) -> usize {
        match self {
            Self::Sha256 | Self::Blake3 => 32,
        }
    }

    /// The segment that names the function in a resource name; SHA-256 has none.
    pub fn segment(self) -> Option<&'static str> {
        match self {
            Self::Sha256 => None,
            Self::Blake3 => Some("blake3"),
        }
    }

    pub fn hash(self, bytes: &[u8]) -> Digest {
        let mut hasher = self.hasher(bytes.len() as u64);
        hasher.update(bytes);
        hasher.finish()
    }

    /// A hasher for a blob of `size` bytes; some functions hash the size first.
    pub fn hasher(self, _size: u64) -> Hasher {
        let state = match self {
            Self::Sha256 => State::Sha256(sha2::Sha256::new()),
            Self::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
        };
        Hasher { state, size: 0 }
    }
}

impl Digest {
    /// `hash` has [`Function::hash_bytes`] bytes; what is beyond them is ignored, what is not there is zero.
    pub fn new(function: Function, hash: &[u8], size: u64) -> Self {
        let length = function.hash_bytes().min(hash.len());
        let mut padded = [0; HASH_BYTES_MAX];
        padded[..length].copy_from_slice(&hash[..length]);
        Self { function, hash: padded, size }
    }

    /// The digest of zero bytes. It is always present and never stored.
    pub fn empty(function: Function) -> Self {
        function.hash(b"")
    }

    /// Reads a digest from its parts in a message or a resource name.
    ///
    /// # Errors
    /// When the hash is not lower-case hexadecimal of the right length or the size cannot be the blob's.
    pub fn parse(function: Function, hash: &str, size_bytes: i64) -> Result<Self, ParseError> {
        let size = u64::try_from(size_bytes).map_err(|_| ParseError::Size(size_bytes))?;
        let mut bytes = [0; HASH_BYTES_MAX];
        let length = function.hash_bytes();
        let is_upper = hash.bytes().any(|byte| byte.is_ascii_uppercase());
        if is_upper || hex::decode_to_slice(hash, &mut bytes[..length]).is_err() {
            return Err(ParseError::Hash(hash.chars().take(2 * length + 1).collect(), 2 * length));
        }
        let digest = Self { function, hash: bytes, size };
        if size != 0 && digest.hash == Self::empty(function).hash {
            return Err(ParseError::Empty(hash.to_owned(), size_bytes));
        }
        Ok(digest)
    }

    /// Reads the digest of a message field.
    ///
    /// # Errors
    /// As [`Digest::parse`], and when the field is not set.
    pub fn from_proto(function: Function, digest: Option<&rev2::Digest>) -> Result<Self, ParseError> {
        let digest = digest.ok_or(ParseError::Absent)?;
        Self::parse(function, &digest.hash, digest.size_bytes)
    }

    pub fn to_proto(&self) -> rev2::Digest {
        let size_bytes =
            i64::try_from(self.size).expect("sizes come from an i64 or from a blob in memory or on disk");
        rev2::Digest { hash: self.hex(), size_bytes }
    }

    pub fn function(&self) -> Function {
        self.function
    }

    pub fn hash(&self) -> &[u8] {
        &self.hash[..self.function.hash_bytes()]
    }

    pub fn hex(&self) -> String {
        hex::encode(self.hash())
    }

    /// The blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn is_empty(&self) -> bool {
        self.size == 0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(segment) = self.function.segment() {
            write!(f, "{segment}/")?;
        }
        write!(f, "{}/{}", self.hex(), self.size)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes a blob as it streams by.
#[derive(Debug, Clone)]
pub struct Hasher {
    state: State,
    size: u64,
}

#[derive(Debug, Clone)]
enum State {
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Blake3(state) => {
                state.update(bytes);
            }
        }
    }

    /// The digest of all that was fed.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(state) => Digest::new(Function::Sha256, &state.finalize(), self.size),
            State::Blake3(state) => Digest::new(Function::Blake3, state.finalize().as_bytes(), self.size),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_vectors() {
        let sha = Function::Sha256.hash(b"abc");
        assert_eq!(sha.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad/3");
        let blake = Function::Blake3.hash(b"abc");
        assert_eq!(
            blake.to_string(),
            "blake3/6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85/3"
        );
    }

    #[test]
    fn wrong_digests_are_refused_with_the_reason() {
        let empty = Digest::empty(Function::Sha256).hex();
        let cases = [
            ("abc", 1, "hash `abc` is not 64 lower-case hexadecimal characters"),
            (&empty.to_uppercase(), 0, "is not 64 lower-case"),
            (&empty, -1, "size -1 is negative"),
            (&empty, 7, "is the hash of the empty blob, but the size is 7"),
            ("", 5, "hash `` is not 64"),
        ];
        for (hash, size, reason) in cases {
            let error = Digest::parse(Function::Sha256, hash, size).unwrap_err().to_string();
            assert!(error.contains(reason), "{hash}/{size}: {error}");
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics(hash in ".{0,80}", size in any::<i64>()) {
            let _ = Digest::parse(Function::Sha256, &hash, size);
        }

        #[test]
        fn what_is_written_is_read_back(hash in any::<[u8; 32]>(), size in 0..i64::MAX) {
            let digest = Digest::new(Function::Blake3, &hash, size.cast_unsigned());
            let proto = digest.to_proto();
            prop_assert_eq!(Digest::from_proto(Function::Blake3, Some(&proto)), Ok(digest));
        }
    }
}
