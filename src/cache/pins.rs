//! Images that eviction never touches. Owns: telling whether an image is one. Must not: do I/O.

use super::names::Scope;
use crate::config::ImageGlobs;
use crate::image_name::ImageName;
use crate::oci::{Digest, Registry, Tag};

/// Which images are pinned. The default pins none.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pins {
    /// Patterns of tags: `PIN`, and `FREEZE_TAGS`.
    pub globs: Vec<ImageGlobs>,
    /// Images by their names.
    pub names: Vec<ImageName>,
    /// The registry of a name without a host; none: any registry.
    pub default_registry: Option<Registry>,
}

impl Pins {
    /// True when the tag is pinned, or one of the digests.
    pub fn hold(&self, scope: Scope<'_>, tag: Option<&Tag>, digests: &[&Digest]) -> bool {
        let (registry, repository) = (scope.registry.name(), scope.repository.as_str());
        let by_glob = |tag: &Tag| {
            let mut globs = self.globs.iter();
            globs.any(|globs| globs.matches(registry, repository, tag.as_str()))
        };
        let by_name = |name: &ImageName| match name.digest() {
            Some(digest) => digests.contains(&digest),
            None => name.tag() == tag,
        };
        tag.is_some_and(by_glob) || self.names_in(scope).any(by_name)
    }

    /// The digests of a repository that are pinned by name.
    pub(super) fn digests<'a>(&'a self, scope: Scope<'a>) -> impl Iterator<Item = &'a Digest> {
        self.names_in(scope).filter_map(ImageName::digest)
    }

    fn names_in<'a>(&'a self, scope: Scope<'a>) -> impl Iterator<Item = &'a ImageName> {
        let first = self.default_registry.as_ref();
        let is_first = first.is_none_or(|first| first.name() == scope.registry.name());
        self.names.iter().filter(move |name| {
            name.repository() == scope.repository && name.is_in(scope.registry, is_first)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_pinned_by_pattern_or_name() {
        let digest = |c: &str| format!("sha256:{}", c.repeat(64));
        let names = [
            "lib/app:1".to_owned(),
            "other.test/base:2".to_owned(),
            format!("lib/tool@{}", digest("a")),
        ];
        let pins = Pins {
            globs: vec![ImageGlobs::parse("team/*:v*").unwrap()],
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            default_registry: Some("r.test".parse().unwrap()),
        };
        let hold = |registry: &str, repository: &str, tag: &str, found: &str| {
            let registry = registry.parse().unwrap();
            let repository = repository.parse().unwrap();
            let scope = Scope {
                registry: &registry,
                repository: &repository,
            };
            let tag = tag.parse::<Tag>().ok();
            pins.hold(scope, tag.as_ref(), &[&digest(found).parse().unwrap()])
        };
        for (registry, repository, tag, found, expected) in [
            ("any.test", "team/app", "v1", "b", true),
            ("any.test", "team/app", "w1", "b", false),
            ("any.test", "team/app", "", "b", false),
            ("r.test", "lib/app", "1", "b", true),
            ("r.test", "lib/app", "2", "b", false),
            ("other.test", "lib/app", "1", "b", false),
            ("other.test", "base", "2", "b", true),
            ("r.test", "base", "2", "b", false),
            ("r.test", "lib/tool", "", "a", true),
            ("r.test", "lib/tool", "7", "a", true),
            ("r.test", "lib/tool", "7", "b", false),
        ] {
            let found = hold(registry, repository, tag, found);
            assert_eq!(found, expected, "{registry}/{repository}:{tag}");
        }
        let registry = "r.test".parse().unwrap();
        let repository = "a".parse().unwrap();
        let scope = Scope {
            registry: &registry,
            repository: &repository,
        };
        assert!(!Pins::default().hold(scope, "1".parse().ok().as_ref(), &[]));
    }
}
