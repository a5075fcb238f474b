//! The one who calls: every request has it among its extensions, and every handler asks it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use http::{Extensions, Uri};

use crate::error::{Error, Kind, Result, shown};
use crate::listen::Peer;

use super::Access;
use super::identity::Identity;
use super::log::{Line, Reason};
use super::right::{Right, Rights};
use super::rules::Grants;

/// The longest and the shortest time between two looks at the clock by those who wait for the end of a proof.
const EXPIRY_LOOK: Duration = Duration::from_secs(30);
const EXPIRY_LOOK_MIN: Duration = Duration::from_millis(10);

/// Who calls, what for, and what they may. Cheap to clone.
#[derive(Clone)]
pub struct Caller(Arc<Call>);

struct Call {
    identity: Arc<Identity>,
    grants: Grants,
    peer: Option<Peer>,
    path: Option<PathAndQuery>,
    access: Arc<Access>,
}

impl Caller {
    pub(super) fn new(access: Arc<Access>, (identity, grants): (Arc<Identity>, Grants), head: Head) -> Self {
        let Head { peer, uri, .. } = head;
        let path = uri.into_parts().path_and_query;
        Self(Arc::new(Call { identity, grants, peer, path, access }))
    }

    /// Somebody who calls without a request, as in tests of what asks callers.
    #[cfg(test)]
    pub(crate) fn with(access: Arc<Access>, identity: Identity, grants: Grants) -> Self {
        Self::new(access, (Arc::new(identity), grants), Head::default())
    }

    /// The caller of a request. One that has not gone through the [`super::Guard`] may nothing, so that a way around it opens nothing.
    pub fn of(extensions: &Extensions) -> Self {
        // One for all, so that their refusals have one budget of lines.
        static STRANGER: LazyLock<Caller> = LazyLock::new(|| {
            let nobody = (Arc::new(Identity::anonymous()), Grants::default());
            Caller::new(Access::of_this_machine(), nobody, Head::default())
        });
        extensions.get::<Self>().unwrap_or(&STRANGER).clone()
    }

    pub fn identity(&self) -> &Arc<Identity> {
        &self.0.identity
    }

    /// Waits until the proof of who calls has ended, for streams that live longer than what was shown at their beginning; for ever
    /// where it does not end.
    pub async fn expired(&self) {
        let Some(expires) = self.0.identity.expires else { return std::future::pending().await };
        // The clock of the wall may be set meanwhile.
        while let Ok(left) = expires.duration_since(SystemTime::now()) {
            tokio::time::sleep(left.min(EXPIRY_LOOK) + EXPIRY_LOOK_MIN).await;
        }
    }

    /// Whose requests these are where they are counted: the identity, or for somebody without one the address. Empty within this process.
    pub fn account(&self) -> String {
        match (self.0.identity.is_proven(), self.address()) {
            (true, _) if self.0.identity.name().is_empty() => String::new(),
            (true, _) => self.0.identity.to_string(),
            (false, Some(address)) => address.to_string(),
            (false, None) => String::new(),
        }
    }

    /// The rights within an instance.
    pub fn within(&self, instance: &str) -> Rights {
        self.0.grants.within(instance)
    }

    /// Refuses whoever has none of `rights` in `instance`.
    ///
    /// # Errors
    /// `Unauthenticated` when nobody said who calls, else `Denied`, with the identity, the right and the instance.
    pub fn demand(&self, instance: &str, rights: impl Into<Rights>) -> Result<()> {
        let rights = rights.into();
        if self.within(instance).has_any(rights) {
            return Ok(());
        }
        let right = right_or_rights(rights);
        let place = if instance.is_empty() {
            "the instance without a name".to_owned()
        } else {
            format!("instance `{}`", shown(instance))
        };
        Err(self.refuse(instance, &format!("{right} in {place}")))
    }

    /// Refuses whoever has none of `rights` in the whole farm.
    ///
    /// # Errors
    /// As [`Caller::demand`].
    pub fn demand_everywhere(&self, rights: impl Into<Rights>) -> Result<()> {
        let rights = rights.into();
        if self.0.grants.everywhere().has_any(rights) {
            return Ok(());
        }
        Err(self.refuse("", &format!("{} in the whole farm", right_or_rights(rights))))
    }

