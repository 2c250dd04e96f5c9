//! What is in the cache, as eviction needs to see it: which images there are, when each was used
//! last, and what holds each blob. Owns: nothing that lasts. Must not: change anything.
//!
//! An image is a tag with all it names, or a manifest that was pulled by digest alone, or a blob
//! that no known manifest names. Signatures and other artifacts that refer to an image belong to
//! it, so that it is whole or gone. A digest is held by the manifests that name it, not by images,
//! so that time and memory grow with what is named, however the manifests are chained: near 400
//! bytes for each digest of a repository, while an eviction runs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use super::bonds::Bonds;
pub(super) use super::bonds::Id;
use crate::cache::closure::subject_of_tag;
use crate::cache::links::LinkUse;
use crate::cache::manifest::ManifestContent;
use crate::cache::names::{Names, OwnedScope, Scope};
use crate::cache::pins::Pins;
use crate::cache::store::Store;
use crate::oci::{Digest, Reference, Tag};

/// Largest manifest that is read: four times what registries take (distribution-spec: 4 MiB).
pub(super) const MANIFEST_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What upstream no longer has counts as used so much later: nobody can fetch it again.
const GONE_GRACE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What stays, however long ago it was used.
#[derive(Debug, Clone, Copy)]
pub(super) struct EvictionRules<'a> {
    /// These images.
    pub(super) pins: &'a Pins,
    /// Blobs that came after this and that nothing names: another process may be about to.
    pub(super) unnamed_since: Option<SystemTime>,
}

/// A digest.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) digest: Digest,
    /// False for a digest that is named but not here.
    pub(super) here: bool,
    /// Bytes that it takes on the disk.
    size: u64,
    modified: SystemTime,
    /// Repositories that need it.
    pub(super) uses: u32,
    /// Repositories that it is linked in, by their place in [`Survey::places`].
    pub(super) linked_in: Vec<u32>,
}

/// How a repository needs a digest.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Need {
    /// Tags and manifests of the repository that name it.
    pub(super) holders: u32,
    /// It holds in turn what it names.
    pub(super) is_manifest: bool,
}

/// A repository.
#[derive(Debug)]
pub(super) struct RepositorySurvey {
    name: OwnedScope,
    /// Links: when each was used, and whether it is a manifest's.
    links: HashMap<Id, (SystemTime, bool)>,
    /// Everything that its tags and manifests need.
    pub(super) needs: HashMap<Id, Need>,
    bonds: Bonds,
    /// Tags of signatures, which go with the manifest that was signed.
    pub(super) attached: HashMap<Id, Vec<Tag>>,
}

impl RepositorySurvey {
    pub(super) const fn scope(&self) -> Scope<'_> {
        self.name.scope()
    }

    /// True for a digest with a manifest's link.
    pub(super) fn is_manifest(&self, id: Id) -> bool {
        self.links.get(&id).is_some_and(|(_, manifest)| *manifest)
    }
}

/// What goes as a whole.
#[derive(Debug, Clone)]
pub(super) struct EvictionUnit {
    pub(super) accessed: SystemTime,
    /// What goes first has the earliest time: that of its last use, or a later one when upstream no
    /// longer has it.
    pub(super) due: SystemTime,
    /// It stays.
    pub(super) pinned: bool,
    /// Its repository; none for a blob that no manifest names, and for pages.
    pub(super) place: Option<usize>,
    pub(super) tag: Option<Tag>,
    /// The manifests of the tag, one for each media type, or the one digest.
    pub(super) roots: Vec<Id>,
    /// A folder of pages of lists.
    pub(super) pages: Option<PathBuf>,
}

impl EvictionUnit {
    /// Digests that no repository has as an image.
    const fn of(roots: Vec<Id>, accessed: SystemTime) -> Self {
        Self {
            accessed,
            due: accessed,
            pinned: false,
            place: None,
            tag: None,
            roots,
            pages: None,
        }
    }
}

