//! Counters. Owns: every number that the process keeps about itself. Must not: log, lock, or
//! allocate while it counts.
//!
//! `pages/metrics.rs` shows them under `/metrics`; a test there holds it to this list.

/// An enum whose variants are the values of one label.
macro_rules! label {
    ($(#[$about:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$of])* $variant,)+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As labels and the log have it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

mod histogram;
pub mod requests;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

pub use histogram::{BOUNDS, Histogram};
pub use requests::{CacheOutcome, Finished, Method, Route, Source};

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
}

/// A number of things that are there now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    /// Counts one thing for as long as the value lives.
    pub fn hold(&'static self) -> Held {
        self.0.fetch_add(1, Relaxed);
        Held(self)
    }

    /// How many there are; 0 at the least.
    pub fn get(&self) -> u64 {
        u64::try_from(self.0.load(Relaxed)).unwrap_or_default()
    }
}

/// One thing that a [`Gauge`] counts.
#[derive(Debug)]
pub struct Held(&'static Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Connections of clients that are open.
pub static CONNECTIONS: Gauge = Gauge::new();
/// Requests whose reply is not whole yet.
pub static REQUESTS_RUNNING: Gauge = Gauge::new();
/// Heads that wait for a worker's decision, or for a lane to one.
pub static DECISIONS_WAITING: Gauge = Gauge::new();
/// Workers that decide.
pub static WORKERS_BUSY: Gauge = Gauge::new();
/// Connections of clients, refused ones too.
pub static CONNECTIONS_ACCEPTED: Counter = Counter::new();
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