    /// Refuses whoever has no right at all.
    ///
    /// # Errors
    /// As [`Caller::demand`].
    pub fn demand_anything(&self) -> Result<()> {
        if self.0.grants.are_none() { Err(self.refuse("", "any right here")) } else { Ok(()) }
    }

    /// Writes into the access log that an operator changes something.
    pub fn record_administration(&self, instance: &str) {
        let parts = (self.0.identity.to_string(), self.peer());
        self.0.access.log.administrative(&self.line(&parts, instance));
    }

    /// The refusal of a worker that speaks for what is another's.
    pub fn refuse_worker(&self, message: &str) -> Error {
        self.record_refusal("", Reason::Worker, message);
        Error::new(Kind::Denied, message)
    }

    /// Writes into the access log that somebody has too many requests open.
    pub(super) fn record_excess(&self, message: &str) {
        self.record_refusal("", Reason::Requests, message);
    }

    fn refuse(&self, instance: &str, lacking: &str) -> Error {
        let (reason, kind, message) = if self.0.identity.is_proven() {
            let message = format!("`{}` does not have {lacking}", self.0.identity);
            (Reason::Right, Kind::Denied, message)
        } else {
            let message = format!(
                "this needs {lacking}, and nobody has said who calls: send a token, or use a certificate"
            );
            (Reason::Unauthenticated, Kind::Unauthenticated, message)
        };
        self.record_refusal(instance, reason, &message);
        Error::new(kind, message)
    }

    fn record_refusal(&self, instance: &str, reason: Reason, message: &str) {
        let parts = (self.0.identity.to_string(), self.peer());
        self.0.access.log.refused(&self.line(&parts, instance), reason, message);
    }

    fn line<'a>(&'a self, (identity, peer): &'a (String, String), instance: &'a str) -> Line<'a> {
        let method = self.0.path.as_ref().map_or("", PathAndQuery::path);
        Line { identity, method, instance, peer }
    }

    fn address(&self) -> Option<IpAddr> {
        address_of(self.0.peer.as_ref())
    }

    fn peer(&self) -> String {
        peer_name(self.0.peer.as_ref())
    }
}

/// A caller, and the rights of which it must have one to go on.
#[derive(Debug, Clone)]
pub struct Demand {
    pub caller: Caller,
    pub rights: Rights,
}

impl Demand {
    /// That of a request, from its extensions.
    pub fn of(extensions: &Extensions, rights: impl Into<Rights>) -> Self {
        Self { caller: Caller::of(extensions), rights: rights.into() }
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caller({})", self.0.identity)
    }
}

/// What of a request says who sends it.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// None where the listener does not say.
    pub(super) peer: Option<Peer>,
    pub(super) uri: Uri,
    /// The value of the one header `authorization`; an error when there are several or it is no text.
    pub(super) authorization: Option<Result<String, ()>>,
    /// Whether a web page may have sent it, under a name of its own that leads here.
    pub(super) is_rebound: bool,
}

pub(super) fn address_of(peer: Option<&Peer>) -> Option<IpAddr> {
    match peer? {
        Peer::Socket(socket) => Some(machine(socket.address.ip().to_canonical())),
        Peer::Process => None,
    }
}

/// The address that a machine is counted by. In IPv6 it has a whole network (RFC 6177), and as many addresses as it likes.
fn machine(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        IpAddr::V6(_) | IpAddr::V4(_) => address,
    }
}

pub(super) fn peer_name(peer: Option<&Peer>) -> String {
    match peer {
        Some(Peer::Process) => "this process".to_owned(),
        Some(Peer::Socket(socket)) => socket.address.to_string(),
        None => "unknown".to_owned(),
    }
}

fn right_or_rights(rights: Rights) -> String {
    let is_one = Right::ALL.into_iter().filter(|right| rights.has(*right)).count() == 1;
    let names = rights.to_string().replace(" or ", "` or `");
    if is_one { format!("the right `{names}`") } else { format!("one of the rights `{names}`") }
}
