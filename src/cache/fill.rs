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

mod download;
mod reader;

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::changes::{Fact, Moment};
use super::disk::Disk;
use super::names::Scope;
use super::store::Reading;
use crate::log::{self, Level, RequestScope};
use crate::message::{Body, Buffered, Headers};
use crate::metrics;
use crate::oci::{Digest, Registry, Repository};
use crate::permits::Permits;
use crate::transfers::{Subject, TRANSFERS, Transfer, TransferKind};
use crate::upstream::exchange::{Call, Fetched, HEAD_TIMEOUT, Upstream};
use crate::upstream::{Stage, UpstreamError};
use download::Fill;
use reader::Reader;

/// Longest wait for one of the fills' threads; then the blob is streamed uncached.
const SLOT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes copied at a time.
const COPY_BYTES: usize = 64 * 1024;
/// Stack of a fill's thread: TLS and hashing.
const STACK_BYTES: usize = 256 * 1024;

/// What a blob is asked for under, kept for as long as the download lasts.
#[derive(Debug, Clone)]
pub struct BlobRequest {
    /// The registry.
    pub registry: Registry,
    /// The repository.
    pub repository: Repository,
    /// The blob.
    pub digest: Digest,
    /// The moment before upstream was asked for it, or given it.
    pub asked_at: Moment,
}

impl BlobRequest {
    /// Where its names are kept.
    pub const fn scope(&self) -> Scope<'_> {
        Scope {
            registry: &self.registry,
            repository: &self.repository,
        }
    }

    /// What others see of its transfer.
    pub fn subject(&self) -> Subject {
        Subject {
            registry: self.registry.to_string(),
            repository: self.repository.to_string(),
            digest: Some(self.digest.to_string()),
            ..Subject::default()
        }
    }

    /// Notes that the blob belongs to the repository. `size`: its bytes were hashed.
    pub(super) fn link(&self, disk: &Disk, size: Option<u64>) {
        let (scope, digest, asked_at) = (self.scope(), &self.digest, self.asked_at);
        let linked = match size {
            Some(size) => disk.names.link_verified_blob(scope, digest, size, asked_at),
            None => disk.names.link_blob(scope, digest, None, asked_at),
        };
        if let Err(error) = linked {
            disk.faults.report("link", &error);
        }
    }

    fn target(&self) -> String {
        format!("/v2/{}/blobs/{}", self.repository, self.digest)
    }
}

/// All downloads.
pub struct Fills {
    disk: Disk,
    upstream: Arc<Upstream>,
    slots: Arc<Permits>,
    running: Mutex<HashMap<Digest, Arc<Growing>>>,
    count: AtomicUsize,
}

/// What joining a download came to.
pub enum Joined {
    /// It is not to be cached: stream it. The first to take it gets the reply that is there.
    Bypass(Option<Fetched>),
    /// The download failed before it began.
    Failed(UpstreamError),
    /// Bytes are coming, or are all there: upstream has shown the blob in this repository.
    Growing(Arc<Growing>),
    /// The same, but upstream has shown it in another repository, or before it was deleted here.
    Unproven(Arc<Growing>),
    /// Upstream answered something else than the blob.
    Refused(Buffered),
}

/// One download and the file it grows in.
pub struct Growing {
    wanted: BlobRequest,
    upstream: Arc<Upstream>,
    state: Mutex<FillState>,
    changed: Condvar,
    transfer: Arc<Transfer>,
    _reading: Reading,
}

#[derive(Default)]
struct FillState {
    /// Upstream has answered with the blob.
    begun: bool,
    total: u64,
    /// What readers read, and how far it is good.
    file: Option<(Arc<File>, u64)>,
    verified: bool,
    outcome: Option<FillEnd>,
    handover: Option<Fetched>,
}

#[derive(Clone)]
enum FillEnd {
    /// Not to be cached, or not any more: each reader goes on by itself.
    Bypass,
    Done,
    Failed(UpstreamError),
    Refused(Buffered),
}

impl Fills {
    /// At most `max` downloads at a time.
    pub fn new(disk: Disk, upstream: Arc<Upstream>, max: usize) -> Self {
        Self {
            disk,
            upstream,
            slots: Arc::new(Permits::new(max)),
            running: Mutex::default(),
            count: AtomicUsize::new(0),
        }
    }

    /// Joins the download of a blob, or begins it, and waits until upstream has answered. Blocks
    /// for [`HEAD_TIMEOUT`] and a little at the longest.
    pub fn join(self: &Arc<Self>, wanted: &BlobRequest) -> Joined {
        let deadline = Instant::now() + HEAD_TIMEOUT + Duration::from_secs(1);
        let (growing, first) = self.enter(wanted);
        if growing.wanted.registry != wanted.registry {
            // That registry may be slow or out of order; ours is asked by itself.
            return Joined::Bypass(None);
        }
        let _client = growing.transfer.join();
        if first {
            self.begin(&growing);
        }
        let (asked, names) = (growing.wanted.clone(), &self.disk.names);
        let joined = growing.wait_until_begun(deadline);
        let facts = [Fact::Present(&asked.digest), Fact::Absent(&asked.digest)];
        let unchanged = names
            .changes
            .are_unchanged(asked.asked_at, asked.scope(), &facts);
        match joined {
            joined if unchanged && asked.scope() == wanted.scope() => joined,
            // What upstream said of another repository, or before a change, says nothing of ours.
            Joined::Growing(growing) => Joined::Unproven(growing),
            _ => Joined::Bypass(None),
        }
    }

