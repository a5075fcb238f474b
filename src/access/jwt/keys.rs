//! The public keys of an issuer: read when they are first needed, again from time to time, and when a token names one that is unknown.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::access::config::{JwtConfig, is_symmetric};
use crate::error::{Error, Kind, Result};
use crate::tasks;

use super::source::Source;

/// The pause between two attempts to read the keys. Tokens with made-up keys must not turn us against the issuer.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// How long keys are used that could not be read again: an issuer that is down for a day is not one to trust for ever.
pub(super) const KEPT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Keys of one issuer: a few are in use at a time.
const KEYS_MAX: usize = 64;

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) source: Source,
    refresh: Duration,
    state: Mutex<State>,
    /// One attempt at a time; the others wait for it.
    turn: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    keys: Vec<Arc<Key>>,
    /// That of the file that they are from.
    generation: u64,
    read: Option<Instant>,
    tried: Option<Instant>,
}

/// One key and what it is for.
struct Key {
    identifier: Option<String>,
    /// What the issuer says that it is for; then nothing else is.
    algorithm: Option<Algorithm>,
    decoding: Arc<DecodingKey>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("identifier", &self.identifier).finish_non_exhaustive()
    }
}

impl Keys {
    /// # Errors
    /// `Bug` when the client for the issuer's address cannot be made.
    pub(super) fn new(config: &JwtConfig) -> Result<Self> {
        Ok(Self {
            source: Source::new(config)?,
            refresh: config.refresh,
            state: Mutex::default(),
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// The keys that may have signed a token: that of its identifier, or all that suit its algorithm if it names none.
    ///
    /// # Errors
    /// `Unauthenticated` when the issuer has no such key, `Unavailable` when nobody knows because the issuer does not answer.
    pub(super) async fn find(
        keys: &Arc<Self>,
        identifier: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Arc<DecodingKey>>> {
        keys.take_file();
        let found = keys.lock().suitable(identifier, algorithm);
        let (is_stale, may_try) = keys.lock().standing(keys.refresh);
        if !found.is_empty() {
            if is_stale && may_try {
                // What is known is good enough for this request.
                let keys = Arc::clone(keys);
                tasks::spawn("keys of an issuer", async move { Self::read_again(&keys).await });
            }
            return Ok(found);
        }
        if may_try {
            let reading = Arc::clone(keys);
            // A task of its own: the attempt must count for all, even if this client goes away.
            let reading = tasks::spawn("keys of an issuer", async move { Self::read_again(&reading).await });
            let stopping = |error| Error::new(Kind::Cancelled, "the farm is stopping").with_source(error);
            reading.await.map_err(stopping)?;
        } else {
            // Somebody else may be reading them; then this request can have the outcome.
            drop(keys.turn.acquire().await);
        }
        let state = keys.lock();
        let found = state.suitable(identifier, algorithm);
        match (found.is_empty(), state.read) {
            (false, _) => Ok(found),
            (true, Some(_)) => {
                Err(super::refused("the token is signed with a key that the issuer does not have"))
            }
            (true, None) => {
                Err(Error::new(Kind::Unavailable, "the keys of the token's issuer cannot be read"))
            }
        }
    }

    /// Reads the keys, unless somebody has just tried. What was known stays when that fails.
    async fn read_again(keys: &Arc<Self>) {
        let _turn = keys.turn.acquire().await.expect("nobody closes it");
        if !keys.lock().begin_attempt() {
            return;
        }
        let read = keys.source.read().await;
        let mut state = keys.lock();
        match read {
            Ok(set) => {
                state.take(&set);
            }
            Err(error) => {
                tracing::warn!(error = error.chain(), "the keys of an issuer of tokens could not be read");
                if state.read.is_some_and(|read| read.elapsed() > KEPT_MAX) {
                    state.keys.clear();
                    state.read = None;
                }
            }
        }
    }

    /// Takes over what a file holds, which costs nothing and asks nobody.
    fn take_file(&self) {
        let Source::File(file) = &self.source else { return };
        let generation = file.generation();
        let mut state = self.lock();
        if state.read.is_none() || state.generation != generation {
            state.take(&file.current());
            state.generation = generation;
        }
    }

    /// As if the pause after the last attempt were over.
    #[cfg(test)]
    pub(super) fn end_pause(&self) {
        self.lock().tried = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, set: &JwkSet) {
        self.keys = set.keys.iter().filter_map(Key::of).take(KEYS_MAX).map(Arc::new).collect();
        self.read = Some(Instant::now());
    }

    fn suitable(&self, identifier: Option<&str>, algorithm: Algorithm) -> Vec<Arc<DecodingKey>> {
        if self.read.is_none_or(|read| read.elapsed() > KEPT_MAX) {
            return Vec::new();
        }
        let suits = |key: &&Arc<Key>| {
            let is_named = identifier.is_none_or(|identifier| key.identifier.as_deref() == Some(identifier));
            let is_for = key.algorithm.is_none_or(|known| known == algorithm);
            is_named && is_for && key.decoding.family().algorithms().contains(&algorithm)
        };
        self.keys.iter().filter(suits).map(|key| Arc::clone(&key.decoding)).collect()
    }

    /// Whether the keys are old, and whether the last attempt to read them is long enough ago.
    fn standing(&self, refresh: Duration) -> (bool, bool) {
        let is_stale = self.read.is_none_or(|read| read.elapsed() > refresh);
        (is_stale, self.tried.is_none_or(|tried| tried.elapsed() >= PAUSE))
    }

    fn begin_attempt(&mut self) -> bool {
        let may_try = self.tried.is_none_or(|tried| tried.elapsed() >= PAUSE);
        if may_try {
            self.tried = Some(Instant::now());
        }
        may_try
    }
}

impl Key {
    /// None for a key that is not for signatures, or that is no public key.
    fn of(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        let is_for_signatures =
            common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
        let algorithm = match common.key_algorithm {
            Some(named) => Some(signing(named)?),
            None => None,
        };
        let decoding = DecodingKey::from_jwk(jwk).ok()?;
        let is_public = !decoding.family().algorithms().iter().any(|algorithm| is_symmetric(*algorithm));
        (is_for_signatures && is_public).then(|| Self {
            identifier: common.key_id.clone(),
            algorithm,
            decoding: Arc::new(decoding),
        })
    }
}

/// The algorithm of signatures with public keys that a key is for; none for any other.
fn signing(algorithm: KeyAlgorithm) -> Option<Algorithm> {
    let algorithm: Algorithm = algorithm.to_string().parse().ok()?;
    (!is_symmetric(algorithm)).then_some(algorithm)
}
