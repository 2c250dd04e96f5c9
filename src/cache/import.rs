//! Images of a layout, taken into the cache. Owns: naming them, checking all of the layout before
//! the first byte is kept, and the order in which an image is kept. Must not: ask upstream.
//!
//! A layout is read twice: first every blob that is missing here is hashed, then it is copied. So a
//! layout that is damaged, or does not fit, changes nothing. A tag is written last, when all that
//! the image needs is on the disk; what was copied before a crash is not copied again.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::archive::{Archive, ArchiveBlob, ArchiveImage, Origin, blob_name};
use super::changes::Moment;
use super::closure::NO_PLATFORM;
use super::disk::Disk;
use super::export::Progress;
use super::manifest::ManifestContent;
use super::names::{Scope, TagEntry};
use super::partials::Partial;
use crate::hash::Hasher;
use crate::image_name::ImageName;
use crate::oci::{Digest, Registry, Repository, Tag};
use crate::platforms::Platforms;

/// Largest manifest: four times what registries take.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Manifests below one another: an index of an index is rare.
const DEPTH_MAX: usize = 8;
/// Manifests and blobs of all images together: as many as an archive has entries.
const DIGESTS_MAX: usize = 200_000;
/// Bytes copied at a time.
const COPY_BYTES: usize = 128 * 1024;
/// Longest time for making room for one blob.
const ROOM_TIMEOUT: Duration = Duration::from_secs(60);
/// Another process may download a blob that it gets no byte of for so long.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at such a download.
const LOOK: Duration = Duration::from_millis(50);
/// Room left free on the disk for everything else that writes there.
const FREE_BYTES_MIN: u64 = 1 << 20;

/// How the images of a layout are called here.
#[derive(Debug, Clone, Default)]
pub struct Naming {
    /// `--as`: the registry and repository of all of them.
    pub place: Option<(Registry, Repository)>,
    /// `--as` with a tag: that of the one image.
    pub tag: Option<Tag>,
    /// The registry of names without one.
    pub default: Option<Registry>,
}

/// An image that is taken over.
#[derive(Debug)]
pub struct ImportImage {
    registry: Registry,
    repository: Repository,
    /// None for what has no tag, such as a signature.
    tag: Option<Tag>,
    root: Digest,
    media_type: String,
    /// With their media types; what names another comes after it.
    manifests: Vec<(Digest, String)>,
    blobs: Vec<(Digest, u64)>,
    /// Platforms that are not in the layout.
    pub absent: Vec<String>,
}

impl ImportImage {
    fn scope(&self) -> Scope<'_> {
        Scope {
            registry: &self.registry,
            repository: &self.repository,
        }
    }

    /// Its name here.
    pub fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}:{}", self.scope(), tag.as_str()),
            None => format!("{}@{}", self.scope(), self.root),
        }
    }

    /// Its registry here.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// True for a signature or another artifact of an image.
    pub fn is_referrer(&self) -> bool {
        self.tag
            .as_ref()
            .is_none_or(|tag| is_referrer_tag(tag.as_str()))
    }
}

/// Takes a layout into the cache.
pub struct Importer<'a> {
    /// The cache.
    pub disk: &'a Disk,
    /// The layout.
    pub archive: &'a Archive,
}