/// What goes with an image.
#[derive(Debug, Default)]
pub(super) struct Release {
    /// The digests that its repository no longer needs then; what names another comes first.
    pub(super) alone: Vec<Id>,
    /// How many of its holders each digest loses.
    held: HashMap<Id, u32>,
}

#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) nodes: Vec<Node>,
    pub(super) places: Vec<RepositorySurvey>,
    pub(super) images: Vec<EvictionUnit>,
    ids: HashMap<Digest, Id>,
    /// What each manifest names, and whether that is a manifest too; read once.
    named: HashMap<Id, Rc<[(Id, bool)]>>,
    /// What each manifest refers to.
    subjects: HashMap<Id, Id>,
}

impl Survey {
    /// Looks at everything; images come in the order in which they are to go.
    pub(super) fn take(store: &Store, names: &Names, rules: EvictionRules<'_>) -> io::Result<Self> {
        let mut survey = Self::default();
        store.count(&mut |entry| {
            let id = survey.id(&entry.digest);
            if let Some(node) = survey.node_mut(id) {
                node.here = true;
                node.size = entry.size;
                node.modified = entry.modified;
            }
        })?;
        for name in names.scopes() {
            survey.add_place(store, names, rules.pins, name);
        }
        survey.add_unnamed(rules.unnamed_since);
        let pages = names.page_folders().into_iter();
        let pages = pages.map(|(folder, accessed)| EvictionUnit {
            pages: Some(folder),
            ..EvictionUnit::of(Vec::new(), accessed)
        });
        survey.images.extend(pages);
        survey.images.sort_by_key(|image| image.due);
        Ok(survey)
    }

    /// The place of a digest, if anything is known of it.
    pub(super) fn find(&self, digest: &Digest) -> Option<Id> {
        self.ids.get(digest).copied()
    }

    pub(super) fn node(&self, id: Id) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    pub(super) fn node_mut(&mut self, id: Id) -> Option<&mut Node> {
        self.nodes.get_mut(id as usize)
    }

    /// What a manifest that was read by the survey names.
    pub(super) fn names_in(&self, id: Id) -> &[(Id, bool)] {
        self.named.get(&id).map_or(&[], |named| named)
    }

    /// What the image's repository no longer needs once the image is gone.
    pub(super) fn plan_release(&self, place: &RepositorySurvey, image: &EvictionUnit) -> Release {
        let (mut open, mut release) = (image.roots.clone(), Release::default());
        while let Some(id) = open.pop() {
            let Some(need) = place.needs.get(&id) else {
                continue;
            };
            let count = release.held.entry(id).or_insert(0);
            *count += 1;
            if *count != need.holders {
                continue;
            }
            release.alone.push(id);
            if need.is_manifest {
                open.extend(self.held_by(place, id));
            }
        }
        release
    }

    /// Why there is no image that goes by this reference.
    pub(super) fn explain_absence(
        &self,
        place: usize,
        reference: &Reference,
        root: Option<Id>,
    ) -> String {
        let Some(place) = self.places.get(place) else {
            return String::new();
        };
        let is_attached = |tag: &Tag| place.attached.values().flatten().any(|other| other == tag);
        let is_part = match reference {
            Reference::Tag(tag) => is_attached(tag),
            Reference::Digest(_) => root.is_some_and(|root| place.needs.contains_key(&root)),
        };
        match is_part {
            true => "it belongs to another image here, and goes with that".to_owned(),
            false => "it is not in the cache".to_owned(),
        }
    }

    /// What a manifest holds: what it names, and what refers to it.
    fn held_by(&self, place: &RepositorySurvey, id: Id) -> Vec<Id> {
        let named = self.names_in(id).iter().map(|(child, _)| *child);
        named.chain(place.bonds.of(id).iter().copied()).collect()
    }

