//! Images of a layout, taken into the cache. Owns: naming them, checking all of the layout before
//! the first byte is kept, and the order in which an image is kept. Must not: ask upstream.
//!
//! A layout is read twice: first every blob that is missing here is hashed, then it is copied. So a
//! layout that is damaged, or does not fit, changes nothing. A tag is written last, when all that
//! the image needs is on the disk; what was copied before a crash is not copied again.
//!
//! A proxy may evict meanwhile. It leaves young blobs that nothing names, so those that were copied
//! are kept young. An image gets its name while nobody evicts: then all of it is there, or what is
//! gone is copied again.

mod naming;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

pub use self::naming::Naming;
use super::archive::{Archive, ArchiveBlob, ArchiveImage, blob_name};
use super::closure::NO_PLATFORM;
use super::disk::Disk;
use super::export::OnProgress;
use super::files;
use super::links::is_media_type;
use super::manifest::{MANIFEST_BYTES_MAX, ManifestContent, Named};
use super::names::{OwnedScope, TagEntry};
use super::partials::Partial;
use super::tree::ManifestWalk;
use crate::config::ImageGlobs;
use crate::hash::Hasher;
use crate::oci::{Digest, Reference};

/// Largest index that lists nothing, with annotations.
const EMPTY_INDEX_BYTES_MAX: usize = 64 << 10;
/// Manifests and blobs of all images together: as many as an archive has entries.
const DIGESTS_MAX: usize = 200_000;
/// Longest time for making room for one blob.
const ROOM_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for another process: one that evicts looks at every file, and one that downloads a
/// blob may ask a slow registry.
pub const OTHERS_TIMEOUT: Duration = Duration::from_secs(600);
/// Between two looks at a blob that another process downloads.
const LOOK: Duration = Duration::from_millis(50);
/// Attempts to keep an image: one that is evicted while it is copied is copied again.
const KEEP_ATTEMPTS: usize = 3;

/// An image that is taken over.
#[derive(Debug)]
pub struct ImportImage {
    /// Its name here.
    pub name: String,
    /// Where it is kept.
    pub scope: OwnedScope,
    /// A digest for what has no tag, such as a signature.
    reference: Reference,
    /// Manifests, which have a media type, and blobs. What names another comes after it, so that
    /// its own manifest is the last.
    contents: Vec<Named>,
    /// Platforms that are not in the layout.
    pub absent: Vec<String>,
}

impl ImportImage {
    /// True for a signature or another artifact of an image.
    pub fn is_referrer(&self) -> bool {
        naming::is_referrer(&self.reference)
    }
}

/// Takes a layout into the cache.
pub struct Importer<'a> {
    /// The cache.
    pub disk: &'a Disk,
    /// The layout.
    pub archive: &'a Archive,
    /// `FREEZE_TAGS`: these tags do not move.
    pub frozen: &'a ImageGlobs,
    /// Longest wait for each work of another process: [`OTHERS_TIMEOUT`].
    pub patience: Duration,
}

