//! What is in the cache, as eviction needs to see it: which images there are, when each was used
//! last, and which blobs each needs. Owns: nothing that lasts. Must not: change anything.
//!
//! An image is a tag with all it names, or a manifest that was pulled by digest alone, or a blob
//! that no known manifest names. Memory: near 300 bytes for each digest, while an eviction runs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::SystemTime;

use crate::cache::links::LinkUse;
use crate::cache::manifest::named_by;
use crate::cache::names::{Names, Scope};
use crate::cache::store::Store;
use crate::oci::{Digest, Registry, Repository, Tag};

/// Largest manifest that is read: four times what registries take (distribution-spec: 4 MiB).
pub(super) const MANIFEST_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A digest's place in [`Survey::nodes`].
pub(super) type Id = usize;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) digest: Digest,
    /// None for a digest that is named but not here.
    pub(super) size: Option<u64>,
    modified: SystemTime,
    /// Images that need it.
    pub(super) uses: usize,
}

#[derive(Debug)]
pub(super) struct Place {
    registry: Registry,
    repository: Repository,
    /// Links: when each was used, and whether it is a manifest's.
    pub(super) links: HashMap<Id, (SystemTime, bool)>,
    /// Images of this repository that need a digest.
    pub(super) uses: HashMap<Id, usize>,
}

impl Place {
    pub(super) fn scope(&self) -> Scope<'_> {
        Scope {
            registry: &self.registry,
            repository: &self.repository,
        }
    }
}

#[derive(Debug)]
pub(super) struct Image {
    pub(super) accessed: SystemTime,
    /// Where its names are; none for a blob that no manifest names.
    pub(super) place: Option<usize>,
    pub(super) tag: Option<Tag>,
    /// All it needs, each once.
    pub(super) parts: Vec<Id>,
}

#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) nodes: Vec<Node>,
    pub(super) places: Vec<Place>,
    pub(super) images: Vec<Image>,
    ids: HashMap<Digest, Id>,
    /// What each manifest names, and whether that is a manifest too; read once.
    named: HashMap<Id, Vec<(Id, bool)>>,
}

impl Survey {
    /// Looks at everything; images come least recently used first.
    pub(super) fn take(store: &Store, names: &Names) -> io::Result<Self> {
        let mut survey = Self::default();
        store.count(&mut |entry| {
            let id = survey.id(&entry.digest);
            if let Some(node) = survey.nodes.get_mut(id) {
                node.size = Some(entry.size);
                node.modified = entry.modified;
            }
        })?;
        for registry in names.registries() {
            for name in names.repositories(&registry) {
                if let Ok(repository) = name.parse() {
                    survey.add_place(store, names, &registry, repository);
                }
            }
        }
        survey.add_unnamed();
        survey.images.sort_by_key(|image| image.accessed);
        Ok(survey)
    }

    /// The place of a digest, if anything is known of it.
    pub(super) fn find(&self, digest: &Digest) -> Option<Id> {
        self.ids.get(digest).copied()
    }

    /// The manifests among the parts of an image.
    pub(super) fn manifests<'a>(&'a self, image: &'a Image) -> impl Iterator<Item = &'a Digest> {
        let place = image.place.and_then(|place| self.places.get(place));
        let is_manifest = move |id: &Id| {
            place
                .and_then(|place| place.links.get(id))
                .is_some_and(|(_, manifest)| *manifest)
        };
        let ids = image.parts.iter().filter(move |id| is_manifest(id));
        ids.filter_map(|id| self.nodes.get(*id).map(|node| &node.digest))
    }

    fn id(&mut self, digest: &Digest) -> Id {
        if let Some(id) = self.ids.get(digest) {
            return *id;
        }
        let id = self.nodes.len();
        self.nodes.push(Node {
            digest: digest.clone(),
            size: None,
            modified: SystemTime::UNIX_EPOCH,
            uses: 0,
        });
        self.ids.insert(digest.clone(), id);
        id
    }

