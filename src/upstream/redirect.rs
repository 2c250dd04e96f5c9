//! The targets of redirects. Owns: the closed list of hosts and the resolution of a `Location`.
//! Must not: connect anywhere.
//!
//! A registry's redirect decides where the proxy connects to, so only hosts that serve layers are
//! followed: buckets of S3, ECR Public's CloudFront, the registry's host, and what `BLOB_HOSTS`
//! adds.

use std::net::IpAddr;

use super::address_rule::AddressRule;
use super::resolver::is_localhost;
use crate::oci::{self, Registry, Scheme};

/// Redirects in a row at the most: ECR needs one, CloudFront in front of S3 two.
pub const REDIRECTS_MAX: usize = 5;

/// Suffixes of S3 in every partition (botocore's endpoints.json).
const S3_SUFFIXES: [&str; 7] = [
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".c2s.ic.gov",
    ".sc2s.sgov.gov",
    ".cloud.adc-e.uk",
    ".csp.hci.ic.gov",
];
const CLOUDFRONT_SUFFIX: &str = ".cloudfront.net";

/// A URL taken apart as far as following a redirect needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// http or https.
    pub scheme: Scheme,
    /// Host and port, as written.
    pub authority: String,
    /// Path and query, byte for byte; starts with a slash.
    pub target: String,
}

impl Url {
    /// `registry`'s URL for `target`. Another proxy gets a parameter that names one of its
    /// registries.
    pub fn for_registry(registry: &Registry, target: &str) -> Self {
        let target = match registry.namespace() {
            None => target.to_owned(),
            Some(name) => {
                let separator = if target.contains('?') { '&' } else { '?' };
                format!("{target}{separator}ns={}", name.replace(':', "%3A"))
            }
        };
        Self {
            scheme: registry.scheme(),
            authority: registry.authority().to_owned(),
            target,
        }
    }

    /// Scheme, host and port: what may be shown (a query may hold a signature).
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme.as_str(), self.authority)
    }

    /// The whole URL.
    pub fn whole(&self) -> String {
        format!("{}{}", self.origin(), self.target)
    }

    /// Resolves a `Location` against this URL (RFC 3986 §5.2 as far as registries use it:
    /// absolute, `//host/path`, `/path`).
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn join(&self, location: &str) -> Result<Self, &'static str> {
        let location = location.split('#').next().unwrap_or_default();
        let (scheme, rest) = if let Some(rest) = location.strip_prefix("//") {
            (self.scheme, rest)
        } else if location.starts_with('/') {
            return Ok(Self {
                target: location.to_owned(),
                ..self.clone()
            });
        } else {
            match location.split_once("://") {
                Some((name, rest)) if name.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
                Some((name, rest)) if name.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
                _ => return Err("neither an http URL nor a path"),
            }
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !oci::is_authority(authority) {
            return Err("its host is not a host name with an optional port");
        }
        let target = if target.starts_with('/') {
            target.into()
        } else {
            format!("/{target}")
        };
        Ok(Self {
            scheme,
            authority: authority.to_ascii_lowercase(),
            target,
        })
    }
}

/// The closed list of hosts.
#[derive(Debug, Clone)]
pub struct Redirects {
    blob_hosts: Vec<String>,
    /// Authorities that `ECR` gives.
    registries: Vec<String>,
    /// AWS's API is replaced by one on this host, so its registry may be here too.
    has_local_api: bool,
}

impl Redirects {
    /// `blob_hosts`: `host`, `host:port`, or `.suffix` (`*.suffix` too); `registries`: those that
    /// the operator gave; `endpoints`: URLs that the operator gave for AWS's API.
    pub fn new(blob_hosts: &[String], registries: &[Registry], endpoints: &[&str]) -> Self {
        let lower = |host: &String| host.trim_start_matches('*').to_ascii_lowercase();
        let authorities = registries
            .iter()
            .map(|registry| registry.authority().into());
        Self {
            blob_hosts: blob_hosts.iter().map(lower).collect(),
            registries: authorities.collect(),
            has_local_api: endpoints.iter().any(|endpoint| is_on_this_host(endpoint)),
        }
    }

