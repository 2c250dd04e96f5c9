//! The cache as a whole. Owns: its parts, and its rules about time. Must not: know how a part keeps
//! what it has.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::changes::Moment;
use super::closure::Holdings;
use super::disk::{Disk, DiskFaults};
use super::pins::Pins;
use super::{fill, names, negative, store, sweep, uploads, verify};
use crate::config::TagTtl;
use crate::locked::Locked as _;
use crate::log;
use crate::oci::{Digest, Registry};
use crate::upstream::exchange::Upstream;

/// How a cache is to be kept.
#[derive(Debug, Clone)]
pub struct CacheSettings {
    /// Bytes on disk at the most.
    pub quota: u64,
    /// How long a tag is served without asking upstream.
    pub tag_ttl: TagTtl,
    /// Downloads at a time.
    pub max_fills: usize,
    /// Upstream is never asked: the directory is only read, and every tag is fresh.
    pub offline: bool,
    /// Images that eviction never touches.
    pub pins: Pins,
    /// Bytes a second of downloads that no client waits for; none: no limit.
    pub background_rate: Option<u64>,
    /// The registry to remember for a start without network; none: whichever is used.
    pub default_registry: Option<Registry>,
}

/// A blob that the cache has.
pub struct FoundBlob {
    /// The blob.
    pub blob: verify::Opened,
    /// It is linked in the repository that was asked for.
    pub is_linked: bool,
}

/// The cache: its parts and its rules about time.
pub struct Cache {
    /// Files.
    pub store: Arc<store::Store>,
    /// Names of what is in them.
    pub names: Arc<names::Names>,
    /// Quota and index.
    pub sweeper: Arc<sweep::Sweeper>,
    /// Where a fault of the disk is reported.
    pub disk_faults: Arc<DiskFaults>,
    /// Opens blobs, and hashes those that may be damaged.
    pub verifier: Arc<verify::Verifier>,
    /// Downloads.
    pub fills: Arc<fill::Fills>,
    /// What is pushed through us.
    pub uploads: Arc<uploads::Uploads>,
    /// Recent 404s of upstream.
    pub negative: negative::Negative,
    settings: CacheSettings,
    remembered: Mutex<Option<Registry>>,
}

