//! What an image needs: the one walk from its manifest down to its layers. Owns: that walk, and the
//! list of what refers to an image. Must not: change anything, or ask upstream.
//!
//! An index leads to manifests, a manifest to its configuration and layers, and, where that is
//! asked for, each of them to the signatures and other artifacts in the cache that refer to it.
//! Foreign layers are no part of an image here: their bytes are elsewhere (`manifest.rs`).

use std::collections::{HashMap, HashSet};

use super::manifest::{MANIFEST_BYTES_MAX, ManifestContent, Named, platform_of_config};
use super::names::{Names, Scope, TagEntry};
use super::store::Store;
use super::tree::ManifestWalk;
use crate::oci::{Digest, Tag};
use crate::platforms::Platforms;

/// The platform of an attestation, which nobody runs (buildkit).
pub const NO_PLATFORM: &str = "unknown/unknown";
/// The platform of an image that names none, such as a chart.
pub const ANY_PLATFORM: &str = "any";
/// Largest configuration that is read: those of usual images are a few KB.
const CONFIG_BYTES_MAX: u64 = 512 * 1024;
/// How cosign ends the tag of what it attached to a manifest (`sha256-<hex>.sig`). The tag with no
/// end is distribution-spec's "Referrers Tag Schema".
const ATTACHED: [&str; 4] = ["", ".sig", ".att", ".sbom"];

/// The manifest that a tag is attached to by its name, as `sha256-<hex>.sig` is.
pub fn subject_of_tag(tag: &Tag) -> Option<Digest> {
    let (digest, end) = match tag.as_str().split_once('.') {
        Some((digest, _)) => (digest, tag.as_str().get(digest.len()..)?),
        None => (tag.as_str(), ""),
    };
    let is_attached = ATTACHED.contains(&end);
    is_attached.then(|| digest.replacen('-', ":", 1).parse().ok())?
}

/// Bytes of all manifests of one image: as many layers as twenty of the largest manifests name.
pub const IMAGE_BYTES_MAX: u64 = 256 << 20;
/// The same for an image on a page, which a reader waits for. Usual images need a few KB.
pub(super) const SHOWN_BYTES_MAX: u64 = 8 << 20;
/// Manifests of one image.
const MANIFESTS_MAX: usize = 100_000;

/// A manifest with all it names: an image for one platform, or an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePart {
    /// The manifest.
    pub manifest: Digest,
    /// Such as `linux/arm64/v8`; [`ANY_PLATFORM`] when none is named.
    pub platform: String,
    /// The manifest, and all that it names.
    pub digests: Vec<Digest>,
    /// What is missing of it. It may be the manifest itself.
    pub missing: Vec<Digest>,
}

impl ImagePart {
    /// True when its manifest is not here, as after a pull for another platform.
    pub fn is_absent(&self) -> bool {
        self.missing.contains(&self.manifest)
    }
}

/// An image with all it needs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Closure {
    /// Every manifest that names manifests; one that names another comes before it.
    pub indexes: Vec<Digest>,
    /// One for each manifest of the image that is no index.
    pub parts: Vec<ImagePart>,
    /// One for each manifest that refers to the image.
    pub referrers: Vec<ImagePart>,
    /// Tags by which clients find signatures and other artifacts of the image.
    pub attached: Vec<(Tag, TagEntry)>,
    /// Bytes of all that is here; a digest counts once.
    pub bytes_here: u64,
    /// There was more than is read of one image.
    pub is_cut: bool,
}

impl Closure {
    /// True for a part that is wanted. What is no index is for all platforms, as in a pull.
    pub fn picks(&self, part: &ImagePart, platforms: &Platforms) -> bool {
        self.indexes.is_empty() || platforms.picks(&part.platform)
    }

    /// Why an index has nothing that is wanted, if so.
    pub fn refuse(&self, platforms: &Platforms) -> Option<String> {
        let parts = self.parts.iter().map(|part| part.platform.as_str());
        let found: Vec<&str> = parts.filter(|found| *found != NO_PLATFORM).collect();
        let refused = platforms.refuse(&found);
        refused.filter(|_| !self.indexes.is_empty())
    }

