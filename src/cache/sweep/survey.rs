//! What is in the cache, as eviction needs to see it: which images there are, when each was used
//! last, and what goes with each. Owns: nothing that lasts. Must not: change anything.
//!
//! An image is a tag with all it names, or a manifest that was pulled by digest alone, or a blob
//! that no known manifest names. Signatures and other artifacts that refer to an image belong to
//! it, so that it is whole or gone. Of the images of a repository that need a digest, it goes with
//! the one that goes last. So each digest is met once in each repository, however the manifests
//! are chained: near 400 bytes for each, while an eviction runs.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::cache::closure::{read_manifest, subject_of_tag};
use crate::cache::names::{Names, OwnedScope, Scope};
use crate::cache::pins::Pins;
use crate::cache::store::Store;
use crate::oci::{Digest, Tag};

/// What upstream no longer has counts as used so much later: nobody can fetch it again.
const GONE_GRACE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A digest's place in the survey.
pub(super) type Id = u32;

/// What an eviction works on.
#[derive(Debug, Clone, Copy)]
pub(super) struct EvictionTask<'a> {
    pub(super) store: &'a Store,
    pub(super) names: &'a Names,
    /// These images stay, however long ago they were used.
    pub(super) pins: &'a Pins,
    /// So do blobs that came after this and that nothing names: another process may be about to.
    pub(super) unnamed_since: Option<SystemTime>,
}

/// A digest.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) digest: Digest,
    /// False for a digest that is named but not here.
    pub(super) is_here: bool,
    /// Bytes that it takes on the disk.
    size: u64,
    modified: SystemTime,
    /// It came lately, so that another process may be about to name it.
    is_young: bool,
    /// Repositories that need it.
    pub(super) uses: u32,
}

/// What a manifest leads to.
#[derive(Debug, Default)]
struct ManifestNode {
    names: Vec<Id>,
    subject: Option<Id>,
}

/// A repository.
#[derive(Debug)]
pub(super) struct RepositorySurvey {
    name: OwnedScope,
    /// Links: when each was used, and whether it is a manifest's.
    links: HashMap<Id, (SystemTime, bool)>,
    /// The manifests that refer to another one, under that one.
    referrers: HashMap<Id, Vec<Id>>,
    /// Tags of signatures, which go with the manifest that was signed.
    pub(super) attached: HashMap<Id, Vec<Tag>>,
}

impl RepositorySurvey {
    pub(super) const fn scope(&self) -> Scope<'_> {
        self.name.as_scope()
    }

    /// Every digest with a manifest's link.
    fn manifests(&self) -> impl Iterator<Item = Id> {
        let links = self.links.iter().filter(|(_, (_, manifest))| *manifest);
        links.map(|(id, _)| *id)
    }

    /// True for a digest with a manifest's link.
    pub(super) fn is_manifest(&self, id: Id) -> bool {
        self.links.get(&id).is_some_and(|(_, manifest)| *manifest)
    }

    /// True for a tag or digest that is here, though perhaps as a part of an image.
    pub(super) fn has(&self, tag: Option<&Tag>, id: Option<Id>) -> bool {
        let mut attached = self.attached.values().flatten();
        attached.any(|other| Some(other) == tag)
            || id.is_some_and(|id| self.links.contains_key(&id))
    }
}

/// What eviction removes as a whole.
#[derive(Debug, Clone)]
pub(super) struct EvictionUnit {
    pub(super) accessed: SystemTime,
    /// What goes first has the earliest time: that of its last use, or a later one when upstream no
    /// longer has it.
    due: SystemTime,
    /// It stays.
    pub(super) is_pinned: bool,
    /// Its repository; none for a blob that is linked nowhere, and for pages.
    pub(super) place: Option<usize>,
    pub(super) tag: Option<Tag>,
    /// The manifests of the tag, one for each media type, or the one digest.
    pub(super) roots: Vec<Id>,
    /// What goes with it: no image of the repository that goes later needs it.
    pub(super) alone: Vec<Id>,
    /// A folder of pages of lists.
    pub(super) pages: Option<PathBuf>,
}

