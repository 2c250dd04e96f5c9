//! Counters. Owns: every number that the process keeps about itself. Must not: log, lock, or
//! allocate while it counts.
//!
//! `status/metrics.rs` shows them under `/metrics`; a test there holds it to this list.

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
pub mod registries;
pub mod repositories;
pub mod requests;
pub mod text;

pub use counter::{Counter, Gauge, Held};
pub use histogram::{BOUNDS, Histogram};
pub use requests::{CacheOutcome, Finished, Method, Route, Source};

label! {
    /// How a download into the cache ended.
    DownloadEnd {
        /// The blob is whole.
        Done = "done",
        /// Upstream failed, or sent something else.
        Failed = "failed",
        /// Upstream answered that it has no such blob, or may not give it.
        Refused = "refused",
        /// The blob was passed on, and not kept.
        Uncached = "uncached",
    }
}

impl DownloadEnd {
    /// Counts a download that ended so.
    pub fn count(self) {
        if let Some(ended) = DOWNLOADS_ENDED.get(self as usize) {
            ended.inc();
        }
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
/// Body bytes that clients sent.
pub static RECEIVED_BYTES: Counter = Counter::new();
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
/// Bytes that the scrub has hashed.
pub static SCRUBBED_BYTES: Counter = Counter::new();
/// Images evicted to hold the quota.
pub static CACHE_IMAGES_EVICTED: Counter = Counter::new();
/// Bytes evicted to hold the quota.
pub static CACHE_BYTES_EVICTED: Counter = Counter::new();
/// Downloads of blobs into the cache, by how they ended.
pub static DOWNLOADS_ENDED: [Counter; DownloadEnd::ALL.len()] =
    [const { Counter::new() }; DownloadEnd::ALL.len()];
/// Bytes that such downloads brought.
pub static DOWNLOADED_BYTES: Counter = Counter::new();
/// Downloads that went on where an earlier one, or an earlier connection, had stopped.
pub static DOWNLOADS_RESUMED: Counter = Counter::new();
/// Clients that joined a download that was running.
pub static DOWNLOADS_JOINED: Counter = Counter::new();
/// Downloads whose bytes did not have their digest.
pub static DIGEST_FAILURES: Counter = Counter::new();
/// Times the cache could not be written.
pub static CACHE_WRITE_FAILURES: Counter = Counter::new();
/// ECR tokens obtained.
pub static TOKENS_OBTAINED: Counter = Counter::new();
/// Attempts to obtain one that failed.
pub static TOKENS_FAILED: Counter = Counter::new();
/// Passwords checked with bcrypt.
pub static PASSWORD_CHECKS: Counter = Counter::new();
/// Logins refused because name or password were wrong.
pub static LOGINS_FAILED: Counter = Counter::new();
/// Logins delayed because too many had failed.
pub static LOGINS_SLOWED: Counter = Counter::new();