    /// Which addresses the host of `url` may have. That the operator gave it by a suffix says
    /// nothing of its addresses.
    pub fn address_rule(&self, registry: &Registry, url: &Url) -> AddressRule {
        let authority = url.authority.to_ascii_lowercase();
        let host = oci::host_of(&authority);
        let mut given = self.blob_hosts.iter().chain(&self.registries);
        let is_given = given.any(|given| *given == authority || oci::host_of(given) == host)
            || self.has_local_api && host == registry.host();
        match is_given {
            true if address_of(host).is_some() || is_localhost(host) => AddressRule::Any,
            true => AddressRule::NotMetadata,
            false => AddressRule::NotLocal,
        }
    }

    /// Says whether `registry` may send us to `url`.
    ///
    /// # Errors
    /// The fault, and the setting that allows such a URL.
    pub fn check(&self, registry: &Registry, url: &Url) -> Result<(), String> {
        if registry.scheme() == Scheme::Https && url.scheme == Scheme::Http {
            return Err(format!("{} is not https, as the registry is", url.origin()));
        }
        let host = oci::host_of(&url.authority).to_ascii_lowercase();
        let is_registry = host == registry.host();
        let has_own_port = oci::split_port(&url.authority)
            .1
            .is_some_and(|port| port != "443");
        let is_aws = is_s3_bucket(&host) || is_cloudfront_of(registry, &host);
        let is_aws = is_aws && !has_own_port;
        if is_registry || is_aws || self.is_listed(&url.authority) {
            return Ok(());
        }
        Err(format!(
            "{host} is no bucket of S3, nor ECR Public's CloudFront; add it to BLOB_HOSTS if it \
             serves layers"
        ))
    }

    fn is_listed(&self, authority: &str) -> bool {
        let authority = authority.to_ascii_lowercase();
        let host = oci::host_of(&authority);
        self.blob_hosts.iter().any(|listed| {
            listed == host
                || *listed == authority
                || listed.starts_with('.') && host.ends_with(listed)
        })
    }
}

fn address_of(host: &str) -> Option<IpAddr> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok()
}

fn is_on_this_host(url: &str) -> bool {
    let authority = url.split("://").nth(1).unwrap_or_default();
    let authority = authority.split('/').next().unwrap_or_default();
    let host = oci::host_of(authority);
    is_localhost(host) || address_of(host).is_some_and(|address| address.is_loopback())
}

/// `BUCKET.s3.REGION.SUFFIX` and its kin (S3 user guide, "Virtual hosting of buckets" and
/// "Dual-stack endpoints"): the region may be left out or follow a dash, `dualstack` stand before
/// it, and `-fips` follow the `s3`. A bucket with dots has no certificate, and ECR's have none; so
/// what other services put under these suffixes, where anybody may have a name, does not fit.
fn is_s3_bucket(host: &str) -> bool {
    let name = S3_SUFFIXES
        .iter()
        .find_map(|suffix| host.strip_suffix(suffix));
    let labels: Vec<&str> = name.unwrap_or_default().split('.').collect();
    match labels[..] {
        [bucket, service] => is_label(bucket) && is_s3_with_region(service),
        [bucket, "s3" | "s3-fips", region] | [bucket, "s3" | "s3-fips", "dualstack", region] => {
            is_label(bucket) && is_region(region)
        }
        _ => false,
    }
}

/// `s3`, or `s3-eu-west-1`, as the oldest regions have it.
fn is_s3_with_region(label: &str) -> bool {
    label == "s3" || label.strip_prefix("s3-").is_some_and(is_region)
}

