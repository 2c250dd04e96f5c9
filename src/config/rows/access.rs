//! Rows of the table: what clients may do. Pure data.

use crate::config::Globs;
use crate::config::table::Kind::*;
use crate::config::table::Preset::{Unset, Value};
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    row(
        "SSL_CLIENT_CA",
        Unset("none"),
        File(|s, path| s.tls.client_ca = Some(path)),
        "PEM file: clients must show a certificate that it signed; one without gets the probes \
         and `/version` alone. Needs `ENABLE_SSL=true`; read again as the certificate is.",
    )
    .keeps_out(),
    row(
        "AUTH_FILE",
        Unset("none"),
        File(|s, path| s.access.auth_file = Some(path)),
        "htpasswd file with bcrypt hashes (`htpasswd -B`): clients must log in. Read again on \
         SIGHUP and when it changes.",
    )
    .keeps_out(),
    row(
        "READ_ONLY",
        Value("false"),
        Switch(|s, on| s.access.read_only = on),
        "Refuse everything but GET and HEAD.",
    )
    .keeps_out(),
    row(
        "ALLOW_REPOSITORIES",
        Value("*"),
        Text(
            Unit::List,
            "repository names in which * stands for any characters and ? for one",
            |s, text| put(&mut s.access.repositories, Globs::parse(text)),
        ),
        "Patterns of the repositories that clients may use, such as `team-a/*,base`: `*` stands \
         for any characters, `/` too. Others are 403, and absent from the catalogue.",
    )
    .keeps_out(),
];
