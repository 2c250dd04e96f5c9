//! The table of everything that is counted. Owns: names, labels and meanings. Must not: know who
//! counts.

use super::number::{Counter, Gauge, Histogram, Number};
use super::table::Table;
use super::text::Family;

/// Repositories with numbers of their own; each is two lines of every scrape.
pub const REPOSITORIES_MAX: usize = 1000;
/// Registries with numbers of their own; a proxy knows a handful. Where clients can name further
/// ones (`UPSTREAM_AUTH=none`), those beyond share one set.
pub const REGISTRIES_MAX: usize = 64;

/// Makes the numbers, and the list of them.
macro_rules! numbers {
    ($(#[doc = $help:literal] $number:ident: $kind:ty = $name:literal
        $([$($label:literal),+])?;)+) => {
        $(#[doc = $help] pub static $number: $kind = <$kind>::new();)+

        /// Every number that is counted.
        pub static COUNTED: &[Family<()>] = &[$(Family::new(
            <$kind as Number>::KIND,
            $name,
            &[$($($label),+)?],
            $help.trim_ascii_start(),
            |(), out| $number.write(&[], out),
        )),+];
    };
}

numbers! {
    /// Workers that decide about a request.
    WORKERS_BUSY: Gauge = "workers_busy";
    /// Requests in the queue for a worker.
    DECISIONS_WAITING: Gauge = "decisions_waiting";
    /// Panics that were caught.
    PANICS: Counter = "panics_total";
    /// Lanes to the workers that were lost.
    LANES_LOST: Counter = "lanes_lost_total";
    /// Log lines dropped because nobody read the log.
    LOG_LINES_DROPPED: Counter = "log_lines_dropped_total";
    /// Connections of clients that are open.
    CONNECTIONS: Gauge = "connections";
    /// Connections of clients, refused ones too.
    CONNECTIONS_ACCEPTED: Counter = "connections_accepted_total";
    /// Connections refused because there were too many.
    CONNECTIONS_REFUSED: Counter = "connections_refused_total";
    /// TLS handshakes with clients that failed.
    TLS_HANDSHAKES_FAILED: Counter = "tls_handshakes_failed_total";
    /// Requests that are being answered.
    REQUESTS_RUNNING: Gauge = "requests_running";
    /// Body bytes that clients sent.
    RECEIVED_BYTES: Counter = "received_bytes_total";
    /// Replies that were cut, because their source or the client failed.
    REPLIES_CUT: Counter = "replies_cut_total";
    /// Passwords checked.
    PASSWORD_CHECKS: Counter = "password_checks_total";
    /// Logins refused because name or password were wrong.
    LOGINS_FAILED: Counter = "logins_failed_total";
    /// Logins put off because too many had failed.
    LOGINS_SLOWED: Counter = "logins_slowed_total";
    /// Bytes that fills brought.
    DOWNLOADED_BYTES: Counter = "filled_bytes_total";
    /// Clients that joined a fill that was running.
    DOWNLOADS_JOINED: Counter = "fills_joined_total";
    /// Fills that went on where an earlier one, or an earlier connection, had stopped.
    DOWNLOADS_RESUMED: Counter = "fills_resumed_total";
    /// Downloads whose bytes did not have their digest.
    DIGEST_FAILURES: Counter = "digest_failures_total";
    /// ECR tokens obtained.
    TOKENS_OBTAINED: Counter = "tokens_obtained_total";
    /// Attempts to obtain an ECR token that failed.
    TOKENS_FAILED: Counter = "token_failures_total";
    /// Images evicted to hold the quota.
    CACHE_IMAGES_EVICTED: Counter = "cache_evicted_images_total";
    /// Bytes evicted to hold the quota.
    CACHE_BYTES_EVICTED: Counter = "cache_evicted_bytes_total";
    /// Cached blobs whose bytes did not have their digest; they are fetched again.
    CACHE_BLOBS_DAMAGED: Counter = "cache_damaged_blobs_total";
    /// Bytes that the scrub has read and hashed.
    SCRUBBED_BYTES: Counter = "cache_scrubbed_bytes_total";
    /// Times the cache could not be written.
    CACHE_WRITE_FAILURES: Counter = "cache_write_failures_total";
    /// Requests that were answered. The cache's part is none where it was not asked.
    REQUESTS: Table<Counter, 4, 1000> = "requests_total" ["route", "method", "status", "cache"];
    /// From the head of a request to the end of its reply.
    REQUEST_DURATIONS: Table<Histogram, 1, 20> = "request_duration_seconds" ["route"];
    /// From the head of a request to the beginning of its reply.
    FIRST_BYTES: Table<Histogram, 1, 20> = "request_first_byte_seconds" ["cache"];
    /// Body bytes that clients got: from the cache, from upstream, of the proxy itself.
    SENT_BYTES: Table<Counter, 1, 20> = "sent_bytes_total" ["source"];
    /// Requests answered with success (METRICS_REPOSITORIES=true).
    REPOSITORY_REQUESTS: Table<Counter, 2, REPOSITORIES_MAX> =
        "repository_requests_total" ["registry", "repository"];
    /// Body bytes that clients got (METRICS_REPOSITORIES=true).
    REPOSITORY_SENT_BYTES: Table<Counter, 2, REPOSITORIES_MAX> =
        "repository_sent_bytes_total" ["registry", "repository"];
    /// Replies of registries, by class of status.
    UPSTREAM_REPLIES: Table<Counter, 2, 1000> = "upstream_replies_total" ["registry", "status"];
    /// Calls to registries that failed, by the stage at which they did.
    UPSTREAM_ERRORS: Table<Counter, 2, 1000> = "upstream_errors_total" ["registry", "stage"];
    /// Time until the head of a registry's reply, for calls without a body.
    UPSTREAM_HEAD_TIMES: Table<Histogram, 1, REGISTRIES_MAX> =
        "upstream_head_seconds" ["registry"];
    /// 1 while requests fail at once because the registry was out of reach, else 0.
    UPSTREAM_CIRCUITS: Table<Gauge, 1, REGISTRIES_MAX> = "upstream_circuit_open" ["registry"];
    /// Fills that ended: done, failed, refused by the registry, or passed on uncached.
    FILLS: Table<Counter, 1, 20> = "fills_total" ["result"];
}

/// The name under which a registry counts.
pub fn registry_label(name: &str) -> &'static str {
    let [label] = UPSTREAM_CIRCUITS.name_of([name]);
    label
}
