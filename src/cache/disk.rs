//! What every writer of the cache needs: files, names, room, and where to report a fault of the
//! disk. Owns: counting such faults, and one log line a minute. Must not: know what was written.
//!
//! Locks: the time of the last line, held to read and set it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::names::Names;
use super::store::Store;
use super::sweep::Sweeper;
use crate::{log, metrics};

/// Least time between two log lines: a full disk fails every request, and one line says it.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

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
pub struct DiskFaults {
    directory: PathBuf,
    logged: Mutex<Option<Instant>>,
}

impl DiskFaults {
    /// For the cache in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            logged: Mutex::new(None),
        }
    }

    /// Counts a fault, and logs it unless another one was logged within [`LOG_INTERVAL`]. `what`
    /// names the file that could not be read or written: `link`, `blob`, `tag`.
    pub fn report(&self, what: &str, error: &io::Error) {
        metrics::CACHE_WRITE_FAILURES.inc();
        if self.is_due(Instant::now()) {
            let directory = self.directory.display();
            log::warn(
                "the cache cannot be written; pulls and pushes go on without it",
                &[("what", &what), ("error", error), ("directory", &directory)],
            );
        }
    }

    /// True when a line may be logged at `now`; the next one is due an interval later.
    fn is_due(&self, now: Instant) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let due = logged.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL);
        if due {
            *logged = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_logged_in_an_interval() {
        let (faults, now) = (DiskFaults::new(Path::new("/cache")), Instant::now());
        assert!(faults.is_due(now));
        assert!(!faults.is_due(now + LOG_INTERVAL / 2));
        assert!(faults.is_due(now + LOG_INTERVAL));
        assert!(!faults.is_due(now + LOG_INTERVAL));
    }
}
