//! What every writer of the cache needs: files, names, room, and where to report a fault of the
//! disk. Owns: counting and logging such faults. Must not: know what was written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::names::Names;
use super::store::Store;
use super::sweep::Sweeper;
use crate::log::{self, Level};
use crate::metrics;

/// The parts that a writer needs; a copy shares them.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Blobs and manifests.
    pub store: Arc<Store>,
    /// Tags and links.
    pub names: Arc<Names>,
    /// Room under the quota.
    pub sweeper: Arc<Sweeper>,
    /// Where a fault is reported.
    pub faults: Arc<DiskFaults>,
}

impl Disk {
    /// The parts of the cache in `store`, which may hold `quota` bytes.
    pub fn new(store: Store, quota: u64) -> Self {
        let store = Arc::new(store);
        let names = Arc::new(Names::new(store.root()));
        Self {
            sweeper: Sweeper::new(Arc::clone(&store), Arc::clone(&names), quota),
            faults: Arc::new(DiskFaults::new(store.root())),
            store,
            names,
        }
    }
}

/// Where every part of the cache reports that the disk has failed.
#[derive(Debug)]
pub struct DiskFaults(PathBuf);

impl DiskFaults {
    /// For the cache in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Counts a fault, and logs one a minute. `what` names the file that could not be read or
    /// written: `link`, `blob`, `tag`.
    pub fn report(&self, what: &str, error: &io::Error) {
        metrics::CACHE_WRITE_FAILURES.inc();
        let directory = self.0.display();
        log::cause(
            Level::Warn,
            "the cache cannot be written; pulls and pushes go on without it",
            ("directory", &directory),
            &[("what", &what), ("error", error)],
        );
    }
}
