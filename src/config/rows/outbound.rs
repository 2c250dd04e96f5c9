//! Rows of the table: the way out to registries and AWS. Pure data.

use crate::config::outbound;
use crate::config::table::*;

const PROXY: &str = "[http://|https://][user:password@]host[:port]";

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "RESOLVER",
        preset: Preset::Unset("the system's"),
        meaning: "DNS servers for all upstream names, asked in this order; `/etc/hosts` and search \
                  domains are left out then.",
        state: text(
            Unit::List,
            "at most 4 of ip, ip:port or [ipv6]:port, with commas",
            outbound::resolvers,
        ),
        ..ROW
    },
    Setting {
        name: "HTTPS_PROXY",
        other_names: &["https_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Outbound proxy for https, which is asked for a tunnel (CONNECT). Never used for \
                  loopback and metadata addresses.",
        state: text(Unit::Url, PROXY, outbound::https_proxy),
        ..ROW
    },
    Setting {
        name: "HTTP_PROXY",
        other_names: &["http_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Outbound proxy for http. Never used for loopback and metadata addresses.",
        state: text(Unit::Url, PROXY, outbound::http_proxy),
        ..ROW
    },
    Setting {
        name: "NO_PROXY",
        other_names: &["no_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Hosts reached without the outbound proxy: `host` and `.host` (with all below \
                  them), addresses, `10.0.0.0/8`, each with `:port` or without; `*` for all.",
        state: text(
            Unit::List,
            "at most 256 of host, .suffix, address, address/bits, with commas",
            outbound::no_proxy,
        ),
        ..ROW
    },
];
