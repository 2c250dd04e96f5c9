//! The settings of which registries there are. Owns: their values and how they are written. Must
//! not: act on them.

use super::parse::list;
use crate::oci::{self, Registry};

/// Most entries of `BLOB_HOSTS`: every redirect is held against each of them.
const BLOB_HOSTS_MAX: usize = 64;
/// Entries of `ECR`: as many as regions can have a token at a time.
const REGISTRIES_MAX: usize = 64;

/// How to authenticate upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpstreamAuth {
    /// With an ECR token.
    #[default]
    Ecr,
    /// Not at all: the upstream is another `aws-ecr-proxy`.
    None,
}

impl UpstreamAuth {
    pub(super) const WORDS: &[(&str, Self)] = &[("ecr", Self::Ecr), ("none", Self::None)];
}

/// `ECR`
pub(super) fn registries(text: &str) -> Result<Vec<Registry>, String> {
    let mut registries: Vec<Registry> = Vec::new();
    for entry in list(text) {
        let shown = super::mask(entry);
        let registry: Registry = entry.parse().map_err(|why| format!("{shown} has {why}"))?;
        // Two registries of one name could not be told apart.
        let mut others = registries.iter();
        if others.any(|other| is_same_host(other, &registry)) {
            return Err(format!("{shown} is there twice"));
        }
        registries.push(registry);
    }
    match registries.len() {
        0 => Err(String::new()),
        count if count > REGISTRIES_MAX => Err(format!("these are {count}")),
        _ => Ok(registries),
    }
}

fn is_same_host(one: &Registry, other: &Registry) -> bool {
    one.is_called(other.name()) || other.is_called(one.name())
}

/// `BLOB_HOSTS`
pub(super) fn blob_hosts(text: &str) -> Result<Vec<String>, String> {
    let hosts: Vec<String> = list(text).map(str::to_ascii_lowercase).collect();
    if hosts.len() > BLOB_HOSTS_MAX {
        return Err(format!("these are {}", hosts.len()));
    }
    // A lone dot, or a suffix that is only one label, would open whole top-level domains.
    let fit = |host: &&String| match host.strip_prefix('.') {
        Some(suffix) => suffix.contains('.') && !suffix.contains(':') && is_host(suffix),
        None => is_host(host),
    };
    match hosts.iter().find(|host| !fit(host)) {
        Some(bad) => Err(format!("{} is none of these", super::mask(bad))),
        None => Ok(hosts),
    }
}

/// An authority whose host has no empty label at its start.
fn is_host(text: &str) -> bool {
    !text.starts_with('.') && oci::is_authority(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_hosts_are_hosts_ports_and_suffixes() {
        let hosts = blob_hosts("S3.local:9000, .cdn.example.com,,[::1]:80").unwrap();
        assert_eq!(hosts, ["s3.local:9000", ".cdn.example.com", "[::1]:80"]);
        for bad in [
            ".", ".com", "..a.b", "*.a.b", "http://h", "h/p", "h:0", "a b", ".a.b:80", "u:p@h",
        ] {
            let why = blob_hosts(bad).unwrap_err();
            assert!(why.ends_with("is none of these"), "{bad}: {why}");
        }
        let many = "h,".repeat(BLOB_HOSTS_MAX + 1);
        assert_eq!(blob_hosts(&many).unwrap_err(), "these are 65");
    }
}
