//! Addresses of clients. Owns: which addresses belong to one customer. Must not: count or judge.

use std::net::{IpAddr, Ipv6Addr};

/// The bits of an IPv6 address that name one customer's network (RFC 6177 §2). The customer may
/// choose any address in it.
pub const IPV6_NETWORK_BITS: u32 = 64;

/// The part of an address that stands for one customer: an IPv4 address (also one that comes as
/// `::ffff:a.b.c.d`), or the network of an IPv6 address.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let mask = u128::MAX << (u128::BITS - IPV6_NETWORK_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_stands_alone_and_ipv6_by_64_bits() {
        let network = |text: &str| network_of(text.parse().unwrap()).to_string();
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(network("2001:db8::5:1"), "2001:db8::");
        assert_eq!(network("2001:db8:0:1:ffff::1"), "2001:db8:0:1::");
    }
}
