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
use super::paths::Scope;
use crate::locked::Locked as _;
use crate::oci::{Digest, Registry, Repository};

/// Links that wait: those of the three largest manifests, in 2 MB.
const LINKS_MAX: usize = 3 * DESCRIPTORS_MAX;
/// Manifests that wait: each is looked at for every blob that is asked for meanwhile.
const MANIFESTS_MAX: usize = 64;

/// What a manifest names, in a repository.
#[derive(Debug)]
pub(super) struct PendingLinks {
    registry: Registry,
    repository: Repository,
    /// With the length in bytes, where the manifest has it.
    pub(super) blobs: HashMap<Digest, Option<u64>>,
    /// The moment before upstream was asked for the manifest.
    pub(super) asked_at: Moment,
}

impl PendingLinks {
    pub(super) fn new(
        scope: Scope<'_>,
        blobs: HashMap<Digest, Option<u64>>,
        asked_at: Moment,
    ) -> Self {
        Self {
            registry: scope.registry.clone(),
            repository: scope.repository.clone(),
            blobs,
            asked_at,
        }
    }

    pub(super) const fn scope(&self) -> Scope<'_> {
        Scope {
            registry: &self.registry,
            repository: &self.repository,
        }
    }
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
        let names =
            |links: &&Arc<PendingLinks>| links.scope() == scope && links.blobs.contains_key(digest);
        links.find(names).cloned()
    }

    /// The links that have waited for longest. They stay until they are [removed](Self::remove).
    pub(super) fn first(&self) -> Option<Arc<PendingLinks>> {
        self.0.locked().front().cloned()
    }

    pub(super) fn remove(&self, written: &Arc<PendingLinks>) {
        self.0.locked().retain(|links| !Arc::ptr_eq(links, written));
    }
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.locked().len()
    }
}
