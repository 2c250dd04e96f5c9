//! Taking away what was not used for longest. Owns: the order in which things go. Must not: touch
//! what is being read, or a blob that an image which stays still needs.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::survey::{EvictionTask, EvictionUnit, Id, Survey};
use crate::cache::closure::read_manifest;
use crate::cache::names::{Names, Scope};
use crate::cache::store::Store;
use crate::history::{self, Event};
use crate::log::{self, Level};
use crate::metrics;
use crate::oci::Reference;

/// Evicts until at most `target` bytes are used, until nothing more may go, or until `stop`. Says
/// how many bytes on the disk pinned images need, if it looked.
pub(super) fn evict(task: EvictionTask<'_>, target: u64, stop: &dyn Fn() -> bool) -> Option<u64> {
    let EvictionTask { store, names, .. } = task;
    let used = || store.used_bytes() + names.used_bytes();
    if used() <= target {
        return None;
    }
    let begun = Instant::now();
    let before = used();
    evict_partial(store, target.saturating_sub(names.used_bytes()));
    let (mut images, mut pinned) = (0, None);
    if used() > target {
        names.count();
        // From before the survey: a manifest that comes meanwhile holds what it names.
        store.watch(true);
        match Survey::take(task) {
            Ok(survey) => {
                pinned = Some(survey.pinned_bytes());
                images = Eviction::new(task, survey).run(target, stop);
            }
            Err(error) => log::warn("eviction could not read the cache", &[("error", &error)]),
        }
        store.watch(false);
    }
    let after = used();
    let bytes = before.saturating_sub(after);
    metrics::CACHE_IMAGES_EVICTED.add(images);
    metrics::CACHE_BYTES_EVICTED.add(bytes);
    history::count(Event::EvictedBytes, bytes);
    let took = begun.elapsed().as_millis();
    let fields: [log::Field<'_>; 5] = [
        ("images", &images),
        ("bytes", &bytes),
        ("used_bytes", &after),
        ("target_bytes", &target),
        ("ms", &took),
    ];
    if bytes == 0 && images == 0 {
        // All that is left is in use: it will be tried again every few seconds.
        log::debug("cache over its quota, and nothing may go", &fields);
    } else {
        log::info("cache evicted", &fields);
    }
    pinned
}

/// Downloads that nobody goes on with, the oldest first.
fn evict_partial(store: &Store, target: u64) {
    let mut partials = Vec::new();
    let listed = store.each_partial(&mut |entry| partials.push(entry));
    if let Err(error) = listed {
        log::warn("downloads were not listed", &[("error", &error)]);
    }
    partials.sort_by_key(|entry| entry.modified);
    for entry in partials {
        if store.used_bytes() <= target {
            return;
        }
        if !store.is_read(&entry.digest) {
            // One that fails is gone, or cannot be opened: then the next one.
            let _ = store.discard_idle_partial(&entry.digest);
        }
    }
}

/// Removes one image, and what nothing else needs. Says how many bytes that freed.
///
/// # Errors
/// Why it stays.
pub(super) fn remove(
    task: EvictionTask<'_>,
    scope: Scope<'_>,
    reference: &Reference,
) -> Result<u64, String> {
    let survey = Survey::take(task).map_err(|error| error.to_string())?;
    let before = task.store.used_bytes();
    // A folder does not say how its registry is spoken to.
    let is_same = |place: Scope<'_>| {
        place.registry.name() == scope.registry.name() && place.repository == scope.repository
    };
    let mut places = survey.places.iter().enumerate();
    let place = places.find(|(_, place)| is_same(place.scope()));
    let (number, place) = place.ok_or("the cache has nothing of this repository")?;
    let (tag, digest) = match reference {
        Reference::Tag(tag) => (Some(tag), None),
        Reference::Digest(digest) => (None, survey.find(digest)),
    };
    let images = survey.images.iter();
    let images = images.filter(|image| image.place == Some(number));
    let (meant, others): (Vec<_>, Vec<_>) = images.partition(|image| match digest {
        Some(digest) => image.roots.contains(&digest),
        None => tag.is_some() && image.tag.as_ref() == tag,
    });
    if meant.is_empty() {
        let why = match place.has(tag, digest) {
            true => "it belongs to another image here, and goes with that",
            false => "it is not in the cache",
        };
        return Err(why.to_owned());
    }
    if meant.iter().any(|image| image.is_pinned) {
        return Err("it is pinned: take it out of PIN, PREFETCH and FREEZE_TAGS first".to_owned());
    }
    let mut met = HashSet::new();
    for image in others {
        survey.reach(place, &image.roots, &mut met);
    }
    let mut units: Vec<EvictionUnit> = meant.into_iter().cloned().collect();
    for image in &mut units {
        image.alone = survey.reach(place, &image.roots, &mut met);
    }
    let mut eviction = Eviction::new(task, survey);
    for image in &units {
        eviction.take_out(image, &image.alone);
    }
    task.names.prune(scope);
    Ok(before.saturating_sub(task.store.used_bytes()))
}

