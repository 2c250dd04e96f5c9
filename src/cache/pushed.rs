//! What pushes and deletions through us change here. Owns: the order of it: a change is noted
//! first, and then what it makes wrong is forgotten (see [`super::changes`]). Must not: believe a
//! client, or pass anything on.

use std::time::SystemTime;

use super::changes::{Fact, Moment};
use super::description::SelfDescription;
use super::fill::BlobRequest;
use super::held::Manifest;
use super::names::Scope;
use super::pages::List;
use super::uploads::Upload;
use super::whole::Cache;
use crate::message::{SharedBytes, WholeBody};
use crate::oci::{Digest, Reference, Tag};

/// A tag that was pushed.
#[derive(Debug, Clone, Copy)]
pub struct PushedTag<'a> {
    /// The tag.
    pub tag: &'a Tag,
    /// The partition of the client's `CACHE_KEY`.
    pub partition: &'a str,
    /// Since when it is known what the tag means.
    pub since: Moment,
}

impl Cache {
    /// Upstream has taken a manifest, which it names `digest`, under `tag` and `others`. Returns
    /// since when it is known what `tag` means. Of two pushes of a tag at a time nobody knows which
    /// one upstream took last.
    pub fn note_pushed(
        &self,
        scope: Scope<'_>,
        digest: Option<&Digest>,
        tag: Option<&Tag>,
        others: &[Tag],
        begun_at: Moment,
    ) -> Option<Moment> {
        let changes = &self.names.changes;
        if let Some(digest) = digest {
            changes.note(scope, Fact::Absent(digest));
        }
        changes.note(scope, Fact::Contents);
        let since = tag.and_then(|tag| {
            let change = changes.note(scope, Fact::Tag(tag));
            self.forget_tag(scope, tag, digest);
            (change.previous <= begun_at).then_some(change.at)
        });
        for tag in others {
            changes.note(scope, Fact::Tag(tag));
            self.forget_tag(scope, tag, digest);
        }
        // Any manifest may refer to another.
        self.names.forget_referrers(scope);
        self.forget_missing(scope);
        self.sweeper.mark_dirty();
        since
    }

    /// Forgets what a tag meant until now; `digest`: what it means from now on.
    fn forget_tag(&self, scope: Scope<'_>, tag: &Tag, digest: Option<&Digest>) {
        let before = self.names.tag_anywhere(scope, tag).into_iter().next();
        if let Some((before, digest)) = before.zip(digest) {
            self.note_move(scope, tag, &before.digest, digest);
        }
        self.names.remove_tag(scope, tag);
    }

    /// Something was pushed to the repository: what was missing lately may be there now.
    fn forget_missing(&self, scope: Scope<'_>) {
        self.negative.forget(&format!("{scope} "));
    }

    /// Keeps a manifest that was pushed, with links to all that it names: upstream has checked that
    /// it is there. Its media type is the one in the document; else the one that is known, which
    /// holds for other tags too; else `content_type`, the one that the client names.
    pub fn keep_pushed(
        &self,
        scope: Scope<'_>,
        (digest, bytes): (Digest, SharedBytes),
        content_type: Option<String>,
        tag: Option<PushedTag<'_>>,
        begun_at: Moment,
    ) {
        let Some(description) = SelfDescription::read(&bytes, content_type.as_deref()) else {
            return;
        };
        let known = || self.names.link(scope, &digest)?.media_type;
        let media_type = description.media_type.or_else(known).or(content_type);
        let Some(media_type) = media_type else {
            return;
        };
        let mut manifest = Manifest {
            digest,
            media_type,
            body: WholeBody::Bytes(bytes),
        };
        let is_kept = self.keep_manifest(scope, &mut manifest, begun_at);
        if let (true, Some(pushed)) = (is_kept, tag) {
            let shown = (&manifest, SystemTime::now());
            self.keep_tag(scope, pushed.partition, pushed.tag, shown, pushed.since);
        }
    }

    /// Upstream has taken a blob, with the bytes of `upload` or without. It belongs to the
    /// repository here if upstream itself names it (`is_named`), or if the bytes that came through
    /// have its digest. The client's word is no proof: it would open another repository's blob.
    /// Blocks as [`Uploads::commit`](super::uploads::Uploads::commit) does.
    pub fn commit_upload(&self, wanted: &BlobRequest, upload: Option<Upload>, is_named: bool) {
        let scope = wanted.scope.as_scope();
        let taken = Fact::Absent(&wanted.digest);
        self.names.changes.note(scope, taken);
        self.forget_missing(scope);
        if self.uploads.commit(upload, wanted, is_named) {
            self.remember(&wanted.scope.registry);
        }
    }

    /// Upstream has deleted a tag or a manifest, or has none of that name.
    pub fn note_deleted(&self, scope: Scope<'_>, reference: &Reference) {
        let (names, changes) = (&self.names, &self.names.changes);
        changes.note(scope, Fact::Contents);
        changes.note(
            scope,
            match reference {
                Reference::Tag(tag) => Fact::Tag(tag),
                Reference::Digest(digest) => Fact::Present(digest),
            },
        );
        // It may have referred to another.
        names.forget_referrers(scope);
        names.forget_pages(List::Tags(scope));
        match reference {
            Reference::Tag(tag) => names.remove_tag(scope, tag),
            Reference::Digest(digest) => self.forget_digest(scope, digest),
        }
        self.sweeper.mark_dirty();
    }

    /// A manifest is gone, and with it the tags that led to it.
    fn forget_digest(&self, scope: Scope<'_>, digest: &Digest) {
        let names = &self.names;
        names.remove_link(scope, digest);
        for tag in names.tags_of(scope, digest) {
            names.remove_tag(scope, &tag);
        }
    }

    /// Upstream has deleted a blob, or has no such one.
    pub fn note_deleted_blob(&self, scope: Scope<'_>, digest: &Digest) {
        self.names.changes.note(scope, Fact::Present(digest));
        self.names.remove_link(scope, digest);
    }
}
