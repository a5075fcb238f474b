//! Tokens that an issuer has signed (JWT), as OpenID Connect has them.

mod keys;
mod source;
#[cfg(test)]
pub(super) mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{DecodingKey, Validation, dangerous, decode, decode_header};
use serde_json::Value;

use crate::error::{Error, Kind, Result};

use self::keys::Keys;
pub(super) use self::source::file_problem;
use super::config::{JwtConfig, is_name};
use super::identity::{Identity, Proof};
use super::remembered::Remembered;

/// Bytes of a token. With many groups one has some KiB; whatever is longer is not decoded.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Groups of one token that are looked at; with them all rules are compared.
const GROUPS_MAX: usize = 256;

/// How far the issuer's clock and ours may be apart, in seconds.
const LEEWAY_SECONDS: u64 = 30;

/// How long a verified token is taken without another look, if it does not expire before: so long a key that the issuer has withdrawn
/// may still open the farm.
const REMEMBERED_FOR: Duration = Duration::from_secs(5 * 60);

/// As good as for ever, and still a time that can be added to the present one.
const FAR_SECONDS: f64 = 1e9;

type Claims = HashMap<String, Value>;

/// The issuers of a configuration.
#[derive(Debug)]
pub(super) struct Issuers {
    issuers: HashMap<String, Issuer>,
    remembered: Remembered,
}

#[derive(Debug)]
struct Issuer {
    config: JwtConfig,
    validation: Validation,
    keys: Arc<Keys>,
}

impl Issuers {
    /// # Errors
    /// `Bug` when the client for the issuers' addresses cannot be made.
    pub(super) fn new(configs: &[JwtConfig]) -> Result<Self> {
        let issuer = |config: &JwtConfig| Ok((config.issuer.clone(), Issuer::new(config)?));
        let issuers = configs.iter().map(issuer).collect::<Result<_>>()?;
        Ok(Self { issuers, remembered: Remembered::new()? })
    }

    /// Whether a text can be one of these tokens: three parts with dots between.
    pub(super) fn is_token(text: &str) -> bool {
        text.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// `Unauthenticated` when it is not valid, `Unavailable` when the issuer's keys cannot be had.
    pub(super) async fn verify(&self, token: &str) -> Result<Arc<Identity>> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused(format!("the token has more than {TOKEN_BYTES_MAX} bytes")));
        }
        if let Some(identity) = self.remembered.find(token.as_bytes(), Instant::now()) {
            return Ok(identity);
        }
        let issuer = self.issuer(token)?;
        let claims = issuer.claims(token).await?;
        let identity = Arc::new(issuer.identity(&claims)?);
        let until = Instant::now() + REMEMBERED_FOR.min(left(&claims));
        self.remembered.insert(token.as_bytes(), Arc::clone(&identity), until);
        Ok(identity)
    }

    /// The issuer that the token names. Nothing is verified yet; it only says whose keys to try.
    fn issuer(&self, token: &str) -> Result<&Issuer> {
        let claims: Claims =
            dangerous::insecure_decode_claims(token).map_err(|error| malformed().with_source(error))?;
        let named = claims.get("iss").and_then(Value::as_str);
        let issuer = named.and_then(|issuer| self.issuers.get(issuer));
        issuer.ok_or_else(|| refused("the token is of an issuer that is not trusted here"))
    }
}

impl Issuer {
    fn new(config: &JwtConfig) -> Result<Self> {
        // The first algorithm only makes the value; the list below is what counts.
        let first = config.algorithms.first().copied().unwrap_or(jsonwebtoken::Algorithm::RS256);
        let mut validation = Validation::new(first);
        validation.algorithms.clone_from(&config.algorithms);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_issuer(&[&config.issuer]);
        validation.set_audience(&config.audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        Ok(Self { config: config.clone(), validation, keys: Arc::new(Keys::new(config)?) })
    }

    async fn claims(&self, token: &str) -> Result<Claims> {
        let header = decode_header(token).map_err(|error| malformed().with_source(error))?;
        if !self.config.algorithms.contains(&header.alg) {
            return Err(refused("the token is signed with an algorithm that is not taken"));
        }
        let keys = Keys::find(&self.keys, header.kid.as_deref(), header.alg).await?;
        // All that are left are for this algorithm; a key without an identifier is one of a handful.
        let mut last = refused("the issuer has no key for the token");
        for key in keys {
            match self.decode(token, &key, header.alg) {
                Ok(claims) => return Ok(claims),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn decode(&self, token: &str, key: &DecodingKey, algorithm: jsonwebtoken::Algorithm) -> Result<Claims> {
        let mut validation = self.validation.clone();
        // The library wants each algorithm of the list to suit the key.
        validation.algorithms = vec![algorithm];
        decode::<Claims>(token, key, &validation).map(|data| data.claims).map_err(sentence)
    }

    fn identity(&self, claims: &Claims) -> Result<Identity> {
        let name = claims.get(&self.config.name_claim).and_then(Value::as_str).filter(|name| is_name(name));
        let nameless = || refused(format!("the token's claim `{}` names nobody", self.config.name_claim));
        let groups = claims.get(&self.config.groups_claim).map(texts).unwrap_or_default();
        let named = |name: &str| format!("{}{name}", self.config.prefix);
        let groups = groups.iter().map(|group| named(group)).collect();
        let identity = Identity::new(Proof::Jwt, named(name.ok_or_else(nameless)?), groups);
        // So long it is taken when it comes again, too.
        let left = left(claims) + Duration::from_secs(LEEWAY_SECONDS);
        Ok(match SystemTime::now().checked_add(left) {
            Some(expires) => identity.until(expires),
            None => identity,
        })
    }
}

/// The texts of a list, or of one text with spaces between.
fn texts(value: &Value) -> Vec<String> {
    let all: Vec<&str> = match value {
        Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
        Value::String(text) => text.split_whitespace().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    };
    all.into_iter().filter(|text| is_name(text)).take(GROUPS_MAX).map(str::to_owned).collect()
}

/// How long the token holds. The claim is there, since it is demanded.
fn left(claims: &Claims) -> Duration {
    let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Duration::try_from_secs_f64((expires - now).clamp(0.0, FAR_SECONDS)).unwrap_or_default()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library's list is open, and the rest tells a client no more"
)]
fn sentence(error: jsonwebtoken::errors::Error) -> Error {
    use jsonwebtoken::errors::ErrorKind;
    let message = match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidAudience => "the token is for somebody else",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks one of the claims exp, iss and aud",
        ErrorKind::InvalidSignature => "the token's signature is wrong",
        _ => "the token is not valid",
    };
    refused(message).with_source(error)
}

fn malformed() -> Error {
    refused("the token is malformed")
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(Kind::Unauthenticated, message)
}
