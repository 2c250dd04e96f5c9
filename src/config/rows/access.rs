//! Rows of the table: what clients may do. Pure data.

use crate::config::clients;
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "SSL_CLIENT_CA",
        group: Group::Access,
        preset: Preset::Unset("none"),
        meaning: "PEM file: clients must show a certificate that it signed; one without gets the \
                  probes and `/version` alone. Needs `ENABLE_SSL=true`; read again as the \
                  certificate is.",
        state: text(Unit::Path, "a path", clients::ssl_client_ca),
        ..ROW
    },
    Setting {
        name: "AUTH_FILE",
        group: Group::Access,
        preset: Preset::Unset("none"),
        meaning: "htpasswd file: clients must log in.",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "READ_ONLY",
        group: Group::Access,
        preset: Preset::Value("false"),
        meaning: "Refuse everything but GET and HEAD.",
        state: later(Unit::Switch, OFF),
        ..ROW
    },
    Setting {
        name: "ALLOW_REPOSITORIES",
        group: Group::Access,
        preset: Preset::Value("*"),
        meaning: "Globs of the repositories that clients may use.",
        state: later(Unit::List, Accepts::Only(&["*"])),
        ..ROW
    },
];
