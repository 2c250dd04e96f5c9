//! Every image in the cache. Owns: finding them, with a tag or without. Must not: change anything.
//! Reads every manifest, which takes a while; [`super::images`] is for a web page.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::SystemTime;

use super::closure::{Closure, Holdings, ImagePart, NO_PLATFORM, ReferrerIndex, SHOWN_BYTES_MAX};
use super::names::{OwnedScope, Scope};
use crate::oci::{Digest, Reference, Tag};

/// An image with all it needs.
#[derive(Debug)]
pub struct CachedImage {
    /// Its repository.
    pub scope: OwnedScope,
    /// Its tag; none for a manifest that was pulled by its digest, or whose tag has moved.
    pub tag: Option<Tag>,
    /// Its manifest, which need not be here.
    pub digest: Digest,
    /// When a client last pulled it.
    pub pulled: SystemTime,
    /// When upstream last confirmed the tag.
    pub confirmed: Option<SystemTime>,
    /// What it needs, with all that refers to it.
    pub closure: Closure,
    /// What refers to the manifests of its repository; none where that was not asked for.
    index: Option<Rc<ReferrerIndex>>,
}

impl CachedImage {
    /// Its tag, else its digest.
    pub fn reference(&self) -> Reference {
        let tag = self.tag.clone().map(Reference::Tag);
        tag.unwrap_or_else(|| self.digest.clone().into())
    }

    /// `registry/repository:tag`, or `…@digest`.
    pub fn name(&self) -> String {
        self.scope.as_scope().name_of(&self.reference())
    }
}

/// The platforms of an image, by what is here of each; attestations are left out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PlatformsHere {
    /// Every blob is here.
    pub whole: Vec<String>,
    /// Blobs are missing.
    pub partial: Vec<String>,
    /// Not even the manifest is here.
    pub absent: Vec<String>,
}

impl PlatformsHere {
    /// Those of these parts.
    pub fn of(parts: &[ImagePart]) -> Self {
        let mut here = Self::default();
        for part in parts.iter().filter(|part| part.platform != NO_PLATFORM) {
            let list = match part {
                part if part.missing.is_empty() => &mut here.whole,
                part if part.is_absent() => &mut here.absent,
                _ => &mut here.partial,
            };
            if !list.contains(&part.platform) {
                list.push(part.platform.clone());
            }
        }
        here
    }
}

