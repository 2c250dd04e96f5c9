//! What the unit tests share: a directory for each, below the build's own, and a cache in it that
//! images are put into as a pull does. Owns: nothing but that directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::changes::Moment;
use super::closure::Holdings;
use super::disk::{Disk, DiskFaults};
use super::files;
use super::manifest::list_named;
use super::names::{Names, Scope, TagEntry};
use super::store::Store;
use super::sweep::Sweeper;
use crate::hash::sha256_hex;
use crate::oci::{Digest, Registry, Repository, Tag};

/// Removed with all it holds when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// An empty directory that no other test has.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let name = format!(
            "{}-{}-{}",
            nanos.as_nanos(),
            std::process::id(),
            COUNT.fetch_add(1, Relaxed)
        );
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("target/unit")
            .join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The media type of an image's manifest.
pub(super) const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an index.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Names {
    /// Lets a tag and a digest look as if they had been used at `now`.
    pub(super) fn touch_at(
        &self,
        scope: Scope<'_>,
        partition: &str,
        tag: Option<&Tag>,
        digest: &Digest,
        now: SystemTime,
    ) {
        let tag = tag.and_then(|tag| self.paths.tag(scope, partition, tag));
        for path in tag.into_iter().chain(self.paths.link(scope, digest)) {
            files::set_used(&path, now);
        }
    }
}

/// A cache of its own.
pub(super) struct Cache {
    pub(super) scratch: Scratch,
    pub(super) store: Arc<Store>,
    pub(super) names: Arc<Names>,
    pub(super) registry: Registry,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self::open(Scratch::new())
    }

    fn open(scratch: Scratch) -> Self {
        let store = Arc::new(Store::open(scratch.path()).unwrap());
        let names = Arc::new(Names::new(store.root()));
        let registry = "host.example".parse().unwrap();
        Self {
            scratch,
            store,
            names,
            registry,
        }
    }

    /// Its files, to be read.
    pub(super) fn holdings(&self) -> Holdings<'_> {
        Holdings {
            store: &self.store,
            names: &self.names,
        }
    }

    /// The same after a restart of the process.
    pub(super) fn restart(self) -> Self {
        let Self { scratch, store, .. } = self;
        drop(Arc::into_inner(store).expect("no other user of the store"));
        Self::open(scratch)
    }

    /// Calls `with` with a repository of the registry.
    pub(super) fn with<T>(&self, repository: &str, with: impl FnOnce(Scope<'_>) -> T) -> T {
        let repository: Repository = repository.parse().unwrap();
        with(Scope {
            registry: &self.registry,
            repository: &repository,
        })
    }

    /// The same as a writer has it, with room for 1 GiB.
    pub(super) fn disk(&self) -> Disk {
        Disk {
            faults: Arc::new(DiskFaults::new(&self.store)),
            store: Arc::clone(&self.store),
            names: Arc::clone(&self.names),
            sweeper: Sweeper::new(Arc::clone(&self.store), Arc::clone(&self.names), 1 << 30),
        }
    }

    /// A blob of `bytes`, linked in `repository`.
    pub(super) fn blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = digest_of(bytes);
        self.store.put(&digest, bytes).unwrap();
        self.with(repository, |scope| {
            self.names.link_blob(scope, &digest, None, Moment::LAST)
        })
        .unwrap();
        digest
    }

    /// An image of `layers`, linked in `repository`, used last at `used` (seconds), and tagged.
    pub(super) fn image(&self, name: &str, layers: &[&[u8]], used: u64) -> Digest {
        let repository = name.split(':').next().unwrap();
        let layers: Vec<_> = layers
            .iter()
            .map(|bytes| serde_json::json!({"digest": self.blob(repository, bytes).as_str()}))
            .collect();
        self.manifest(name, IMAGE, &serde_json::json!({"layers": layers}), used)
    }

    /// An index of `manifests`.
    pub(super) fn index(&self, name: &str, manifests: &[&Digest], used: u64) -> Digest {
        let manifests: Vec<_> = manifests
            .iter()
            .map(|digest| serde_json::json!({"digest": digest.as_str(), "mediaType": IMAGE}))
            .collect();
        self.manifest(
            name,
            INDEX,
            &serde_json::json!({"manifests": manifests}),
            used,
        )
    }

    pub(super) fn manifest(
        &self,
        name: &str,
        kind: &str,
        document: &serde_json::Value,
        used: u64,
    ) -> Digest {
        let (repository, tag) = name.split_once(':').unwrap_or((name, ""));
        let bytes = document.to_string().into_bytes();
        let digest = self.blob(repository, &bytes);
        let tag = tag.parse::<Tag>().ok();
        let entry = TagEntry {
            digest: digest.clone(),
            media_type: kind.to_owned(),
            confirmed: at(used),
        };
        self.with(repository, |scope| {
            self.names
                .link_manifest(scope, &digest, kind, Moment::LAST)
                .unwrap();
            if let Some(tag) = &tag {
                self.names
                    .set_tag(scope, "", tag, entry, Moment::LAST)
                    .unwrap();
            }
            self.names
                .touch_at(scope, "", tag.as_ref(), &digest, at(used));
        });
        digest
    }

    /// True when a manifest, all it names and its link are here; false when none of it is.
    pub(super) fn is_whole(&self, repository: &str, manifest: &Digest, bytes: &[&[u8]]) -> bool {
        let link = self.with(repository, |scope| self.names.link(scope, manifest));
        let kept = self.store.read(manifest, u64::MAX).unwrap();
        let whole = kept.is_some();
        assert_eq!(whole, link.is_some());
        for named in list_named(&kept.unwrap_or_default()) {
            assert!(self.store.has(&named.digest));
        }
        for bytes in bytes {
            assert_eq!(whole, self.store.has(&digest_of(bytes)));
        }
        whole
    }
}

/// The SHA-256 digest of `bytes`.
pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    format!("sha256:{}", sha256_hex(bytes)).parse().unwrap()
}

/// A time that many seconds after the epoch.
pub(super) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}
