//! Clients by their address. Owns: the part of an address that makes one client, and the number of
//! its connections. Must not: close or refuse anything.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::address::{IPV6_NETWORK_BITS, network_of};

/// The part of an address that stands for one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(network_of(address))
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "{v4}"),
            IpAddr::V6(v6) => write!(f, "{v6}/{IPV6_NETWORK_BITS}"),
        }
    }
}

/// How many connections each client has. As many entries as there are clients connected.
#[derive(Debug, Default)]
pub(super) struct NetworkCounts(HashMap<Network, usize>);

impl NetworkCounts {
    pub(super) fn count_of(&self, network: Network) -> usize {
        self.0.get(&network).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, network: Network) {
        *self.0.entry(network).or_default() += 1;
    }

    pub(super) fn remove(&mut self, network: Network) {
        if let Some(count) = self.0.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        Network::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn ipv4_counts_by_address_and_ipv6_by_64_bits() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::1", "127.0.0.1", false),
        ] {
            assert_eq!(network(one) == network(other), same, "{one} {other}");
        }
        assert_eq!(network("2001:db8::5:1").to_string(), "2001:db8::/64");
        assert_eq!(network("::ffff:192.0.2.1").to_string(), "192.0.2.1");
    }

    #[test]
    fn a_client_that_has_left_takes_no_room() {
        let (a, b) = (network("192.0.2.1"), network("192.0.2.2"));
        let mut counts = NetworkCounts::default();
        counts.add(a);
        counts.add(a);
        counts.add(b);
        assert_eq!((counts.count_of(a), counts.count_of(b)), (2, 1));
        counts.remove(a);
        counts.remove(b);
        counts.remove(b);
        assert_eq!((counts.count_of(a), counts.count_of(b)), (1, 0));
        counts.remove(a);
        assert!(counts.0.is_empty());
    }
}
