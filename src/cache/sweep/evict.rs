//! Taking away what was not used for longest. Owns: the order in which things go. Must not: touch
//! what is being read, or a blob that an image which stays still needs.

use std::time::Instant;

use super::survey::{Id, Image, MANIFEST_BYTES_MAX, Place, Survey};
use crate::cache::manifest::named_by;
use crate::cache::names::Names;
use crate::cache::store::Store;
use crate::{log, metrics};

/// Evicts until at most `target` bytes are used, until nothing more may go, or until `stop`.
pub(super) fn evict(store: &Store, names: &Names, target: u64, stop: &dyn Fn() -> bool) {
    if store.used_bytes() <= target {
        return;
    }
    let begun = Instant::now();
    let before = store.used_bytes();
    evict_partial(store, target);
    let mut images = 0;
    if store.used_bytes() > target {
        // From before the survey: a manifest that comes meanwhile holds what it names.
        store.watch(true);
        match Survey::take(store, names) {
            Ok(survey) => {
                images = Eviction {
                    store,
                    names,
                    survey,
                }
                .run(target, stop)
            }
            Err(error) => log::warn("eviction could not read the cache", &[("error", &error)]),
        }
        store.watch(false);
    }
    let after = store.used_bytes();
    let bytes = before.saturating_sub(after);
    metrics::CACHE_IMAGES_EVICTED.add(images);
    metrics::CACHE_BYTES_EVICTED.add(bytes);
    let took = begun.elapsed().as_millis();
    let fields: [log::Field<'_>; 5] = [
        ("images", &images),
        ("bytes", &bytes),
        ("used", &after),
        ("target", &target),
        ("ms", &took),
    ];
    if bytes == 0 && images == 0 {
        // All that is left is in use: it will be tried again every few seconds.
        log::debug("cache over its quota, and nothing may go", &fields);
    } else {
        log::info("cache evicted", &fields);
    }
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
            store.discard_partial(&entry.digest);
        }
    }
}

struct Eviction<'a> {
    store: &'a Store,
    names: &'a Names,
    survey: Survey,
}

impl Eviction<'_> {
    /// Says how many images went.
    fn run(mut self, target: u64, stop: &dyn Fn() -> bool) -> u64 {
        let mut evicted = 0;
        for image in std::mem::take(&mut self.survey.images) {
            if self.store.used_bytes() <= target || stop() {
                break;
            }
            self.hold_arrivals();
            if self.may_go(&image) {
                self.remove(&image);
                evicted += 1;
            }
        }
        evicted
    }

    /// What came since the survey, and all it names, stays this time.
    fn hold_arrivals(&mut self) {
        for digest in self.store.arrivals() {
            let bytes = self.store.read(&digest, MANIFEST_BYTES_MAX).ok().flatten();
            let named = bytes.map_or_else(Vec::new, |bytes| named_by(&bytes));
            let named = named.into_iter().map(|named| named.digest);
            for digest in named.chain([digest]) {
                let id = self.survey.find(&digest);
                if let Some(node) = id.and_then(|id| self.survey.nodes.get_mut(id)) {
                    node.uses += 1;
                }
            }
        }
    }

    /// False while bytes that would go are being read, or when it was used since the survey.
    fn may_go(&self, image: &Image) -> bool {
        let busy = |id: &Id| {
            let node = self.survey.nodes.get(*id);
            node.is_some_and(|node| node.uses <= 1 && self.store.is_read(&node.digest))
        };
        if image.parts.iter().any(busy) {
            return false;
        }
        let Some(place) = image.place.and_then(|place| self.survey.places.get(place)) else {
            return true;
        };
        let manifests = self.survey.manifests(image);
        let accessed = self
            .names
            .accessed(place.scope(), image.tag.as_ref(), manifests);
        accessed <= image.accessed
    }

    /// Names first: what a crash leaves then is blobs without a name, which the next pass takes.
    fn remove(&mut self, image: &Image) {
        match image.place {
            Some(place) => self.remove_names(place, image),
            None => self.remove_links_everywhere(image),
        }
        for id in &image.parts {
            let Some(node) = self.survey.nodes.get_mut(*id) else {
                continue;
            };
            node.uses = node.uses.saturating_sub(1);
            if node.uses > 0 || node.size.is_none() {
                continue;
            }
            if let Err(error) = self.store.remove(&node.digest) {
                let fields: [log::Field<'_>; 2] = [("digest", &node.digest), ("error", &error)];
                log::warn("a blob could not be evicted", &fields);
            }
        }
    }

    fn remove_names(&mut self, place: usize, image: &Image) {
        let Some(place) = self.survey.places.get_mut(place) else {
            return;
        };
        if let Some(tag) = &image.tag {
            self.names.remove_tag(place.scope(), tag);
        }
        for id in &image.parts {
            let uses = place.uses.entry(*id).or_insert(1);
            *uses = uses.saturating_sub(1);
            if *uses > 0 {
                continue;
            }
            if let Some(node) = self.survey.nodes.get(*id) {
                self.names.remove_link(place.scope(), &node.digest);
            }
        }
        self.names.prune(place.scope());
    }

    /// A blob that no manifest names may be linked in any repository.
    fn remove_links_everywhere(&self, image: &Image) {
        for id in &image.parts {
            let Some(node) = self.survey.nodes.get(*id) else {
                continue;
            };
            let linked = |place: &&Place| place.links.contains_key(id);
            for place in self.survey.places.iter().filter(linked) {
                self.names.remove_link(place.scope(), &node.digest);
                self.names.prune(place.scope());
            }
        }
    }
}
