//! Rows of the table: AWS regions, endpoints and trust. Pure data.

use std::time::Duration;

use crate::config::aws;
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "AWS_REGION",
        other_names: &["AWS_DEFAULT_REGION"],
        group: Group::Aws,
        preset: Preset::Unset("from the host in `ECR`, else from the instance metadata"),
        meaning: "Signing region. The region in an ECR host name wins for that registry.",
        state: text(
            Unit::Text,
            "1 to 63 of a-z 0-9 and -, such as eu-west-1",
            aws::region,
        ),
        ..ROW
    },
    Setting {
        name: "AWS_ENDPOINT_URL",
        group: Group::Aws,
        preset: Preset::Unset("AWS's own for the region"),
        meaning: "Address of every AWS API, for private endpoints and tests.",
        state: text(Unit::Url, URL, aws::endpoint_url),
        ..ROW
    },
    Setting {
        name: "AWS_ENDPOINT_URL_ECR",
        group: Group::Aws,
        preset: Preset::Unset("`AWS_ENDPOINT_URL`"),
        meaning: "Address of the ECR API.",
        state: text(Unit::Url, URL, aws::endpoint_url_ecr),
        ..ROW
    },
    Setting {
        name: "AWS_ENDPOINT_URL_STS",
        group: Group::Aws,
        preset: Preset::Unset("`AWS_ENDPOINT_URL`"),
        meaning: "Address of the STS API.",
        state: text(Unit::Url, URL, aws::endpoint_url_sts),
        ..ROW
    },
    Setting {
        name: "AWS_CA_BUNDLE",
        group: Group::Aws,
        preset: Preset::Unset("`/etc/ssl/certs/ca-certificates.crt` if there, else built-in roots"),
        meaning: "PEM file of the certificate authorities to trust, in place of all others.",
        state: text(
            Unit::Path,
            "a readable file with at least one PEM CERTIFICATE block",
            aws::ca_bundle,
        ),
        ..ROW
    },
    Setting {
        name: "RENEW_INTERVAL_HOURS",
        group: Group::Aws,
        preset: Preset::Value("6"),
        meaning: "Longest time between two renewals of the token; half of its remaining life if \
                  that is sooner. A decimal number, without a unit.",
        state: State::Built(Kind::Hours {
            min: Duration::from_secs(36),
            max: Duration::from_secs(12 * 3600),
            reason: "a token lives 12 hours",
            set: |settings, time| settings.renew_interval = time,
        }),
        ..ROW
    },
    Setting {
        name: "AWS_USE_FIPS_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "FIPS endpoints.",
        state: later(Unit::Switch, OFF),
        ..ROW
    },
    Setting {
        name: "AWS_USE_DUALSTACK_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "Dual-stack endpoints.",
        state: later(Unit::Switch, OFF),
        ..ROW
    },
    Setting {
        name: "AWS_STS_REGIONAL_ENDPOINTS",
        group: Group::Aws,
        preset: Preset::Value("regional"),
        meaning: "`regional` or `legacy` STS endpoints.",
        state: later(Unit::Text, Accepts::Only(&["regional"])),
        ..ROW
    },
];