    fn add_place(
        &mut self,
        store: &Store,
        names: &Names,
        registry: &Registry,
        repository: Repository,
    ) {
        let mut place = Place {
            registry: registry.clone(),
            repository,
            links: HashMap::new(),
            uses: HashMap::new(),
        };
        for LinkUse {
            digest,
            accessed,
            manifest,
        } in names.link_uses(place.scope())
        {
            place.links.insert(self.id(&digest), (accessed, manifest));
        }
        // One image a tag, whatever partitions it is in.
        let mut tags: HashMap<Tag, (SystemTime, Vec<Id>)> = HashMap::new();
        for found in names.tag_uses(place.scope()) {
            let roots: Vec<Id> = found.digests.iter().map(|digest| self.id(digest)).collect();
            let tag = tags
                .entry(found.tag)
                .or_insert((found.accessed, Vec::new()));
            tag.0 = tag.0.max(found.accessed);
            tag.1.extend(roots);
        }
        for (tag, (accessed, roots)) in tags {
            let parts = self.closure(store, &place, &roots);
            self.add_image(&mut place, Some(tag), accessed, parts);
        }
        self.add_untagged(store, &mut place);
        self.places.push(place);
    }

    /// Manifests of a repository that neither a tag nor another manifest leads to.
    fn add_untagged(&mut self, store: &Store, place: &mut Place) {
        let loose = |(id, (_, manifest)): (&Id, &(SystemTime, bool))| {
            (*manifest && !place.uses.contains_key(id)).then_some(*id)
        };
        let loose: Vec<Id> = place.links.iter().filter_map(loose).collect();
        let closures: Vec<(Id, Vec<Id>)> = loose
            .into_iter()
            .map(|root| (root, self.closure(store, place, &[root])))
            .collect();
        let below = |(root, parts): &(Id, Vec<Id>)| {
            let root = *root;
            let below = parts.iter().copied().filter(move |id| *id != root);
            below.collect::<Vec<Id>>()
        };
        let led_to: HashSet<Id> = closures.iter().flat_map(below).collect();
        for (root, parts) in closures {
            if !led_to.contains(&root) {
                self.add_image(place, None, SystemTime::UNIX_EPOCH, parts);
            }
        }
    }

    /// An image was used when its tag was, or any manifest of it.
    fn add_image(
        &mut self,
        place: &mut Place,
        tag: Option<Tag>,
        accessed: SystemTime,
        parts: Vec<Id>,
    ) {
        let mut latest = accessed;
        for id in &parts {
            if let Some((accessed, true)) = place.links.get(id) {
                latest = latest.max(*accessed);
            }
            *place.uses.entry(*id).or_insert(0) += 1;
            if let Some(node) = self.nodes.get_mut(*id) {
                node.uses += 1;
            }
        }
        self.images.push(Image {
            accessed: latest,
            place: Some(self.places.len()),
            tag,
            parts,
        });
    }

    /// Blobs that no manifest names, each an image of its own.
    fn add_unnamed(&mut self) {
        for (id, node) in self.nodes.iter_mut().enumerate() {
            if node.size.is_none() || node.uses > 0 {
                continue;
            }
            node.uses = 1;
            let links = self.places.iter().filter_map(|place| place.links.get(&id));
            let accessed = links.map(|(accessed, _)| *accessed).max();
            self.images.push(Image {
                accessed: accessed.unwrap_or(node.modified),
                place: None,
                tag: None,
                parts: vec![id],
            });
        }
    }

    /// `roots` and all they name, through indexes to layers; each once.
    fn closure(&mut self, store: &Store, place: &Place, roots: &[Id]) -> Vec<Id> {
        let (mut seen, mut parts) = (HashSet::new(), Vec::new());
        let mut open: Vec<(Id, bool)> = roots.iter().map(|root| (*root, true)).collect();
        while let Some((id, manifest)) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            parts.push(id);
            let linked = place.links.get(&id).is_some_and(|(_, manifest)| *manifest);
            if manifest || linked {
                open.extend(self.named(store, id));
            }
        }
        parts
    }

    fn named(&mut self, store: &Store, id: Id) -> Vec<(Id, bool)> {
        if let Some(named) = self.named.get(&id) {
            return named.clone();
        }
        let node = self.nodes.get(id).filter(|node| node.size.is_some());
        let bytes = node.and_then(|node| store.read(&node.digest, MANIFEST_BYTES_MAX).ok()?);
        let found = bytes.map_or_else(Vec::new, |bytes| named_by(&bytes));
        let named: Vec<(Id, bool)> = found
            .iter()
            .map(|named| (self.id(&named.digest), named.media_type.is_some()))
            .collect();
        self.named.insert(id, named.clone());
        named
    }
}
