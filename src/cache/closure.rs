//! What an image needs: the one walk from its manifest down to its layers. Owns: that walk, and the
//! list of what refers to an image. Must not: change anything, or ask upstream.
//!
//! An index leads to manifests, a manifest to its configuration and layers, and, where that is
//! asked for, each of them to the signatures and other artifacts in the cache that refer to it.
//! Foreign layers are no part of an image here: their bytes are elsewhere (`manifest.rs`).

use std::collections::{HashMap, HashSet};

use super::manifest::{ManifestContent, platform_of_config};
use super::names::{Names, Scope, TagEntry};
use super::store::Store;
use super::tree::{ManifestWalk, TreeManifest};
use crate::oci::{Digest, Reference, Tag};

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
pub(super) fn subject_of_tag(tag: &Tag) -> Option<Digest> {
    let (digest, end) = match tag.as_str().split_once('.') {
        Some((digest, _)) => (digest, tag.as_str().get(digest.len()..)?),
        None => (tag.as_str(), ""),
    };
    let is_attached = ATTACHED.contains(&end);
    is_attached.then(|| digest.replacen('-', ":", 1).parse().ok())?
}

/// How far a walk goes. What is beyond is left out, and [`Closure::is_cut`] says so.
#[derive(Debug, Clone, Copy)]
pub struct ClosureBounds {
    /// Digests of one image.
    pub members: usize,
    /// Bytes of one manifest.
    pub manifest_bytes: u64,
    /// Bytes of all manifests together.
    pub total_bytes: u64,
}

impl ClosureBounds {
    /// Everything that can be an image: manifests of 16 MiB, four times what registries take, and
    /// as many layers as twenty of the largest manifests name.
    pub const WHOLE: Self = Self {
        members: 100_000,
        manifest_bytes: 16 << 20,
        total_bytes: 256 << 20,
    };
}

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
    /// There was more than the bounds allow.
    pub is_cut: bool,
}

impl Closure {
    /// Every manifest of it.
    pub fn manifests(&self) -> impl Iterator<Item = &Digest> {
        let parts = self.parts.iter().chain(&self.referrers);
        self.indexes.iter().chain(parts.map(|part| &part.manifest))
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
    /// Manifests that belong to another one of the repository.
    parts: HashSet<Digest>,
}

impl ReferrerIndex {
    /// Reads the manifests of a repository. Blocks, for as long as that takes.
    pub fn read(store: &Store, names: &Names, scope: Scope<'_>) -> Self {
        let links = names.link_uses(scope).into_iter();
        let manifests = links.filter(|link| link.manifest);
        Self::of(store, manifests.map(|link| link.digest).collect())
    }

    /// Reads these manifests. Blocks, for as long as that takes.
    pub fn of(store: &Store, manifests: HashSet<Digest>) -> Self {
        let mut index = Self::default();
        for digest in &manifests {
            let bytes = store.read(digest, ClosureBounds::WHOLE.manifest_bytes);
            let Some(bytes) = bytes.ok().flatten() else {
                continue;
            };
            let content = ManifestContent::read(&bytes);
            if content.is_index {
                // Those that are not here take no memory: nobody asks for them.
                let children = content.named.into_iter().map(|named| named.digest);
                let children = children.filter(|digest| manifests.contains(digest));
                index.parts.extend(children);
            }
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
            digests.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        }
        index
    }

    /// True for a manifest that an index of the repository names, or that refers to one there.
    pub fn is_part(&self, digest: &Digest) -> bool {
        self.parts.contains(digest)
    }

    fn referrers_of(&self, subject: &Digest) -> &[Digest] {
        self.by_subject.get(subject).map_or(&[], Vec::as_slice)
    }
}

/// The files that are walked, and how far.
#[derive(Debug, Clone, Copy)]
pub struct ClosureWalk<'a> {
    /// Manifests.
    pub store: &'a Store,
    /// Tags.
    pub names: &'a Names,
    /// How far.
    pub bounds: ClosureBounds,
}

impl<'a> ClosureWalk<'a> {
    /// A walk through everything.
    pub const fn new(store: &'a Store, names: &'a Names) -> Self {
        Self {
            store,
            names,
            bounds: ClosureBounds::WHOLE,
        }
    }

