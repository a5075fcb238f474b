//! Who calls, and what they may do.
//!
//! A [`Guard`] around each listener's services turns a request into a [`Caller`]: by a certificate of the TLS handshake, a static token,
//! a signed token or a password. The handlers ask the caller for a right in an instance; what no rule grants is refused.

mod basic;
mod budget;
mod caller;
mod certificate;
mod config;
mod identity;
mod jwt;
mod layer;
mod log;
mod open;
mod pattern;
mod remembered;
mod right;
mod rules;
#[cfg(test)]
mod tests;
mod token;
mod warnings;

use std::sync::Arc;

use http::HeaderValue;
use tonic::service::Routes;

use crate::error::{Error, Kind, Result};
use crate::listen::Peer;

use self::basic::Passwords;
use self::caller::{Head, address_of, peer_name};
use self::jwt::Issuers;
use self::log::{Line, Log, Reason};
use self::open::{OpenRequests, Place};
use self::token::Tokens;

pub use self::caller::{Caller, Demand};
pub use self::config::{BasicConfig, Config, JwtConfig, RuleConfig, TokenConfig};
pub use self::identity::{Identity, Proof};
pub use self::layer::{Guard, Guarded};
pub use self::open::Held;
pub use self::right::{Right, Rights};
pub use self::rules::{Grants, Rules};
pub use self::token::FreshToken;
pub use self::warnings::Exposure;

/// Who there is and what they may, as configured.
#[derive(Debug)]
pub struct Access {
    /// None where nothing is configured: then whoever is on this machine may do everything.
    known: Option<Known>,
    open: OpenRequests,
    log: Log,
}

#[derive(Debug)]
struct Known {
    rules: Rules,
    tokens: Tokens,
    issuers: Issuers,
    passwords: Option<Passwords>,
}

impl Access {
    /// # Errors
    /// `Invalid` when the configuration is wrong or the file with the passwords cannot be read.
    pub fn new(config: Option<&Config>) -> Result<Arc<Self>> {
        let known = config.map(Known::new).transpose()?;
        let each_max = config.map_or(config::REQUESTS_PER_IDENTITY, |config| config.requests_per_identity);
        Ok(Arc::new(Self { known, open: OpenRequests::new(each_max), log: Log::new() }))
    }

    /// As without a configuration: everything for whoever is on this machine, nothing for anybody else.
    pub fn of_this_machine() -> Arc<Self> {
        Arc::new(Self {
            known: None,
            open: OpenRequests::new(config::REQUESTS_PER_IDENTITY),
            log: Log::new(),
        })
    }

    /// The layer that tells who calls.
    pub fn guard(self: &Arc<Self>) -> Guard {
        Guard(Arc::clone(self))
    }

    /// `routes` behind the guard.
    pub fn guarded(self: &Arc<Self>, routes: Routes) -> Routes {
        Routes::from(routes.into_axum_router().layer(self.guard()))
    }

    /// # Errors
    /// `Unauthenticated` when a credential is wrong, `Exhausted` and `Unavailable` when it cannot be verified.
    async fn identify(self: &Arc<Self>, head: Head) -> Result<Caller> {
        let proven = self.prove(&head).await.inspect_err(|error| {
            let line = Line {
                identity: "",
                method: head.uri.path(),
                instance: "",
                peer: &peer_name(head.peer.as_ref()),
            };
            self.log.refused(&line, Reason::Credential, &error.public_message());
        })?;
        Ok(Caller::new(Arc::clone(self), proven, head))
    }

    /// Counts a request of `caller` until the place that it gets is dropped.
    fn open(&self, caller: &Caller) -> Result<Option<Place>> {
        let place = self.open.begin(caller.account());
        place.inspect_err(|error| caller.record_excess(&error.public_message()))
    }

    async fn prove(&self, head: &Head) -> Result<(Arc<Identity>, Grants)> {
        if let Some(Peer::Process) = head.peer {
            return Ok((Arc::new(Identity::process()), Grants::everything()));
        }
        let address = address_of(head.peer.as_ref());
        let is_loopback = address.is_some_and(|address| address.is_loopback()) && !head.is_rebound;
        match &self.known {
            Some(known) => {
                let identity = known.prove(head).await?;
                let grants = known.rules.grants(&identity, is_loopback);
                Ok((identity, grants))
            }
            None => {
                let grants = if is_loopback { Grants::everything() } else { Grants::default() };
                Ok((Arc::new(Identity::anonymous()), grants))
            }
        }
    }

    /// What a client without credentials is told to bring.
    fn challenge(&self) -> HeaderValue {
        let has_passwords = self.known.as_ref().is_some_and(|known| known.passwords.is_some());
        HeaderValue::from_static(if has_passwords {
            "Basic realm=\"croft\", Bearer realm=\"croft\""
        } else {
            "Bearer realm=\"croft\""
        })
    }
}

impl Known {
    fn new(config: &Config) -> Result<Self> {
        Ok(Self {
            rules: Rules::new(&config.rules).map_err(|problems| Error::invalid(problems.join("; ")))?,
            tokens: Tokens::new(&config.tokens),
            issuers: Issuers::new(&config.jwt)?,
            passwords: config.basic.as_ref().map(Passwords::open).transpose()?,
        })
    }

    /// A credential in the request counts before the certificate of the connection, which may be a proxy's.
    async fn prove(&self, head: &Head) -> Result<Arc<Identity>> {
        let Some(authorization) = &head.authorization else {
            return certificate::identity(head.peer.as_ref()).map(Arc::new);
        };
        let unreadable = |_: &()| unknown("there are several credentials, or one that is no text");
        let authorization = authorization.as_deref().map_err(unreadable)?;
        let (scheme, credential) = authorization.split_once(' ').unwrap_or((authorization, ""));
        let credential = credential.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            self.prove_token(credential).await
        } else if scheme.eq_ignore_ascii_case("basic")
            && let Some(passwords) = &self.passwords
        {
            passwords.verify(credential, address_of(head.peer.as_ref())).await
        } else {
            Err(unknown("credentials of this kind are not taken here"))
        }
    }

    async fn prove_token(&self, token: &str) -> Result<Arc<Identity>> {
        match self.tokens.find(token) {
            Some(identity) => Ok(identity),
            None if Issuers::is_token(token) => self.issuers.verify(token).await,
            None => Err(unknown("the token is not known here")),
        }
    }
}

fn unknown(message: &str) -> Error {
    Error::new(Kind::Unauthenticated, message)
}
