//! The parts that know what the status shows. Owns: the list of them. Must not: hold code.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
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
    /// None with `UPSTREAM_AUTH=none`.
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
}
