//! Taking away what was not used for longest. Owns: the order in which things go. Must not: touch
//! what is being read, or a blob that an image which stays still needs.

use std::time::{Instant, SystemTime};

use super::survey::{EvictionUnit, Id, MANIFEST_BYTES_MAX, Survey};
use crate::cache::manifest::list_named;
use crate::cache::names::Names;
use crate::cache::store::Store;
use crate::history::{self, Bytes, HISTORY};
use crate::log::{self, Level};
use crate::metrics;
use std::collections::HashSet;

/// Evicts until at most `target` bytes are used, until nothing more may go, or until `stop`. Blobs
/// that came after `unnamed_since` and that nothing names stay: another process may be about to.
pub(super) fn evict(
    store: &Store,
    names: &Names,
    target: u64,
    unnamed_since: Option<SystemTime>,
    stop: &dyn Fn() -> bool,
) {
    let used = || store.used_bytes() + names.used_bytes();
    if used() <= target {
        return;
    }
    let begun = Instant::now();
    let before = used();
    evict_partial(store, target.saturating_sub(names.used_bytes()));
    let mut images = 0;
    if used() > target {
        names.count();
        // From before the survey: a manifest that comes meanwhile holds what it names.
        store.watch(true);
        match Survey::take(store, names, unnamed_since) {
            Ok(survey) => {
                images = Eviction {
                    store,
                    names,
                    survey,
                    changed: HashSet::new(),
                }
                .run(target, stop)
            }
            Err(error) => log::warn("eviction could not read the cache", &[("error", &error)]),
        }
        store.watch(false);
    }
    let after = used();
    let bytes = before.saturating_sub(after);
    metrics::CACHE_IMAGES_EVICTED.add(images);
    metrics::CACHE_BYTES_EVICTED.add(bytes);
    HISTORY.add(Bytes::Evicted, bytes, history::minute_now());
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

struct Eviction<'a> {
    store: &'a Store,
    names: &'a Names,
    survey: Survey,
    /// Repositories that have lost something; their empty folders go at the end.
    changed: HashSet<usize>,
}

impl Eviction<'_> {
    /// Says how many images went.
    fn run(mut self, target: u64, stop: &dyn Fn() -> bool) -> u64 {
        let mut evicted = 0;
        for image in std::mem::take(&mut self.survey.images) {
            if self.store.used_bytes() + self.names.used_bytes() <= target || stop() {
                break;
            }
            self.hold_arrivals();
            if self.remove_unless_used(&image) {
                evicted += 1;
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
            let bytes = self.store.read(&digest, MANIFEST_BYTES_MAX).ok().flatten();
            let named = bytes.map_or_else(Vec::new, |bytes| list_named(&bytes));
            let named = named.into_iter().map(|named| named.digest);
            for digest in named.chain([digest]) {
                let id = self.survey.find(&digest);
                if let Some(node) = id.and_then(|id| self.survey.node_mut(id)) {
                    node.uses += 1;
                }
            }
        }
    }

    fn remove_unless_used(&mut self, image: &EvictionUnit) -> bool {
        if let Some(pages) = &image.pages {
            self.names.remove_pages(pages);
            return true;
        }
        let Some(number) = image.place else {
            return image.roots.iter().all(|id| self.remove_unnamed(*id));
        };
        let Some(place) = self.survey.places.get(number) else {
            return false;
        };
        let alone = self.survey.needed_by_it_alone(place, image);
        if alone.iter().any(|id| self.is_read(*id)) {
            return false;
        }
        let manifests = alone.iter().filter(|id| place.is_manifest(**id));
        let manifests = manifests.filter_map(|id| Some(&self.survey.node(*id)?.digest));
        let tag = image.tag.as_ref();
        if self.names.last_use(place.scope(), tag, manifests) > image.accessed {
            return false;
        }
        // Names first: what a crash leaves then is blobs without a name, which the next pass takes.
        if let Some(tag) = tag {
            self.names.remove_tag(place.scope(), tag);
        }
        for id in &alone {
            if let Some(node) = self.survey.node(*id) {
                self.names.remove_link(place.scope(), &node.digest);
            }
        }
        self.changed.insert(number);
        self.survey.release(number, image);
        for id in alone {
            if self.survey.node(id).is_some_and(|node| node.uses == 0) {
                self.remove_blob(id);
            }
        }
        true
    }

    /// A blob that no manifest names may be linked in any repository.
    fn remove_unnamed(&mut self, id: Id) -> bool {
        let node = self.survey.node(id).filter(|node| node.uses <= 1);
        let Some(node) = node.filter(|_| !self.is_read(id)) else {
            return false;
        };
        for number in &node.linked_in {
            if let Some(place) = self.survey.places.get(*number as usize) {
                self.names.remove_link(place.scope(), &node.digest);
                self.changed.insert(*number as usize);
            }
        }
        self.remove_blob(id);
        true
    }

    /// True while a client reads a digest that no other repository needs.
    fn is_read(&self, id: Id) -> bool {
        let node = self.survey.node(id).filter(|node| node.uses <= 1);
        node.is_some_and(|node| self.store.is_read(&node.digest))
    }

    fn remove_blob(&self, id: Id) {
        let Some(node) = self.survey.node(id).filter(|node| node.here) else {
            return;
        };
        if let Err(error) = self.store.remove(&node.digest) {
            // A disk that fails keeps all of them, and each pull that needs room tries again.
            let fields: [log::Field<'_>; 1] = [("digest", &node.digest)];
            let what = "a blob could not be evicted";
            log::cause(Level::Warn, what, ("error", &error), &fields);
        }
    }
}
