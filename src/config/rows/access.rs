//! Rows of the table: what clients may do. Pure data.

use crate::config::table::*;
use crate::config::{access, clients};

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
        meaning: "htpasswd file with bcrypt hashes (`htpasswd -B`): clients must log in. Read \
                  again on SIGHUP and when it changes.",
        state: text(Unit::Path, "a path", access::auth_file),
        ..ROW
    },
    Setting {
        name: "READ_ONLY",
        group: Group::Access,
        preset: Preset::Value("false"),
        meaning: "Refuse everything but GET and HEAD.",
        state: State::Built(Kind::Switch(|settings, on| settings.access.read_only = on)),
        ..ROW
    },
    Setting {
        name: "ALLOW_REPOSITORIES",
        group: Group::Access,
        preset: Preset::Value("*"),
        meaning: "Patterns of the repositories that clients may use, such as `team-a/*,base`: `*` \
                  stands for any characters, `/` too. Others are 403, and absent from the \
                  catalogue.",
        state: text(
            Unit::List,
            "repository names in which * stands for any characters and ? for one",
            access::repositories,
        ),
        ..ROW
    },
];
