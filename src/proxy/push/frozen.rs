//! Tags of `FREEZE_TAGS`. Owns: which pushes and deletions would move one of them. Must not: pass
//! anything on.

use crate::cache::Cache;
use crate::cache::names::Scope;
use crate::message::Reply;
use crate::oci::{Digest, ErrorCode, OciError, Tag};
use crate::proxy::answer::refuse;
use crate::proxy::exchange::Parts;

/// A frozen tag, and the digests that it keeps: one for each media type and `CACHE_KEY`.
#[derive(Debug)]
pub(super) struct FrozenTag {
    image: String,
    digests: Vec<Digest>,
}

impl FrozenTag {
    /// None for a tag that may move: it is not frozen, or not in the cache yet.
    pub(super) fn find(parts: &Parts, cache: &Cache, scope: Scope<'_>, tag: &Tag) -> Option<Self> {
        let (registry, repository) = (scope.registry.name(), scope.repository.as_str());
        if !parts.frozen.matches(registry, repository, tag.as_str()) {
            return None;
        }
        let entries = cache.names.tag_anywhere(scope, tag).into_iter();
        let digests: Vec<Digest> = entries.map(|entry| entry.digest).collect();
        let image = format!("{scope}:{}", tag.as_str());
        (!digests.is_empty()).then_some(Self { image, digests })
    }

    /// The first tag of a repository that keeps `digest`.
    pub(super) fn find_by_digest(
        parts: &Parts,
        cache: &Cache,
        scope: Scope<'_>,
        digest: &Digest,
    ) -> Option<Self> {
        if parts.frozen.is_empty() {
            return None;
        }
        let mut tags = cache.names.tags_of(scope, digest);
        tags.find_map(|tag| Self::find(parts, cache, scope, &tag))
    }

    /// True when the tag has this digest already.
    pub(super) fn keeps(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }

    /// The answer that says why the tag does not move.
    pub(super) fn refusal(&self) -> Reply {
        let digests: Vec<&str> = self.digests.iter().map(Digest::as_str).collect();
        let (image, digests) = (&self.image, digests.join(", "));
        let why = format!(
            "{image} is one of FREEZE_TAGS and keeps its digest {digests}: push another tag, or \
             leave this one out of FREEZE_TAGS"
        );
        refuse(&OciError::new(ErrorCode::Denied, why))
    }
}
