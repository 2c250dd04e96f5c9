//! The name of an image as people write it. Owns: [`ImageName`]. Must not: do I/O, or know which
//! registries there are.

use std::fmt;
use std::str::FromStr;

use crate::oci::{Digest, OciError, Reference, Registry, Repository, Tag, is_authority};

/// The tag of a name that has neither tag nor digest, as clients have it.
const DEFAULT_TAG: &str = "latest";

/// `[HOST/]REPOSITORY[:TAG][@DIGEST]`. With a tag and a digest, the digest counts and the tag is
/// kept for people to read, as in docker and podman. With neither, the tag is `latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    host: Option<String>,
    repository: Repository,
    /// The digest, else the tag.
    reference: Reference,
    /// The tag, also beside a digest.
    tag: Option<Tag>,
}

impl ImageName {
    /// `host[:port]`, lower case; none: the first registry is meant.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The repository.
    pub const fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The tag that was named, or `latest` without a digest.
    pub const fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    /// The digest that was named.
    pub const fn digest(&self) -> Option<&Digest> {
        match &self.reference {
            Reference::Digest(digest) => Some(digest),
            Reference::Tag(_) => None,
        }
    }

    /// The digest, else the tag.
    pub const fn reference(&self) -> &Reference {
        &self.reference
    }

    /// True when the image is in this registry. `first`: it is the one that a name without a host
    /// means.
    pub fn is_in(&self, registry: &Registry, first: bool) -> bool {
        self.host.as_deref().map_or(first, |host| {
            registry.is_called(host) || host == registry.authority()
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "{host}/")?;
        }
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{}", tag.as_str())?;
        }
        self.digest()
            .map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl FromStr for ImageName {
    /// What is wrong with the name, and what was expected.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map_err(|why| {
            format!(
                "{text:?}: {why}; expected an image as in [HOST/]REPOSITORY[:TAG][@DIGEST] (a HOST \
                 has a dot or a port, or is localhost)"
            )
        })
    }
}

fn parse(text: &str) -> Result<ImageName, String> {
    if text.is_empty() {
        return Err("no name".to_owned());
    }
    if text.contains("://") {
        return Err("a URL is not the name of an image: leave out its scheme".to_owned());
    }
    // As docker tells a host from the first part of a repository's name.
    let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
    let (host, rest) = match text.split_once('/') {
        Some((host, rest)) if is_host(host) => (Some(host.to_ascii_lowercase()), rest),
        _ => (None, text),
    };
    if let Some(host) = host
        .as_ref()
        .filter(|host| host.starts_with('.') || !is_authority(host))
    {
        return Err(format!("{host:?} is no host with an optional port"));
    }
    let (name, digest) = match rest.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (rest, None),
    };
    let (name, tag) = match name.split_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (name, None),
    };
    let tag: Option<Tag> = tag.map(read).transpose()?;
    let (reference, tag) = match (digest, tag) {
        (Some(digest), tag) => (Reference::Digest(read(digest)?), tag),
        (None, tag) => {
            let tag = tag.map_or_else(|| read(DEFAULT_TAG), Ok)?;
            (Reference::Tag(tag.clone()), Some(tag))
        }
    };
    Ok(ImageName {
        host,
        repository: read(name)?,
        reference,
        tag,
    })
}

fn read<T: FromStr<Err = OciError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: OciError| error.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    #[test]
    fn names_of_images() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, host, reference, shown) in [
            ("app", None, "latest", "app:latest"),
            ("team/app:7", None, "7", "team/app:7"),
            (
                "r.test:5000/a/b:7",
                Some("r.test:5000"),
                "7",
                "r.test:5000/a/b:7",
            ),
            ("R.test/app", Some("r.test"), "latest", "r.test/app:latest"),
            (
                "localhost/app",
                Some("localhost"),
                "latest",
                "localhost/app:latest",
            ),
            (
                "[::1]:80/app",
                Some("[::1]:80"),
                "latest",
                "[::1]:80/app:latest",
            ),
            (
                &format!("app@{digest}"),
                None,
                &digest,
                &format!("app@{digest}"),
            ),
            (
                &format!("app:7@{digest}"),
                None,
                &digest,
                &format!("app:7@{digest}"),
            ),
        ] {
            let name = parsed(text);
            assert_eq!(
                (name.host(), name.reference().as_str()),
                (host, reference),
                "{text}"
            );
            assert_eq!(name.to_string(), shown);
            assert_eq!(parsed(shown), name);
        }
        let both = parsed(&format!("app:7@{digest}"));
        assert_eq!(both.tag().map(Tag::as_str), Some("7"));
        assert_eq!(both.digest().map(Digest::as_str), Some(digest.as_str()));
        assert_eq!(both.repository().as_str(), "app");
    }

    #[test]
    fn what_is_no_name_is_told() {
        for (text, why) in [
            ("", "no name"),
            ("A", "repository name \"A\""),
            ("app:", "tag \"\""),
            ("app:a b", "tag \"a b\""),
            ("app:7:8", "tag \"7:8\""),
            ("app@sha256:1", "digest \"sha256:1\""),
            ("app:7@", "digest \"\""),
            ("r.test/", "repository name \"\""),
            ("r.test:99999/app", "\"r.test:99999\" is no host"),
            ("r.te$t/app", "is no host"),
            ("../app", "\"..\" is no host"),
            ("https://r.test/app", "leave out its scheme"),
        ] {
            let fault = text.parse::<ImageName>().unwrap_err();
            assert!(fault.contains(why), "{text}: {fault}");
            assert!(fault.contains("expected an image as in"), "{text}: {fault}");
        }
    }

    #[test]
    fn a_host_is_compared_as_registries_are() {
        let registry: Registry = "https://r.test".parse().unwrap();
        for (text, first, is_in) in [
            ("app", true, true),
            ("app", false, false),
            ("r.test/app", false, true),
            ("R.TEST:443/app", false, true),
            ("r.test:80/app", true, false),
            ("other.test/app", true, false),
        ] {
            assert_eq!(parsed(text).is_in(&registry, first), is_in, "{text}");
        }
        let served = registry.serving("hub.test");
        assert!(parsed("hub.test/app").is_in(&served, false));
        assert!(parsed("r.test/app").is_in(&served, false));
    }
}
