//! Manifests that the cache holds, by digest and by tag. Owns: what a kept manifest brings with it
//! (links, tag entries), and reporting faults of the disk on the way. Must not: ask upstream, or
//! choose between media types.

use std::time::{Duration, Instant, SystemTime};

use super::changes::{Fact, Moment};
use super::manifest::{MANIFEST_BYTES_MAX, list_named};
use super::names::{Scope, TagEntry};
use super::pages::{List, Page};
use super::whole::Cache;
use crate::budget::{self, BODIES, SHARE_TIMEOUT, UNCOUNTED_BYTES_MAX};
use crate::log::{self, Level};
use crate::media_type;
use crate::message::{Buffered, Headers, SharedBytes, WholeBody};
use crate::oci::{Digest, Tag};

/// A manifest. A clone shares its body.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The digest of the bytes.
    pub digest: Digest,
    /// Its media type, without parameters.
    pub media_type: String,
    /// The manifest as upstream sent it.
    pub body: WholeBody,
}

/// A manifest that the cache holds under a tag.
#[derive(Debug, Clone)]
pub struct TaggedManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// When upstream last said that the tag means it.
    pub confirmed: SystemTime,
    /// It needs no upstream call yet (`CACHE_TAG_TTL`).
    pub is_fresh: bool,
}

impl Cache {
    /// A manifest that the cache holds for this repository. Reading counts as use.
    pub fn manifest(&self, scope: Scope<'_>, digest: &Digest) -> Option<Manifest> {
        Some(Manifest {
            digest: digest.clone(),
            media_type: self.names.use_link(scope, digest)?.media_type?,
            body: self.manifest_body(digest)?,
        })
    }

    /// The body of a manifest, whatever repository it belongs to. Its digest has been checked.
    pub fn manifest_body(&self, digest: &Digest) -> Option<WholeBody> {
        let small = self.store.read_small(digest, UNCOUNTED_BYTES_MAX);
        let body = small.and_then(|small| match small {
            Some(bytes) => Ok(Some(WholeBody::Bytes(bytes.into()))),
            None => {
                let large = self.store.open_verified(digest, MANIFEST_BYTES_MAX)?;
                Ok(large.map(|blob| WholeBody::File {
                    file: blob.file,
                    offset: 0,
                    length: blob.size,
                }))
            }
        });
        self.disk_faults.check("manifest", body)?
    }

    /// The bytes of a manifest, whatever repository it belongs to.
    pub fn manifest_bytes(&self, digest: &Digest) -> Option<SharedBytes> {
        let size = self.store.size(digest)?;
        let share = BODIES.take(budget::count_bytes(size), Instant::now() + SHARE_TIMEOUT)?;
        let bytes = self.store.read(digest, MANIFEST_BYTES_MAX);
        let bytes = self.disk_faults.check("manifest", bytes)??;
        Some(SharedBytes::with_share(bytes, share))
    }

    /// Finds what a tag means to a client with these fields: of the manifests whose type it accepts
    /// the one that was confirmed last. Asking counts as use of the tag, and reading a manifest as
    /// use of it.
    pub fn find_tagged(
        &self,
        scope: Scope<'_>,
        partition: &str,
        tag: &Tag,
        client: &Headers,
    ) -> Option<TaggedManifest> {
        let entries = self.names.use_tag(scope, partition, tag);
        entries.into_iter().find_map(|entry| {
            let manifest = self.manifest(scope, &entry.digest)?;
            media_type::accepts(client, &manifest.media_type).then(|| TaggedManifest {
                manifest,
                confirmed: entry.confirmed,
                is_fresh: self.is_fresh(entry.confirmed),
            })
        })
    }

    /// Keeps a manifest that upstream has shown or taken in a repository, with the links that
    /// [`Self::link_manifest`] makes. A large one is then sent from its file. False when the disk
    /// could not take it, or it was deleted since `asked_at`.
    ///
    /// `asked_at` is the moment before upstream was asked, here and below: an answer that a change
    /// has overtaken is not kept.
    pub fn keep_manifest(
        &self,
        scope: Scope<'_>,
        manifest: &mut Manifest,
        asked_at: Moment,
    ) -> bool {
        let WholeBody::Bytes(bytes) = &manifest.body else {
            return true;
        };
        let stored = self.store.put(&manifest.digest, bytes);
        if self.disk_faults.check("manifest", stored).is_none() {
            return false;
        }
        self.report_too_large(scope, &manifest.digest, bytes);
        let (digest, media_type) = (&manifest.digest, &manifest.media_type);
        if !self.link_manifest(scope, digest, media_type, bytes, asked_at) {
            return false;
        }
        if bytes.len() as u64 > UNCOUNTED_BYTES_MAX
            && let Some(file) = self.manifest_body(&manifest.digest)
        {
            manifest.body = file;
        }
        true
    }