impl EvictionUnit {
    /// Digests that no tag means.
    const fn of(place: Option<usize>, roots: Vec<Id>, accessed: SystemTime) -> Self {
        Self {
            accessed,
            due: accessed,
            is_pinned: false,
            place,
            tag: None,
            roots,
            alone: Vec::new(),
            pages: None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) nodes: Vec<Node>,
    pub(super) places: Vec<RepositorySurvey>,
    /// In the order in which they are to go.
    pub(super) images: Vec<EvictionUnit>,
    ids: HashMap<Digest, Id>,
    /// Manifests that were read.
    manifests: HashMap<Id, ManifestNode>,
}

impl Survey {
    /// Looks at everything.
    pub(super) fn take(task: EvictionTask<'_>) -> io::Result<Self> {
        let mut survey = Self::default();
        task.store.count(&mut |entry| {
            let id = survey.id(&entry.digest);
            if let Some(node) = survey.node_mut(id) {
                node.is_here = true;
                node.size = entry.size;
                node.modified = entry.modified;
                let since = task.unnamed_since;
                node.is_young = since.is_some_and(|since| node.modified > since);
            }
        })?;
        for name in task.names.scopes() {
            survey.add_place(task, name);
        }
        let ids = 0..Id::try_from(survey.nodes.len()).unwrap_or(Id::MAX);
        for (id, node) in ids.zip(&mut survey.nodes) {
            if node.is_here && node.uses == 0 && !node.is_young {
                node.uses = 1;
                survey.images.push(EvictionUnit {
                    alone: vec![id],
                    ..EvictionUnit::of(None, Vec::new(), node.modified)
                });
            }
        }
        let pages = task.names.page_folders().into_iter();
        let pages = pages.map(|(folder, accessed)| EvictionUnit {
            pages: Some(folder),
            ..EvictionUnit::of(None, Vec::new(), accessed)
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

    /// Adds all that these digests of a repository need to `met`. Says what was not in it before.
    pub(super) fn reach(
        &self,
        place: &RepositorySurvey,
        roots: &[Id],
        met: &mut HashSet<Id>,
    ) -> Vec<Id> {
        let (mut open, mut new) = (roots.to_vec(), Vec::new());
        while let Some(id) = open.pop() {
            if met.insert(id) {
                new.push(id);
                open.extend(self.held_by(place, id));
            }
        }
        new
    }

    /// Bytes on disk of all that pinned images need.
    pub(super) fn pinned_bytes(&self) -> u64 {
        let pinned = self.images.iter().filter(|image| image.is_pinned);
        let ids: HashSet<Id> = pinned.flat_map(|image| &image.alone).copied().collect();
        let nodes = ids.into_iter().filter_map(|id| self.node(id));
        nodes.map(|node| node.size).sum()
    }

    /// What a manifest holds: what it names, and what refers to it.
    fn held_by<'a>(&'a self, place: &'a RepositorySurvey, id: Id) -> impl Iterator<Item = Id> + 'a {
        let named = self.manifests.get(&id).map(|manifest| &manifest.names);
        let referrers = place.referrers.get(&id);
        named.into_iter().chain(referrers).flatten().copied()
    }

    fn id(&mut self, digest: &Digest) -> Id {
        if let Some(id) = self.ids.get(digest) {
            return *id;
        }
        // Four thousand million digests fit no disk.
        let id = Id::try_from(self.nodes.len()).unwrap_or(Id::MAX);
        self.nodes.push(Node {
            digest: digest.clone(),
            is_here: false,
            size: 0,
            modified: SystemTime::UNIX_EPOCH,
            is_young: false,
            uses: 0,
        });
        self.ids.insert(digest.clone(), id);
        id
    }

    fn add_place(&mut self, task: EvictionTask<'_>, name: OwnedScope) {
        let (store, names) = (task.store, task.names);
        let number = Some(self.places.len());
        let mut place = RepositorySurvey {
            name,
            links: HashMap::new(),
            referrers: HashMap::new(),
            attached: HashMap::new(),
        };
        for link in names.link_uses(place.scope()) {
            let id = self.id(&link.digest);
            place.links.insert(id, (link.accessed, link.manifest));
            if link.manifest {
                self.read(store, id);
            }
        }
        // One image a tag, whatever partitions it is in.
        let mut tags = Vec::new();
        for (tag, found) in names.tag_uses(place.scope(), usize::MAX) {
            let roots: Vec<Id> = found.digests().map(|digest| self.id(&digest)).collect();
            roots.iter().for_each(|root| self.read(store, *root));
            tags.push(EvictionUnit {
                tag: Some(tag),
                ..EvictionUnit::of(number, roots, found.accessed)
            });
        }
        self.bind_referrers(&mut place, task.pins, &mut tags);
        self.add_images(&place, task, tags);
        self.places.push(place);
    }

    /// Reads a manifest, and those that it names.
    fn read(&mut self, store: &Store, id: Id) {
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if self.manifests.contains_key(&id) {
                continue;
            }
            let node = self.node(id).filter(|node| node.is_here);
            let content = node.and_then(|node| read_manifest(store, &node.digest));
            let content = content.unwrap_or_default();
            let mut manifest = ManifestNode {
                names: Vec::with_capacity(content.named.len()),
                subject: content.subject.map(|subject| self.id(&subject)),
            };
            for named in content.named {
                let child = self.id(&named.digest);
                manifest.names.push(child);
                open.extend(named.media_type.map(|_| child));
            }
            self.manifests.insert(id, manifest);
        }
    }

    /// Lets each manifest hold what refers to it, by a subject or by the name of a tag. Such a tag
    /// is no image of its own, unless it is pinned.
    fn bind_referrers(
        &self,
        place: &mut RepositorySurvey,
        pins: &Pins,
        tags: &mut Vec<EvictionUnit>,
    ) {
        let is_here = |id: &Id| self.node(*id).is_some_and(|node| node.is_here);
        let here: HashSet<Id> = place.manifests().filter(is_here).collect();
        for id in &here {
            let subject = self.manifests.get(id).and_then(|manifest| manifest.subject);
            if let Some(subject) = subject.filter(|subject| here.contains(subject)) {
                place.referrers.entry(subject).or_default().push(*id);
            }
        }
        tags.retain_mut(|image| {
            let Some(tag) = &image.tag else {
                return true;
            };
            let subject = subject_of_tag(tag).and_then(|digest| self.find(&digest));
            let subject = subject.filter(|id| here.contains(id) && !image.roots.is_empty());
            let is_pinned = pins.hold(place.scope(), Some(tag), &[]);
            let Some(subject) = subject.filter(|_| !is_pinned) else {
                return true;
            };
            if let Some((used, _)) = place.links.get_mut(&subject) {
                *used = image.accessed.max(*used);
            }
            let referrers = place.referrers.entry(subject).or_default();
            referrers.append(&mut image.roots);
            let attached = place.attached.entry(subject).or_default();
            attached.push(tag.clone());
            false
        });
    }

    /// Adds what is in a repository: `images` are its tags. A manifest that nothing leads to is an
    /// image, too; so is one that is pinned by its digest, as it may belong to others, which go.
    fn add_images(
        &mut self,
        place: &RepositorySurvey,
        task: EvictionTask<'_>,
        mut images: Vec<EvictionUnit>,
    ) {
        let number = Some(self.places.len());
        let tagged: HashSet<Id> = images.iter().flat_map(|tag| tag.roots.clone()).collect();
        let holders = self.find_holders(place, &tagged);
        let used = spread_uses(place, &holders);
        let pinned = task.pins.digests(place.scope());
        let pinned: HashSet<Id> = pinned.filter_map(|digest| self.find(digest)).collect();
        let is_part = |id: &Id| tagged.contains(id) || holders.contains_key(id);
        let single = place.manifests();
        let single = single.filter(|id| pinned.contains(id) || !is_part(id));
        images.extend(single.map(|id| EvictionUnit::of(number, vec![id], SystemTime::UNIX_EPOCH)));
        let gone = task.names.gone(place.scope());
        for image in &mut images {
            let uses = image.roots.iter().filter_map(|id| used.get(id));
            image.accessed = uses.fold(image.accessed, |latest, used| latest.max(*used));
            let nodes = image.roots.iter().filter_map(|id| self.node(*id));
            let digests: Vec<&Digest> = nodes.map(|node| &node.digest).collect();
            image.is_pinned = task.pins.hold(place.scope(), image.tag.as_ref(), &digests);
            let is_gone = digests.iter().any(|digest| gone.contains(digest));
            let grace = if is_gone { GONE_GRACE } else { Duration::ZERO };
            image.due = image.accessed.checked_add(grace).unwrap_or(image.accessed);
        }
        images.sort_by_key(|image| (image.is_pinned, image.due));
        let mut met = HashSet::new();
        for image in images.iter_mut().rev() {
            image.alone = self.reach(place, &image.roots, &mut met);
        }
        // What no image needs: manifests that lead to each other, then blobs without a manifest.
        for id in place.manifests().chain(place.links.keys().copied()) {
            let is_young = self.node(id).is_some_and(|node| node.is_young);
            let alone = self.reach(place, &[id], &mut met);
            if !alone.is_empty() && (place.is_manifest(id) || !is_young) {
                let link = place.links.get(&id).map(|(accessed, _)| accessed);
                let accessed = used.get(&id).or(link).copied();
                let accessed = accessed.unwrap_or(SystemTime::UNIX_EPOCH);
                images.push(EvictionUnit {
                    alone,
                    ..EvictionUnit::of(number, vec![id], accessed)
                });
            }
        }
        for id in images.iter().flat_map(|image| &image.alone) {
            if let Some(node) = self.nodes.get_mut(*id as usize) {
                node.uses += 1;
            }
        }
        self.images.append(&mut images);
    }

    /// The manifests of a repository that hold others, by each that they hold.
    fn find_holders(&self, place: &RepositorySurvey, tagged: &HashSet<Id>) -> HashMap<Id, Vec<Id>> {
        let mut open: Vec<Id> = place.manifests().chain(tagged.iter().copied()).collect();
        let (mut met, mut holders) = (HashSet::new(), HashMap::<Id, Vec<Id>>::new());
        while let Some(id) = open.pop() {
            if !met.insert(id) {
                continue;
            }
            let held = self.held_by(place, id);
            for child in held.filter(|child| self.manifests.contains_key(child)) {
                holders.entry(child).or_default().push(id);
                open.push(child);
            }
        }
        holders
    }
}

/// When the manifests of a repository were used last: a manifest was used when one that it holds
/// was.
fn spread_uses(
    place: &RepositorySurvey,
    holders: &HashMap<Id, Vec<Id>>,
) -> HashMap<Id, SystemTime> {
    let links = place.links.iter().filter(|(_, (_, manifest))| *manifest);
    let mut links: Vec<(SystemTime, Id)> = links.map(|(id, (used, _))| (*used, *id)).collect();
    links.sort_unstable_by_key(|link| Reverse(*link));
    let mut found = HashMap::new();
    for (used, id) in links {
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if let Entry::Vacant(vacant) = found.entry(id) {
                vacant.insert(used);
                open.extend(holders.get(&id).into_iter().flatten());
            }
        }
    }
    found
}
