//! What every writer of the cache needs: files, names, room, and where to report a fault of the
//! disk. Owns: counting and logging such faults. Must not: know what was written.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::closure::Holdings;
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
        let names = Arc::new(Names::new_for(store.root(), store.is_read_only()));
        Self {
            sweeper: Sweeper::new(Arc::clone(&store), Arc::clone(&names), quota),
            faults: Arc::new(DiskFaults::new(&store)),
            store,
            names,
        }
    }

    /// Its files, to be read.
    pub fn holdings(&self) -> Holdings<'_> {
        Holdings {
            store: &self.store,
            names: &self.names,
        }
    }
}

/// Where every part of the cache reports that the disk has failed.
#[derive(Debug)]
pub struct DiskFaults {
    directory: PathBuf,
    /// The cache is read-only, as was said at the start.
    is_expected: bool,
}

impl DiskFaults {
    /// For the cache in `store`.
    pub fn new(store: &Store) -> Self {
        Self {
            directory: store.root().to_owned(),
            is_expected: store.is_read_only(),
        }
    }

    /// What the disk gave. None when it has failed, which is [reported](Self::report).
    pub fn check<T>(&self, what: &str, result: io::Result<T>) -> Option<T> {
        result.inspect_err(|error| self.report(what, error)).ok()
    }

    /// Counts a fault, and logs one a minute. `what` names the file that could not be read or
    /// written: `link`, `blob`, `tag`.
    pub fn report(&self, what: &str, error: &io::Error) {
        if self.is_expected {
            return log::debug("not kept", &[("what", &what), ("error", error)]);
        }
        metrics::CACHE_WRITE_FAILURES.inc();
        let directory = self.directory.display();
        log::cause(
            Level::Warn,
            "the cache cannot be written; pulls and pushes go on without it",
            ("directory", &directory),
            &[("what", &what), ("error", error)],
        );
    }
}