    /// Warns when the blobs of an image cannot all be kept: each pull then fetches some anew.
    fn report_too_large(&self, scope: Scope<'_>, digest: &Digest, manifest: &[u8]) {
        let named = list_named(manifest);
        let blobs = named.iter().filter(|named| named.media_type.is_none());
        let sizes = blobs.filter_map(|blob| blob.size);
        let (size, quota) = (sizes.fold(0, u64::saturating_add), self.sweeper.quota);
        if size > quota {
            let image = format!("{scope}@{digest}");
            let fields: [log::Field<'_>; 2] = [("bytes", &size), ("quota_bytes", &quota)];
            let message = "image is larger than CACHE_MAX_SIZE";
            log::cause(Level::Warn, message, ("image", &image), &fields);
        }
    }

    /// A manifest that upstream has shown or taken in a repository proves that every digest in it
    /// belongs there. False when that could not be noted, or the manifest was deleted since.
    pub fn link_manifest(
        &self,
        scope: Scope<'_>,
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
        asked_at: Moment,
    ) -> bool {
        let names = &self.names;
        let linked = names.link_manifest(scope, digest, media_type, asked_at);
        let linked = linked.and_then(|is_kept| {
            if is_kept {
                names.link_named(scope, list_named(bytes), asked_at)?;
            }
            Ok(is_kept)
        });
        let is_kept = self.disk_faults.check("link", linked) == Some(true);
        if is_kept {
            self.remember(scope.registry);
            self.sweeper.mark_dirty();
        }
        is_kept
    }

    /// Upstream has shown a blob in a repository.
    pub fn link_blob(&self, scope: Scope<'_>, digest: &Digest, asked_at: Moment) {
        let linked = self.names.link_blob(scope, digest, None, asked_at);
        self.disk_faults.check("link", linked);
    }

    /// The tag means this manifest, as the registry said at `confirmed`.
    pub fn keep_tag(
        &self,
        scope: Scope<'_>,
        partition: &str,
        tag: &Tag,
        (manifest, confirmed): (&Manifest, SystemTime),
        asked_at: Moment,
    ) {
        let entry = TagEntry {
            digest: manifest.digest.clone(),
            media_type: manifest.media_type.clone(),
            confirmed,
        };
        let kept = self.names.set_tag(scope, partition, tag, entry, asked_at);
        self.disk_faults.check("tag", kept);
        self.sweeper.mark_dirty();
    }

    /// Upstream said just now that a tag means another manifest than it did, where
    /// [`Self::keep_tag`] cannot see that: a push removes the tag before, and another media type
    /// has an entry of its own.
    pub fn note_move(&self, scope: Scope<'_>, tag: &Tag, from: &Digest, to: &Digest) {
        if self.store.is_read_only() || from == to {
            return;
        }
        let noted = self
            .names
            .note_move(scope, tag, (from, to), SystemTime::now());
        self.disk_faults.check("tag moves", noted);
    }

    /// Upstream said just now, in a reply with these fields, that the tag still means `digest`.
    /// Returns when the registry itself confirmed it.
    pub fn confirm_tag(
        &self,
        scope: Scope<'_>,
        partition: &str,
        tag: &Tag,
        (digest, headers): (&Digest, &Headers),
        asked_at: Moment,
    ) -> SystemTime {
        let (names, confirmed) = (&self.names, confirmed_at(headers));
        let confirm = |of| names.confirm_tag(scope, of, tag, digest, confirmed, asked_at);
        // The tag may have been kept for all partitions.
        let kept = confirm(partition).and_then(|()| match partition {
            "" => Ok(()),
            _ => confirm(""),
        });
        self.disk_faults.check("tag", kept);
        confirmed
    }

    /// Keeps a page that upstream sent just now in answer to `query`, and opens it. None when it is
    /// not kept.
    pub fn keep_page(
        &self,
        list: List<'_>,
        query: &str,
        headers: &Headers,
        body: &[u8],
        asked_at: Moment,
    ) -> Option<Page> {
        let (names, confirmed) = (&self.names, confirmed_at(headers));
        let kept = names.set_page(list, query, headers, body, confirmed, asked_at);
        let is_kept = self.disk_faults.check("list", kept)?;
        is_kept.then(|| names.page(list, query))?
    }

    /// Upstream said just now that a tag or digest is not there. Its answer is remembered under
    /// `key` for a while.
    pub fn remember_missing(
        &self,
        scope: Scope<'_>,
        fact: Fact<'_>,
        key: &str,
        refused: Buffered,
        asked_at: Moment,
    ) {
        let is_current = || self.names.changes.are_unchanged(asked_at, scope, &[fact]);
        self.negative.put(key, refused, Instant::now(), is_current);
    }
}

/// When the registry confirmed a reply with these fields that came just now: another tier may have
/// kept it for a while (`Age`, RFC 9111 §5.1).
pub fn confirmed_at(headers: &Headers) -> SystemTime {
    let now = SystemTime::now();
    let age = headers.first("Age").and_then(|age| age.parse().ok());
    let age = Duration::from_secs(age.unwrap_or_default());
    now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
}
