//! Rows of the table: listening to clients. Pure data.

use crate::config::clients;
use crate::config::listen;
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "LISTEN_HOST",
        group: Group::Clients,
        preset: Preset::Value("0.0.0.0"),
        meaning: "IP address to listen on (`::` for IPv6), or `unix:/path` for a unix socket, \
                  which its user and group may use. Not bound where systemd hands in sockets.",
        state: text(
            Unit::Address,
            "an IP address, or unix: and a path",
            listen::host,
        ),
        ..ROW
    },
    Setting {
        name: "LISTEN_PORT",
        other_names: &["PORT"],
        group: Group::Clients,
        preset: Preset::Value("8080"),
        meaning: "Port to listen on; `0` picks one. The address is logged as `listening on …`.",
        state: number(0, 65535, "a TCP port", |settings, port| {
            settings.listen_port = u16::try_from(port).unwrap_or(u16::MAX);
        }),
        ..ROW
    },
    Setting {
        name: "DISABLE_PROXY_HEADERS",
        group: Group::Clients,
        preset: Preset::Value("false"),
        meaning: "Ignore `X-Forwarded-*`, `Forwarded` and `X-Real-IP`.",
        state: State::Built(Kind::Switch(|settings, on| {
            settings.trust_proxy_headers = !on;
        })),
        ..ROW
    },
    Setting {
        name: "ENABLE_SSL",
        group: Group::Clients,
        preset: Preset::Value("false"),
        meaning: "Serve https (TLS 1.2 and 1.3, HTTP/1.1) with the next two, and nothing else on \
                  that port.",
        state: State::Built(Kind::Switch(|settings, on| settings.tls.enabled = on)),
        ..ROW
    },
    Setting {
        name: "SSL_CERTIFICATE",
        other_names: &["REGISTRY_HTTP_TLS_CERTIFICATE"],
        group: Group::Clients,
        preset: Preset::Unset("none"),
        meaning: "PEM file of the certificate chain, the proxy's own certificate first. Read again \
                  on SIGHUP and when it changes; without `ENABLE_SSL=true` it is not used.",
        state: text(Unit::Path, "a path", clients::ssl_certificate),
        ..ROW
    },
    Setting {
        name: "SSL_KEY",
        other_names: &["REGISTRY_HTTP_TLS_KEY"],
        group: Group::Clients,
        preset: Preset::Unset("none"),
        meaning: "PEM file of the private key (PKCS #8, PKCS #1 or SEC 1, without passphrase). \
                  Read again likewise.",
        state: text(Unit::Path, "a path", clients::ssl_key),
        ..ROW
    },
];
