//! Rows of the table: which registry, and what may be fetched for it. Pure data.

use crate::config::table::Kind::*;
use crate::config::table::Preset::{Unset, Value};
use crate::config::table::*;
use crate::config::{BlobRedirect, UpstreamAuth, registry};

pub(super) static ROWS: &[Setting] = &[
    row(
        "ECR",
        Unset("the registry that the token names"),
        Text(
            Unit::List,
            "at most 64 of [http://|https://]host[:port], with commas",
            |s, text| put(&mut s.registries, registry::registries(text)),
        ),
        "The registries, `[https://]host[:port]` with commas; the first is the default one. \
         `http://` is for another proxy or a test.",
    )
    .also(&["UPSTREAM"]),
    row(
        "UPSTREAM_AUTH",
        Value("ecr"),
        Text(Unit::Text, "ecr or none", |s, text| {
            put(&mut s.upstream_auth, one_of(text, UpstreamAuth::WORDS))
        }),
        "`ecr` sends an ECR token; `none` sends nothing, for an upstream that is another \
         `aws-ecr-proxy`.",
    ),
    row(
        "ALLOW_PLAIN_TOKEN",
        Value("false"),
        Switch(|s, on| s.allow_plain_token = on),
        "Send an ECR token over http, or to a host that has no name of ECR's (a test, a name of \
         your own for an endpoint). Loopback needs no leave.",
    ),
    row(
        "NAMESPACES",
        Unset("none"),
        Text(
            Unit::List,
            "at most 64 of ORIGIN=PREFIX or ORIGIN=HOST[/PREFIX], with commas",
            |s, text| put(&mut s.namespaces, registry::origins(text)),
        ),
        "Where the images of other registries are kept, such as the prefix of a pull-through cache \
         rule: `docker.io=docker-hub,quay.io=HOST/quay`. HOST is one of `ECR`.",
    ),
    row(
        "BLOB_HOSTS",
        Unset("none but AWS's own S3 and CloudFront hosts"),
        Text(
            Unit::List,
            "at most 64 of host, host:port or .suffix, with commas",
            |s, text| put(&mut s.blob_hosts, registry::blob_hosts(text)),
        ),
        "Further hosts that a redirect of the registry may lead to, as `host`, `host:port` or \
         `.suffix`.",
    ),
    row(
        "BLOB_REDIRECT",
        Value("follow"),
        Text(Unit::Text, "follow or pass", |s, text| {
            put(
                &mut s.outbound.blob_redirect,
                one_of(text, BlobRedirect::WORDS),
            )
        }),
        "`follow` fetches blobs through the proxy; `pass` hands the registry's redirect to the \
         client, so that blobs are not cached.",
    ),
    row(
        "OFFLINE",
        Value("false"),
        Later(Unit::Switch, OFF),
        "No upstream or AWS call at all: serve the cache.",
    ),
];
