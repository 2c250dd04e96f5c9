//! Rows of the table: AWS regions, endpoints and trust. Pure data.

use std::time::Duration;

use crate::config::aws;
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "AWS_REGION",
        other_names: &["AWS_DEFAULT_REGION"],
        group: Group::Aws,
        preset: Preset::Unset("from the `ECR` host, the profile, or the instance metadata"),
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
        preset: Preset::Unset("`false`, or `use_fips_endpoint` of the profile"),
        meaning: "Call the FIPS endpoints of ECR and STS. A registry with `ecr-fips` in its name \
                  has its token from there anyway.",
        state: State::Built(Kind::Switch(|settings, on| {
            settings.aws.use_fips = Some(on)
        })),
        ..ROW
    },
    Setting {
        name: "AWS_USE_DUALSTACK_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Unset("`false`, or `use_dualstack_endpoint` of the profile"),
        meaning: "Call the dual-stack (IPv6) endpoints of ECR and STS. A registry with a \
                  dual-stack name has its token from there anyway.",
        state: State::Built(Kind::Switch(|settings, on| {
            settings.aws.use_dual_stack = Some(on)
        })),
        ..ROW
    },
    Setting {
        name: "AWS_STS_REGIONAL_ENDPOINTS",
        group: Group::Aws,
        preset: Preset::Unset("`regional`, or `sts_regional_endpoints` of the profile"),
        meaning: "`regional`, or `legacy`: `sts.amazonaws.com` for the older regions.",
        state: text(Unit::Text, "regional or legacy", aws::sts_endpoints),
        ..ROW
    },
    Setting {
        name: "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        group: Group::Aws,
        preset: Preset::Unset("`false`, or `ignore_configured_endpoint_urls` of the profile"),
        meaning: "Call AWS's own addresses, whatever `AWS_ENDPOINT_URL` and its kin or the profile \
                  say.",
        state: State::Built(Kind::Switch(|settings, on| {
            settings.aws.ignore_endpoint_urls = Some(on);
        })),
        ..ROW
    },
];