impl Cache {
    /// Its files, to be read.
    pub fn holdings(&self) -> Holdings<'_> {
        Holdings {
            store: &self.store,
            names: &self.names,
        }
    }

    /// Opens the cache in `directory`, or makes it.
    ///
    /// # Errors
    /// Why it cannot be used, and what to do.
    pub fn open(
        directory: &Path,
        settings: CacheSettings,
        upstream: Arc<Upstream>,
    ) -> Result<Self, store::OpenError> {
        let store = match settings.offline {
            true => open_offline(directory)?,
            false => open_to_serve(directory)?,
        };
        let disk = Disk::new(store, settings.quota);
        disk.sweeper.pin(settings.pins.clone());
        let remembered = disk.names.find_registry();
        let fills = fill::Fills::new(
            disk.clone(),
            upstream,
            settings.max_fills,
            settings.background_rate,
        );
        Ok(Self {
            fills: Arc::new(fills),
            uploads: Arc::new(uploads::Uploads::new(disk.clone())),
            verifier: Arc::new(verify::Verifier::new(Arc::clone(&disk.store))),
            store: disk.store,
            names: disk.names,
            sweeper: disk.sweeper,
            disk_faults: disk.faults,
            negative: negative::Negative::default(),
            settings,
            remembered: Mutex::new(remembered),
        })
    }

    /// True when something is kept here, so that some pulls can be answered without upstream.
    pub fn has_content(&self) -> bool {
        self.remembered.locked().is_some() || self.names.has_repositories()
    }

    /// True while a tag confirmed at `confirmed` needs no upstream call.
    pub fn is_fresh(&self, confirmed: SystemTime) -> bool {
        if self.settings.offline {
            return true;
        }
        match self.settings.tag_ttl {
            TagTtl::Forever => true,
            // A time in the future is that of a clock that was set back, and proves nothing.
            TagTtl::For(ttl) => SystemTime::now()
                .duration_since(confirmed)
                .is_ok_and(|age| age < ttl),
        }
    }

    /// The moment to note before upstream or the cache is asked.
    pub fn now(&self) -> Moment {
        self.names.changes.now()
    }

    /// Opens a blob for a repository; none when it is not here. A length that is missing in its
    /// link is noted once the blob is known to be whole. May block as
    /// [`Verifier::open`](verify::Verifier::open) does.
    ///
    /// # Errors
    /// The disk's own.
    pub fn open_blob(
        &self,
        scope: names::Scope<'_>,
        digest: &Digest,
        asked_at: Moment,
    ) -> io::Result<Option<FoundBlob>> {
        let link = self.names.link(scope, digest);
        let known_size = link.as_ref().and_then(|link| link.size);
        let Some(blob) = self.verifier.open(digest, known_size)? else {
            return Ok(None);
        };
        let is_linked = link.is_some();
        if is_linked && blob.is_verified() && known_size != Some(blob.size()) {
            let size = Some(blob.size());
            let linked = self.names.link_blob(scope, digest, size, asked_at);
            self.disk_faults.check("link", linked);
        }
        Ok(Some(FoundBlob { blob, is_linked }))
    }

    /// The registry that was the default one when something was last kept; from memory. Offline,
    /// another process may have brought it meanwhile: as long as there is none, it is looked for.
    pub fn recall_registry(&self) -> Option<Registry> {
        let known = self.remembered.locked().clone();
        if known.is_some() || !self.settings.offline {
            return known;
        }
        let found = self.names.find_registry();
        self.remembered.locked().clone_from(&found);
        found
    }

    /// Something of `registry` was kept: without a network it is known from now on, if it is the
    /// default one.
    pub fn remember(&self, registry: &Registry) {
        if self.store.is_read_only() {
            return;
        }
        let default = &self.settings.default_registry;
        if default.as_ref().is_some_and(|default| default != registry) {
            return;
        }
        {
            let mut remembered = self.remembered.locked();
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

/// Opens the cache for reading; where there is none yet, makes one that another process may fill.
fn open_offline(directory: &Path) -> Result<store::Store, store::OpenError> {
    match store::Store::open_read_only(directory) {
        Err(error) if matches!(error.fault, store::OpenFault::Empty) => {
            drop(store::Store::open(directory)?);
            store::Store::open_read_only(directory)
        }
        opened => opened,
    }
}

/// Opens the cache; one that cannot be written serves what it has.
fn open_to_serve(directory: &Path) -> Result<store::Store, store::OpenError> {
    let fault = match store::Store::open(directory) {
        Err(fault) if fault.is_of_writing() => fault,
        opened => return opened,
    };
    let Ok(store) = store::Store::open_read_only(directory) else {
        return Err(fault);
    };
    log::warn(
        "the cache directory cannot be written: what is in it is served, and nothing is added",
        &[("error", &fault)],
    );
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::scratch::{self, Scratch};

    #[test]
    fn offline_writes_nothing() {
        let cache = scratch::Cache::new();
        let image = cache.image("team/app:v1", &[b"layer"], 5);
        let store = open_offline(cache.scratch.path()).expect("beside the one that writes");
        let disk = Disk::new(store, 1 << 20);
        assert!(disk.store.has(&image));
        let other = scratch::digest_of(b"other");
        assert!(disk.store.put(&other, b"other").is_err());
        assert!(disk.store.partial(&other).is_err());
        assert!(disk.store.create_unnamed().is_err());
        cache.with("team/app", |scope| {
            let (names, now) = (&disk.names, Moment::LAST);
            names.link_blob(scope, &other, None, now).unwrap();
            assert!(names.link(scope, &other).is_none());
        });
        let path = cache.scratch.path().join("blobs/sha256").join(image.hex());
        std::fs::write(&path, b"damaged").unwrap();
        assert_eq!(disk.store.read(&image, 1 << 20).unwrap(), None);
        assert!(path.exists(), "it is left for the operator");
    }

    #[test]
    fn an_empty_directory_becomes_a_cache_that_others_may_fill() {
        let scratch = Scratch::new();
        let ours = open_offline(scratch.path()).unwrap();
        assert!(ours.is_read_only());
        drop(store::Store::open(scratch.path()).expect("nobody has locked it"));
        let fault = open_offline(Path::new("/proc/nowhere")).unwrap_err();
        assert!(fault.to_string().contains("cannot be used"), "{fault}");
    }
}
