//! The settings that list registries. Owns: their values and how they are written. Must not: act on
//! them.

use super::fault::mask;
use super::parse::list;
use crate::oci::{self, Registry, Repository};

/// Most entries of `BLOB_HOSTS`: every redirect is compared with each of them.
const BLOB_HOSTS_MAX: usize = 64;
/// Most entries of `NAMESPACES`: each request with `ns` is compared with each of them.
const ORIGINS_MAX: usize = 64;
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

/// An entry of `NAMESPACES`: where the images of another registry are kept (a pull-through cache
/// rule of ECR has a prefix for each).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOrigin {
    /// `host[:port]` as clients name it, lower case: `docker.io`
    pub name: String,
    /// `host[:port]` of one of the registries; none: the default one
    pub registry: Option<String>,
    /// The prefix of the origin's repositories there, without a slash at its end. It may be empty
    /// when there is a registry
    pub prefix: String,
}

/// `NAMESPACES`
pub(super) fn origins(text: &str) -> Result<Vec<ImageOrigin>, String> {
    let mut origins: Vec<ImageOrigin> = Vec::new();
    for entry in list(text) {
        let origin = origin(entry).map_err(|why| format!("{} {why}", mask(entry)))?;
        if origins.iter().any(|other| other.name == origin.name) {
            return Err(format!("{} is there twice", origin.name));
        }
        origins.push(origin);
    }
    match origins.len() {
        0 => Err(String::new()),
        count if count > ORIGINS_MAX => Err(format!("these are {count}")),
        _ => Ok(origins),
    }
}

fn origin(entry: &str) -> Result<ImageOrigin, String> {
    let (name, place) = entry.split_once('=').ok_or("has no =")?;
    let (name, place) = (name.trim(), place.trim());
    if !oci::is_authority(name) {
        return Err("has no host before its =".to_owned());
    }
    // As docker tells a host from the first part of a repository's name.
    let (first, rest) = place.split_once('/').unwrap_or((place, ""));
    let is_host = first.contains(['.', ':']) || first == "localhost";
    let (registry, prefix) = match is_host {
        true => (Some(first.to_ascii_lowercase()), rest),
        false => (None, place),
    };
    if registry
        .as_ref()
        .is_some_and(|host| !oci::is_authority(host))
    {
        return Err("has no host of a registry after its =".to_owned());
    }
    let is_missing = prefix.is_empty() && registry.is_some();
    if !is_missing && prefix.parse::<Repository>().is_err() {
        return Err("has no repository's name after its =".to_owned());
    }
    Ok(ImageOrigin {
        name: name.to_ascii_lowercase(),
        registry,
        prefix: prefix.to_owned(),
    })
}

/// The fault of an entry of `NAMESPACES` whose registry is not in `ECR`. Without `ECR` the token
/// names the registry, and only a request can show whether it is that one.
pub(super) fn unknown_registry(origins: &[ImageOrigin], registries: &[Registry]) -> Option<String> {
    let mut named = origins.iter().filter_map(|origin| {
        let registry = origin.registry.as_deref()?;
        Some((&origin.name, registry))
    });
    let is_known = |host: &str| registries.iter().any(|registry| registry.is_called(host));
    let unknown = named.find(|(_, host)| !registries.is_empty() && !is_known(host));
    unknown.map(|(origin, host)| {
        format!(
            "NAMESPACES={origin}={host}…: expected {host} to be in ECR too (the first part of a \
             prefix has no dot or colon: write HOST/PREFIX with a registry of ECR as HOST)"
        )
    })
}

/// `ECR`
pub(super) fn registries(text: &str) -> Result<Vec<Registry>, String> {
    let mut registries: Vec<Registry> = Vec::new();
    for entry in list(text) {
        let shown = mask(entry);
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
        Some(bad) => Err(format!("{} is none of these", mask(bad))),
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
    fn origins_have_a_place_each() {
        let read = origins("docker.io=docker-hub, Quay.IO=r.example:5000/quay/x ,k8s=localhost");
        let origin = |name: &str, registry: Option<&str>, prefix: &str| ImageOrigin {
            name: name.to_owned(),
            registry: registry.map(str::to_owned),
            prefix: prefix.to_owned(),
        };
        assert_eq!(
            read.unwrap(),
            [
                origin("docker.io", None, "docker-hub"),
                origin("quay.io", Some("r.example:5000"), "quay/x"),
                origin("k8s", Some("localhost"), ""),
            ]
        );
        for (bad, why) in [
            ("docker.io", "docker.io has no ="),
            ("docker.io=", "no repository's name"),
            ("docker.io=/hub", "no repository's name"),
            ("docker.io=hub/", "no repository's name"),
            ("docker.io=Hub", "no repository's name"),
            ("docker.io=r.example/a b", "no repository's name"),
            ("docker.io=r.example:x", "no host of a registry"),
            ("=hub", "no host before"),
            ("https://docker.io=hub", "no host before"),
            ("docker.io/library=hub", "no host before"),
            ("docker.io=a,DOCKER.io=b", "docker.io is there twice"),
        ] {
            let fault = origins(bad).unwrap_err();
            assert!(fault.contains(why), "{bad}: {fault}");
        }
        assert_eq!(origins(","), Err(String::new()));
        let many: String = (0..=ORIGINS_MAX).map(|n| format!("o{n}=p,")).collect();
        assert_eq!(origins(&many), Err("these are 65".to_owned()));
    }

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
