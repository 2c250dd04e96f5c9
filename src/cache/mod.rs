//! What passed through, kept. Owns: the cache directory, which is an OCI image layout (image-spec
//! `image-layout.md`). Must not: know AWS, or what a client asked.
//!
//! All of it is blocking file I/O, called by connection, fill and sweep threads, never by workers.
//! The file system is the truth: a look-up is an `open` or a `stat`, and nothing keeps an index of
//! blobs in memory, so that starting with a full cache costs nothing.

mod files;
pub mod fill;
pub mod flights;
pub mod hash;
pub mod layout;
pub mod manifest;
pub mod names;
pub mod negative;
mod open;
pub mod probe;
#[cfg(test)]
mod scratch;
pub mod store;
pub mod sweep;
mod tagfile;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::config::TagTtl;
use crate::log;
use crate::oci::Registry;
use crate::upstream::exchange::Upstream;

/// How a cache is to be kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes on disk at the most.
    pub quota: u64,
    /// How long a tag is served without asking upstream.
    pub tag_ttl: TagTtl,
    /// Downloads at a time.
    pub max_fills: usize,
}

/// The cache: its parts and its rules about time.
pub struct Cache {
    /// Files.
    pub store: Arc<store::Store>,
    /// Names of what is in them.
    pub names: Arc<names::Names>,
    /// Quota and index.
    pub sweeper: Arc<sweep::Sweeper>,
    /// Downloads.
    pub fills: Arc<fill::Fills>,
    /// What lately was not there.
    pub negative: negative::Negative,
    settings: Settings,
    remembered: Mutex<Option<Registry>>,
    has_content: AtomicBool,
    pushes: AtomicU64,
}

impl Cache {
    /// Opens the cache in `directory`, or makes it.
    ///
    /// # Errors
    /// Why it cannot be used, and what to do.
    pub fn open(
        directory: &Path,
        settings: Settings,
        upstream: Arc<Upstream>,
    ) -> Result<Self, store::OpenError> {
        let store = Arc::new(store::Store::open(directory)?);
        let names = Arc::new(names::Names::new(store.root()));
        let sweeper = sweep::Sweeper::new(Arc::clone(&store), Arc::clone(&names), settings.quota);
        let fills = Arc::new(fill::Fills::new(
            Arc::clone(&store),
            Arc::clone(&names),
            Arc::clone(&sweeper),
            upstream,
            settings.max_fills,
        ));
        let remembered = names.remembered_registry();
        Ok(Self {
            store,
            names,
            sweeper,
            fills,
            negative: negative::Negative::default(),
            settings,
            has_content: AtomicBool::new(remembered.is_some()),
            remembered: Mutex::new(remembered),
            pushes: AtomicU64::new(0),
        })
    }

    /// True when something was ever kept here, so that some pulls can be answered without upstream.
    pub fn has_content(&self) -> bool {
        self.has_content.load(Ordering::Relaxed)
    }

    /// Manifests pushed or deleted through us so far. Who asks upstream for a tag notes it before,
    /// and keeps the answer only if it is the same afterwards: the answer may be older than a push.
    pub fn pushes(&self) -> u64 {
        self.pushes.load(Ordering::SeqCst)
    }

    /// A manifest was pushed or deleted through us.
    pub fn count_push(&self) {
        self.pushes.fetch_add(1, Ordering::SeqCst);
    }

    /// True while a tag confirmed at `confirmed` needs no upstream call.
    pub fn is_fresh(&self, confirmed: SystemTime) -> bool {
        match self.settings.tag_ttl {
            TagTtl::Forever => true,
            // A time in the future is that of a clock that was set back: no word to go by.
            TagTtl::For(ttl) => SystemTime::now()
                .duration_since(confirmed)
                .is_ok_and(|age| age < ttl),
        }
    }

    /// Something of `registry` was kept: without a network it is known from now on.
    pub fn remember(&self, registry: &Registry) {
        self.has_content.store(true, Ordering::Relaxed);
        {
            let mut remembered = self
                .remembered
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if remembered.as_ref() == Some(registry) {
                return;
            }
            *remembered = Some(registry.clone());
        }
        if let Err(error) = self.names.remember_registry(registry) {
            log::warn("cannot remember the registry", &[("error", &error)]);
        }
    }
}
