//! `/metrics`: every number of the process, in the text format of Prometheus. Owns: the table of
//! them, with their names and meanings. Must not: look at the disk, or hold a lock while it writes.
//!
//! `docs/metrics.md` has the same table. `UPDATE_DOCS=1 cargo test` writes it anew.

use std::io;
use std::slice::Iter;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use self::Read::{Count, Counts, Gauges, Now, Times};
use super::snapshot::known_registries;
use super::sources::Sources;
use crate::aws::token::{TokenReport, Tokens};
use crate::cache::{Cache, scrub};
use crate::config::{COMMIT, VERSION};
use crate::message::{Body, Headers, LogNote, Piece, Pieces, Reply};
use crate::metrics::registries::RegistryCounters;
use crate::metrics::text::{CONTENT_TYPE, MetricKind, Samples};
use crate::metrics::{self, CacheOutcome, Counter, DownloadEnd, Gauge};
use crate::metrics::{registries, repositories, requests};
use crate::permits::{Permit, Permits};
use crate::prefetched::PREFETCHED;
use crate::transfers::{TRANSFERS, TransferKind};
use crate::upstream::Stage;

/// Scrapes at a time: each holds a few hundred kilobytes of text at the most, and nobody has more
/// than a few Prometheus.
const SCRAPES_MAX: usize = 8;
/// Families are joined to pieces of about this size.
const PIECE_BYTES: usize = 16 * 1024;

static SCRAPES: Permits = Permits::new(SCRAPES_MAX);

/// Numbers under one name.
struct MetricFamily {
    /// Without [`metrics::text::PREFIX`].
    name: &'static str,
    /// With commas.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is for docs/metrics.md"))]
    labels: &'static str,
    read: Read,
    help: &'static str,
}