/// `eu-west-1`: words, the first one short, and a number.
fn is_region(label: &str) -> bool {
    let words: Vec<&str> = label.split('-').collect();
    let Some((number, words)) = words.split_last() else {
        return false;
    };
    if words.first().is_none_or(|first| first.len() > 4) {
        return false;
    }
    let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
    let is_number = (1..=2).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    is_number && words.len() >= 2 && words.iter().all(is_word)
}

fn is_label(label: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !label.is_empty() && label.bytes().all(is_allowed)
}

/// `d111111abcdef8.cloudfront.net` (CloudFront developer guide, "Domain name"), for registries that
/// use it.
fn is_cloudfront_of(registry: &Registry, host: &str) -> bool {
    let known_as = oci::host_of(registry.name());
    let label = host.strip_suffix(CLOUDFRONT_SUFFIX).unwrap_or_default();
    let is_name = label.starts_with('d') && label.bytes().all(|b| b.is_ascii_alphanumeric());
    is_name && oci::ECR_PUBLIC_HOSTS.contains(&known_as)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(url: &str) -> Registry {
        url.parse().unwrap()
    }

    fn check(from: &str, to: &str, hosts: &[&str]) -> bool {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let registry = registry(from);
        let url = Url::for_registry(&registry, "/v2/").join(to).unwrap();
        Redirects::new(&hosts, &[], &[])
            .check(&registry, &url)
            .is_ok()
    }

    const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

    #[test]
    fn aws_hosts_are_followed() {
        for host in [
            "prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com",
            "prod-us-east-1-starport-layer-bucket.s3.amazonaws.com",
            "prod-x-starport-layer-bucket.s3.dualstack.eu-west-1.amazonaws.com",
            "b.s3.cn-north-1.amazonaws.com.cn",
            "b.s3-fips.us-gov-west-1.amazonaws.com",
            "b.s3-fips.dualstack.us-gov-west-1.amazonaws.com",
            "b.s3-eu-west-1.amazonaws.com",
            "b.s3.us-iso-east-1.c2s.ic.gov",
            "b.s3.eusc-de-east-1.amazonaws.eu",
            ECR,
        ] {
            assert!(check(ECR, &format!("https://{host}/x?y"), &[]), "{host}");
            assert!(!check(ECR, &format!("http://{host}/x?y"), &[]), "{host}");
        }
    }

    #[test]
    fn cloudfront_is_for_ecr_public() {
        let cloudfront = "https://d5l0dvt14r5h8.cloudfront.net/x";
        assert!(check("https://public.ecr.aws", cloudfront, &[]));
        assert!(!check(ECR, cloudfront, &[]));
        assert!(check(ECR, cloudfront, &[".cloudfront.net"]));
        let odd = "https://a.d5l0dvt14r5h8.cloudfront.net/x";
        assert!(!check("https://public.ecr.aws", odd, &[]));
        let chained: Registry = "http://proxy".parse().unwrap();
        let chained = chained.serving("public.ecr.aws");
        let url = Url::for_registry(&registry(ECR), "/")
            .join(cloudfront)
            .unwrap();
        assert!(Redirects::new(&[], &[], &[]).check(&chained, &url).is_ok());
    }

    #[test]
    fn only_given_hosts_may_be_local() {
        let hosts = ["b.example", "10.0.0.1:5", ".suffix.example"].map(str::to_owned);
        let registries = ["http://127.0.0.1:5000", "r.example"].map(registry);
        let redirects = Redirects::new(&hosts, &registries, &["https://api.example"]);
        for (host, expected) in [
            ("127.0.0.1:5000", AddressRule::Any),
            ("127.0.0.1:9", AddressRule::Any),
            ("10.0.0.1:5", AddressRule::Any),
            ("r.example", AddressRule::NotMetadata),
            ("b.example:8443", AddressRule::NotMetadata),
            ("127.0.0.2", AddressRule::NotLocal),
            ("localhost", AddressRule::NotLocal),
            ("a.suffix.example", AddressRule::NotLocal),
            ("b.s3.eu-west-1.amazonaws.com", AddressRule::NotLocal),
        ] {
            let url = Url::for_registry(&registry(ECR), "/");
            let url = url.join(&format!("http://{host}/")).unwrap();
            let found = redirects.address_rule(&registry(ECR), &url);
            assert_eq!(found, expected, "{host}");
        }
        // An API on this host may name a registry on this host, but no blob host.
        for endpoint in [
            "http://127.0.0.1:4566",
            "http://localhost/x",
            "https://[::1]:1",
        ] {
            let redirects = Redirects::new(&[], &[], &[endpoint]);
            let own = Url::for_registry(&registry(ECR), "/");
            let rule = redirects.address_rule(&registry(ECR), &own);
            assert_eq!(rule, AddressRule::NotMetadata, "{endpoint}");
            let blob_host = own.join("https://b.s3.eu-west-1.amazonaws.com/").unwrap();
            let rule = redirects.address_rule(&registry(ECR), &blob_host);
            assert_eq!(rule, AddressRule::NotLocal, "{endpoint}");
        }
    }

    #[test]
    fn other_hosts_are_not() {
        for host in [
            "evil.example",
            "169.254.169.254",
            "localhost",
            "s3.amazonaws.com.evil.example",
            "ec2-1-2-3-4.compute-1.amazonaws.com",
            "evilcloudfront.net",
            // Names that anybody may have under AWS's suffixes.
            "s3.lambda-url.eu-west-1.on.aws",
            "s3.eu-west-1.elb.amazonaws.com",
            "x.s3.execute-api.eu-west-1.amazonaws.com",
            "s3-x.execute-api.eu-west-1.amazonaws.com",
            "b.s3-website-eu-west-1.amazonaws.com",
            "b.s3-website.eu-west-1.amazonaws.com",
            "b.s3-accesspoint.eu-west-1.amazonaws.com",
            "a.execute-api.eu-west-1.amazonaws.com.s3.amazonaws.com",
            "a.b.s3.eu-west-1.amazonaws.com",
            "b.s3.elb.amazonaws.com",
            "b.s3.dualstack.amazonaws.com",
            ".s3.amazonaws.com",
            "s3.amazonaws.com",
        ] {
            assert!(!check(ECR, &format!("https://{host}/"), &[]), "{host}");
        }
    }

    #[test]
    fn blob_hosts_are_added() {
        let from = "http://127.0.0.1:5000";
        assert!(check(from, "http://127.0.0.1:9/x", &[]));
        assert!(!check(from, "http://127.0.0.2:9/x", &[]));
        assert!(check(from, "http://127.0.0.2:9/x", &["127.0.0.2"]));
        assert!(check(from, "http://127.0.0.2:9/x", &["127.0.0.2:9"]));
        assert!(!check(from, "http://127.0.0.2:9/x", &["127.0.0.2:8"]));
        assert!(check(ECR, "https://a.blobs.example/", &[".blobs.example"]));
        assert!(check(ECR, "https://a.blobs.example/", &["*.Blobs.example"]));
        assert!(!check(ECR, "https://ablobs.example/", &[".blobs.example"]));
    }

    #[test]
    fn locations_are_resolved() {
        let base = Url::for_registry(&registry("http://r:1"), "/v2/a?x");
        let joined = |location| base.join(location).map(|url| url.whole());
        assert_eq!(joined("/b?c=%2B/="), Ok("http://r:1/b?c=%2B/=".into()));
        assert_eq!(joined("//S3/b"), Ok("http://s3/b".into()));
        assert_eq!(joined("HTTPS://s3?q#f"), Ok("https://s3/?q".into()));
        assert!(joined("b").is_err());
        assert!(joined("ftp://a/").is_err());
        assert!(joined("http://u:p@a/").is_err());
        assert!(joined("http:///a").is_err());
    }
}
