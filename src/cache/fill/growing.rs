//! A file that is still growing. Owns: how far a download has come, and waiting for it. Must not:
//! download, or read the file.
//!
//! Lock: the state, held for a few reads and writes of memory, never across I/O.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::pace::Pace;
use crate::cache::changes::Moment;
use crate::cache::disk::Disk;
use crate::cache::names::OwnedScope;
use crate::cache::store::Reading;
use crate::locked::{Locked as _, TimedWait as _};
use crate::message::{Buffered, Headers};
use crate::oci::Digest;
use crate::transfers::{Subject, Transfer};
use crate::upstream::exchange::{Call, Fetched, HEAD_TIMEOUT, Upstream};
use crate::upstream::{Stage, UpstreamError};

/// Bytes copied at a time.
pub(super) const COPY_BYTES: usize = 64 * 1024;
/// How often a waiting client looks without being woken: a small, slow blob wakes no client.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A request for a blob, kept for as long as the download lasts.
#[derive(Debug, Clone)]
pub struct BlobRequest {
    /// Where its names are kept.
    pub scope: OwnedScope,
    /// The blob.
    pub digest: Digest,
    /// The moment before upstream was asked for it, or given it.
    pub asked_at: Moment,
    /// No client waits for it.
    pub is_background: bool,
}

impl BlobRequest {
    /// What others see of its transfer.
    pub fn subject(&self) -> Subject {
        Subject {
            registry: self.scope.registry.to_string(),
            repository: self.scope.repository.to_string(),
            digest: Some(self.digest.to_string()),
            ..Subject::default()
        }
    }

    /// Notes that the blob belongs to the repository. `size`: its bytes were hashed.
    pub(in crate::cache) fn link(&self, disk: &Disk, size: Option<u64>) {
        let (scope, digest, asked_at) = (self.scope.as_scope(), &self.digest, self.asked_at);
        let linked = disk.names.link_blob(scope, digest, size, asked_at);
        disk.faults.check("link", linked);
    }

    pub(super) fn target(&self) -> String {
        format!("/v2/{}/blobs/{}", self.scope.repository, self.digest)
    }
}

/// The result of joining a download.
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
    pub(super) wanted: BlobRequest,
    pub(super) upstream: Arc<Upstream>,
    pub(super) state: Mutex<FillState>,
    pub(super) changed: Condvar,
    /// Its progress, as others see it.
    pub transfer: Arc<Transfer>,
    pub(super) pace: Arc<Pace>,
    pub(super) _reading: Reading,
}

#[derive(Default)]
pub(super) struct FillState {
    /// Upstream has answered with the blob.
    pub(super) has_begun: bool,
    pub(super) total: u64,
    /// What readers read, and how far it is good.
    pub(super) file: Option<(Arc<File>, u64)>,
    pub(super) is_verified: bool,
    pub(super) outcome: Option<FillEnd>,
    pub(super) handover: Option<Fetched>,
}

#[derive(Clone)]
pub(super) enum FillEnd {
    /// Not to be cached, or not any more: each reader goes on by itself.
    Bypass,
    Done,
    Failed(UpstreamError),
    Refused(Buffered),
}

impl Growing {
    /// Bytes in all; 0 until upstream has answered.
    pub fn total(&self) -> u64 {
        self.state.locked().total
    }

    /// Bytes in all, once readers were told that bytes are coming.
    pub(super) fn total_if_begun(&self) -> Option<u64> {
        let state = self.state.locked();
        state.has_begun.then_some(state.total)
    }

    /// True when all of it is there, and has the digest.
    pub(super) fn is_verified(&self) -> bool {
        self.state.locked().is_verified
    }

    /// How far it has come.
    pub fn written(&self) -> u64 {
        self.state.locked().written()
    }

    pub(super) fn wait_until_begun(self: Arc<Self>, deadline: Instant) -> Joined {
        let mut state = self.state.locked();
        loop {
            match (&state.outcome, state.has_begun) {
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
            state = self.wait(state, left);
        }
    }

    /// Waits until a blob that has come whole is in the cache.
    pub(super) fn settle(&self, deadline: Instant) {
        let mut state = self.state.locked();
        while state.is_verified && state.outcome.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.wait(state, left);
        }
    }

    /// Waits for a change, for `most` at the longest; may return before.
    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, FillState>,
        most: Duration,
    ) -> MutexGuard<'a, FillState> {
        self.changed.wait_for(state, most.min(LOOK_INTERVAL))
    }

    /// Asks upstream for the blob, under `headers`. Blocks until its head is there.
    pub(super) fn ask(&self, headers: &Headers) -> Result<Fetched, UpstreamError> {
        self.upstream.fetch_bodiless(Call {
            registry: &self.wanted.scope.registry,
            method: "GET",
            target: &self.wanted.target(),
            headers,
            patience: HEAD_TIMEOUT,
            whole: false,
        })
    }

    pub(super) fn fault(&self, stage: Stage, reason: String) -> UpstreamError {
        UpstreamError::at(&self.wanted.scope.registry, stage, reason)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut FillState)) {
        change(&mut self.state.locked());
        self.changed.notify_all();
    }
}

impl FillState {
    /// Bytes in the file that readers read.
    pub(super) fn written(&self) -> u64 {
        self.file.as_ref().map_or(0, |(_, written)| *written)
    }

    /// All but the last byte may be read until the blob is verified.
    pub(super) fn readable(&self) -> u64 {
        match self.is_verified {
            true => self.written(),
            false => self.written().min(self.total.saturating_sub(1)),
        }
    }
}
