//! Rows of the table: the way out to registries and AWS. Pure data.

use crate::config::outbound;
use crate::config::table::Kind::*;
use crate::config::table::Preset::Unset;
use crate::config::table::*;

const PROXY: &str = "[http://|https://][user:password@]host[:port]";

pub(super) static ROWS: &[Setting] = &[
    row(
        "RESOLVER",
        Unset("the system's"),
        Text(
            Unit::List,
            "at most 4 of ip, ip:port or [ipv6]:port, with commas",
            |s, text| put(&mut s.outbound.resolvers, outbound::resolvers(text)),
        ),
        "DNS servers for all upstream names, asked in this order; `/etc/hosts` and search \
         domains are left out then.",
    ),
    row(
        "HTTPS_PROXY",
        Unset("none"),
        Text(Unit::Url, PROXY, |s, text| {
            put(&mut s.outbound.https_proxy, outbound::proxy_url(text))
        }),
        "Outbound proxy for https, which is asked for a tunnel (CONNECT). Never used for \
         loopback and metadata addresses.",
    )
    .also(&["https_proxy"]),
    row(
        "HTTP_PROXY",
        Unset("none"),
        Text(Unit::Url, PROXY, |s, text| {
            put(&mut s.outbound.http_proxy, outbound::proxy_url(text))
        }),
        "Outbound proxy for http. Never used for loopback and metadata addresses.",
    )
    .also(&["http_proxy"]),
    row(
        "NO_PROXY",
        Unset("none"),
        Text(
            Unit::List,
            "at most 256 of host, .suffix, address, address/bits, with commas",
            |s, text| put(&mut s.outbound.no_proxy, outbound::no_proxy(text)),
        ),
        "Hosts reached without the outbound proxy: `host` and `.host` (with all below them), \
         addresses, `10.0.0.0/8`, each with `:port` or without; `*` for all.",
    )
    .also(&["no_proxy"]),
];