impl Importer<'_> {
    /// Names all images of the layout, and finds what they are made of. What has no tag and what
    /// belongs to an image comes before that image.
    ///
    /// # Errors
    /// An image without a name, a manifest or blob that is neither in the layout nor in the cache,
    /// a manifest whose content is not what its digest says.
    pub fn plan(&self, naming: &Naming) -> Result<Vec<ImportImage>, String> {
        let listed = &self.archive.images;
        let mut names = Vec::new();
        for image in listed {
            names.push(resolve_name(image, naming)?);
        }
        check_names(&names, naming)?;
        let mut images = Vec::new();
        let mut count = 0;
        for (listed, (registry, repository, tag)) in listed.iter().zip(names) {
            let mut image = ImportImage {
                registry,
                repository,
                tag,
                root: listed.digest.clone(),
                media_type: listed.media_type.clone(),
                manifests: Vec::new(),
                blobs: Vec::new(),
                absent: Vec::new(),
            };
            self.walk(&mut image, &listed.platforms)?;
            count += image.manifests.len() + image.blobs.len();
            if count > DIGESTS_MAX {
                let why = format!("names more than {DIGESTS_MAX} blobs; import it in parts");
                return Err(format!("{}: {why}", image.name()));
            }
            images.push(image);
        }
        images.sort_by_key(|image| !image.is_referrer());
        Ok(images)
    }

    /// Finds all that an image is made of.
    fn walk(&self, image: &mut ImportImage, platforms: &Platforms) -> Result<(), String> {
        let mut seen = HashSet::new();
        let mut open = vec![(image.root.clone(), image.media_type.clone(), None, 0)];
        let mut has_part = false;
        while let Some((digest, media_type, platform, depth)) = open.pop() {
            if !seen.insert(digest.clone()) {
                continue;
            }
            if depth > DEPTH_MAX {
                let why = format!("manifests below one another, at most {DEPTH_MAX}");
                return Err(format!("{}: {digest}: has more than {why}", image.name()));
            }
            let Some(bytes) = self.read_manifest(&digest)? else {
                if depth > 0 && self.may_be_absent(platform.as_deref(), platforms) {
                    image
                        .absent
                        .push(platform.unwrap_or_else(|| digest.to_string()));
                    continue;
                }
                return Err(self.describe_missing(image, &digest));
            };
            let content = ManifestContent::read(&bytes);
            image.manifests.push((digest, media_type));
            has_part |= !content.is_index;
            for named in content.named {
                match named.media_type {
                    Some(kind) => {
                        let platform = content.platforms.get(&named.digest).cloned();
                        open.push((named.digest, kind, platform, depth + 1));
                    }
                    None if seen.insert(named.digest.clone()) => {
                        let size = self.find_blob(image, &named.digest, named.size)?;
                        image.blobs.push((named.digest, size));
                    }
                    None => {}
                }
            }
        }
        // So that children are kept before the index that names them.
        image.manifests.reverse();
        image.absent.retain(|platform| platform != NO_PLATFORM);
        match has_part || image.absent.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "{}: no platform of it is in the layout",
                image.name()
            )),
        }
    }

    fn read_manifest(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
        if let Some(bytes) = self.archive.manifest(digest, MANIFEST_BYTES_MAX)? {
            return Ok(Some(bytes));
        }
        let stored = self.disk.store.read(digest, MANIFEST_BYTES_MAX);
        stored.map_err(|error| error.to_string())
    }

    /// Other programs write the platform of their machine, and the index as it was.
    fn may_be_absent(&self, platform: Option<&str>, platforms: &Platforms) -> bool {
        let is_left_out = platform.is_some_and(|platform| !platforms.picks(platform));
        let is_foreign = self.archive.origin == Origin::Foreign;
        is_foreign || is_left_out || platform == Some(NO_PLATFORM)
    }

    /// The size of a blob that is here, or in the layout with the size that its manifest says.
    fn find_blob(
        &self,
        image: &ImportImage,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<u64, String> {
        let fits = |found: &u64| size.is_none_or(|size| size == *found);
        if let Some(stored) = self.disk.store.size(digest).filter(fits) {
            return Ok(stored);
        }
        let name = blob_name(digest);
        let blob = self
            .archive
            .blob(digest)
            .map_err(|error| format!("{name}: {error}"))?;
        let blob = blob.ok_or_else(|| self.describe_missing(image, digest))?;
        match fits(&blob.left()) {
            true => Ok(blob.left()),
            false => Err(format!(
                "{name}: has {} bytes, and its manifest says {}",
                blob.left(),
                size.unwrap_or_default()
            )),
        }
    }

    fn describe_missing(&self, image: &ImportImage, digest: &Digest) -> String {
        let remedy = match &self.archive.origin {
            Origin::Delta(base) => format!(
                "it was exported with --since {base}; import that first, or export it without \
                 --since"
            ),
            Origin::Export | Origin::Foreign => "the layout is not whole".to_owned(),
        };
        let name = image.name();
        format!("{name}: {digest} is neither in the layout nor in the cache: {remedy}")
    }

    /// Hashes every blob that is missing here. Writes nothing. Returns how many bytes that are.
    ///
    /// # Errors
    /// A blob with another digest than its name, and blobs for which there is no room.
    pub fn check(&self, images: &[ImportImage], progress: Progress<'_>) -> Result<u64, String> {
        let missing = self.missing(images);
        let total: u64 = missing.values().sum();
        let quota = self.disk.sweeper.quota();
        let largest = missing.iter().max_by_key(|(_, size)| **size);
        let free = self
            .disk
            .store
            .free_bytes()
            .map_err(|error| error.to_string())?;
        // What is in the cache may be evicted.
        let used = self.disk.store.used_bytes();
        let free = free.saturating_sub(FREE_BYTES_MIN).saturating_add(used);
        for (limit, what) in [(quota, "CACHE_MAX_SIZE"), (free, "the free space")] {
            if let (true, Some((digest, size))) = (total > limit, largest) {
                return Err(format!(
                    "{}: has {size} of {total} bytes that are missing here, and {what} is {limit} \
                     bytes",
                    blob_name(digest)
                ));
            }
        }
        let mut done = 0;
        for (digest, size) in &missing {
            let mut hasher = Hasher::new(digest);
            self.read(digest, 0, &mut |piece, _| {
                hasher.update(piece);
                done += piece.len() as u64;
                progress("verify", done, total);
                Ok(())
            })?;
            if hasher.finish() != digest.as_str() {
                let why = format!("its {size} bytes have another digest");
                return Err(format!("{}: {why}", blob_name(digest)));
            }
        }
        Ok(total)
    }

    fn missing(&self, images: &[ImportImage]) -> HashMap<Digest, u64> {
        let blobs = images.iter().flat_map(|image| &image.blobs);
        let missing = blobs.filter(|(digest, size)| self.disk.store.size(digest) != Some(*size));
        missing.cloned().collect()
    }

    /// Reads a blob of the layout from an offset on.
    fn read(
        &self,
        digest: &Digest,
        from: u64,
        take: &mut dyn FnMut(&[u8], u64) -> io::Result<()>,
    ) -> Result<(), String> {
        let fault = |error: io::Error| format!("{}: {error}", blob_name(digest));
        let mut blob: ArchiveBlob = self
            .archive
            .blob(digest)
            .and_then(|blob| blob.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(fault)?;
        blob.skip(from);
        let mut buffer = vec![0; COPY_BYTES];
        let mut at = from;
        loop {
            let count = blob.read(&mut buffer).map_err(fault)?;
            let piece = buffer.get(..count).filter(|piece| !piece.is_empty());
            let Some(piece) = piece else {
                return Ok(());
            };
            take(piece, at).map_err(fault)?;
            at += count as u64;
        }
    }

    /// Keeps an image: its blobs, its manifests, the links of both, and its tag when all of them
    /// are on the disk. What is here already is not read again.
    ///
    /// # Errors
    /// The disk's own; no room; a layout that has changed since it was checked. There is no tag
    /// then.
    pub fn keep(
        &self,
        image: &ImportImage,
        total: u64,
        done: &mut u64,
        progress: Progress<'_>,
    ) -> Result<(), String> {
        let fault = |error: io::Error| format!("{}: {error}", image.name());
        let (store, names, scope) = (&self.disk.store, &self.disk.names, image.scope());
        let members = image.manifests.iter().map(|(digest, _)| digest);
        let members = members.chain(image.blobs.iter().map(|(digest, _)| digest));
        let _readings: Vec<_> = members
            .clone()
            .map(|digest| store.reading(digest))
            .collect();
        for (digest, size) in &image.blobs {
            if store.size(digest) != Some(*size) {
                self.copy(digest, *size, &mut |count| {
                    *done += count;
                    progress("import", *done, total);
                })?;
            }
        }
        if let Some((digest, _)) = image.blobs.iter().find(|(digest, _)| !store.has(digest)) {
            let why = "was evicted meanwhile: CACHE_MAX_SIZE is small; try again";
            return Err(format!("{}: {digest} {why}", image.name()));
        }
        let now = names.changes.now();
        for (digest, media_type) in &image.manifests {
            if let Some(bytes) = self.read_manifest(digest)? {
                store.put(digest, &bytes).map_err(fault)?;
            }
            names
                .link_manifest(scope, digest, media_type, now)
                .map_err(fault)?;
        }
        for (digest, size) in &image.blobs {
            names
                .link_verified_blob(scope, digest, *size, now)
                .map_err(fault)?;
        }
        names.sync_links(scope, members).map_err(fault)?;
        self.set_tag(image, now).map_err(fault)?;
        self.disk.sweeper.mark_dirty();
        Ok(())
    }

    fn set_tag(&self, image: &ImportImage, now: Moment) -> io::Result<()> {
        let names = &self.disk.names;
        if names.remembered_registry().is_none() {
            names.remember_registry(&image.registry)?;
        }
        let Some(tag) = &image.tag else {
            return Ok(());
        };
        let entry = TagEntry {
            digest: image.root.clone(),
            media_type: image.media_type.clone(),
            confirmed: SystemTime::now(),
        };
        names.set_tag(image.scope(), "", tag, entry, now)
    }

    /// Opens the file for a blob. None when another process has brought the blob meanwhile.
    fn open_partial(&self, digest: &Digest, size: u64) -> Result<Option<Partial>, String> {
        let store = &self.disk.store;
        let fault = |error: io::Error| format!("{}: {error}", blob_name(digest));
        let (mut length, mut until) = (0, Instant::now() + FOLLOW_TIMEOUT);
        loop {
            let partial = store.partial(digest).map_err(fault)?;
            if partial.is_ours {
                return Ok(Some(partial));
            }
            if store.size(digest) == Some(size) {
                return Ok(None);
            }
            if partial.length > length {
                (length, until) = (partial.length, Instant::now() + FOLLOW_TIMEOUT);
            }
            if Instant::now() >= until {
                let why = "another process downloads it, and gets no further; stop it";
                return Err(format!("{}: {why}", blob_name(digest)));
            }
            thread::sleep(LOOK);
        }
    }

    /// Copies a blob, and goes on where an earlier import has stopped.
    fn copy(
        &self,
        digest: &Digest,
        size: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), String> {
        let store = &self.disk.store;
        let fault = |error: io::Error| format!("{}: {error}", blob_name(digest));
        let Some(partial) = self.open_partial(digest, size)? else {
            return Ok(());
        };
        let (mut file, mut hasher) = (partial.file, Hasher::new(digest));
        let mut have = 0;
        let mut buffer = vec![0; COPY_BYTES];
        while have < partial.length.min(size) {
            let count = file.read_at(&mut buffer, have).map_err(fault)?;
            hasher.update(buffer.get(..count).unwrap_or_default());
            have += count as u64;
        }
        let mut room = self
            .disk
            .sweeper
            .make_room(size.saturating_sub(have), Instant::now() + ROOM_TIMEOUT)
            .ok_or_else(|| format!("{}: no room in CACHE_MAX_SIZE", blob_name(digest)))?;
        for attempt in 0..2 {
            if attempt > 0 || partial.length > size {
                // What was left of an earlier download is not the beginning of the blob.
                (file, hasher, have) = (
                    store.fresh_partial(digest).map_err(fault)?,
                    Hasher::new(digest),
                    0,
                );
            }
            progress(have);
            self.read(digest, have, &mut |piece, at| {
                file.write_all_at(piece, at)?;
                hasher.update(piece);
                let count = piece.len() as u64;
                store.add_used(i64::try_from(count).unwrap_or_default());
                room.spend(count);
                progress(count);
                Ok(())
            })?;
            if hasher.clone().finish() == digest.as_str() {
                return store.publish(digest, &file).map_err(fault);
            }
        }
        store.discard_partial(digest);
        Err(format!(
            "{}: has changed since it was verified",
            blob_name(digest)
        ))
    }
}

type Place = (Registry, Repository, Option<Tag>);

/// The name of an image here: by `--as`, else by the layout, whose names may lack the registry.
fn resolve_name(image: &ArchiveImage, naming: &Naming) -> Result<Place, String> {
    let name = image.name.as_deref().unwrap_or_default();
    let unnamed = || {
        format!(
            "index.json calls {} {name:?}, which names no registry and repository: give them with \
             --as REGISTRY/REPOSITORY:TAG",
            image.digest
        )
    };
    // A word alone is a tag, as `skopeo copy … oci:DIR:v1` and containerd write it.
    let (named, tag) = match name.parse::<Tag>() {
        Ok(tag) => (None, Some(tag)),
        Err(_) if name.is_empty() => (None, None),
        Err(_) => {
            let named: ImageName = name.parse().map_err(|why| format!("index.json: {why}"))?;
            let tag = named
                .digest()
                .map_or_else(|| named.tag().cloned(), |_| None);
            (Some(named), tag)
        }
    };
    if let Some((registry, repository)) = &naming.place {
        let is_free = |tag: &Tag| !is_referrer_tag(tag.as_str());
        let is_digest = named.as_ref().is_some_and(|named| named.digest().is_some());
        let given = naming
            .tag
            .clone()
            .filter(|_| !is_digest && tag.as_ref().is_none_or(is_free));
        let tag = given.or(tag);
        return match tag.is_some() || is_digest {
            true => Ok((registry.clone(), repository.clone(), tag)),
            false => Err(unnamed()),
        };
    }
    let named = named.ok_or_else(unnamed)?;
    let registry = match named.host() {
        Some(host) => Some(
            host.parse()
                .map_err(|why| format!("index.json: {name:?}: {why}"))?,
        ),
        None => naming.default.clone(),
    };
    Ok((
        registry.ok_or_else(unnamed)?,
        named.repository().clone(),
        tag,
    ))
}

/// # Errors
/// Two images with one name.
fn check_names(names: &[Place], naming: &Naming) -> Result<(), String> {
    let mut seen = HashSet::new();
    for (registry, repository, tag) in names {
        let Some(tag) = tag else {
            continue;
        };
        if !seen.insert((registry.name(), repository.as_str(), tag.as_str())) {
            let name = format!("{registry}/{repository}:{}", tag.as_str());
            let remedy = match naming.place {
                Some(_) => "leave --as or its tag away",
                None => "two images have this name",
            };
            return Err(format!("index.json: {name} is there twice: {remedy}"));
        }
    }
    Ok(())
}

fn is_referrer_tag(tag: &str) -> bool {
    let rest = tag
        .strip_prefix("sha256-")
        .or_else(|| tag.strip_prefix("sha512-"));
    rest.is_some_and(|rest| rest.len() >= 64)
}

#[cfg(test)]
mod tests;
