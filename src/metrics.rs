//! Counters. Owns: every number that the process keeps about itself. Must not: log, lock, or
//! allocate while it counts.
//!
//! `status/metrics.rs` shows them under `/metrics`.

mod by_name;
mod counter;
mod histogram;
pub mod registries;
pub mod repositories;
pub mod requests;
pub mod text;

pub use counter::{Counter, Gauge, Held};
pub use histogram::{BOUNDS, Histogram};
pub use requests::{CacheOutcome, Finished, Method, Route, Source};

use crate::label::label;

label! {
    /// How a download into the cache ended.
    pub enum DownloadEnd {
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

/// Downloads of blobs into the cache, by how they ended.
static DOWNLOADS_ENDED: [Counter; DownloadEnd::ALL.len()] =
    [const { Counter::new() }; DownloadEnd::ALL.len()];

impl DownloadEnd {
    /// Counts a download that ended so.
    pub fn count(self) {
        counter::add(&DOWNLOADS_ENDED, self as usize, 1);
    }

    /// How many downloads ended in each way.
    pub fn counts() -> impl Iterator<Item = (&'static str, u64)> {
        let counts = DOWNLOADS_ENDED.iter().map(Counter::get);
        Self::ALL.iter().map(|end| end.name()).zip(counts)
    }
}

/// A number without labels.
pub struct Number {
    /// Its name, without [`text::PREFIX`].
    pub name: &'static str,
    /// What it is, in one sentence.
    pub help: &'static str,
    /// What is counted.
    pub value: NumberValue,
}

/// A number that grows, or one that rises and falls.
pub enum NumberValue {
    /// Grows.
    Counter(&'static Counter),
    /// Rises and falls.
    Gauge(&'static Gauge),
}

/// Makes the numbers, and the list of them.
macro_rules! numbers {
    ($(#[doc = $help:literal] $number:ident: $kind:ident = $name:literal,)+) => {
        $(#[doc = $help] pub static $number: $kind = $kind::new();)+

        /// Every number that has no labels.
        pub static NUMBERS: &[Number] = &[$(Number {
            name: $name,
            help: $help.trim_ascii_start(),
            value: NumberValue::$kind(&$number),
        }),+];
    };
}

numbers! {
    /// Workers that decide about a request.
    WORKERS_BUSY: Gauge = "workers_busy",
    /// Requests in the queue for a worker.
    DECISIONS_WAITING: Gauge = "decisions_waiting",
    /// Panics that were caught.
    PANICS: Counter = "panics_total",
    /// Lanes to the workers that were lost.
    LANES_LOST: Counter = "lanes_lost_total",
    /// Log lines dropped because nobody read the log.
    LOG_LINES_DROPPED: Counter = "log_lines_dropped_total",
    /// Connections of clients that are open.
    CONNECTIONS: Gauge = "connections",
    /// Connections of clients, refused ones too.
    CONNECTIONS_ACCEPTED: Counter = "connections_accepted_total",
    /// Connections refused because there were too many.
    CONNECTIONS_REFUSED: Counter = "connections_refused_total",
    /// TLS handshakes with clients that failed.
    TLS_HANDSHAKES_FAILED: Counter = "tls_handshakes_failed_total",
    /// Requests that are being answered.
    REQUESTS_RUNNING: Gauge = "requests_running",
    /// Body bytes that clients sent.
    RECEIVED_BYTES: Counter = "received_bytes_total",
    /// Replies that were cut, because their source or the client failed.
    REPLIES_CUT: Counter = "replies_cut_total",
    /// Passwords checked.
    PASSWORD_CHECKS: Counter = "password_checks_total",
    /// Logins refused because name or password were wrong.
    LOGINS_FAILED: Counter = "logins_failed_total",
    /// Logins put off because too many had failed.
    LOGINS_SLOWED: Counter = "logins_slowed_total",
    /// Bytes that fills brought.
    DOWNLOADED_BYTES: Counter = "filled_bytes_total",
    /// Clients that joined a fill that was running.
    DOWNLOADS_JOINED: Counter = "fills_joined_total",
    /// Fills that went on where an earlier one, or an earlier connection, had stopped.
    DOWNLOADS_RESUMED: Counter = "fills_resumed_total",
    /// Downloads whose bytes did not have their digest.
    DIGEST_FAILURES: Counter = "digest_failures_total",
    /// ECR tokens obtained.
    TOKENS_OBTAINED: Counter = "tokens_obtained_total",
    /// Attempts to obtain an ECR token that failed.
    TOKENS_FAILED: Counter = "token_failures_total",
    /// Images evicted to hold the quota.
    CACHE_IMAGES_EVICTED: Counter = "cache_evicted_images_total",
    /// Bytes evicted to hold the quota.
    CACHE_BYTES_EVICTED: Counter = "cache_evicted_bytes_total",
    /// Cached blobs whose bytes did not have their digest; they are fetched again.
    CACHE_BLOBS_DAMAGED: Counter = "cache_damaged_blobs_total",
    /// Bytes that the scrub has read and hashed.
    SCRUBBED_BYTES: Counter = "cache_scrubbed_bytes_total",
    /// Times the cache could not be written.
    CACHE_WRITE_FAILURES: Counter = "cache_write_failures_total",
}