    /// True when nothing is missing of the image; attestations do not count, as no client that runs
    /// the image asks for them.
    pub fn is_whole(&self) -> bool {
        let needed = |part: &&ImagePart| part.platform != NO_PLATFORM;
        let mut needed = self.parts.iter().filter(needed);
        !self.is_cut && !self.parts.is_empty() && needed.all(|part| part.missing.is_empty())
    }
}

/// The manifests of a repository that refer to others: found by reading all of its manifests once.
#[derive(Debug, Default)]
pub struct ReferrerIndex {
    /// Those that refer to a digest, under that digest; sorted.
    by_subject: HashMap<Digest, Vec<Digest>>,
    /// Manifests that an index of the repository names, or that refer to one there.
    pub(super) parts: HashSet<Digest>,
}

impl ReferrerIndex {
    /// Reads the manifests of a repository. Blocks, for as long as that takes.
    pub fn read(files: Holdings<'_>, scope: Scope<'_>) -> Self {
        let manifests: HashSet<Digest> = files.names.manifests(scope).collect();
        let mut index = Self::default();
        for digest in &manifests {
            let content = read_manifest(files.store, digest).unwrap_or_default();
            // Those that are not here take no memory: nobody asks for them.
            let children = content.named.into_iter().map(|named| named.digest);
            let children = children.filter(|digest| content.is_index && manifests.contains(digest));
            index.parts.extend(children);
            let Some(subject) = content.subject else {
                continue;
            };
            if manifests.contains(&subject) {
                index.parts.insert(digest.clone());
            }
            let referrers = index.by_subject.entry(subject).or_default();
            referrers.push(digest.clone());
        }
        for digests in index.by_subject.values_mut() {
            digests.sort_unstable();
        }
        index
    }
}

/// Reads a manifest. None for one that is not here, or that cannot be read.
pub(super) fn read_manifest(store: &Store, digest: &Digest) -> Option<ManifestContent> {
    let bytes = store.read(digest, MANIFEST_BYTES_MAX).ok()??;
    Some(ManifestContent::read(&bytes))
}

/// The files of the cache that are read.
#[derive(Debug, Clone, Copy)]
pub struct Holdings<'a> {
    /// Manifests and blobs.
    pub store: &'a Store,
    /// Tags and links.
    pub names: &'a Names,
}

impl Holdings<'_> {
    /// What a tag means here: of the manifests for different media types the newest that is here,
    /// else the newest. None for a tag that is not here.
    pub fn tag_entry(&self, scope: Scope<'_>, tag: &Tag) -> Option<TagEntry> {
        let entries = self.names.tag_anywhere(scope, tag);
        let here = entries
            .iter()
            .position(|entry| self.store.has(&entry.digest));
        entries.into_iter().nth(here.unwrap_or_default())
    }

    /// All that the image with this manifest needs. Reads manifests, of at most `bytes_max` bytes
    /// together, and looks up each digest.
    pub fn closure(&self, root: &Digest, bytes_max: u64) -> Closure {
        let mut walker = Walker::new(self.store, bytes_max);
        walker.walk(root);
        walker.closure
    }

    /// The same, and all that refers to the image and still belongs to the repository.
    pub fn closure_with_referrers(
        &self,
        scope: Scope<'_>,
        root: &Digest,
        index: &ReferrerIndex,
    ) -> Closure {
        let mut walker = Walker::new(self.store, IMAGE_BYTES_MAX);
        walker.walk(root);
        let parts = walker.closure.parts.len();
        let mut at = 0;
        // Referrers are manifests themselves, and may have referrers.
        while let Some(subject) = walker.met.get(at).cloned() {
            at += 1;
            let referrers = index.by_subject.get(&subject).into_iter().flatten();
            for digest in referrers.filter(|digest| self.names.link(scope, digest).is_some()) {
                walker.walk(digest);
            }
            for (tag, entry) in self.attached(scope, &subject) {
                walker.walk(&entry.digest);
                walker.closure.attached.push((tag, entry));
            }
        }
        let mut closure = walker.closure;
        closure.referrers = closure.parts.split_off(parts);
        closure
    }

    fn attached(&self, scope: Scope<'_>, subject: &Digest) -> Vec<(Tag, TagEntry)> {
        // The digits of a sha512 are cut to as many as a sha256 has (distribution-spec).
        let (algorithm, hex) = (subject.algorithm(), subject.hex());
        let hex = hex.get(..64).unwrap_or(hex);
        let tags = ATTACHED
            .iter()
            .filter_map(|end| format!("{algorithm}-{hex}{end}").parse::<Tag>().ok());
        let found = tags.filter_map(|tag| {
            let entry = self.tag_entry(scope, &tag)?;
            Some((tag, entry))
        });
        found.collect()
    }
}