    /// Bytes on disk of all that pinned images need.
    pub(super) fn pinned_bytes(&self) -> u64 {
        let (mut seen, mut bytes) = (HashSet::new(), 0_u64);
        for image in self.images.iter().filter(|image| image.pinned) {
            let Some(place) = image.place.and_then(|place| self.places.get(place)) else {
                continue;
            };
            let mut open = image.roots.clone();
            while let Some(id) = open.pop() {
                if seen.insert(id) {
                    bytes += self.node(id).map_or(0, |node| node.size);
                    open.extend(self.held_by(place, id));
                }
            }
        }
        bytes
    }

    /// Takes an image out: the counts are those of a repository without it.
    pub(super) fn release(&mut self, place: usize, release: &Release) {
        let Some(place) = self.places.get_mut(place) else {
            return;
        };
        for (id, count) in &release.held {
            if let Some(need) = place.needs.get_mut(id) {
                need.holders = need.holders.saturating_sub(*count);
            }
        }
        for id in &release.alone {
            place.needs.remove(id);
            if let Some(node) = self.nodes.get_mut(*id as usize) {
                node.uses = node.uses.saturating_sub(1);
            }
        }
    }

    fn digests(&self, ids: &[Id]) -> Vec<&Digest> {
        let nodes = ids.iter().filter_map(|id| self.node(*id));
        nodes.map(|node| &node.digest).collect()
    }

    fn id(&mut self, digest: &Digest) -> Id {
        if let Some(id) = self.ids.get(digest) {
            return *id;
        }
        // Four thousand million digests fit no disk.
        let id = Id::try_from(self.nodes.len()).unwrap_or(Id::MAX);
        self.nodes.push(Node {
            digest: digest.clone(),
            here: false,
            size: 0,
            modified: SystemTime::UNIX_EPOCH,
            uses: 0,
            linked_in: Vec::new(),
        });
        self.ids.insert(digest.clone(), id);
        id
    }

