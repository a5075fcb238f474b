//! Which addresses may be connected to: a name that a client chooses must not lead into the network that the farm stands in.

use std::error::Error as StdError;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::error::{Error, Kind, Result};

/// Resolves names to those of their addresses that may be connected to. The connection is made to what is answered here, so a name
/// that changes its mind between the check and the connection gains nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolver {
    pub(super) allow_private: bool,
}

/// All addresses of a name are ones that must not be connected to.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host has no public address")
    }
}

impl StdError for Refused {}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> =
                found.filter(|address| allow_private || is_public(address.ip())).collect();
            if allowed.is_empty() {
                return Err(Refused.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

impl Resolver {
    /// A host that is an address is never resolved, so it is checked here.
    ///
    /// # Errors
    /// `Denied` for an address that must not be connected to.
    pub(super) fn check(self, url: &Url) -> Result<()> {
        let host = url.host_str().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match literal {
            Ok(address) if !self.allow_private && !is_public(address) => Err(refused()),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// The error for a connection that failed because [`Resolver`] refused all addresses; `None` if it failed for another reason.
pub(super) fn refusal(error: &(dyn StdError + 'static)) -> Option<Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<Refused>() {
            return Some(refused());
        }
        cause = error.source();
    }
    None
}

fn refused() -> Error {
    Error::new(Kind::Denied, "the host has no public address, and this farm fetches from no other")
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// The special blocks are those of IANA's registry for IPv4.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || a == 0
        || a >= 224
        || (a, b & 0xc0) == (100, 64)
        || (a, b, c) == (192, 0, 0)
        || (a, b, c) == (192, 88, 99)
        || (a, b & 0xfe) == (198, 18);
    !is_special
}

/// Only global unicast is public, and an address with one of IPv4 inside is as public as that.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, .., y, z] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    if let Some(mapped) = address.to_ipv4_mapped() {
        return is_public_v4(mapped);
    }
    match (a, b) {
        // NAT64 and 6to4: the packet goes to the address inside.
        (0x64, 0xff9b) => address.segments()[2..6] == [0; 4] && is_public_v4(v4(y, z)),
        (0x2002, _) => is_public_v4(v4(b, c)),
        // Protocol assignments (Teredo and others) and documentation.
        (0x2001, 0..0x200 | 0xdb8) | (0x3fff, 0..0x1000) => false,
        _ => a & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in [
            "8.8.8.8",
            "140.82.121.4",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "127.0.0.1",
            "127.8.8.8",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "100.64.0.1",
            "192.0.0.170",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "203.0.113.7",
            "::",
            "::1",
            "::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "fec0::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::1",
            "2002:a00:1::1",
            "2001::1",
            "2001:db8::1",
            "100::1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    #[test]
    fn a_literal_address_is_refused_however_it_is_written() {
        let resolver = Resolver { allow_private: false };
        for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:10.0.0.1]", "0", "127.1"] {
            let url = Url::parse(&format!("http://{host}/x")).unwrap();
            assert_eq!(resolver.check(&url).unwrap_err().kind(), Kind::Denied, "{host}");
            assert!(Resolver { allow_private: true }.check(&url).is_ok());
        }
        assert!(resolver.check(&Url::parse("http://example.com/").unwrap()).is_ok());
        assert!(resolver.check(&Url::parse("http://8.8.8.8/").unwrap()).is_ok());
    }

    #[tokio::test]
    async fn a_name_that_leads_home_has_no_address() {
        let name = "localhost".parse().unwrap();
        let error = Resolver { allow_private: false }.resolve(name).await.err().unwrap();
        assert_eq!(refusal(error.as_ref()).unwrap().kind(), Kind::Denied);
    }
}
