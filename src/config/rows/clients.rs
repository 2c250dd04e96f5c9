//! Rows of the table: listening to clients. Pure data.

use crate::config::listen;
use crate::config::table::Kind::*;
use crate::config::table::Preset::{Unset, Value};
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    row(
        "LISTEN_HOST",
        Value("0.0.0.0"),
        Text(
            Unit::Address,
            "an IP address, or unix: and a path",
            |s, text| put(&mut s.listen_host, listen::host(text)),
        ),
        "IP address to listen on (`::` for IPv6), or `unix:/path` for a unix socket, which its \
         user and group may use. Not bound where systemd hands in sockets.",
    )
    .keeps_out(),
    row(
        "LISTEN_PORT",
        Value("8080"),
        Number(range(0, 65535, "a TCP port"), |s, port| {
            s.listen_port = u16::try_from(port).unwrap_or(u16::MAX)
        }),
        "Port to listen on; `0` picks one. The address is logged as `listening on …`.",
    )
    .also(&["PORT"]),
    row(
        "DISABLE_PROXY_HEADERS",
        Value("false"),
        Switch(|s, on| s.trust_proxy_headers = !on),
        "Ignore `X-Forwarded-*`, `Forwarded` and `X-Real-IP`.",
    ),
    row(
        "ENABLE_SSL",
        Value("false"),
        Switch(|s, on| s.tls.enabled = on),
        "Serve https (TLS 1.2 and 1.3, HTTP/1.1) with the next two, and nothing else on that \
         port.",
    )
    .keeps_out(),
    row(
        "SSL_CERTIFICATE",
        Unset("none"),
        File(|s, path| s.tls.certificate = Some(path)),
        "PEM file of the certificate chain, the proxy's own certificate first. Read again on \
         SIGHUP and when it changes; without `ENABLE_SSL=true` it is not used.",
    )
    .also(&["REGISTRY_HTTP_TLS_CERTIFICATE"])
    .keeps_out(),
    row(
        "SSL_KEY",
        Unset("none"),
        File(|s, path| s.tls.key = Some(path)),
        "PEM file of the private key (PKCS #8, PKCS #1 or SEC 1, without passphrase). Read again \
         likewise.",
    )
    .also(&["REGISTRY_HTTP_TLS_KEY"])
    .keeps_out(),
];
