//! Where a redirect may lead. Owns: the closed list of hosts and the resolution of a `Location`.
//! Must not: connect anywhere.
//!
//! A registry's redirect decides where the proxy connects to, so only hosts that serve layers are
//! followed: AWS's own S3 and CloudFront names, the registry's host, and what `BLOB_HOSTS` adds.

use crate::oci::{self, Registry, Scheme};

/// Redirects in a row at the most: ECR needs one, CloudFront in front of S3 two.
pub const REDIRECTS_MAX: usize = 5;

/// Suffixes under which AWS serves S3, in every partition; the name must have an `s3` label too.
const S3_SUFFIXES: [&str; 9] = [
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.aws",
    ".on.aws",
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
}

impl Redirects {
    /// `blob_hosts`: `host`, `host:port`, or `.suffix` (`*.suffix` too).
    pub fn new(blob_hosts: &[String]) -> Self {
        let lower = |host: &String| host.trim_start_matches('*').to_ascii_lowercase();
        Self {
            blob_hosts: blob_hosts.iter().map(lower).collect(),
        }
    }

    /// Says whether `registry` may send us to `url`.
    ///
    /// # Errors
    /// What is wrong with it and which setting allows it.
    pub fn check(&self, registry: &Registry, url: &Url) -> Result<(), String> {
        if registry.scheme() == Scheme::Https && url.scheme == Scheme::Http {
            return Err(format!("{} is not https, as the registry is", url.origin()));
        }
        let host = oci::host_of(&url.authority).to_ascii_lowercase();
        if host == registry.host() || is_aws_blob_host(&host) || self.is_listed(&url.authority) {
            return Ok(());
        }
        Err(format!(
            "{host} is no host of S3 or CloudFront; add it to BLOB_HOSTS if it serves layers"
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

fn is_aws_blob_host(host: &str) -> bool {
    // Without the label, a name such as that of an EC2 instance would do, which anybody can own.
    let has_s3_label = || {
        host.split('.')
            .any(|label| label == "s3" || label.starts_with("s3-"))
    };
    host.ends_with(CLOUDFRONT_SUFFIX)
        || S3_SUFFIXES.iter().any(|suffix| host.ends_with(suffix)) && has_s3_label()
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
        Redirects::new(&hosts).check(&registry, &url).is_ok()
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
            "d5l0dvt14r5h8.cloudfront.net",
            ECR,
        ] {
            assert!(check(ECR, &format!("https://{host}/x?y"), &[]), "{host}");
            assert!(!check(ECR, &format!("http://{host}/x?y"), &[]), "{host}");
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
