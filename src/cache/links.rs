//! Links: the proof that a digest belongs to a repository. Owns: the files in `_links`. Must not:
//! decide what is proof.
//!
//! A link is a file named by the digest. For a manifest it holds the media type. For a blob it
//! holds its length in bytes, or `-` while that is not known: a file of another length is damaged.
//! Eviction reads the modification time as the time of the last use.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::changes::{Fact, Moment};
use super::files;
use super::manifest::Named;
use super::names::Names;
use super::paths::{GONE, LINKS, Scope, file_names, open_text, read_text, unusable_name};
use super::pending::PendingLinks;
use crate::oci::Digest;

/// Longest media type (RFC 6838 §4.2: two names of 127 characters and a slash), and the file's end.
const LINK_BYTES_MAX: u64 = 256;
/// The link of a blob whose length is not known.
const BLOB_LINK: &str = "-\n";
/// Longest link of a blob: the longest length, and the line end. The link of a manifest is filled
/// up with blanks beyond this, so that its length shows what it is.
const BLOB_LINK_BYTES_MAX: usize = 21;

/// A digest that belongs to a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The media type of a manifest; none for a blob.
    pub media_type: Option<String>,
    /// The length of a blob in bytes, where it is known.
    pub size: Option<u64>,
}

/// A link as eviction sees it.
#[derive(Debug)]
pub(super) struct LinkUse {
    pub(super) digest: Digest,
    pub(super) accessed: SystemTime,
    pub(super) manifest: bool,
}

impl Names {
    /// The link of a digest, if it belongs to the repository.
    pub fn link(&self, scope: Scope<'_>, digest: &Digest) -> Option<Link> {
        let path = self.paths.link(scope, digest)?;
        // The queue is read first: a link is in its file before it leaves the queue.
        let pending = self.pending.find(scope, digest);
        read_link(&path).or_else(|| {
            let links = pending?;
            let facts = [Fact::Present(digest)];
            let holds = self.changes.are_unchanged(links.asked_at, scope, &facts);
            holds.then(|| Link {
                media_type: None,
                size: links.blobs.get(digest).copied().flatten(),
            })
        })
    }

    /// The same, which counts as a use of the digest.
    pub fn use_link(&self, scope: Scope<'_>, digest: &Digest) -> Option<Link> {
        let path = self.paths.link(scope, digest)?;
        let opened = open_text(&path, LINK_BYTES_MAX);
        let link = opened.and_then(|(text, file)| {
            files::touch(&file, SystemTime::now());
            parse_link(&text)
        });
        // It may be pending.
        link.or_else(|| self.link(scope, digest))
    }

    /// Notes that all that a manifest names belongs to a repository. The files are written later,
    /// by [`Self::write_links`], or now when too many wait.
    ///
    /// # Errors
    /// As [`Self::link_blob`].
    pub fn link_named(
        &self,
        scope: Scope<'_>,
        named: Vec<Named>,
        asked_at: Moment,
    ) -> io::Result<()> {
        let blobs = named.into_iter().map(|named| (named.digest, named.size));
        let links = Arc::new(PendingLinks {
            scope: scope.to_owned(),
            blobs: blobs.collect(),
            asked_at,
        });
        match self.pending.add(&links) {
            true => Ok(()),
            false => self.write_each(&links, &|| true),
        }
    }

    /// Writes the links that wait, as long as there is room for them: each lost one costs a HEAD.
    ///
    /// # Errors
    /// The disk's own; the links of that manifest are lost then.
    pub(super) fn write_links(&self, has_room: &dyn Fn() -> bool) -> io::Result<()> {
        while let Some(links) = self.pending.first() {
            let written = self.write_each(&links, has_room);
            self.pending.remove(&links);
            written?;
        }
        Ok(())
    }

    fn write_each(&self, links: &PendingLinks, has_room: &dyn Fn() -> bool) -> io::Result<()> {
        let mut blobs = links.blobs.iter().take_while(|_| has_room());
        blobs.try_for_each(|(digest, size)| {
            self.write_blob_link(links.scope.as_scope(), digest, *size, links.asked_at, false)
        })
    }

    /// Notes that a blob belongs to a repository, and the length that it was hashed with, if it
    /// was: that holds whatever a manifest said before. A digest that is known as a manifest stays
    /// one.
    ///
    /// # Errors
    /// The disk's own, and names that make no path.
    pub fn link_blob(
        &self,
        scope: Scope<'_>,
        digest: &Digest,
        size: Option<u64>,
        asked_at: Moment,
    ) -> io::Result<()> {
        self.write_blob_link(scope, digest, size, asked_at, true)
    }

    fn write_blob_link(
        &self,
        scope: Scope<'_>,
        digest: &Digest,
        size: Option<u64>,
        asked_at: Moment,
        is_verified: bool,
    ) -> io::Result<()> {
        let path = self.paths.link(scope, digest).ok_or_else(unusable_name)?;
        let keeps = |known: Link| {
            known.media_type.is_some()
                || known.size == size
                || size.is_none()
                || (known.size.is_some() && !is_verified)
        };
        let text = size.map_or_else(|| BLOB_LINK.to_owned(), |size| format!("{size}\n"));
        let facts = [Fact::Present(digest)];
        let kept = self.keep(scope, &facts, asked_at, &path, || {
            match read_link(&path).is_some_and(keeps) {
                true => Ok(()),
                false => self.put_unsynced(&path, text.as_bytes()),
            }
        });
        kept.map(|_| ())
    }