    /// The manifest that a reference means here: of those that a tag means for different media
    /// types the newest whose manifest is here, else the newest. None for a tag that is not here.
    pub fn root(&self, scope: Scope<'_>, reference: &Reference) -> Option<Digest> {
        match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(tag) => self.tag_entry(scope, tag).map(|entry| entry.digest),
        }
    }

    /// The same of a tag, with its media type and when it was confirmed.
    pub fn tag_entry(&self, scope: Scope<'_>, tag: &Tag) -> Option<TagEntry> {
        let entries = self.names.tag_anywhere(scope, tag);
        let here = entries
            .iter()
            .position(|entry| self.store.has(&entry.digest));
        entries.into_iter().nth(here.unwrap_or_default())
    }

    /// All that the image with this manifest needs. Reads manifests, and looks up each digest.
    pub fn closure(&self, root: &Digest) -> Closure {
        let mut walker = Walker::new(*self);
        walker.walk(root);
        walker.closure
    }

    /// The same, and all that refers to the image.
    pub fn closure_with_referrers(
        &self,
        scope: Scope<'_>,
        root: &Digest,
        index: &ReferrerIndex,
    ) -> Closure {
        let mut walker = Walker::new(*self);
        walker.walk(root);
        walker.refers = true;
        let mut at = 0;
        // Referrers are manifests themselves, and may have referrers.
        while let Some(subject) = walker.met.get(at).cloned() {
            at += 1;
            for digest in index.referrers_of(&subject) {
                walker.walk(digest);
            }
            for (tag, entry) in self.attached(scope, &subject) {
                walker.walk(&entry.digest);
                walker.closure.attached.push((tag, entry));
            }
        }
        walker.closure
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
    walk: ClosureWalk<'a>,
    tree: ManifestWalk,
    closure: Closure,
    /// Manifests, as they were met.
    met: Vec<Digest>,
    /// Whether each digest is here.
    seen: HashMap<Digest, bool>,
    bytes_read: u64,
    /// What is walked refers to the image.
    refers: bool,
}

impl<'a> Walker<'a> {
    fn new(walk: ClosureWalk<'a>) -> Self {
        Self {
            walk,
            tree: ManifestWalk::new(walk.bounds.members),
            closure: Closure::default(),
            met: Vec::new(),
            seen: HashMap::new(),
            bytes_read: 0,
            refers: false,
        }
    }

    fn walk(&mut self, root: &Digest) {
        self.tree.enter(root);
        while let Some(found) = self.tree.advance() {
            self.visit(found);
        }
        self.closure.is_cut |= self.tree.is_cut();
    }

    fn visit(&mut self, found: TreeManifest) {
        let content = self.read(&found.digest);
        let is_here = content.is_some() && self.find(&found.digest);
        let content = content.unwrap_or_default();
        self.tree.descend(&found, &content);
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
        match self.refers {
            true => self.closure.referrers.push(part),
            false => self.closure.parts.push(part),
        }
    }

    /// A manifest that is here and not damaged. One that cannot be read, or that is too large,
    /// names nothing, and the closure is cut.
    fn read(&mut self, digest: &Digest) -> Option<ManifestContent> {
        let bounds = self.walk.bounds;
        let left = bounds.total_bytes.saturating_sub(self.bytes_read);
        let bytes = self
            .walk
            .store
            .read(digest, bounds.manifest_bytes.min(left));
        let Ok(bytes) = bytes else {
            self.closure.is_cut = true;
            return Some(ManifestContent::default());
        };
        let bytes = bytes?;
        self.bytes_read += bytes.len() as u64;
        Some(ManifestContent::read(&bytes))
    }

    fn platform(&self, content: &ManifestContent) -> Option<String> {
        let config = content.config.as_ref()?;
        let bytes = self.walk.store.read(config, CONFIG_BYTES_MAX).ok()??;
        platform_of_config(&bytes)
    }

    /// True for a digest that is here. It counts once, and against the bound.
    fn find(&mut self, digest: &Digest) -> bool {
        if let Some(is_here) = self.seen.get(digest) {
            return *is_here;
        }
        let size = self.walk.store.size(digest);
        if self.seen.len() >= self.walk.bounds.members {
            self.closure.is_cut = true;
            return size.is_some();
        }
        let bytes = self.closure.bytes_here;
        self.closure.bytes_here = bytes.saturating_add(size.unwrap_or_default());
        self.seen.insert(digest.clone(), size.is_some());
        size.is_some()
    }
}

#[cfg(test)]
mod tests;
