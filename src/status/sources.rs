//! The parts that know what the status and the metrics show. Owns: the list of them, and whether
//! they can answer pulls. Must not: ask upstream or AWS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use crate::aws::token::Tokens;
use crate::cache::Cache;
use crate::config::Globs;
use crate::oci::Registry;
use crate::upstream::exchange::Upstream;

/// Where the status comes from.
pub struct Sources {
    /// `ECR`; empty: the identity's own registry.
    pub registries: Vec<Registry>,
    /// `OFFLINE`
    pub offline: bool,
    /// None with `UPSTREAM_AUTH=none` and with `OFFLINE`.
    pub tokens: Option<Arc<Tokens>>,
    /// Circuits, and the last failures.
    pub upstream: Arc<Upstream>,
    /// None when it is off.
    pub cache: Option<Arc<Cache>>,
    /// The repositories that clients may use; others are not listed.
    pub allowed: Globs,
    /// True once the process ends.
    pub draining: Arc<AtomicBool>,
    /// When the process started, by both clocks.
    pub started: (Instant, SystemTime),
    /// `WORKERS`
    pub workers: usize,
    /// Connections of clients at the most.
    pub connections_max: usize,
}

impl Sources {
    /// True while pulls can be answered, as `/readyz` has it.
    pub(super) fn is_ready(&self) -> bool {
        self.readiness().is_ok() && !self.draining.load(Ordering::SeqCst)
    }

    /// True when something was kept in the cache.
    pub(super) fn has_content(&self) -> bool {
        let cache = self.cache.as_ref();
        cache.is_some_and(|cache| cache.has_content())
    }
}
