//! What every writer of the cache needs: files, names, room, and where to report a fault of the
//! disk. Owns: counting and logging such faults. Must not: know what was written.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::closure::Holdings;
use super::names::Names;
use super::store::Store;
use super::sweep::{Reservation, Sweeper};
use crate::log::{self, Level};
use crate::metrics;

/// Room left free on the disk for everything else that writes there.
const FREE_BYTES_MIN: u64 = 1 << 20;

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

    /// Bytes that blobs may still take of the file system.
    ///
    /// # Errors
    /// The disk's own.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let free = self.store.free_bytes()?;
        Ok(free.saturating_sub(FREE_BYTES_MIN))
    }

    /// Room for `bytes` more, on the file system and under the quota. Blocks as
    /// [`Sweeper::make_room`] does.
    ///
    /// # Errors
    /// Why there is none.
    pub fn make_room(&self, bytes: u64, deadline: Instant) -> Result<Reservation, &'static str> {
        if self.free_bytes().is_ok_and(|free| free < bytes) {
            return Err("it is larger than the free space");
        }
        let room = self.sweeper.make_room(bytes, deadline);
        room.ok_or("there is no room in CACHE_MAX_SIZE")
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
