//! The addresses of AWS's APIs. Owns: partitions, region names and endpoint overrides. Must not:
//! compose host names; `ecr` and `sts` do.

use crate::config::{AwsSettings, REGION_LENGTH_MAX};
use crate::oci;

/// A partition: a set of regions with its own domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    /// Its name in ARNs.
    pub(super) id: &'static str,
    /// The beginning of its regions' names.
    prefix: &'static str,
    /// The domain of IPv4 endpoints.
    pub(super) suffix: &'static str,
    /// The domain of endpoints with IPv6.
    pub(super) dual_stack_suffix: &'static str,
    /// The domain of private registries with IPv6 (amazon-ecr-credential-helper,
    /// `ecr-login/api/client.go`); none where AWS documents none.
    pub(super) registry_dual_stack_suffix: Option<&'static str>,
}

const fn new(
    id: &'static str,
    prefix: &'static str,
    suffix: &'static str,
    dual_stack: &'static str,
) -> Partition {
    Partition {
        id,
        prefix,
        suffix,
        dual_stack_suffix: dual_stack,
        registry_dual_stack_suffix: None,
    }
}

/// All partitions (`partitions.json` of the AWS SDKs). The last one has every other region, as in
/// the SDKs, also a region that we do not know.
#[rustfmt::skip]
pub(super) const PARTITIONS: [Partition; 8] = [
    Partition {
        registry_dual_stack_suffix: Some("on.amazonwebservices.com.cn"),
        ..new("aws-cn", "cn-", "amazonaws.com.cn", "api.amazonwebservices.com.cn")
    },
    new("aws-eusc", "eusc-", "amazonaws.eu", "api.amazonwebservices.eu"),
    new("aws-iso", "us-iso-", "c2s.ic.gov", "api.aws.ic.gov"),
    new("aws-iso-b", "us-isob-", "sc2s.sgov.gov", "api.aws.scloud"),
    new("aws-iso-e", "eu-isoe-", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    new("aws-iso-f", "us-isof-", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
    // GovCloud has the domains of the last one.
    Partition { id: "aws-us-gov", prefix: "us-gov-", ..AWS },
    AWS,
];
const AWS: Partition = Partition {
    registry_dual_stack_suffix: Some("on.aws"),
    ..new("aws", "", "amazonaws.com", "api.aws")
};

/// The partition of a region.
pub(super) fn partition(region: &str) -> Partition {
    let mut all = PARTITIONS.into_iter();
    all.find(|partition| region.starts_with(partition.prefix))
        .unwrap_or(AWS)
}

/// True for a host in a domain of AWS.
pub(super) fn is_aws(host: &str) -> bool {
    let is_in = |domain: &str| {
        host.strip_suffix(domain)
            .is_some_and(|rest| rest.ends_with('.'))
    };
    let mut all = PARTITIONS.iter();
    all.any(|partition| is_in(partition.suffix) || is_in(partition.dual_stack_suffix))
}

/// A region name as it may stand in a host name: lower case, trimmed.
pub(super) fn region(text: &str) -> Option<String> {
    let region = text.trim().to_ascii_lowercase();
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = region.bytes().next().is_some_and(word)
        && region.len() <= REGION_LENGTH_MAX
        && region.bytes().all(|b| word(b) || b == b'-' || b == b'_');
    fits.then_some(region)
}

/// The service whose endpoint is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// The private registries.
    Ecr,
    /// ECR Public; the override for ECR does not hold for it (as in the SDKs).
    EcrPublic,
    /// The Security Token Service.
    Sts,
}

/// The address that settings or profile put in place of AWS's own, if they do.
///
/// The order is that of the AWS SDKs: the service's variable, the variable for all, the profile's
/// `services` section, the profile's `endpoint_url`.
///
/// # Errors
/// When the override is no URL, or stands beside a setting that wants FIPS or dual-stack hosts: the
/// two contradict each other, and the endpoint rule sets of the SDKs refuse them, too.
pub(super) fn custom(settings: &AwsSettings, service: Service) -> Result<Option<String>, String> {
    if settings.ignore_endpoint_urls == Some(true) {
        return Ok(None);
    }
    let in_profile = &settings.profile_endpoints;
    let (name, variable, section) = match service {
        Service::Ecr => (
            "AWS_ENDPOINT_URL_ECR",
            &settings.endpoint_url_ecr,
            &in_profile.ecr,
        ),
        Service::EcrPublic => ("", &None, &None),
        Service::Sts => (
            "AWS_ENDPOINT_URL_STS",
            &settings.endpoint_url_sts,
            &in_profile.sts,
        ),
    };
    let ranked = [
        (name, variable.as_deref()),
        ("AWS_ENDPOINT_URL", settings.endpoint_url.as_deref()),
        (
            "endpoint_url in the profile's services section",
            section.as_deref(),
        ),
        ("endpoint_url in the profile", in_profile.any.as_deref()),
    ];
    let found = find_override(&ranked)?;
    let set = ranked.iter().find(|(_, value)| value.is_some());
    for (wish, wanted) in [
        ("AWS_USE_FIPS_ENDPOINT", settings.use_fips),
        ("AWS_USE_DUALSTACK_ENDPOINT", settings.use_dual_stack),
    ] {
        if let (Some(true), Some((name, _))) = (wanted, set) {
            return Err(format!(
                "{name} and {wish} (or its key in the profile) exclude each other: unset one"
            ));
        }
    }
    Ok(found)
}

/// The first override that is set, out of `(setting, value)`, as a URL with a path.
///
/// The port is written as ureq will write it into `Host`, which is signed: without the scheme's
/// default, without leading zeros.
///
/// # Errors
/// Names the setting, never its value, which may hold a password.
fn find_override(settings: &[(&str, Option<&str>)]) -> Result<Option<String>, String> {
    let Some((name, text)) = settings
        .iter()
        .find_map(|(name, text)| text.map(|text| (name, text)))
    else {
        return Ok(None);
    };
    normal_url(text.trim())
        .map(Some)
        .ok_or_else(|| format!("{name} is not a URL: set it to http(s)://host[:port][/path]"))
}

fn normal_url(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => ("http", 80),
        "https" => ("https", 443),
        _ => return None,
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path_ok = path
        .bytes()
        .all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'"' | b'<' | b'>' | b'\\'));
    if !oci::is_authority(authority) || !path_ok {
        return None;
    }
    let (host, port) = oci::split_port(authority);
    let host = host.to_ascii_lowercase();
    match port.and_then(|port| port.parse::<u16>().ok()) {
        Some(port) if port != default_port => Some(format!("{scheme}://{host}:{port}/{path}")),
        _ => Some(format!("{scheme}://{host}/{path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_pick_their_partition() {
        let table = [
            ("eu-west-1", "amazonaws.com", "api.aws"),
            ("us-gov-west-1", "amazonaws.com", "api.aws"),
            (
                "cn-north-1",
                "amazonaws.com.cn",
                "api.amazonwebservices.com.cn",
            ),
            ("eusc-de-east-1", "amazonaws.eu", "api.amazonwebservices.eu"),
            ("us-iso-east-1", "c2s.ic.gov", "api.aws.ic.gov"),
            ("us-isob-east-1", "sc2s.sgov.gov", "api.aws.scloud"),
            ("eu-isoe-west-1", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
            ("us-isof-south-1", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
            ("moon-base-1", "amazonaws.com", "api.aws"),
        ];
        for (region, suffix, dual_stack_suffix) in table {
            let found = partition(region);
            assert_eq!(
                (found.suffix, found.dual_stack_suffix),
                (suffix, dual_stack_suffix),
                "{region}"
            );
        }
    }

    #[test]
    fn region_names_are_host_labels() {
        assert_eq!(region(" EU-West-1\n").as_deref(), Some("eu-west-1"));
        let long = "a".repeat(REGION_LENGTH_MAX + 1);
        for bad in ["", "-a", "eu west", "eu.west", "a/b", "a@b", "é", &long] {
            assert_eq!(region(bad), None, "{bad}");
        }
    }

    #[test]
    fn overrides_keep_their_port_and_path() {
        let table = [
            ("http://127.0.0.1:5951", "http://127.0.0.1:5951/"),
            ("HTTPS://Ecr.Example:0443", "https://ecr.example/"),
            ("https://h:80/base/", "https://h:80/base/"),
            ("http://[::1]:80/x", "http://[::1]/x"),
        ];
        for (text, url) in table {
            let found = find_override(&[("A", None), ("B", Some(text)), ("C", Some("x"))]);
            assert_eq!(found, Ok(Some(url.to_owned())), "{text}");
        }
        assert_eq!(find_override(&[("A", None)]), Ok(None));
    }

    #[test]
    fn the_variables_beat_the_profile_and_the_service_beats_all() {
        let mut settings = AwsSettings::default();
        let found = |settings: &AwsSettings| {
            [Service::Ecr, Service::Sts, Service::EcrPublic]
                .map(|service| custom(settings, service).unwrap())
                .map(|url| {
                    url.unwrap_or_default()
                        .replace("http://", "")
                        .replace('/', "")
                })
        };
        assert_eq!(found(&settings), ["", "", ""]);
        settings.profile_endpoints.any = Some("http://profile".into());
        assert_eq!(found(&settings), ["profile", "profile", "profile"]);
        settings.profile_endpoints.ecr = Some("http://section-ecr".into());
        settings.profile_endpoints.sts = Some("http://section-sts".into());
        assert_eq!(found(&settings), ["section-ecr", "section-sts", "profile"]);
        settings.endpoint_url = Some("http://any".into());
        assert_eq!(found(&settings), ["any", "any", "any"]);
        settings.endpoint_url_ecr = Some("http://ecr".into());
        settings.endpoint_url_sts = Some("http://sts".into());
        assert_eq!(found(&settings), ["ecr", "sts", "any"]);
        settings.ignore_endpoint_urls = Some(true);
        assert_eq!(found(&settings), ["", "", ""]);
    }

    #[test]
    fn an_override_beside_fips_or_dual_stack_is_a_fault() {
        let mut settings = AwsSettings {
            endpoint_url_sts: Some("http://h".into()),
            use_fips: Some(true),
            ..AwsSettings::default()
        };
        assert_eq!(custom(&settings, Service::Ecr), Ok(None));
        let fault = custom(&settings, Service::Sts).unwrap_err();
        assert!(
            fault.starts_with("AWS_ENDPOINT_URL_STS and AWS_USE_FIPS_ENDPOINT"),
            "{fault}"
        );
        settings.use_fips = Some(false);
        assert!(custom(&settings, Service::Sts).is_ok());
        settings.use_dual_stack = Some(true);
        let fault = custom(&settings, Service::Sts).unwrap_err();
        assert!(fault.contains("AWS_USE_DUALSTACK_ENDPOINT"), "{fault}");
        settings.ignore_endpoint_urls = Some(true);
        assert_eq!(custom(&settings, Service::Sts), Ok(None));
    }

    #[test]
    fn a_bad_override_names_the_setting_but_not_its_value() {
        for bad in [
            "",
            "host",
            "ftp://h",
            "http://",
            "http://u:hunter2@h",
            "http://h:0",
            "http://h/a b",
            "http://h/?q",
        ] {
            let fault = find_override(&[("AWS_ENDPOINT_URL", Some(bad))]).unwrap_err();
            assert!(fault.starts_with("AWS_ENDPOINT_URL is not"), "{bad}");
            assert!(!fault.contains("hunter2"));
        }
    }
}
