//! Hashes a blob as it streams by, whatever the function.

use std::fmt;
use std::hash::Hasher as _;

use blake3::Hasher as Blake3;
use md5::Md5;
use mur3::Hasher128;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::paged::Paged;
use super::tree::Tree;
use super::{Digest, Function};

/// Hashes a blob as it streams by.
pub struct Hasher {
    function: Function,
    state: State,
    size: u64,
}

enum State {
    Sha256(Sha256),
    Blake3(Box<Blake3>),
    /// SHA1, and GITSHA1 behind its prefix.
    Sha1(Sha1),
    Md5(Md5),
    Paged(Box<Paged>),
    Sha384(Box<Sha384>),
    Sha512(Box<Sha512>),
    Murmur3(Hasher128),
    Tree(Box<Tree>),
}

impl Hasher {
    pub(super) fn new(function: Function, size: u64) -> Self {
        let state = match function {
            Function::Sha256 => State::Sha256(Sha256::new()),
            Function::Blake3 => State::Blake3(Box::new(Blake3::new())),
            Function::Sha1 => State::Sha1(Sha1::new()),
            Function::Md5 => State::Md5(Md5::new()),
            Function::Vso => State::Paged(Box::default()),
            Function::Sha384 => State::Sha384(Box::default()),
            Function::Sha512 => State::Sha512(Box::default()),
            Function::Murmur3 => State::Murmur3(Hasher128::with_seed(0)),
            Function::Sha256Tree => State::Tree(Box::default()),
            Function::GitSha1 => State::Sha1(Sha1::new_with_prefix(format!("blob {size}\0"))),
        };
        Self { function, state, size: 0 }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Blake3(state) => {
                state.update(bytes);
            }
            State::Sha1(state) => state.update(bytes),
            State::Md5(state) => state.update(bytes),
            State::Paged(state) => state.update(bytes),
            State::Sha384(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
            State::Murmur3(state) => state.write(bytes),
            State::Tree(state) => state.update(bytes),
        }
    }

    /// The digest of all that was fed.
    pub fn finish(self) -> Digest {
        let digest = |hash: &[u8]| Digest::new(self.function, hash, self.size);
        match self.state {
            State::Sha256(state) => digest(&state.finalize()),
            State::Blake3(state) => digest(state.finalize().as_bytes()),
            State::Sha1(state) => digest(&state.finalize()),
            State::Md5(state) => digest(&state.finalize()),
            State::Paged(state) => digest(&state.finish()),
            State::Sha384(state) => digest(&state.finalize()),
            State::Sha512(state) => digest(&state.finalize()),
            State::Murmur3(state) => {
                // The bytes as the reference writes them to memory on a little-endian machine.
                let (low, high) = state.finish128();
                digest(&[low.to_le_bytes(), high.to_le_bytes()].concat())
            }
            State::Tree(state) => digest(&state.finish()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("function", &self.function).field("size", &self.size).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(function: Function, content: &[u8]) -> String {
        function.hash(content).hex()
    }

    #[test]
    fn known_vectors() {
        use Function::{Blake3, GitSha1, Md5, Murmur3, Sha1, Sha256, Sha256Tree, Sha384, Sha512};
        let vectors = [
            (Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (Blake3, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
            (Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (
                Sha384,
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed\
                 8086072ba1e7cc2358baeca134c825a7",
            ),
            (
                Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
            (Murmur3, "6778ad3f3f3f96b4522dca264174a23b"),
            (Sha256Tree, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            // `printf abc | git hash-object --stdin`
            (GitSha1, "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"),
        ];
        for (function, expected) in vectors {
            assert_eq!(hex(function, b"abc"), expected, "{function:?}");
        }
        assert_eq!(hex(GitSha1, b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_stream_has_the_digest_of_the_whole(
            content in proptest::collection::vec(any::<u8>(), 0..9000),
            cuts in proptest::collection::vec(0..9000_usize, 0..12),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(content.len())).collect();
            cuts.extend([0, content.len()]);
            cuts.sort_unstable();
            for function in Function::ALL {
                let mut hasher = function.hasher(content.len() as u64);
                cuts.windows(2).for_each(|cut| hasher.update(&content[cut[0]..cut[1]]));
                let digest = hasher.finish();
                prop_assert_eq!(digest, function.hash(&content));
                prop_assert_eq!(digest.size(), content.len() as u64);
            }
        }
    }
}
