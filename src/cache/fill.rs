//! Downloads. Owns: exactly one upstream GET for each cold blob, the growing file its clients are
//! served from. Must not: publish a byte that is not verified, or end because a client
//! went away.
//!
//! A *miss is a hit on a file that is still growing*: the client that asked first is served like
//! any other, from the file. Readers get all but the last byte until length and digest are
//! verified, so that a wrong blob can always be cut.
//!
//! Locks: the map of running fills, and each fill's state; both held for a few reads and writes of
//! memory, never across I/O.

mod ahead;
mod crew;
mod download;
mod follow;
mod growing;
mod pace;
mod reader;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::changes::Fact;
use super::disk::Disk;
use crate::locked::Locked as _;
use crate::log::{self, Level, RequestScope};
use crate::metrics;
use crate::oci::Digest;
use crate::permits::Permits;
use crate::transfers::{TRANSFERS, Transfer, TransferKind};
use crate::upstream::Stage;
use crate::upstream::exchange::{HEAD_TIMEOUT, Upstream};
use crew::Crew;
use download::Fill;
use growing::FillEnd;
pub use growing::{BlobRequest, Growing, Joined};
use pace::Pace;

/// Longest wait until fewer than `MAX_FILLS` run; then the blob is streamed uncached.
const SLOT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait at the stop for blobs that have come whole: one fsync on a busy disk.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// All downloads.
pub struct Fills {
    disk: Disk,
    upstream: Arc<Upstream>,
    slots: Arc<Permits>,
    pace: Arc<Pace>,
    running: Mutex<HashMap<Digest, Arc<Growing>>>,
    crew: Arc<Crew>,
}

impl Fills {
    /// At most `max` downloads at a time. Those that no client waits for share a rate of
    /// `background` bytes a second.
    pub fn new(disk: Disk, upstream: Arc<Upstream>, max: usize, background: Option<u64>) -> Self {
        Self {
            disk,
            upstream,
            slots: Arc::new(Permits::new(max)),
            pace: Arc::new(Pace::new(background)),
            running: Mutex::default(),
            crew: Arc::default(),
        }
    }

    /// Waits as `PREFETCH_RATE` asks, for bytes of manifests and lists that have come.
    pub fn keep_rate(&self, bytes: u64) {
        self.pace.wait(bytes, || true);
    }

    /// Joins the download of a blob, or begins it, and waits until upstream has answered. Blocks
    /// for [`HEAD_TIMEOUT`] and a little at the longest.
    pub fn join(self: &Arc<Self>, wanted: &BlobRequest) -> Joined {
        let deadline = Instant::now() + HEAD_TIMEOUT + Duration::from_secs(1);
        let (growing, first) = self.enter(wanted);
        if !wanted.is_background {
            growing.transfer.set_background(false);
        }
        if growing.wanted.scope.registry != wanted.scope.registry && !growing.is_verified() {
            // That registry may be slow or out of order; ours is asked by itself.
            return Joined::Bypass(None);
        }
        let _client = growing.transfer.join();
        if first {
            self.begin(&growing);
        }
        if !first {
            metrics::DOWNLOADS_JOINED.inc();
        }
        let (asked, names) = (growing.wanted.clone(), &self.disk.names);
        let joined = growing.wait_until_begun(deadline);
        let facts = [Fact::Present(&asked.digest), Fact::Absent(&asked.digest)];
        let unchanged = names
            .changes
            .are_unchanged(asked.asked_at, asked.scope.as_scope(), &facts);
        match joined {
            joined if unchanged && asked.scope == wanted.scope => joined,
            // What upstream said of another repository, or before a change, says nothing of ours.
            Joined::Growing(growing) => Joined::Unproven(growing),
            _ => Joined::Bypass(None),
        }
    }

    /// Waits until the blobs that clients have got whole are in the cache: after a restart they may
    /// be asked for without upstream. Blocks for [`SETTLE_TIMEOUT`] at the longest.
    pub fn settle(&self) {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let running: Vec<_> = self.running.locked().values().map(Arc::clone).collect();
        for growing in running {
            growing.settle(deadline);
        }
    }

    fn enter(&self, wanted: &BlobRequest) -> (Arc<Growing>, bool) {
        let mut running = self.running.locked();
        if let Some(growing) = running.get(&wanted.digest) {
            return (Arc::clone(growing), false);
        }
        let growing = Arc::new(Growing {
            wanted: wanted.clone(),
            upstream: Arc::clone(&self.upstream),
            state: Mutex::default(),
            changed: Condvar::new(),
            transfer: Arc::new(Transfer::new(
                TransferKind::Fill,
                false,
                wanted.subject(),
                None,
            )),
            pace: Arc::clone(&self.pace),
            _reading: self.disk.store.reading(&wanted.digest),
        });
        growing.transfer.set_background(wanted.is_background);
        running.insert(wanted.digest.clone(), Arc::clone(&growing));
        (growing, true)
    }

    /// Gives the download a thread; without one it is not cached.
    fn begin(self: &Arc<Self>, growing: &Arc<Growing>) {
        let Some(slot) = self.slots.take_owned(Instant::now() + SLOT_TIMEOUT) else {
            return self.end(growing, FillEnd::Bypass);
        };
        let listed = TRANSFERS.list(Arc::clone(&growing.transfer));
        let (fills, filling) = (Arc::clone(self), Arc::clone(growing));
        let work = move || {
            let outcome = metrics::count_panic(|| fills.fill(&filling)).unwrap_or_else(|| {
                FillEnd::Failed(filling.fault(Stage::Transfer, "the download panicked".into()))
            });
            drop(listed);
            fills.end(&filling, outcome);
            drop(slot);
        };
        let job = Box::new(RequestScope::pass_on(work));
        if self.crew.run(job).is_err() {
            self.end(growing, FillEnd::Bypass);
        }
    }

    fn fill(&self, growing: &Growing) -> FillEnd {
        let opened = Fill::open(&self.disk, growing);
        let fill = self.disk.faults.check("partial file", opened);
        fill.map_or(FillEnd::Bypass, Fill::run)
    }

    fn end(&self, growing: &Growing, outcome: FillEnd) {
        let result = match &outcome {
            FillEnd::Bypass => "uncached",
            FillEnd::Done => "done",
            FillEnd::Failed(_) => "failed",
            FillEnd::Refused(_) => "refused",
        };
        metrics::FILLS.of([result]).inc();
        if let FillEnd::Failed(error) = &outcome {
            let digest = &growing.wanted.digest;
            let fields: [log::Field<'_>; 1] = [("digest", digest)];
            // Before it began, the lines of its clients say so.
            let level = match growing.total_if_begun() {
                Some(_) => Level::Warn,
                None => Level::Info,
            };
            log::cause(level, "download failed", ("error", error), &fields);
        }
        // Out of the map first: a client that comes now finds the blob, or begins anew.
        self.running.locked().remove(&growing.wanted.digest);
        growing.change(|state| state.outcome = Some(outcome));
    }
}