struct Eviction<'a> {
    store: &'a Store,
    names: &'a Names,
    survey: Survey,
    /// Digests that are needed by images that were to go and have to stay, by repository.
    stays: HashMap<usize, HashSet<Id>>,
    /// Repositories that have lost something; their empty folders go at the end.
    changed: HashSet<usize>,
    /// What came since the survey.
    arrived: HashSet<Id>,
}

impl<'a> Eviction<'a> {
    fn new(task: EvictionTask<'a>, survey: Survey) -> Self {
        Self {
            store: task.store,
            names: task.names,
            survey,
            stays: HashMap::new(),
            changed: HashSet::new(),
            arrived: HashSet::new(),
        }
    }

    /// Says how many images went.
    fn run(mut self, target: u64, stop: &dyn Fn() -> bool) -> u64 {
        let mut evicted = 0;
        for image in std::mem::take(&mut self.survey.images) {
            if image.is_pinned {
                continue;
            }
            if self.store.used_bytes() + self.names.used_bytes() <= target || stop() {
                break;
            }
            self.hold_arrivals();
            match self.remove_unless_used(&image) {
                true => evicted += 1,
                false => self.hold(&image),
            }
        }
        for place in &self.changed {
            if let Some(place) = self.survey.places.get(*place) {
                self.names.prune(place.scope());
            }
        }
        evicted
    }

    /// What came since the survey, and all it names, stays this time.
    fn hold_arrivals(&mut self) {
        for digest in self.store.arrivals() {
            let content = read_manifest(self.store, &digest).unwrap_or_default();
            let named = content.named.into_iter().map(|named| named.digest);
            self.arrived.extend(self.survey.find(&digest));
            for digest in named.chain([digest]) {
                let id = self.survey.find(&digest);
                if let Some(node) = id.and_then(|id| self.survey.node_mut(id)) {
                    node.uses += 1;
                }
            }
        }
    }

    /// Keeps all that an image needs: the image was to go, and stays.
    fn hold(&mut self, image: &EvictionUnit) {
        let Some(number) = image.place else {
            return;
        };
        if let Some(place) = self.survey.places.get(number) {
            let stays = self.stays.entry(number).or_default();
            self.survey.reach(place, &image.roots, stays);
        }
    }

    fn remove_unless_used(&mut self, image: &EvictionUnit) -> bool {
        if let Some(pages) = &image.pages {
            self.names.remove_pages(pages);
            return true;
        }
        let stays = image.place.and_then(|number| self.stays.get(&number));
        let goes = |id: &Id| stays.is_none_or(|stays| !stays.contains(id));
        let alone: Vec<Id> = image.alone.iter().copied().filter(goes).collect();
        if alone.iter().any(|id| self.is_read(*id)) {
            return false;
        }
        if let Some(place) = image.place.and_then(|place| self.survey.places.get(place)) {
            let manifests = || alone.iter().filter(|id| place.is_manifest(**id));
            if manifests().any(|id| self.arrived.contains(id)) {
                // Another tag, perhaps of this repository, means it by now.
                return false;
            }
            let digests = manifests().filter_map(|id| Some(&self.survey.node(*id)?.digest));
            let tag = image.tag.as_ref();
            if self.names.last_use(place.scope(), tag, digests) > image.accessed {
                return false;
            }
        }
        self.take_out(image, &alone);
        true
    }

    /// Removes an image: its names, and then the digests that no other repository needs. What a
    /// crash leaves in between is blobs without a name, which the next pass takes.
    fn take_out(&mut self, image: &EvictionUnit, alone: &[Id]) {
        if let Some(place) = image.place.and_then(|place| self.survey.places.get(place)) {
            let attached = alone.iter().filter_map(|id| place.attached.get(id));
            for tag in image.tag.iter().chain(attached.flatten()) {
                self.names.remove_tag(place.scope(), tag);
            }
            for node in alone.iter().filter_map(|id| self.survey.node(*id)) {
                self.names.remove_link(place.scope(), &node.digest);
            }
            self.changed.extend(image.place);
        }
        for id in alone {
            let Some(node) = self.survey.node_mut(*id) else {
                continue;
            };
            node.uses = node.uses.saturating_sub(1);
            if node.uses > 0 || !node.is_here {
                continue;
            }
            if let Err(error) = self.store.remove(&node.digest) {
                // A disk that fails keeps all of them, and each pull that needs room tries again.
                let fields: [log::Field<'_>; 1] = [("digest", &node.digest)];
                let what = "a blob could not be evicted";
                log::cause(Level::Warn, what, ("error", &error), &fields);
            }
        }
    }

    /// True while a client reads a digest that no other repository needs.
    fn is_read(&self, id: Id) -> bool {
        let node = self.survey.node(id).filter(|node| node.uses <= 1);
        node.is_some_and(|node| self.store.is_read(&node.digest))
    }
}