impl Importer<'_> {
    /// Takes all images of the layout into the cache. Blocks, for as long as it takes to read the
    /// layout twice.
    ///
    /// # Errors
    /// What is wrong with the layout, with the name of the entry: then nothing is kept. A disk that
    /// fails or is full, or a layout that changes meanwhile: then the images before are kept.
    pub fn import(
        &self,
        naming: &Naming,
        progress: OnProgress<'_>,
    ) -> Result<Vec<ImportImage>, String> {
        let images = self.plan(naming)?;
        let total = self.check(&images, progress)?;
        let mut done = 0;
        for image in &images {
            let kept = self.keep(image, &mut |bytes| {
                done += bytes;
                progress("import", done, total);
            });
            kept.map_err(|why| format!("{}: {why}", image.name))?;
        }
        Ok(images)
    }

    /// Names all images of the layout, and finds what they are made of. What has no tag and what
    /// belongs to an image comes before that image.
    fn plan(&self, naming: &Naming) -> Result<Vec<ImportImage>, String> {
        let (mut images, mut count) = (Vec::<ImportImage>::new(), 0);
        let mut seen = HashMap::new();
        for listed in &self.archive.images {
            let (scope, reference) = naming.resolve(listed)?;
            let name = scope.as_scope().name_of(&reference);
            if let Some(before) = seen.insert(name.clone(), &listed.digest) {
                if *before == listed.digest {
                    continue;
                }
                let why = "is there twice; leave out --as, or its tag";
                return Err(format!("index.json: {name} {why}"));
            }
            let mut image = ImportImage {
                name,
                scope,
                reference,
                contents: Vec::new(),
                absent: Vec::new(),
            };
            let walked = self.walk(&mut image, listed);
            let walked = walked.and_then(|()| self.refuse_frozen(&image));
            walked.map_err(|why| format!("{}: {why}", image.name))?;
            count += image.contents.len();
            if count > DIGESTS_MAX {
                let why = format!("names more than {DIGESTS_MAX} blobs; import it in parts");
                return Err(format!("{}: {why}", image.name));
            }
            images.push(image);
        }
        if images.is_empty() {
            return Err("index.json: lists no image".to_owned());
        }
        images.sort_by_key(|image| !image.is_referrer());
        Ok(images)
    }

    /// # Errors
    /// The image would move a frozen tag; other media types of the tag stay as they are.
    fn refuse_frozen(&self, image: &ImportImage) -> Result<(), String> {
        let scope = image.scope.as_scope();
        let (Reference::Tag(tag), Some(root)) = (&image.reference, image.contents.last()) else {
            return Ok(());
        };
        let (registry, repository) = (scope.registry.name(), scope.repository.as_str());
        if !self.frozen.matches(registry, repository, tag.as_str()) {
            return Ok(());
        }
        let entries = self.disk.names.tag(scope, "", tag);
        let moves = |entry: &&TagEntry| {
            root.media_type.as_ref() == Some(&entry.media_type) && entry.digest != root.digest
        };
        entries.iter().find(moves).map_or(Ok(()), |entry| {
            let digest = &entry.digest;
            Err(format!(
                "FREEZE_TAGS keeps it at {digest}; give it another tag with --as"
            ))
        })
    }

    /// Finds all that an image is made of.
    fn walk(&self, image: &mut ImportImage, listed: &ArchiveImage) -> Result<(), String> {
        let mut has_part = false;
        let mut walk = ManifestWalk::new(DIGESTS_MAX);
        walk.enter(&listed.digest, Some(&listed.media_type));
        while let Some(mut found) = walk.advance() {
            let digest = &found.digest;
            let Some(content) = self.read_manifest(digest)? else {
                let is_attestation = found.platform.as_deref() == Some(NO_PLATFORM);
                let platform = found.platform.unwrap_or_else(|| digest.to_string());
                // Other programs write the platform of their machine, and the index as it was.
                let is_foreign = self.archive.export.is_none();
                let is_left_out = is_attestation || !listed.platforms.picks(&platform);
                if *digest == listed.digest || !(is_foreign || is_left_out) {
                    return Err(self.describe_missing(digest));
                }
                image.absent.extend((!is_attestation).then_some(platform));
                continue;
            };
            walk.descend(&content);
            // The manifest's own type counts, as in a pull; a list may say anything.
            found.media_type = content.media_type.clone().or(found.media_type);
            if !found.media_type.as_deref().is_some_and(is_media_type) {
                let why = "is listed without a media type of its own";
                return Err(format!("{digest} {why}"));
            }
            image.contents.push(found);
            if !content.is_index {
                has_part = true;
                image.contents.extend(content.named);
            }
        }
        if walk.is_cut {
            return Err("is larger or deeper than any image that registries take".to_owned());
        }
        image.contents.reverse();
        match has_part || image.absent.is_empty() {
            true => Ok(()),
            false => Err("no platform of it is in the layout".to_owned()),
        }
    }

    /// None for a manifest that is neither in the layout nor in the cache.
    fn read_manifest(&self, digest: &Digest) -> Result<Option<ManifestContent>, String> {
        // The cache removes one that is damaged.
        let bytes = match at(digest, self.disk.store.read(digest, MANIFEST_BYTES_MAX))? {
            None => self.archive.manifest(digest, MANIFEST_BYTES_MAX)?,
            stored => stored,
        };
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let content = ManifestContent::read(&bytes);
        if content.named.is_empty() && !is_empty_index(&bytes) {
            let why = "is no manifest, or one that can be read in two ways";
            return Err(format!("{}: {why}", blob_name(digest)));
        }
        Ok(Some(content))
    }

    /// Opens a blob of the layout.
    fn open(&self, digest: &Digest) -> Result<ArchiveBlob, String> {
        let blob = at(digest, self.archive.blob(digest))?;
        blob.ok_or_else(|| self.describe_missing(digest))
    }

    fn describe_missing(&self, digest: &Digest) -> String {
        let export = self.archive.export.as_deref().unwrap_or_default();
        let remedy = match export.strip_prefix("since ") {
            Some(base) => format!(
                "it was exported with --since {base}; import that first, or export it without \
                 --since"
            ),
            None => "the layout is not whole".to_owned(),
        };
        format!("{digest} is neither in the layout nor in the cache: {remedy}")
    }

    /// Hashes every blob, in the cache and else in the layout. Writes nothing, but a damaged blob
    /// of the cache goes. Returns how many bytes are missing here.
    fn check(&self, images: &[ImportImage], progress: OnProgress<'_>) -> Result<u64, String> {
        let mut seen = HashSet::new();
        let blobs = images.iter().flat_map(|image| &image.contents);
        let blobs: Vec<&Named> = blobs.filter(|named| seen.insert(&named.digest)).collect();
        let total = blobs.iter().filter_map(|named| named.size).sum();
        let (mut done, mut missing) = (0, Vec::new());
        for Named { digest, size, .. } in blobs {
            let stored = at(digest, self.disk.store.open_verified(digest, u64::MAX))?;
            let found = match &stored {
                Some(blob) => blob.size,
                None => self.open(digest)?.limit(),
            };
            if let Some(size) = size.filter(|size| *size != found) {
                let why = format!("has {found} bytes, and its manifest says {size}");
                return Err(format!("{}: {why}", blob_name(digest)));
            }
            match stored {
                Some(_) => done += found,
                None => missing.push((digest, found)),
            }
            progress("verify", done, total);
        }
        self.check_room(&missing)?;
        for (digest, size) in &missing {
            let mut hasher = Hasher::new(digest);
            let read = files::each_piece(self.open(digest)?, &mut |piece| {
                hasher.update(piece);
                done += piece.len() as u64;
                progress("verify", done, total);
                Ok(())
            });
            at(digest, read)?;
            if hasher.finish() != digest.as_str() {
                let why = format!("its {size} bytes have another digest");
                return Err(format!("{}: {why}", blob_name(digest)));
            }
        }
        Ok(missing.iter().map(|(_, size)| size).sum())
    }

    fn check_room(&self, missing: &[(&Digest, u64)]) -> Result<(), String> {
        let total: u64 = missing.iter().map(|(_, size)| size).sum();
        let free = self.disk.free_bytes().map_err(|error| error.to_string())?;
        // What is in the cache may be evicted.
        let free = free + self.disk.store.used_bytes();
        let limit = self.disk.sweeper.quota.min(free);
        match missing.iter().max_by_key(|(_, size)| *size) {
            Some((digest, size)) if total > limit => Err(format!(
                "{}: has {size} of {total} bytes that are missing here, and CACHE_MAX_SIZE and the \
                 free space leave {limit} bytes",
                blob_name(digest)
            )),
            _ => Ok(()),
        }
    }

    /// Keeps an image: its blobs and manifests, their links, and its tag when all of them are on
    /// the disk. What is here already is not copied again.
    ///
    /// # Errors
    /// The disk's own; no room; a layout that has changed since it was checked. There is no tag
    /// then.
    fn keep(&self, image: &ImportImage, on_copied: &mut dyn FnMut(u64)) -> Result<(), String> {
        let store = &self.disk.store;
        let digests = || image.contents.iter().map(|named| &named.digest);
        let _readings: Vec<_> = digests().map(|digest| store.reading(digest)).collect();
        for _ in 0..KEEP_ATTEMPTS {
            let mut copied: Vec<&Digest> = Vec::new();
            for digest in digests().filter(|digest| !store.has(digest)) {
                at(digest, self.copy(digest, on_copied))?;
                // Another process evicts what nothing names, unless it is young (`sweep.rs`).
                copied.iter().for_each(|digest| store.renew(digest));
                copied.push(digest);
            }
            let lock = store.lock("evict", self.patience);
            let _lock = lock.ok_or("another process evicts; try again")?;
            if digests().all(|digest| store.has(digest)) {
                return self.set_names(image).map_err(|error| error.to_string());
            }
        }
        Err("was evicted while it was copied: CACHE_MAX_SIZE is small; try again".to_owned())
    }

    /// Writes links, and the tag when all of them are on the disk.
    fn set_names(&self, image: &ImportImage) -> io::Result<()> {
        let (names, scope) = (&self.disk.names, image.scope.as_scope());
        let now = names.changes.now();
        for Named {
            digest, media_type, ..
        } in &image.contents
        {
            match media_type {
                Some(media_type) => drop(names.link_manifest(scope, digest, media_type, now)?),
                None => names.link_blob(scope, digest, self.disk.store.size(digest), now)?,
            }
        }
        names.sync_links(scope, image.contents.iter().map(|named| &named.digest))?;
        if names.remembered_registry().is_none() {
            names.remember_registry(&image.scope.registry)?;
        }
        if let (Reference::Tag(tag), Some(root)) = (&image.reference, image.contents.last()) {
            let entry = TagEntry {
                digest: root.digest.clone(),
                media_type: root.media_type.clone().unwrap_or_default(),
                confirmed: SystemTime::now(),
            };
            names.set_tag(scope, "", tag, entry, now)?;
        }
        self.disk.sweeper.mark_dirty();
        Ok(())
    }

    /// Opens the file for a blob. None when another process has brought the blob meanwhile.
    fn open_partial(&self, digest: &Digest) -> io::Result<Option<Partial>> {
        let until = Instant::now() + self.patience;
        loop {
            let partial = self.disk.store.partial(digest)?;
            if partial.is_ours || self.disk.store.has(digest) {
                return Ok(partial.is_ours.then_some(partial));
            }
            if Instant::now() >= until {
                let why = "another process downloads it; try again when it has";
                return Err(io::Error::other(why));
            }
            thread::sleep(LOOK);
        }
    }

    /// Copies a blob. What an earlier import left of it is compared, and not written again.
    fn copy(&self, digest: &Digest, on_copied: &mut dyn FnMut(u64)) -> io::Result<()> {
        let store = &self.disk.store;
        let evicted = || io::Error::other("was evicted meanwhile; try again");
        let blob = self.archive.blob(digest)?.ok_or_else(evicted)?;
        let size = blob.limit();
        let Some(partial) = self.open_partial(digest)? else {
            return Ok(());
        };
        let Partial {
            mut file,
            mut length,
            ..
        } = partial;
        if length > size {
            (file, length) = (store.fresh_partial(digest)?, 0);
        }
        let until = Instant::now() + ROOM_TIMEOUT;
        let room = self.disk.make_room(size - length, until);
        let mut room = room.map_err(io::Error::other)?;
        let (mut hasher, mut at, mut kept) = (Hasher::new(digest), 0, Vec::new());
        files::each_piece(blob, &mut |piece| {
            hasher.update(piece);
            kept.resize(piece.len(), 0);
            if file.read_exact_at(&mut kept, at).is_err() || kept != piece {
                file.write_all_at(piece, at)?;
            }
            let end = at + piece.len() as u64;
            let grown = end.saturating_sub(length.max(at));
            store.add_used(i64::try_from(grown).unwrap_or_default());
            room.spend(grown);
            on_copied(end - at);
            at = end;
            Ok(())
        })?;
        if hasher.finish() == digest.as_str() {
            return store.publish(digest, &file);
        }
        store.discard_partial(digest);
        Err(io::Error::other("has changed since it was verified"))
    }
}

/// Names the blob in a fault.
fn at<T>(digest: &Digest, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{}: {error}", blob_name(digest)))
}

/// True for an index that lists nothing, which is no fault.
fn is_empty_index(bytes: &[u8]) -> bool {
    let is_small = bytes.len() <= EMPTY_INDEX_BYTES_MAX;
    let document = is_small.then(|| serde_json::from_slice::<Value>(bytes).ok());
    let document = document.flatten().unwrap_or_default();
    let manifests = document.get("manifests").and_then(Value::as_array);
    manifests.is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests;
