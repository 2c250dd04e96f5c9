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

mod counter;
mod histogram;
pub mod requests;

pub use counter::{Counter, Gauge, Held};
pub use histogram::{BOUNDS, Histogram};
pub use requests::{CacheOutcome, Finished, Method, Route, Source};

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
