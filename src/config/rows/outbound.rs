//! Rows of the table: the way out to registries and AWS. Pure data.

use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "RESOLVER",
        preset: Preset::Unset("the system's"),
        meaning: "DNS servers for all upstream names, as `ip[:port]`.",
        state: later(Unit::List, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "HTTPS_PROXY",
        other_names: &["https_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Outbound proxy for https.",
        state: later(Unit::Url, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "HTTP_PROXY",
        other_names: &["http_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Outbound proxy for http.",
        state: later(Unit::Url, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "NO_PROXY",
        other_names: &["no_proxy"],
        preset: Preset::Unset("none"),
        meaning: "Hosts reached without the outbound proxy; true of all hosts while there is none.",
        state: later(Unit::List, Accepts::Anything),
        ..ROW
    },
];