    /// Notes that a manifest belongs to a repository, and its media type. False when it was deleted
    /// since it was asked for.
    ///
    /// # Errors
    /// The disk's own, names that make no path, and a media type longer than RFC 6838 has them.
    pub fn link_manifest(
        &self,
        scope: Scope<'_>,
        digest: &Digest,
        media_type: &str,
        asked_at: Moment,
    ) -> io::Result<bool> {
        let path = self.paths.link(scope, digest).ok_or_else(unusable_name)?;
        let text = format!("{media_type:BLOB_LINK_BYTES_MAX$}\n");
        if parse_link(&text).is_none_or(|link| link.media_type.is_none()) {
            let why = format!("{media_type:?} is no media type");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let facts = [Fact::Present(digest)];
        self.remove_gone(scope, digest);
        self.keep(scope, &facts, asked_at, &path, || {
            let known = read_link(&path).and_then(|known| known.media_type);
            match known.as_deref() == Some(media_type.trim_end()) {
                true => Ok(()),
                // This link proves all others: it must outlive a power cut.
                false => self.write(&path, text.as_bytes()),
            }
        })
    }

    /// Makes the links of these digests outlive a power cut.
    ///
    /// # Errors
    /// The disk's own.
    pub(super) fn sync_links<'a>(
        &self,
        scope: Scope<'_>,
        digests: impl Iterator<Item = &'a Digest>,
    ) -> io::Result<()> {
        let mut folder = None;
        for path in digests.filter_map(|digest| self.paths.link(scope, digest)) {
            fs::File::open(&path)?.sync_all()?;
            folder = path.parent().map(Path::to_owned);
        }
        folder.map_or(Ok(()), |folder| files::sync_directory(&folder))
    }

    /// Removes a link: the digest does not belong to the repository any more.
    pub fn remove_link(&self, scope: Scope<'_>, digest: &Digest) {
        if let Some(path) = self.paths.link(scope, digest) {
            let _lock = self.lock_file(&path);
            self.remove_file(&path);
        }
        self.remove_gone(scope, digest);
    }

    /// Notes that upstream no longer has a manifest: eviction lets it stay for longer.
    ///
    /// # Errors
    /// The disk's own.
    pub fn mark_gone(&self, scope: Scope<'_>, digest: &Digest) -> io::Result<()> {
        let path = self.paths.gone(scope, digest).ok_or_else(unusable_name)?;
        self.write_unsynced(&path, b"")
    }

    /// The manifests that upstream no longer has.
    pub(super) fn gone(&self, scope: Scope<'_>) -> HashSet<Digest> {
        let folder = self.paths.repository(scope).map(|f| f.join(GONE));
        let names = folder.map(|folder| file_names(&folder)).into_iter();
        names.flatten().filter_map(|hex| digest_of(&hex)).collect()
    }

    fn remove_gone(&self, scope: Scope<'_>, digest: &Digest) {
        let path = self.paths.gone(scope, digest);
        if let Some(path) = path.filter(|path| path.exists()) {
            self.remove_file(&path);
        }
    }

    /// The manifests of a repository.
    pub fn manifests(&self, scope: Scope<'_>) -> impl Iterator<Item = Digest> {
        let links = self.link_uses(scope).into_iter();
        let manifests = links.filter(|link| link.manifest);
        manifests.map(|link| link.digest)
    }

    /// Every link of a repository.
    pub(super) fn link_uses(&self, scope: Scope<'_>) -> Vec<LinkUse> {
        let Some(folder) = self.paths.repository(scope).map(|f| f.join(LINKS)) else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir(folder) else {
            return Vec::new();
        };
        let uses = entries.flatten().filter_map(|entry| {
            let digest = digest_of(entry.file_name().to_str()?)?;
            let metadata = entry.metadata().ok()?;
            Some(LinkUse {
                digest,
                accessed: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                // By its length, so that a million links are not opened.
                manifest: metadata.len() > BLOB_LINK_BYTES_MAX as u64,
            })
        });
        uses.collect()
    }
}

fn read_link(path: &Path) -> Option<Link> {
    parse_link(&read_text(path, LINK_BYTES_MAX)?)
}

/// A file without its line end was cut off, and counts as absent.
pub(super) fn parse_link(text: &str) -> Option<Link> {
    let line = text.strip_suffix('\n')?;
    let size = line.parse::<u64>().ok();
    if text == BLOB_LINK || size.is_some() {
        return Some(Link {
            media_type: None,
            size,
        });
    }
    let media_type = line.trim_end_matches(' ');
    let fits = text.len() as u64 <= LINK_BYTES_MAX;
    (fits && is_media_type(media_type)).then(|| Link {
        media_type: Some(media_type.to_owned()),
        size: None,
    })
}

/// True for a media type that a link can hold.
pub(super) fn is_media_type(text: &str) -> bool {
    let is_graphic = |b: u8| b.is_ascii_graphic() || b == b' ';
    let fits = text.len() > 2 && (text.len() as u64) < LINK_BYTES_MAX;
    fits && text.bytes().all(is_graphic) && text.contains('/') && !text.ends_with(' ')
}

fn digest_of(hex: &str) -> Option<Digest> {
    let algorithm = if hex.len() == 128 { "sha512" } else { "sha256" };
    format!("{algorithm}:{hex}").parse().ok()
}
