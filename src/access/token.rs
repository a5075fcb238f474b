//! Static tokens: the farm knows their hashes, so that nothing that it keeps lets anybody in.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

use crate::digest::Function;
use crate::error::{Error, Result};

use super::config::TokenConfig;
use super::identity::{Identity, Proof};

/// What our tokens begin with, so that people and scanners for secrets know one when they see it.
const PREFIX: &str = "croft_";

/// Random bytes of a token: nobody tries them all.
const RANDOM_BYTES: usize = 32;

/// A hash that a secret is known by. It is not printed: what it is compared with may be less random than our tokens are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Hash(pub(super) [u8; 32]);

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// What is printed for debugging instead of a secret, or of what is known of it.
pub(super) const HIDDEN: &str = "(hidden)";

/// The static tokens of a configuration.
#[derive(Debug, Default)]
pub(super) struct Tokens(Vec<(Hash, Arc<Identity>)>);

impl Tokens {
    /// Entries whose hash is none are left out; [`super::Config::check`] tells of them.
    pub(super) fn new(configs: &[TokenConfig]) -> Self {
        let entry = |config: &TokenConfig| {
            let identity = Identity::new(Proof::Token, config.name.as_str(), config.groups.clone());
            Some((parse_hash(&config.sha256)?, Arc::new(identity)))
        };
        Self(configs.iter().filter_map(entry).collect())
    }

    /// Whose token it is. All are compared, each in constant time, so that the time tells nothing.
    pub(super) fn find(&self, token: &str) -> Option<Arc<Identity>> {
        let hash = hash(token.as_bytes());
        let mut found = None;
        for (known, identity) in &self.0 {
            if bool::from(known.0.ct_eq(&hash.0)) {
                found = Some(Arc::clone(identity));
            }
        }
        found
    }
}

/// A token that nobody has, and its hash for the configuration.
pub struct FreshToken {
    pub token: String,
    pub sha256: String,
}

impl fmt::Debug for FreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreshToken").finish_non_exhaustive()
    }
}

impl FreshToken {
    /// # Errors
    /// `Bug` when the system has no random numbers.
    pub fn generate() -> Result<Self> {
        let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<RANDOM_BYTES>()?));
        let sha256 = hex::encode(hash(token.as_bytes()).0);
        Ok(Self { token, sha256 })
    }
}

/// # Errors
/// `Bug` when the system has no random numbers.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::bug("the system gives no random numbers").with_source(error))?;
    Ok(bytes)
}

pub(super) fn hash(bytes: &[u8]) -> Hash {
    let digest = Function::Sha256.hash(bytes);
    Hash(*digest.hash().first_chunk().expect("SHA-256 has 32 bytes"))
}

pub(super) fn parse_hash(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).ok()?;
    Some(Hash(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_token_is_found_by_its_hash_and_nothing_else_is() {
        let (ci, other) = (FreshToken::generate().unwrap(), FreshToken::generate().unwrap());
        assert_ne!(ci.token, other.token);
        let config = |name: &str, sha256: &str| TokenConfig {
            name: name.into(),
            groups: vec![],
            sha256: sha256.into(),
        };
        let configs = [config("ci", &ci.sha256.to_uppercase()), config("broken", "x")];
        let tokens = Tokens::new(&configs);
        let printed = format!("{ci:?} {configs:?} {tokens:?}").to_lowercase();
        let numbers = format!("{:?}", parse_hash(&ci.sha256).unwrap().0);
        for secret in [&ci.token, &ci.sha256, numbers.trim_matches(['[', ']'])] {
            assert!(!printed.contains(&secret.to_lowercase()), "{printed}");
        }
        assert_eq!(tokens.find(&ci.token).unwrap().to_string(), "token:ci");
        for wrong in ["", &other.token, &ci.sha256, &ci.token[..ci.token.len() - 1]] {
            assert!(tokens.find(wrong).is_none(), "{wrong}");
        }
    }
}
