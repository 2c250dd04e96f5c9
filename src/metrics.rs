//! Counters. Owns: every number that the process keeps about itself. Must not: log, lock or
//! allocate.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// The count so far. It starts from zero again.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Relaxed)
    }
}

/// Requests answered, of any status.
pub static REQUESTS: Counter = Counter::new();
/// Connections refused because the cap was reached or a thread was refused.
pub static CONNECTIONS_REFUSED: Counter = Counter::new();
/// TLS handshakes that failed.
pub static TLS_HANDSHAKES_FAILED: Counter = Counter::new();
/// Panics caught on workers and connection threads.
pub static PANICS: Counter = Counter::new();
/// Lanes to tiny_http that had to be closed.
pub static LANES_LOST: Counter = Counter::new();
/// Log lines dropped because nobody read the log.
pub static LOG_LINES_DROPPED: Counter = Counter::new();
/// Replies that ended in a reset because their body ended early.
pub static REPLIES_CUT: Counter = Counter::new();
/// Cached blobs whose bytes did not have the digest they are stored under.
pub static CACHE_BLOBS_DAMAGED: Counter = Counter::new();
/// Images evicted to hold the quota.
pub static CACHE_IMAGES_EVICTED: Counter = Counter::new();
/// Bytes evicted to hold the quota.
pub static CACHE_BYTES_EVICTED: Counter = Counter::new();
/// Downloads whose bytes did not have their digest.
pub static DIGEST_FAILURES: Counter = Counter::new();
/// Times the cache could not be written.
pub static CACHE_WRITE_FAILURES: Counter = Counter::new();
/// Passwords checked with bcrypt.
pub static PASSWORD_CHECKS: Counter = Counter::new();
/// Logins refused because name or password were wrong.
pub static LOGINS_FAILED: Counter = Counter::new();
/// Logins delayed because too many had failed.
pub static LOGINS_SLOWED: Counter = Counter::new();
