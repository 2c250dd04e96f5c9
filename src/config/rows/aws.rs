//! Rows of the table: AWS regions, endpoints and trust. Pure data.

use std::time::Duration;

use crate::config::table::Kind::*;
use crate::config::table::Preset::{Unset, Value};
use crate::config::table::*;
use crate::config::{StsEndpoints, aws, parse};

pub(super) static ROWS: &[Setting] = &[
    row(
        "AWS_REGION",
        Unset("from the `ECR` host, the profile, or the instance metadata"),
        Text(
            Unit::Text,
            "1 to 63 of a-z 0-9 and -, such as eu-west-1",
            |s, text| put(&mut s.aws.region, aws::region(text)),
        ),
        "Signing region. The region in an ECR host name wins for that registry.",
    )
    .also(&["AWS_DEFAULT_REGION"]),
    row(
        "AWS_ENDPOINT_URL",
        Unset("AWS's own for the region"),
        Text(Unit::Url, URL, |s, text| {
            put(&mut s.aws.endpoint_url, parse::url(text))
        }),
        "Address of every AWS API, for private endpoints and tests.",
    ),
    row(
        "AWS_ENDPOINT_URL_ECR",
        Unset("`AWS_ENDPOINT_URL`"),
        Text(Unit::Url, URL, |s, text| {
            put(&mut s.aws.endpoint_url_ecr, parse::url(text))
        }),
        "Address of the ECR API.",
    ),
    row(
        "AWS_ENDPOINT_URL_STS",
        Unset("`AWS_ENDPOINT_URL`"),
        Text(Unit::Url, URL, |s, text| {
            put(&mut s.aws.endpoint_url_sts, parse::url(text))
        }),
        "Address of the STS API.",
    ),
    row(
        "AWS_CA_BUNDLE",
        Unset("`/etc/ssl/certs/ca-certificates.crt` if there, else built-in roots"),
        Text(
            Unit::Path,
            "a readable file with at least one PEM CERTIFICATE block",
            |s, text| put(&mut s.aws.ca_bundle, aws::ca_bundle(text)),
        ),
        "PEM file of the certificate authorities to trust, in place of all others.",
    ),
    row(
        "RENEW_INTERVAL_HOURS",
        Value("6"),
        Hours(
            range(
                Duration::from_secs(36),
                Duration::from_secs(12 * 3600),
                "a token lives 12 hours",
            ),
            |s, time| s.renew_interval = time,
        ),
        "Longest time between two renewals of the token; half of its remaining life if that is \
         sooner. A decimal number, without a unit.",
    ),
    row(
        "AWS_USE_FIPS_ENDPOINT",
        Unset("`false`, or `use_fips_endpoint` of the profile"),
        Switch(|s, on| s.aws.use_fips = Some(on)),
        "Call the FIPS endpoints of ECR and STS. A registry with `ecr-fips` in its name has its \
         token from there anyway.",
    ),
    row(
        "AWS_USE_DUALSTACK_ENDPOINT",
        Unset("`false`, or `use_dualstack_endpoint` of the profile"),
        Switch(|s, on| s.aws.use_dual_stack = Some(on)),
        "Call the dual-stack (IPv6) endpoints of ECR and STS. A registry with a dual-stack name \
         has its token from there anyway.",
    ),
    row(
        "AWS_STS_REGIONAL_ENDPOINTS",
        Unset("`regional`, or `sts_regional_endpoints` of the profile"),
        Text(Unit::Text, "regional or legacy", |s, text| {
            put(&mut s.aws.sts_endpoints, one_of(text, StsEndpoints::WORDS))
        }),
        "`regional`, or `legacy`: `sts.amazonaws.com` for the older regions.",
    ),
    row(
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        Unset("`false`, or `ignore_configured_endpoint_urls` of the profile"),
        Switch(|s, on| s.aws.ignore_endpoint_urls = Some(on)),
        "Call AWS's own addresses, whatever `AWS_ENDPOINT_URL` and its kin or the profile say.",
    ),
];
