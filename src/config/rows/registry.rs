//! Rows of the table: which registry, and what may be fetched for it. Pure data.

use crate::config::table::*;
use crate::config::{outbound, parse};

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "ECR",
        other_names: &["UPSTREAM"],
        group: Group::Registry,
        preset: Preset::Unset("the registry that the token names"),
        meaning: "The registries, `[https://]host[:port]` with commas; the first is the default \
                  one. `http://` is for another proxy or a test.",
        state: text(
            Unit::List,
            "at most 64 of [http://|https://]host[:port], with commas",
            parse::registries,
        ),
        ..ROW
    },
    Setting {
        name: "UPSTREAM_AUTH",
        group: Group::Registry,
        preset: Preset::Value("ecr"),
        meaning: "`ecr` sends an ECR token; `none` sends nothing, for an upstream that is another \
                  `aws-ecr-proxy`.",
        state: text(Unit::Text, "ecr or none", parse::upstream_auth),
        ..ROW
    },
    Setting {
        name: "BLOB_HOSTS",
        group: Group::Registry,
        preset: Preset::Unset("none but AWS's own S3 and CloudFront hosts"),
        meaning: "Further hosts that a redirect of the registry may lead to, as `host`, \
                  `host:port` or `.suffix`.",
        state: text(
            Unit::List,
            "at most 64 of host, host:port or .suffix, with commas",
            parse::blob_hosts,
        ),
        ..ROW
    },
    Setting {
        name: "BLOB_REDIRECT",
        group: Group::Registry,
        preset: Preset::Value("follow"),
        meaning: "`follow` fetches blobs through the proxy; `pass` hands the registry's redirect \
                  to the client, so that blobs are not cached.",
        state: text(Unit::Text, "follow or pass", outbound::blob_redirect),
        ..ROW
    },
];
