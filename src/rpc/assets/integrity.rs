//! Subresource integrity, the qualifier `checksum.sri`: what the content must hash to.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::error::{Error, Kind, Result};

/// Hashes of one value that are compared; more are of no use to anybody.
const HASHES_MAX: usize = 16;

/// The functions of the specification, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

/// The hashes that content may have. Where several functions are named, the strongest counts; where it has several hashes, any does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Integrity {
    algorithm: Algorithm,
    hashes: Vec<Vec<u8>>,
}

impl Algorithm {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "sha256" => Some(Self::Sha256),
            "sha384" => Some(Self::Sha384),
            "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }

    fn hash_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl Integrity {
    /// Reads a value: `sha256-…` in base64, several with spaces between, each with options behind a `?` that mean nothing.
    ///
    /// # Errors
    /// `Invalid` when a hash is malformed or none has a function that we have: content that nobody checks must not pass.
    pub(super) fn parse(value: &str) -> Result<Self> {
        let mut hashes = Vec::new();
        for token in value.split_ascii_whitespace() {
            hashes.extend(parse_hash(token)?);
        }
        let strongest = hashes.iter().map(|(algorithm, _)| *algorithm).max();
        let algorithm = strongest
            .ok_or_else(|| Error::invalid("checksum.sri has no hash of sha256, sha384 or sha512"))?;
        if hashes.len() > HASHES_MAX {
            return Err(Error::invalid(format!("checksum.sri has more than {HASHES_MAX} hashes")));
        }
        hashes.retain(|(function, _)| *function == algorithm);
        Ok(Self { algorithm, hashes: hashes.into_iter().map(|(_, hash)| hash).collect() })
    }

    pub(super) fn checker(&self) -> Checker {
        let state = match self.algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha384 => State::Sha384(Sha384::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        };
        Checker { state, hashes: self.hashes.clone() }
    }
}

/// The hash of a token, or `None` when its function is unknown to us, as the specification wants.
fn parse_hash(token: &str) -> Result<Option<(Algorithm, Vec<u8>)>> {
    let malformed = || Error::invalid("a hash of checksum.sri is malformed");
    let (name, rest) = token.split_once('-').ok_or_else(malformed)?;
    let Some(algorithm) = Algorithm::parse(name) else { return Ok(None) };
    let encoded = rest.split('?').next().unwrap_or_default();
    let hash = STANDARD.decode(encoded).map_err(|_| malformed())?;
    if hash.len() == algorithm.hash_bytes() { Ok(Some((algorithm, hash))) } else { Err(malformed()) }
}

/// Hashes content as it streams by.
pub(super) struct Checker {
    state: State,
    hashes: Vec<Vec<u8>>,
}

enum State {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Checker {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Sha384(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// # Errors
    /// `Aborted` when the content has none of the hashes.
    pub(super) fn finish(self) -> Result<()> {
        let hash = match self.state {
            State::Sha256(state) => state.finalize().to_vec(),
            State::Sha384(state) => state.finalize().to_vec(),
            State::Sha512(state) => state.finalize().to_vec(),
        };
        if self.hashes.contains(&hash) {
            return Ok(());
        }
        let message = "the content is not what checksum.sri says";
        Err(Error::new(Kind::Aborted, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The hashes of `abc` in the specification of the functions, and of nothing.
    const ABC_256: &str = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
    const ABC_384: &str = "sha384-ywB1P0WjXou1oD1pmsZQBycsMqsO3tFjGotgWkP/W+2AhgcroefMI1i67KE0yCWn";
    const NOTHING_256: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    fn check(value: &str, content: &[u8]) -> Result<()> {
        let mut checker = Integrity::parse(value).unwrap().checker();
        checker.update(content);
        checker.finish()
    }

    #[test]
    fn any_hash_of_the_strongest_function_is_enough() {
        assert!(check(ABC_256, b"abc").is_ok());
        assert!(check(&format!("{ABC_384}?ct=text/plain"), b"abc").is_ok());
        assert!(check(&format!("{NOTHING_256} {ABC_256}"), b"abc").is_ok());
        assert!(check(&format!("{NOTHING_256} md5-AAAA {ABC_384}"), b"abc").is_ok());
        assert_eq!(check(ABC_256, b"abd").unwrap_err().kind(), Kind::Aborted);
        assert_eq!(check(&format!("{NOTHING_256} {ABC_384}"), b"").unwrap_err().kind(), Kind::Aborted);
    }

    #[test]
    fn what_checks_nothing_is_invalid() {
        for value in
            ["", "md5-AAAA", "sha256", "sha256-", "sha256-AAAA", "sha256-?", &ABC_384.replace("384", "256")]
        {
            assert_eq!(Integrity::parse(value).unwrap_err().kind(), Kind::Invalid, "{value}");
        }
    }
}