struct Walker<'a> {
    store: &'a Store,
    tree: ManifestWalk,
    closure: Closure,
    /// Manifests, as they were met.
    met: Vec<Digest>,
    /// Whether each digest is here.
    seen: HashMap<Digest, bool>,
    /// Bytes of manifests that may still be read.
    bytes_left: u64,
}

impl<'a> Walker<'a> {
    fn new(store: &'a Store, bytes_max: u64) -> Self {
        Self {
            store,
            tree: ManifestWalk::new(MANIFESTS_MAX),
            closure: Closure::default(),
            met: Vec::new(),
            seen: HashMap::new(),
            bytes_left: bytes_max,
        }
    }

    fn walk(&mut self, root: &Digest) {
        self.tree.enter(root, None);
        while let Some(found) = self.tree.advance() {
            self.visit(found);
        }
        self.closure.is_cut |= self.tree.is_cut;
    }

    fn visit(&mut self, found: Named) {
        let content = self.read(&found.digest);
        let is_here = content.is_some() && self.find(&found.digest);
        let content = content.unwrap_or_default();
        self.tree.descend(&content);
        self.met.push(found.digest.clone());
        if content.is_index {
            self.closure.indexes.push(found.digest);
            return;
        }
        let platform = found.platform.or_else(|| self.platform(&content));
        let mut part = ImagePart {
            platform: platform.unwrap_or_else(|| ANY_PLATFORM.to_owned()),
            digests: vec![found.digest.clone()],
            missing: Vec::from_iter((!is_here).then(|| found.digest.clone())),
            manifest: found.digest,
        };
        for named in content.named {
            if !self.find(&named.digest) {
                part.missing.push(named.digest.clone());
            }
            part.digests.push(named.digest);
        }
        self.closure.parts.push(part);
    }

    /// A manifest that is here and not damaged. One that cannot be read, or that is too large,
    /// names nothing, and the closure is cut.
    fn read(&mut self, digest: &Digest) -> Option<ManifestContent> {
        let limit = self.bytes_left.min(MANIFEST_BYTES_MAX);
        let Ok(bytes) = self.store.read(digest, limit) else {
            self.closure.is_cut = true;
            return Some(ManifestContent::default());
        };
        let bytes = bytes?;
        self.bytes_left -= bytes.len() as u64;
        Some(ManifestContent::read(&bytes))
    }

    fn platform(&self, content: &ManifestContent) -> Option<String> {
        let config = content.config.as_ref()?;
        let bytes = self.store.read(config, CONFIG_BYTES_MAX).ok()??;
        platform_of_config(&bytes)
    }

    /// True for a digest that is here. Its bytes count once.
    fn find(&mut self, digest: &Digest) -> bool {
        if let Some(is_here) = self.seen.get(digest) {
            return *is_here;
        }
        let size = self.store.size(digest);
        let bytes = self.closure.bytes_here;
        self.closure.bytes_here = bytes.saturating_add(size.unwrap_or_default());
        self.seen.insert(digest.clone(), size.is_some());
        size.is_some()
    }
}

#[cfg(test)]
mod tests;
