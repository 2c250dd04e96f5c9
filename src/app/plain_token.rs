//! The registries that may get an ECR token. Owns: which registries in the settings need
//! `ALLOW_PLAIN_TOKEN`. Must not: know which token goes where (`aws` does).
//!
//! A token opens every registry that the identity may use, for twelve hours. A typing error in
//! `ECR` must not hand it to a stranger, or to everybody on the way.

use std::net::IpAddr;

use crate::aws::ecr::EcrHost;
use crate::config::{Settings, UpstreamAuth};
use crate::oci::{Registry, Scheme};

/// Domains of the private endpoints for registries, below which each VPC has names of its own
/// (Amazon ECR user guide, "Amazon ECR interface VPC endpoints").
const PRIVATE_DOMAINS: [&str; 2] = [".vpce.amazonaws.com", ".vpce.amazonaws.com.cn"];

/// The faults of registries in `ECR` that would be sent a token in clear, or are not ECR's by their
/// name. None when the settings allow that, or when no token is sent at all.
pub(crate) fn faults(settings: &Settings) -> Vec<String> {
    let sends_none = settings.upstream_auth == UpstreamAuth::None || settings.offline;
    if settings.allow_plain_token || sends_none {
        return Vec::new();
    }
    let registries = settings.registries.iter();
    registries.filter_map(fault).collect()
}

fn fault(registry: &Registry) -> Option<String> {
    if is_loopback(registry.host()) {
        return None;
    }
    let why = if registry.scheme() == Scheme::Http {
        "the ECR token would travel over http; write https://"
    } else if !is_ecr_name(registry.authority()) {
        "this is no name of ECR's, and would be sent the ECR token; correct it"
    } else {
        return None;
    };
    let url = registry.url();
    Some(format!(
        "ECR={url}: {why}, or set ALLOW_PLAIN_TOKEN=true (for another proxy, which needs no token, \
         UPSTREAM_AUTH=none)"
    ))
}

/// True for a name or an address of this machine. `localhost` is never looked up.
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_matches(['[', ']']);
    match bare.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => bare.eq_ignore_ascii_case("localhost"),
    }
}

/// True for the name of a registry of ECR, also below a VPC's own endpoint.
fn is_ecr_name(authority: &str) -> bool {
    if EcrHost::parse(authority).is_some() {
        return true;
    }
    let host = crate::oci::host_of(authority).to_ascii_lowercase();
    let mut domains = PRIVATE_DOMAINS.iter();
    let rest = domains.find_map(|domain| host.strip_suffix(domain));
    // vpce-ID.dkr.ecr.REGION
    let mut labels = rest.unwrap_or_default().splitn(4, '.');
    let mut label = || labels.next().unwrap_or_default();
    let (id, service, name, region) = (label(), label(), label(), label());
    id.starts_with("vpce-")
        && (service, name) == ("dkr", "ecr")
        && !region.is_empty()
        && !region.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(registries: &str, more: &[(&str, &str)]) -> Vec<String> {
        let own = [("ECR", registries)];
        let pairs = own.iter().chain(more);
        let environment: Vec<_> = pairs
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let arguments = crate::config::Arguments::parse([]);
        let settings = crate::config::resolve(&arguments, &environment).settings;
        faults(&settings.unwrap())
    }

    #[test]
    fn a_token_goes_to_names_of_ecr_by_https_and_to_loopback() {
        for good in [
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "https://123456789012.dkr.ecr-fips.us-east-1.amazonaws.com:443",
            "123456789012.dkr-ecr.eu-west-1.on.aws",
            "public.ecr.aws",
            "vpce-0a1b2c3d-4e5f6a7b.dkr.ecr.eu-west-1.vpce.amazonaws.com",
            "vpce-0a1b2c3d-4e5f6a7b.dkr.ecr.cn-north-1.vpce.amazonaws.com.cn",
            "http://127.0.0.1:5000",
            "http://127.8.9.10",
            "http://localhost:5000",
            "http://[::1]:5000",
            "https://[::ffff:127.0.0.1]:5000",
        ] {
            assert_eq!(faults_of(good, &[]), [""; 0], "{good}");
        }
    }

    #[test]
    fn a_token_goes_nowhere_else_without_leave() {
        for (bad, why) in [
            (
                "http://123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "http;",
            ),
            ("http://registry.example:5000", "http;"),
            ("http://10.0.0.1:5000", "http;"),
            ("http://localhost.example", "http;"),
            ("http://127.0.0.1.example", "http;"),
            ("http://[fe80::1]", "http;"),
            ("registry.example", "no name of ECR's"),
            ("10.0.0.1", "no name of ECR's"),
            ("23456789012.dkr.ecr.eu-west-1.amazonaws.com", "no name"),
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
                "no name",
            ),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.co", "no name"),
            (
                "vpce-1.dkr.ecr.eu-west-1.vpce.amazonaws.com.example",
                "no name",
            ),
            ("vpce-1.dkr.ecr.vpce.amazonaws.com", "no name"),
            ("vpce-1.s3.ecr.eu-west-1.vpce.amazonaws.com", "no name"),
        ] {
            let faults = faults_of(bad, &[]);
            assert_eq!(faults.len(), 1, "{bad}");
            assert!(faults[0].starts_with("ECR="), "{faults:?}");
            assert!(faults[0].contains(why), "{faults:?}");
            assert!(faults[0].contains("ALLOW_PLAIN_TOKEN=true"), "{faults:?}");
            assert_eq!(faults_of(bad, &[("ALLOW_PLAIN_TOKEN", "true")]), [""; 0]);
            assert_eq!(faults_of(bad, &[("UPSTREAM_AUTH", "none")]), [""; 0]);
            assert_eq!(faults_of(bad, &[("OFFLINE", "true")]), [""; 0]);
        }
        // Each registry counts.
        let two = "public.ecr.aws,a.example,http://b.example";
        assert_eq!(faults_of(two, &[]).len(), 2);
    }
}