    fn enter(&self, wanted: &BlobRequest) -> (Arc<Growing>, bool) {
        let mut running = self.lock();
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
            _reading: self.disk.store.reading(&wanted.digest),
        });
        running.insert(wanted.digest.clone(), Arc::clone(&growing));
        (growing, true)
    }

    /// Gives the download a thread; without one it is not cached.
    fn begin(self: &Arc<Self>, growing: &Arc<Growing>) {
        let Some(slot) = self.slots.take_owned(Instant::now() + SLOT_TIMEOUT) else {
            return self.end(growing, FillEnd::Bypass);
        };
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let listed = TRANSFERS.list(Arc::clone(&growing.transfer));
        let (fills, filling) = (Arc::clone(self), Arc::clone(growing));
        let work = move || {
            let fill = AssertUnwindSafe(|| fills.fill(&filling));
            let outcome = catch_unwind(fill).unwrap_or_else(|_| {
                metrics::PANICS.inc();
                FillEnd::Failed(filling.fault(Stage::Transfer, "the download panicked".into()))
            });
            drop(listed);
            fills.end(&filling, outcome);
            drop(slot);
        };
        // Its lines carry the id of the request that began it.
        let request = RequestScope::current();
        let run = move || match request {
            Some(request) => request.run(work),
            None => work(),
        };
        let thread = std::thread::Builder::new().name(format!("fill-{number}"));
        if thread.stack_size(STACK_BYTES).spawn(run).is_err() {
            self.end(growing, FillEnd::Bypass);
        }
    }

    fn fill(&self, growing: &Growing) -> FillEnd {
        match Fill::open(&self.disk, growing) {
            Ok(fill) => fill.run(),
            Err(error) => {
                self.disk.faults.report("partial file", &error);
                FillEnd::Bypass
            }
        }
    }

    fn end(&self, growing: &Growing, outcome: FillEnd) {
        if let FillEnd::Failed(error) = &outcome {
            let digest = &growing.wanted.digest;
            let fields: [log::Field<'_>; 1] = [("digest", digest)];
            // Before it began, the lines of its clients say so.
            let level = match growing.begun_with() {
                Some(_) => Level::Warn,
                None => Level::Info,
            };
            log::cause(level, "download failed", ("error", error), &fields);
        }
        // Out of the map first: whoever comes now finds the blob in the store, or begins anew.
        self.lock().remove(&growing.wanted.digest);
        growing.change(|state| state.outcome = Some(outcome));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Growing>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Growing {
    /// Bytes in all; 0 until upstream has answered.
    pub fn total(&self) -> u64 {
        self.lock().total
    }

    /// Bytes in all, once readers were told that bytes are coming.
    fn begun_with(&self) -> Option<u64> {
        let state = self.lock();
        state.begun.then_some(state.total)
    }

    /// Its progress, as others see it.
    pub const fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }

    /// How far it has come.
    pub fn written(&self) -> u64 {
        self.lock()
            .file
            .as_ref()
            .map_or(0, |(_, readable)| *readable)
    }

    /// A body of the bytes `start..end`.
    pub fn body(self: &Arc<Self>, start: u64, end: u64) -> Body {
        let length = Some(end.saturating_sub(start));
        let pieces = Box::new(Reader::new(Arc::clone(self), start, end));
        Body::Pieces { pieces, length }
    }

    fn wait_until_begun(self: Arc<Self>, deadline: Instant) -> Joined {
        let mut state = self.lock();
        loop {
            match (&state.outcome, state.begun) {
                (Some(FillEnd::Refused(refused)), _) => return Joined::Refused(refused.clone()),
                (Some(FillEnd::Failed(error)), false) => return Joined::Failed(error.clone()),
                (Some(FillEnd::Bypass), false) => return Joined::Bypass(state.handover.take()),
                (_, true) => {
                    drop(state);
                    return Joined::Growing(self);
                }
                (Some(FillEnd::Done), false) => {
                    let why = "the download ended before it began".to_owned();
                    return Joined::Failed(self.fault(Stage::Transfer, why));
                }
                (None, false) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = "no answer came in time".to_owned();
                return Joined::Failed(self.fault(Stage::Timeout, why));
            }
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks upstream for the blob, under `headers`. Blocks until its head is there.
    fn ask(&self, headers: &Headers) -> Result<Fetched, UpstreamError> {
        self.upstream.fetch_bodiless(Call {
            registry: &self.wanted.registry,
            method: "GET",
            target: &self.wanted.target(),
            headers,
            patience: HEAD_TIMEOUT,
            whole: false,
        })
    }

    fn fault(&self, stage: Stage, reason: String) -> UpstreamError {
        UpstreamError {
            stage,
            to: self.wanted.registry.url(),
            reason,
        }
    }

    fn change(&self, change: impl FnOnce(&mut FillState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, FillState> {
        // Every change is a few assignments, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FillState {
    /// All but the last byte may be read until the blob is verified.
    fn readable(&self) -> u64 {
        let readable = self.file.as_ref().map_or(0, |(_, readable)| *readable);
        if self.verified {
            readable
        } else {
            readable.min(self.total.saturating_sub(1))
        }
    }
}
