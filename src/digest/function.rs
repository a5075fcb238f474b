//! The digest functions of the protocol: names, lengths, and which one a request means.

use super::{Digest, Hasher, ParseError};
use crate::proto::rev2;
use crate::proto::rev2::digest_function::Value;

/// The digest functions that we serve, which are all that REv2 has.
///
/// MD5, SHA-1, GITSHA1 and MURMUR3 do not resist who makes collisions on purpose. Blobs of different functions never share a name, so
/// a forged one deceives only those who chose such a function themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Function {
    Sha256,
    Blake3,
    Sha1,
    Md5,
    /// The paged SHA-256 of BuildXL, which ends with a byte for its algorithm.
    Vso,
    Sha384,
    Sha512,
    /// The x64 variant with 128 bits.
    Murmur3,
    /// A Merkle tree of SHA-256.
    Sha256Tree,
    /// SHA-1 as Git names its blobs.
    GitSha1,
}

impl Function {
    /// The one that we would choose comes first: clients take the list as an order.
    pub const ALL: [Self; 10] = [
        Self::Sha256,
        Self::Blake3,
        Self::Sha256Tree,
        Self::Sha384,
        Self::Sha512,
        Self::Vso,
        Self::Sha1,
        Self::GitSha1,
        Self::Md5,
        Self::Murmur3,
    ];

    /// The function that a message names, `None` where it leaves the field unset.
    ///
    /// # Errors
    /// When we have no such function.
    pub fn from_proto(value: i32) -> Result<Option<Self>, ParseError> {
        match Value::try_from(value) {
            Ok(Value::Unknown) => Ok(None),
            Ok(Value::Sha256) => Ok(Some(Self::Sha256)),
            Ok(Value::Sha1) => Ok(Some(Self::Sha1)),
            Ok(Value::Md5) => Ok(Some(Self::Md5)),
            Ok(Value::Vso) => Ok(Some(Self::Vso)),
            Ok(Value::Sha384) => Ok(Some(Self::Sha384)),
            Ok(Value::Sha512) => Ok(Some(Self::Sha512)),
            Ok(Value::Murmur3) => Ok(Some(Self::Murmur3)),
            Ok(Value::Sha256tree) => Ok(Some(Self::Sha256Tree)),
            Ok(Value::Blake3) => Ok(Some(Self::Blake3)),
            Ok(Value::Gitsha1) => Ok(Some(Self::GitSha1)),
            Err(_) => Err(ParseError::Function(value.to_string())),
        }
    }

    pub fn to_proto(self) -> Value {
        match self {
            Self::Sha256 => Value::Sha256,
            Self::Blake3 => Value::Blake3,
            Self::Sha1 => Value::Sha1,
            Self::Md5 => Value::Md5,
            Self::Vso => Value::Vso,
            Self::Sha384 => Value::Sha384,
            Self::Sha512 => Value::Sha512,
            Self::Murmur3 => Value::Murmur3,
            Self::Sha256Tree => Value::Sha256tree,
            Self::GitSha1 => Value::Gitsha1,
        }
    }

    /// The function of a request: the one that it names, else the one that the length of a hash in it implies.
    ///
    /// # Errors
    /// When we have no such function.
    pub fn of_request(value: i32, example: Option<&rev2::Digest>) -> Result<Self, ParseError> {
        let named = Self::from_proto(value)?;
        Ok(named.unwrap_or_else(|| Self::of_length(example.map_or(0, |digest| digest.hash.len()))))
    }

    /// The function that REv2 lets a client leave unsaid, by the characters of its hash. BLAKE3, SHA256TREE and GITSHA1 must be named,
    /// and so must MURMUR3 here, since we serve MD5 with the same length. What fits nothing is taken for SHA-256, whose parser refuses it.
    pub fn of_length(characters: usize) -> Self {
        match characters {
            32 => Self::Md5,
            40 => Self::Sha1,
            66 => Self::Vso,
            96 => Self::Sha384,
            128 => Self::Sha512,
            _ => Self::Sha256,
        }
    }

    /// The function whose name in lower case is `segment`, as it stands in resource names.
    pub fn of_segment(segment: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.name() == segment)
    }

    /// The function of a name as the protocol has it, in capitals or not.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::of_segment(&name.to_ascii_lowercase())
    }

    /// The segment that names the function in a resource name; none where the length of the hash implies it.
    pub fn segment(self) -> Option<&'static str> {
        (Self::of_length(2 * self.hash_bytes()) != self).then(|| self.name())
    }

    /// The name of the protocol in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
            Self::Sha1 => "sha1",
            Self::Md5 => "md5",
            Self::Vso => "vso",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Murmur3 => "murmur3",
            Self::Sha256Tree => "sha256tree",
            Self::GitSha1 => "gitsha1",
        }
    }

    /// Bytes of a hash.
    pub fn hash_bytes(self) -> usize {
        match self {
            Self::Md5 | Self::Murmur3 => 16,
            Self::Sha1 | Self::GitSha1 => 20,
            Self::Sha256 | Self::Blake3 | Self::Sha256Tree => 32,
            Self::Vso => 33,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    pub fn hash(self, bytes: &[u8]) -> Digest {
        let mut hasher = self.hasher(bytes.len() as u64);
        hasher.update(bytes);
        hasher.finish()
    }

    /// A hasher for a blob of `size` bytes: GITSHA1 hashes the size before the content.
    pub fn hasher(self, size: u64) -> Hasher {
        Hasher::new(self, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::HASH_BYTES_MAX;

    #[test]
    fn every_function_of_the_protocol_is_served() {
        for value in 1.. {
            let Ok(known) = Value::try_from(value) else { break };
            let function = Function::from_proto(value).unwrap().unwrap();
            assert_eq!((function.to_proto(), function.name()), (known, &*known.as_str_name().to_lowercase()));
            assert!(Function::ALL.contains(&function) && function.hash_bytes() <= HASH_BYTES_MAX);
            assert_eq!(Function::of_segment(function.name()), Some(function));
        }
        assert_eq!(Function::ALL[0], Function::Sha256);
        let message = Function::from_proto(99).unwrap_err().to_string();
        for function in Function::ALL {
            assert!(message.contains(function.to_proto().as_str_name()), "{message}");
        }
    }

    #[test]
    fn an_unset_function_is_inferred_by_length_but_never_one_that_must_be_named() {
        use Function::{Blake3, GitSha1, Murmur3, Sha256Tree};
        for function in Function::ALL {
            let digest = function.hash(b"x").to_proto();
            let must_be_named = [Blake3, Sha256Tree, GitSha1, Murmur3].contains(&function);
            assert_eq!(function.segment().is_some(), must_be_named, "{function:?}");
            let inferred = Function::of_request(0, Some(&digest)).unwrap();
            assert_eq!(inferred == function, !must_be_named, "{function:?}");
            assert_eq!(Function::of_request(function.to_proto().into(), Some(&digest)), Ok(function));
        }
        assert_eq!(Function::of_request(0, None), Ok(Function::Sha256));
    }
}
