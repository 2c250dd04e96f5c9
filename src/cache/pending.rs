//! Links that are not written yet. Owns: a bounded queue of what manifests name. Must not: do I/O.
//!
//! A manifest may name thousands of blobs, and a client waits for it. Their links count as soon as
//! they are here, and the thread `sweep` writes them. A crash in between costs one HEAD for each.
//!
//! Locks: the queue, held for its own operations.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::changes::Moment;
use super::manifest::DESCRIPTORS_MAX;
use super::paths::{OwnedScope, Scope};
use crate::locked::Locked as _;
use crate::oci::Digest;

/// Links that wait: those of the three largest manifests, in 2 MB.
const LINKS_MAX: usize = 3 * DESCRIPTORS_MAX;
/// Manifests that wait: each is looked at for every blob that is asked for meanwhile.
const MANIFESTS_MAX: usize = 64;

/// What a manifest names, in a repository.
#[derive(Debug)]
pub(super) struct PendingLinks {
    pub(super) scope: OwnedScope,
    /// With the length in bytes, where the manifest has it.
    pub(super) blobs: HashMap<Digest, Option<u64>>,
    /// The moment before upstream was asked for the manifest.
    pub(super) asked_at: Moment,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct PendingQueue(Mutex<VecDeque<Arc<PendingLinks>>>);

impl PendingQueue {
    /// Adds the links of a manifest. False when too many wait.
    pub(super) fn add(&self, links: &Arc<PendingLinks>) -> bool {
        let mut queue = self.0.locked();
        let waiting: usize = queue.iter().map(|links| links.blobs.len()).sum();
        if queue.len() >= MANIFESTS_MAX || waiting + links.blobs.len() > LINKS_MAX {
            return false;
        }
        queue.push_back(Arc::clone(links));
        true
    }

    /// The newest links that name a digest.
    pub(super) fn find(&self, scope: Scope<'_>, digest: &Digest) -> Option<Arc<PendingLinks>> {
        let queue = self.0.locked();
        let mut links = queue.iter().rev();
        let names = |links: &&Arc<PendingLinks>| {
            links.scope.as_scope() == scope && links.blobs.contains_key(digest)
        };
        links.find(names).cloned()
    }

    /// The links that have waited for longest. They stay until they are [removed](Self::remove).
    pub(super) fn first(&self) -> Option<Arc<PendingLinks>> {
        self.0.locked().front().cloned()
    }

    pub(super) fn remove(&self, written: &Arc<PendingLinks>) {
        self.0.locked().retain(|links| !Arc::ptr_eq(links, written));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::changes::Fact;
    use crate::cache::manifest::Named;
    use crate::cache::scratch::Cache;

    /// What a manifest of so many layers names.
    fn named(count: usize) -> Vec<Named> {
        let named = |n| Named {
            platform: None,
            digest: format!("sha256:{n:064x}").parse().unwrap(),
            media_type: None,
            size: Some(7),
        };
        (0..count).map(named).collect()
    }

    fn written(cache: &Cache) -> usize {
        cache.with("team/app", |scope| cache.names.link_uses(scope).len())
    }

    #[test]
    fn links_of_a_manifest_count_at_once_and_are_written_later() {
        let cache = Cache::new();
        let (names, named) = (&cache.names, named(5));
        cache.with("team/app", |scope| {
            let asked_at = names.changes.now();
            names.link_named(scope, named.clone(), asked_at).unwrap();
            let (first, last) = (&named[0].digest, &named[4].digest);
            assert_eq!(written(&cache), 0);
            assert_eq!(names.link(scope, last).unwrap().size, Some(7));
            // One that is deleted meanwhile is not linked, now or later.
            names.changes.note(scope, Fact::Present(first));
            names.remove_link(scope, first);
            assert_eq!(names.link(scope, first), None);
            names.write_links(&|| true).unwrap();
            assert!(names.pending.first().is_none());
            assert_eq!(names.link(scope, first), None);
            assert_eq!(names.link(scope, last).unwrap().size, Some(7));
        });
        assert_eq!(written(&cache), 4);
    }

    #[test]
    fn links_that_wait_are_bounded() {
        let cache = Cache::new();
        let link = |count| {
            let named = named(count);
            cache.with("team/app", |scope| {
                let linked = cache.names.link_named(scope, named, Moment::LAST);
                linked.unwrap();
            });
        };
        for _ in 0..3 {
            link(DESCRIPTORS_MAX);
        }
        assert_eq!(written(&cache), 0);
        // One more would not fit, so its files are written now.
        link(3);
        assert_eq!(written(&cache), 3);
        cache.names.write_links(&|| true).unwrap();
        assert_eq!(written(&cache), DESCRIPTORS_MAX);
        // Neither may many small manifests wait.
        for _ in 0..200 {
            link(1);
        }
        assert_eq!(cache.names.pending.0.locked().len(), MANIFESTS_MAX);
    }
}