    fn add_place(&mut self, store: &Store, names: &Names, pins: &Pins, name: OwnedScope) {
        let mut place = RepositorySurvey {
            name,
            links: HashMap::new(),
            needs: HashMap::new(),
            bonds: Bonds::default(),
            attached: HashMap::new(),
        };
        let number = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        for LinkUse {
            digest,
            accessed,
            manifest,
        } in names.link_uses(place.scope())
        {
            let id = self.id(&digest);
            place.links.insert(id, (accessed, manifest));
            if let Some(node) = self.node_mut(id) {
                node.linked_in.push(number);
            }
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
        self.bind_referrers(store, &mut place, pins, &mut tags);
        for (_, roots) in tags.values_mut() {
            roots.sort_unstable();
            roots.dedup();
            for root in &*roots {
                self.hold(store, &mut place, (*root, true));
            }
        }
        let mut untagged = self.hold_untagged(store, &mut place);
        self.hold_pinned(store, &mut place, pins, &mut untagged);
        let gone = names.gone(place.scope());
        self.add_images(&place, (pins, &gone), tags, untagged);
        self.places.push(place);
    }

    /// Lets each manifest hold what refers to it, by a subject or by the name of a tag. Such a tag
    /// is no image of its own, unless it is pinned.
    fn bind_referrers(
        &mut self,
        store: &Store,
        place: &mut RepositorySurvey,
        pins: &Pins,
        tags: &mut HashMap<Tag, (SystemTime, Vec<Id>)>,
    ) {
        let manifests = place.links.iter().filter(|(_, (_, manifest))| *manifest);
        let mut manifests: Vec<Id> = manifests.map(|(id, _)| *id).collect();
        manifests.sort_unstable();
        for id in manifests {
            self.read_named(store, id);
            let subject = self.subjects.get(&id).copied();
            if let Some(subject) = subject.filter(|subject| self.is_manifest_here(place, *subject))
            {
                place.bonds.bind(subject, id, |id| self.names_in(id));
            }
        }
        tags.retain(|tag, (accessed, roots)| {
            let subject = subject_of_tag(tag).and_then(|digest| self.find(&digest));
            let subject = subject.filter(|id| self.is_manifest_here(place, *id));
            let is_pinned = pins.hold(place.scope(), Some(tag), &[]);
            let Some(subject) = subject.filter(|_| !is_pinned) else {
                return true;
            };
            for root in &*roots {
                self.read_named(store, *root);
            }
            let is_bound = |root: &Id| place.bonds.bind(subject, *root, |id| self.names_in(id));
            if roots.is_empty() || !roots.iter().all(is_bound) {
                return true;
            }
            if let Some((used, _)) = place.links.get_mut(&subject) {
                *used = (*accessed).max(*used);
            }
            place.attached.entry(subject).or_default().push(tag.clone());
            false
        });
    }

    fn is_manifest_here(&self, place: &RepositorySurvey, id: Id) -> bool {
        place.is_manifest(id) && self.node(id).is_some_and(|node| node.here)
    }

    /// A tag or a manifest holds a digest, and a manifest holds what it names.
    fn hold(&mut self, store: &Store, place: &mut RepositorySurvey, digest: (Id, bool)) {
        let mut open = vec![digest];
        while let Some((id, is_manifest)) = open.pop() {
            let need = place.needs.entry(id).or_default();
            need.holders += 1;
            if need.holders == 1
                && let Some(node) = self.nodes.get_mut(id as usize)
            {
                node.uses += 1;
            }
            if is_manifest || place.is_manifest(id) {
                open.extend(self.expand(store, place, id));
            }
        }
    }

    /// What a manifest holds, the first time that it is met in a repository; then nothing.
    fn expand(&mut self, store: &Store, place: &mut RepositorySurvey, id: Id) -> Vec<(Id, bool)> {
        let need = place.needs.entry(id).or_default();
        if std::mem::replace(&mut need.is_manifest, true) {
            return Vec::new();
        }
        let named = self.read_named(store, id);
        let referrers = place.bonds.of(id).iter().map(|referrer| (*referrer, true));
        named.iter().copied().chain(referrers).collect()
    }

    /// Holds the manifests that no tag leads to. Those that no other manifest names are images.
    fn hold_untagged(&mut self, store: &Store, place: &mut RepositorySurvey) -> Vec<Id> {
        let untagged = place.links.iter().filter(|(_, (_, manifest))| *manifest);
        let untagged = untagged.map(|(id, _)| *id);
        let untagged: Vec<Id> = untagged
            .filter(|id| !place.needs.contains_key(id))
            .collect();
        for id in &untagged {
            for child in self.expand(store, place, *id) {
                self.hold(store, place, child);
            }
        }
        let is_root = |id: &Id| place.needs.get(id).is_none_or(|need| need.holders == 0);
        let roots: Vec<Id> = untagged.into_iter().filter(is_root).collect();
        for root in &roots {
            self.hold(store, place, (*root, true));
        }
        roots
    }

    /// Makes manifests that are pinned by their digests images of their own: they may belong to
    /// others, which go.
    fn hold_pinned(
        &mut self,
        store: &Store,
        place: &mut RepositorySurvey,
        pins: &Pins,
        untagged: &mut Vec<Id>,
    ) {
        let pinned = pins.digests(place.scope());
        let pinned = pinned.filter_map(|digest| self.find(digest));
        let pinned: Vec<Id> = pinned
            .filter(|id| place.is_manifest(*id) && !untagged.contains(id))
            .collect();
        for id in pinned {
            self.hold(store, place, (id, true));
            untagged.push(id);
        }
    }

    fn add_images(
        &mut self,
        place: &RepositorySurvey,
        (pins, gone): (&Pins, &HashSet<Digest>),
        tags: HashMap<Tag, (SystemTime, Vec<Id>)>,
        untagged: Vec<Id>,
    ) {
        let mut used = LastUse {
            survey: self,
            place,
            known: HashMap::new(),
        };
        let tagged = tags
            .into_iter()
            .map(|(tag, (accessed, roots))| (Some(tag), accessed, roots));
        let untagged = untagged
            .into_iter()
            .map(|root| (None, SystemTime::UNIX_EPOCH, vec![root]));
        let images: Vec<EvictionUnit> = tagged
            .chain(untagged)
            .map(|(tag, accessed, roots)| {
                let uses = roots.iter().map(|root| used.of(*root));
                let accessed = uses.fold(accessed, SystemTime::max);
                let digests = used.survey.digests(&roots);
                let is_gone = digests.iter().any(|digest| gone.contains(digest));
                let grace = if is_gone { GONE_GRACE } else { Duration::ZERO };
                EvictionUnit {
                    due: accessed.checked_add(grace).unwrap_or(accessed),
                    pinned: pins.hold(place.scope(), tag.as_ref(), &digests),
                    place: Some(used.survey.places.len()),
                    tag,
                    ..EvictionUnit::of(roots, accessed)
                }
            })
            .collect();
        self.images.extend(images);
    }

    /// Blobs and links that no manifest names, each an image of its own.
    fn add_unnamed(&mut self, since: Option<SystemTime>) {
        for (id, node) in self.nodes.iter_mut().enumerate() {
            let is_young = node.here && since.is_some_and(|since| node.modified > since);
            if node.uses > 0 || is_young || (!node.here && node.linked_in.is_empty()) {
                continue;
            }
            node.uses = 1;
            let id = Id::try_from(id).unwrap_or(Id::MAX);
            let places = node.linked_in.iter();
            let links = places.filter_map(|place| self.places.get(*place as usize)?.links.get(&id));
            let accessed = links.map(|(accessed, _)| *accessed).max();
            let accessed = accessed.unwrap_or(node.modified);
            self.images.push(EvictionUnit::of(vec![id], accessed));
        }
    }

    fn read_named(&mut self, store: &Store, id: Id) -> Rc<[(Id, bool)]> {
        if let Some(named) = self.named.get(&id) {
            return Rc::clone(named);
        }
        let node = self.node(id).filter(|node| node.here);
        let bytes = node.and_then(|node| store.read(&node.digest, MANIFEST_BYTES_MAX).ok()?);
        let found = bytes.map_or_else(Default::default, |bytes| ManifestContent::read(&bytes));
        if let Some(subject) = &found.subject {
            let subject = self.id(subject);
            self.subjects.insert(id, subject);
        }
        let named: Rc<[(Id, bool)]> = found
            .named
            .iter()
            .map(|named| (self.id(&named.digest), named.media_type.is_some()))
            .collect();
        self.named.insert(id, Rc::clone(&named));
        named
    }
}

/// When the manifests of a repository were used last. A manifest was used when one that it names
/// was.
struct LastUse<'a> {
    survey: &'a Survey,
    place: &'a RepositorySurvey,
    known: HashMap<Id, SystemTime>,
}