/// Where numbers come from, and of what kind they are.
enum Read {
    Count(&'static Counter),
    Counts(fn(&Sources, &mut Samples<'_>)),
    Gauges(fn(&Sources, &mut Samples<'_>)),
    Now(&'static Gauge),
    Times(fn(&Sources, &mut Samples<'_>)),
}

const fn row(
    name: &'static str,
    labels: &'static str,
    read: Read,
    help: &'static str,
) -> MetricFamily {
    MetricFamily {
        name,
        labels,
        read,
        help,
    }
}

// One line a name where it fits.
#[rustfmt::skip]
static FAMILIES: &[MetricFamily] = &[
    // the process
    row("build_info", "version, commit", Gauges(write_build), "Always 1; what runs."),
    row("start_timestamp_seconds", "", Gauges(|from, out| out.time(&[], Some(from.started.1))),
        "When the process started."),
    row("ready", "", Gauges(|from, out| out.plain(u8::from(from.is_ready()))),
        "1 while /readyz answers 200, else 0."),
    row("offline", "", Gauges(|from, out| out.plain(u8::from(from.offline))),
        "1 with OFFLINE=true, else 0."),
    row("workers", "", Gauges(|from, out| out.plain(from.workers)), "Workers in all (WORKERS)."),
    row("workers_busy", "", Now(&metrics::WORKERS_BUSY), "Workers that decide about a request."),
    row("decisions_waiting", "", Now(&metrics::DECISIONS_WAITING),
        "Requests in the queue for a worker."),
    row("panics_total", "", Count(&metrics::PANICS), "Panics that were caught."),
    row("lanes_lost_total", "", Count(&metrics::LANES_LOST),
        "Lanes to the workers that were lost."),
    row("log_lines_dropped_total", "", Count(&metrics::LOG_LINES_DROPPED),
        "Log lines dropped because nobody read the log."),
    // connections
    row("connections", "", Now(&metrics::CONNECTIONS), "Connections of clients that are open."),
    row("connections_limit", "", Gauges(|from, out| out.plain(from.connections_max)),
        "The most there may be."),
    row("connections_accepted_total", "", Count(&metrics::CONNECTIONS_ACCEPTED),
        "Connections of clients, refused ones too."),
    row("connections_refused_total", "", Count(&metrics::CONNECTIONS_REFUSED),
        "Connections refused because there were too many."),
    row("tls_handshakes_failed_total", "", Count(&metrics::TLS_HANDSHAKES_FAILED),
        "TLS handshakes with clients that failed."),
    // requests
    row("requests_total", "route, method, status, cache", Counts(write_requests),
        "Requests that were answered. The cache's part is none where it was not asked."),
    row("request_duration_seconds", "route", Times(write_durations),
        "From the head of a request to the end of its reply."),
    row("request_first_byte_seconds", "cache", Times(write_first_bytes),
        "From the head of a request to the beginning of its reply."),
    row("requests_running", "", Now(&metrics::REQUESTS_RUNNING),
        "Requests that are being answered."),
    row("sent_bytes_total", "source", Counts(write_sent_bytes),
        "Body bytes that clients got: from the cache, from upstream, of the proxy itself."),
    row("received_bytes_total", "", Count(&metrics::RECEIVED_BYTES),
        "Body bytes that clients sent."),
    row("replies_cut_total", "", Count(&metrics::REPLIES_CUT),
        "Replies that were cut, because their source or the client failed."),
    row("repository_requests_total", "registry, repository",
        Counts(|_, out| write_repositories(out, |numbers| numbers.requests.get())),
        "Requests answered with success (METRICS_REPOSITORIES=true)."),
    row("repository_sent_bytes_total", "registry, repository",
        Counts(|_, out| write_repositories(out, |numbers| numbers.sent_bytes.get())),
        "Body bytes that clients got (METRICS_REPOSITORIES=true)."),
    // logins
    row("password_checks_total", "", Count(&metrics::PASSWORD_CHECKS), "Passwords checked."),
    row("logins_failed_total", "", Count(&metrics::LOGINS_FAILED),
        "Logins refused because name or password were wrong."),
    row("logins_slowed_total", "", Count(&metrics::LOGINS_SLOWED),
        "Logins put off because too many had failed."),
    // upstream
    row("upstream_replies_total", "registry, status",
        Counts(|_, out| registries::all().for_each(|registry| write_replies(registry, out))),
        "Replies of registries, by class of status."),
    row("upstream_errors_total", "registry, stage",
        Counts(|_, out| registries::all().for_each(|registry| write_errors(registry, out))),
        "Calls to registries that failed, by the stage at which they did."),
    row("upstream_head_seconds", "registry", Times(write_head_times),
        "Time until the head of a registry's reply, for calls without a body."),
    row("upstream_circuit_open", "registry", Gauges(write_circuits),
        "1 while requests fail at once because the registry was out of reach, else 0."),
    // transfers
    row("transfers_running", "kind", Gauges(write_transfers),
        "Blobs on their way: fill (into the cache), pull (to clients), push (from clients), \
         or unlisted. A pull whose fill runs is not counted."),
    row("fill_clients", "", Gauges(write_fill_clients),
        "Clients that get their bytes from fills that run."),
    row("fills_total", "result", Counts(write_fills),
        "Fills that ended: done, failed, refused by the registry, or passed on uncached."),
    row("filled_bytes_total", "", Count(&metrics::DOWNLOADED_BYTES), "Bytes that fills brought."),
    row("fills_joined_total", "", Count(&metrics::DOWNLOADS_JOINED),
        "Clients that joined a fill that was running."),
    row("fills_resumed_total", "", Count(&metrics::DOWNLOADS_RESUMED),
        "Fills that went on where an earlier one, or an earlier connection, had stopped."),
    row("digest_failures_total", "", Count(&metrics::DIGEST_FAILURES),
        "Downloads whose bytes did not have their digest."),
    // identity
    row("token_expiry_timestamp_seconds", "registry, region",
        Gauges(|from, out| write_token_times(from, out, |report| report.expires)),
        "When the ECR token ends; absent without a token."),
    row("token_renewal_timestamp_seconds", "registry, region",
        Gauges(|from, out| write_token_times(from, out, |report| report.renews)),
        "When the next ECR token is fetched."),
    row("tokens_obtained_total", "", Count(&metrics::TOKENS_OBTAINED), "ECR tokens obtained."),
    row("token_failures_total", "", Count(&metrics::TOKENS_FAILED),
        "Attempts to obtain an ECR token that failed."),
    row("credentials_expiry_timestamp_seconds", "", Gauges(write_credentials_expiry),
        "When the AWS credentials in use end; absent when they do not."),
    row("clock_skew_seconds", "", Gauges(write_clock_skew),
        "By how much AWS's clock is ahead of this machine's."),
    // the cache
    row("cache_used_bytes", "",
        Gauges(|from, out| write_cache(from, out, |cache| cache.sweeper.used_bytes())),
        "Bytes on disk of everything in the cache."),
    row("cache_quota_bytes", "",
        Gauges(|from, out| write_cache(from, out, |cache| cache.sweeper.quota())),
        "The most it may have (CACHE_MAX_SIZE)."),
    row("cache_blobs", "",
        Gauges(|from, out| write_cache(from, out, |cache| cache.store.blob_count())),
        "Files of complete blobs and manifests."),
    row("cache_images", "",
        Gauges(|from, out| write_cache(from, out, |cache| cache.sweeper.image_count())),
        "Tagged images, as of a few seconds ago."),
    row("cache_evicted_images_total", "", Count(&metrics::CACHE_IMAGES_EVICTED),
        "Images evicted to hold the quota."),
    row("cache_evicted_bytes_total", "", Count(&metrics::CACHE_BYTES_EVICTED),
        "Bytes evicted to hold the quota."),
    row("cache_damaged_blobs_total", "", Count(&metrics::CACHE_BLOBS_DAMAGED),
        "Cached blobs whose bytes did not have their digest; they are fetched again."),
    row("cache_pinned_bytes", "",
        Gauges(|from, out| write_cache(from, out, |cache| cache.sweeper.pinned_bytes())),
        "Bytes on disk that pinned images need (PIN), as of the last eviction."),
    row("cache_scrubbed_bytes_total", "", Count(&metrics::SCRUBBED_BYTES),
        "Bytes that the scrub has read and hashed."),
    row("cache_scrub_end_timestamp_seconds", "",
        Gauges(|_, out| scrub::last_end().into_iter().for_each(|end| out.time(&[], Some(end)))),
        "When the last whole scrub ended; absent before the first."),
    row("cache_scrub_progress_percent", "",
        Gauges(|_, out| scrub::percent().into_iter().for_each(|part| out.plain(part))),
        "How far the scrub is that runs; absent between two."),
    row("cache_write_failures_total", "", Count(&metrics::CACHE_WRITE_FAILURES),
        "Times the cache could not be written."),
    row("prefetch_images", "state", Gauges(write_prefetched),
        "Images of PREFETCH: whole and confirmed, failed, or not tried yet (waiting)."),
    row("prefetch_rounds_total", "", Counts(|_, out| {
        if let Some(round) = PREFETCHED.get() {
            out.plain(round.rounds);
        }
    }), "Rounds of PREFETCH that have ended."),
];

/// The answer to a scrape. It is written piece by piece, as the client takes it.
///
/// # Errors
/// When too many scrape at a time.
pub(super) fn answer(sources: &Arc<Sources>) -> Result<Reply, &'static str> {
    let turn = SCRAPES.take(Instant::now());
    let turn = turn.ok_or("too many scrapes at a time; try again")?;
    let pieces = Exposition {
        sources: Arc::clone(sources),
        families: FAMILIES.iter(),
        text: String::new(),
        _turn: turn,
    };
    Ok(Reply {
        status: 200,
        headers: Headers::from_iter([
            ("Content-Type", CONTENT_TYPE),
            ("Cache-Control", "no-store"),
        ]),
        body: Body::Pieces {
            pieces: Box::new(pieces),
            length: None,
        },
        outcome: LogNote::default(),
    })
}

/// The text on its way.
struct Exposition {
    sources: Arc<Sources>,
    families: Iter<'static, MetricFamily>,
    text: String,
    _turn: Permit<'static>,
}

impl Pieces for Exposition {
    fn next(&mut self) -> io::Result<Piece<'_>> {
        self.text.clear();
        for family in self.families.by_ref() {
            family.write(&self.sources, &mut self.text);
            if self.text.len() >= PIECE_BYTES {
                break;
            }
        }
        match self.text.as_bytes() {
            [] => Ok(Piece::End),
            text => Ok(Piece::Bytes(text)),
        }
    }
}

impl MetricFamily {
    fn write(&self, sources: &Sources, text: &mut String) {
        let mut samples = Samples::new(text, self.name, self.kind(), self.help);
        match &self.read {
            Count(counter) => samples.plain(counter.get()),
            Now(gauge) => samples.plain(gauge.get()),
            Counts(write) | Gauges(write) | Times(write) => write(sources, &mut samples),
        }
    }

    const fn kind(&self) -> MetricKind {
        match self.read {
            Count(_) | Counts(_) => MetricKind::Counter,
            Gauges(_) | Now(_) => MetricKind::Gauge,
            Times(_) => MetricKind::Histogram,
        }
    }
}

fn write_build(_: &Sources, out: &mut Samples<'_>) {
    out.with(&[("version", VERSION), ("commit", COMMIT)], 1);
}

fn write_durations(_: &Sources, out: &mut Samples<'_>) {
    for (route, times) in requests::durations() {
        out.histogram(("route", route.name()), times);
    }
}

fn write_first_bytes(_: &Sources, out: &mut Samples<'_>) {
    for (cache, times) in requests::first_bytes() {
        out.histogram(("cache", cache_label(cache)), times);
    }
}

fn write_sent_bytes(_: &Sources, out: &mut Samples<'_>) {
    for source in metrics::Source::ALL {
        out.with(&[("source", source.name())], requests::sent_bytes(*source));
    }
}

fn write_replies(registry: &RegistryCounters, out: &mut Samples<'_>) {
    for (status, count) in registry.replies().filter(|(_, count)| *count > 0) {
        out.with(&[("registry", &registry.name), ("status", status)], count);
    }
}

fn write_errors(registry: &RegistryCounters, out: &mut Samples<'_>) {
    let errors = Stage::ALL.into_iter().zip(registry.errors());
    for (stage, count) in errors.filter(|(_, count)| *count > 0) {
        out.with(
            &[("registry", &registry.name), ("stage", stage.name())],
            count,
        );
    }
}

fn write_head_times(_: &Sources, out: &mut Samples<'_>) {
    for registry in registries::all() {
        out.histogram(("registry", &registry.name), &registry.head_times);
    }
}

fn write_circuits(_: &Sources, out: &mut Samples<'_>) {
    for registry in registries::all() {
        let is_open = u8::from(registry.is_circuit_open());
        out.with(&[("registry", &registry.name)], is_open);
    }
}

fn write_fill_clients(_: &Sources, out: &mut Samples<'_>) {
    let (running, _) = TRANSFERS.running();
    out.plain(
        running
            .iter()
            .map(|transfer| u64::from(transfer.clients()))
            .sum::<u64>(),
    );
}

fn write_fills(_: &Sources, out: &mut Samples<'_>) {
    for (end, count) in DownloadEnd::ALL.iter().zip(&metrics::DOWNLOADS_ENDED) {
        out.with(&[("result", end.name())], count.get());
    }
}

fn write_credentials_expiry(sources: &Sources, out: &mut Samples<'_>) {
    let expire = |tokens: &Arc<Tokens>| tokens.credentials_expire();
    out.time(&[], sources.tokens.as_ref().and_then(expire));
}

fn write_clock_skew(sources: &Sources, out: &mut Samples<'_>) {
    if let Some(tokens) = &sources.tokens {
        out.plain(tokens.clock_skew_seconds());
    }
}

fn cache_label(cache: Option<CacheOutcome>) -> &'static str {
    cache.map_or("none", CacheOutcome::name)
}

fn write_requests(_: &Sources, out: &mut Samples<'_>) {
    requests::each_kind(|kind, count| {
        let status = match kind.status {
            0 => "other".to_owned(),
            status => status.to_string(),
        };
        let labels = [
            ("route", kind.route.name()),
            ("method", kind.method.name()),
            ("status", status.as_str()),
            ("cache", cache_label(kind.cache)),
        ];
        out.with(&labels, count);
    });
}

fn write_repositories(out: &mut Samples<'_>, read: fn(&repositories::Numbers) -> u64) {
    for counters in repositories::all() {
        let labels = [
            ("registry", counters.registry.as_str()),
            ("repository", counters.repository.as_str()),
        ];
        out.with(&labels, read(&counters.numbers));
    }
    if let Some(others) = repositories::others() {
        out.with(
            &[("registry", "other"), ("repository", "other")],
            read(others),
        );
    }
}

fn write_transfers(_: &Sources, out: &mut Samples<'_>) {
    let (running, unlisted) = TRANSFERS.running();
    for kind in [TransferKind::Fill, TransferKind::Pull, TransferKind::Push] {
        let count = running
            .iter()
            .filter(|transfer| transfer.kind == kind)
            .count();
        out.with(&[("kind", kind.name())], count);
    }
    out.with(&[("kind", "unlisted")], unlisted);
}

fn write_prefetched(_: &Sources, out: &mut Samples<'_>) {
    for (state, count) in ["whole", "failed", "waiting"]
        .iter()
        .zip(PREFETCHED.counts().into_iter().flatten())
    {
        out.with(&[("state", state)], count);
    }
}

fn write_token_times(
    sources: &Sources,
    out: &mut Samples<'_>,
    time: fn(&TokenReport) -> Option<SystemTime>,
) {
    let Some(tokens) = &sources.tokens else {
        return;
    };
    for registry in known_registries(sources) {
        let report = tokens.report(&registry);
        let region = report.region.as_deref().unwrap_or_default();
        out.time(
            &[("registry", registry.name()), ("region", region)],
            time(&report),
        );
    }
}

fn write_cache(sources: &Sources, out: &mut Samples<'_>, read: fn(&Cache) -> u64) {
    if let Some(cache) = &sources.cache {
        out.plain(read(cache));
    }
}

#[cfg(test)]
mod tests;
