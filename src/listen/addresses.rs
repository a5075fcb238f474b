//! How many connections of a listener each address has open, so that one client cannot take the places of all others.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::tally::{Share, Tally};

/// The part of an IPv6 address that a site has as a whole: its hosts may have any number of the addresses below.
const SITE: u128 = u128::MAX << 64;

/// The addresses that have connections open.
#[derive(Debug)]
pub(super) struct Addresses(Arc<Tally<IpAddr>>);

/// One connection of an address. Those of this machine are not counted.
#[derive(Debug)]
pub(super) struct Counted {
    _share: Option<Share<IpAddr>>,
}

impl Addresses {
    /// Each may have `each_max` connections.
    pub(super) fn new(each_max: u32) -> Self {
        Self(Tally::new(each_max))
    }

    /// One more connection from `address`; `None` when it has as many as it may.
    pub(super) fn count(&self, address: IpAddr) -> Option<Counted> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return Some(Counted { _share: None });
        }
        self.0.take(site(address)).map(|share| Counted { _share: Some(share) })
    }
}

fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & SITE).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_this_machine_any_number() {
        let addresses = Addresses::new(2);
        let count = |address: &str| addresses.count(address.parse().unwrap());
        let first = count("10.0.0.1").unwrap();
        let _second = count("::ffff:10.0.0.1").unwrap();
        assert!(count("10.0.0.1").is_none());
        let _other = count("10.0.0.2").unwrap();
        drop(first);
        let _third = count("10.0.0.1").expect("one is over");
        let _site = ["2001:db8::1", "2001:db8::2"].map(|host| count(host).unwrap());
        assert!(count("2001:db8::3").is_none(), "a host has as many addresses as it likes");
        assert!(count("2001:db8:0:1::1").is_some());
        let here = ["127.0.0.1", "::1", "::ffff:127.0.0.1"].map(|here| [(); 3].map(|()| count(here)));
        assert!(here.iter().flatten().all(Option::is_some));
    }
}
