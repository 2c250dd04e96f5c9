//! Which addresses may be connected to. Owns: the addresses that lead back to this host or to a
//! metadata service, however they are written. Must not: look a name up, or connect.
//!
//! Somebody else chose the name of a registry or blob host, and its addresses. Behind loopback and
//! link-local addresses are services that trust this host, above all metadata services, which hold
//! its credentials. So only a host that the operator named may have such an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses that a host may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressRule {
    /// Anything: the operator gave the address itself.
    Any,
    /// All but link-local, metadata and unspecified addresses: the operator gave the name.
    NotMetadata,
    /// All but those and loopback: somebody else gave the name.
    NotLocal,
}

impl AddressRule {
    /// Says what is wrong with an address, if it must not be connected to.
    pub(super) fn refusal(self, address: IpAddr) -> Option<&'static str> {
        if self == Self::Any {
            return None;
        }
        let kind = kind(address)?;
        (kind != LOOPBACK || self == Self::NotLocal).then_some(kind)
    }
}

const LOOPBACK: &str = "a loopback address";

/// True for loopback and for addresses of metadata services. Their answers are for this host alone
/// and hold its credentials, so no outbound proxy may see them.
pub(super) fn is_local(address: IpAddr) -> bool {
    kind(address).is_some()
}

fn kind(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4_kind(v4),
        IpAddr::V6(v6) => v6_kind(v6).or_else(|| v4_kind(find_embedded_ipv4(v6)?)),
    }
}

/// EC2 user guide, "Instance metadata": 169.254.169.254; ECS and EKS have their credentials beside
/// it (169.254.170.2, 169.254.170.23). Other clouds have theirs elsewhere: Alibaba's at
/// 100.100.100.200, Oracle's first one at 192.0.0.192, Azure's host at 168.63.129.16.
fn v4_kind(v4: Ipv4Addr) -> Option<&'static str> {
    match v4.octets() {
        [0, ..] => Some("an unspecified address"),
        [127, ..] => Some(LOOPBACK),
        [169, 254, ..] | [100, 100, 100, 200] | [192, 0, 0, 192] | [168, 63, 129, 16] => {
            Some("a link-local or metadata address")
        }
        _ => None,
    }
}

/// fd00:ec2::/32 are Amazon's own services (fd00:ec2::254, EC2 user guide; fd00:ec2::23, EKS),
/// fd20:ce::254 is Google's metadata server.
fn v6_kind(v6: Ipv6Addr) -> Option<&'static str> {
    if v6.is_loopback() {
        return Some(LOOPBACK);
    }
    if v6.is_unspecified() {
        return Some("an unspecified address");
    }
    let is_amazons = v6.segments().starts_with(&[0xfd00, 0x0ec2]);
    let is_metadata = is_amazons || v6.segments() == [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254];
    (v6.is_unicast_link_local() || is_metadata).then_some("a link-local or metadata address")
}

/// The IPv4 address that an IPv6 address leads to: NAT64 (RFC 6052 §2.2 `64:ff9b::/96`, RFC 8215
/// `64:ff9b:1::/48` with /96 below it or in its own layout), 6to4 (RFC 3056 §2), and the old
/// compatible form (RFC 4291 §2.5.5.1).
fn find_embedded_ipv4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = v6.octets();
    let at = |places: [usize; 4]| {
        let part = places.map(|place| octets.get(place).copied().unwrap_or_default());
        Ipv4Addr::from(part)
    };
    let last = at([12, 13, 14, 15]);
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0, 0, ..] => Some(last),
        [0x64, 0xff9b, 1, ..] => {
            let own = at([6, 7, 9, 10]);
            let is_own = own.octets()[0] != 0 && v4_kind(own).is_some();
            Some(if is_own { own } else { last })
        }
        [0x2002, ..] => Some(at([2, 3, 4, 5])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK_LOCAL: [&str; 22] = [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "::ffff:169.254.169.254",
        "::ffff:0.0.0.0",
        "::169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1:a9fe:a9:fe00::",
        "2002:a9fe:a9fe::1",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "64:ff9b::6464:64c8",
        "fd20:ce::254",
    ];
    const LOOPBACKS: [&str; 7] = [
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ];
    const OTHERS: [&str; 9] = [
        "10.0.0.1",
        "100.100.100.201",
        "fd20:ce::255",
        "52.219.0.1",
        "fd00::1",
        "2600:1f18::1",
        "64:ff9b::a00:1",
        "64:ff9b:1::a00:1",
        "::ffff:192.168.0.1",
    ];

    fn refused(rule: AddressRule, address: &str) -> bool {
        rule.refusal(address.parse().unwrap()).is_some()
    }

    #[test]
    fn metadata_is_for_those_that_give_its_address() {
        for address in LINK_LOCAL {
            assert!(!refused(AddressRule::Any, address), "{address}");
            assert!(refused(AddressRule::NotMetadata, address), "{address}");
            assert!(refused(AddressRule::NotLocal, address), "{address}");
        }
    }

    #[test]
    fn loopback_is_for_names_that_the_operator_gave() {
        for address in LOOPBACKS {
            assert!(!refused(AddressRule::NotMetadata, address), "{address}");
            assert!(refused(AddressRule::NotLocal, address), "{address}");
        }
        for address in OTHERS {
            assert!(!refused(AddressRule::NotLocal, address), "{address}");
            assert!(!is_local(address.parse().unwrap()), "{address}");
        }
    }
}