impl LastUse<'_> {
    /// The last use of a manifest and all below it. A list of its own takes the place of the stack,
    /// as chains can be long.
    fn of(&mut self, root: Id) -> SystemTime {
        let mut open = vec![root];
        let mut entered = HashSet::new();
        while let Some(id) = open.last().copied() {
            if self.known.contains_key(&id) {
                open.pop();
                continue;
            }
            if entered.insert(id) {
                open.extend(self.manifests_below(id));
                continue;
            }
            let own = self.place.links.get(&id).filter(|(_, manifest)| *manifest);
            let own = own.map_or(SystemTime::UNIX_EPOCH, |(accessed, _)| *accessed);
            let below = self.manifests_below(id);
            let below = below.filter_map(|child| self.known.get(&child).copied());
            let latest = below.fold(own, SystemTime::max);
            self.known.insert(id, latest);
            open.pop();
        }
        let latest = self.known.get(&root).copied();
        latest.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn manifests_below(&self, id: Id) -> impl Iterator<Item = Id> {
        let needs = &self.place.needs;
        let is_manifest = |id: &Id| needs.get(id).is_some_and(|need| need.is_manifest);
        let held = match is_manifest(&id) {
            true => self.survey.held_by(self.place, id),
            false => Vec::new(),
        };
        held.into_iter().filter(is_manifest)
    }
}