impl Holdings<'_> {
    /// Calls `visit` for every image: by registry, repository and tag, then those without a tag by
    /// their digests. Blocks, for as long as it takes to read every manifest.
    pub fn each(&self, visit: &mut dyn FnMut(CachedImage)) {
        for scope in self.names.scopes() {
            self.each_in(scope.as_scope(), visit);
        }
    }

    /// The image that a reference means in a repository. None for one that is not in the cache at
    /// all.
    pub fn find(&self, scope: Scope<'_>, reference: &Reference) -> Option<CachedImage> {
        let index = Rc::new(ReferrerIndex::read(*self, scope));
        self.image(scope, reference, SystemTime::UNIX_EPOCH, Some(&index))
    }

    /// An image as it is by now: a proxy may have evicted, replaced or fetched it. What has come
    /// to refer to it is left out, so that few manifests are read. None when it is gone.
    pub fn look_again(&self, image: &CachedImage) -> Option<CachedImage> {
        let reference = image.reference();
        let index = image.index.as_ref();
        self.image(image.scope.as_scope(), &reference, image.pulled, index)
    }

    fn each_in(&self, scope: Scope<'_>, visit: &mut dyn FnMut(CachedImage)) {
        let index = Rc::new(ReferrerIndex::read(*self, scope));
        let (mut images, mut tagged) = (Vec::new(), HashSet::new());
        for (tag, found) in self.names.tag_uses(scope, usize::MAX) {
            tagged.extend(found.digests());
            images.push((Reference::Tag(tag), found.accessed));
        }
        let mut links = self.names.link_uses(scope);
        let is_part = |digest: &Digest| tagged.contains(digest) || index.parts.contains(digest);
        links.retain(|link| link.manifest && !is_part(&link.digest));
        links.sort_unstable_by(|one, other| one.digest.cmp(&other.digest));
        let links = links.into_iter();
        images.extend(links.map(|link| (link.digest.into(), link.accessed)));
        for (reference, pulled) in images {
            let image = self.image(scope, &reference, pulled, Some(&index));
            image.into_iter().for_each(&mut *visit);
        }
    }

    /// An image with what refers to it, as `index` has it. Without one, few bytes are read.
    pub(super) fn image(
        &self,
        scope: Scope<'_>,
        reference: &Reference,
        pulled: SystemTime,
        index: Option<&Rc<ReferrerIndex>>,
    ) -> Option<CachedImage> {
        let (tag, digest, confirmed) = match reference {
            Reference::Tag(tag) => {
                let entry = self.tag_entry(scope, tag)?;
                (Some(tag.clone()), entry.digest, Some(entry.confirmed))
            }
            Reference::Digest(digest) => {
                self.names.link(scope, digest)?;
                (None, digest.clone(), None)
            }
        };
        let closure = match index {
            Some(index) => self.closure_with_referrers(scope, &digest, index),
            None => self.closure(&digest, SHOWN_BYTES_MAX),
        };
        Some(CachedImage {
            scope: scope.to_owned(),
            tag,
            closure,
            digest,
            pulled,
            confirmed,
            index: index.cloned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::scratch::{Cache, IMAGE, at, digest_of};

    fn names(cache: &Cache) -> Vec<(String, SystemTime, bool)> {
        let holdings = cache.holdings();
        let mut found = Vec::new();
        holdings.each(&mut |image| {
            found.push((image.name(), image.pulled, image.closure.is_whole()));
        });
        found
    }

    #[test]
    fn every_image_is_found_once_with_a_tag_or_without() {
        let cache = Cache::new();
        let child = cache.image("a/b", &[b"child"], 1);
        cache.index("a/b:v2", &[&child], 2);
        let old = cache.image("a/b", &[b"old"], 3);
        cache.image("a:v1", &[b"one"], 4);
        let subject = cache.image("a:v0", &[b"two"], 5);
        let layer = cache.blob("a", b"signature");
        let document = serde_json::json!({
            "layers": [{"digest": layer.as_str()}],
            "subject": {"digest": subject.as_str()},
        });
        cache.manifest("a", IMAGE, &document, 6);
        cache.store.remove(&digest_of(b"old")).unwrap();
        let expected = [
            ("host.example/a:v0".to_owned(), at(5), true),
            ("host.example/a:v1".to_owned(), at(4), true),
            ("host.example/a/b:v2".to_owned(), at(2), true),
            (format!("host.example/a/b@{old}"), at(3), false),
        ];
        assert_eq!(names(&cache), expected);
    }

    #[test]
    fn a_reference_is_found_in_its_repository_only() {
        let cache = Cache::new();
        let image = cache.image("a:v1", &[b"one"], 4);
        let holdings = cache.holdings();
        let find = |repository: &str, reference: &str| {
            let reference = reference.parse().unwrap();
            cache.with(repository, |scope| {
                holdings.find(scope, &reference).map(|image| image.name())
            })
        };
        let (by_tag, by_digest) = ("host.example/a:v1", format!("host.example/a@{image}"));
        assert_eq!(find("a", "v1").as_deref(), Some(by_tag));
        assert_eq!(find("a", image.as_str()), Some(by_digest));
        assert_eq!(find("a", "v2"), None);
        assert_eq!(find("b", image.as_str()), None);
    }

    #[test]
    fn bug_each_image_with_a_fault_had_all_manifests_read_again() {
        let cache = Cache::new();
        let subject = cache.image("a:v0", &[b"one"], 5);
        let layer = cache.blob("a", b"signature");
        let document = serde_json::json!({
            "layers": [{"digest": layer.as_str()}],
            "subject": {"digest": subject.as_str()},
        });
        let signature = cache.manifest("a", IMAGE, &document, 6);
        let other = cache.image("a:v1", &[b"two"], 5);
        let holdings = cache.holdings();
        let counts = |image: CachedImage| {
            let Closure {
                parts, referrers, ..
            } = image.closure;
            (parts[0].missing.len(), referrers.len())
        };
        cache.with("a", |scope| {
            let image = holdings.find(scope, &"v0".parse().unwrap()).unwrap();
            let again = || holdings.look_again(&image);
            // A manifest that is no part of it may be gone, and nobody looks.
            let path = cache.scratch.path().join("blobs/sha256").join(other.hex());
            std::fs::write(&path, "damaged").unwrap();
            assert_eq!(counts(again().unwrap()), (0, 1));
            assert!(path.exists(), "it was not read");
            cache.names.remove_link(scope, &signature);
            assert_eq!(counts(again().unwrap()), (0, 0));
            cache.store.remove(&digest_of(b"one")).unwrap();
            assert_eq!(counts(again().unwrap()), (1, 0));
            cache.names.remove_tag(scope, &"v0".parse().unwrap());
            assert!(again().is_none());
        });
    }
}
