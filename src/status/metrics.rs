//! `/metrics`: every number of the process, in the text format of Prometheus. Owns: the table of
//! those that have labels, or are not counted. Must not: look at the disk, or hold a lock while it
//! writes.
//!
//! `docs/metrics.md` has them all. `UPDATE_DOCS=1 cargo test` writes it anew.

use std::io;
use std::slice::Iter;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::snapshot::known_registries;
use super::sources::Sources;
use crate::aws::token::TokenReport;
use crate::cache::{Cache, scrub};
use crate::config::{COMMIT, VERSION};
use crate::message::{Body, Headers, LogNote, Piece, Pieces, Reply};
use crate::metrics::text::{CONTENT_TYPE, MetricKind, Samples};
use crate::metrics::{CacheOutcome, Counter, DownloadEnd, NUMBERS, Number, NumberValue};
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
    /// Without [`crate::metrics::text::PREFIX`].
    name: &'static str,
    /// With commas.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is for docs/metrics.md"))]
    labels: &'static str,
    help: &'static str,
    kind: MetricKind,
    write: Write,
}

type Write = fn(&Sources, &mut Samples<'_>);

/// Makes a function that makes a family of one kind.
macro_rules! family {
    ($make:ident, $kind:ident) => {
        const fn $make(
            name: &'static str,
            labels: &'static str,
            help: &'static str,
            write: Write,
        ) -> MetricFamily {
            MetricFamily {
                name,
                labels,
                help,
                kind: MetricKind::$kind,
                write,
            }
        }
    };
}
family!(counter, Counter);
family!(gauge, Gauge);
family!(histogram, Histogram);

// One line a name where it fits.
#[rustfmt::skip]
static FAMILIES: &[MetricFamily] = &[
    // the process
    gauge("build_info", "version, commit", "Always 1; what runs.",
        |_, out| out.with(&[("version", VERSION), ("commit", COMMIT)], 1)),
    gauge("start_timestamp_seconds", "", "When the process started.",
        |from, out| out.time(&[], Some(from.started.1))),
    gauge("ready", "", "1 while /readyz answers 200, else 0.",
        |from, out| out.plain(u8::from(from.is_ready()))),
    gauge("offline", "", "1 with OFFLINE=true, else 0.",
        |from, out| out.plain(u8::from(from.offline))),
    gauge("workers", "", "Workers in all (WORKERS).", |from, out| out.plain(from.workers)),
    gauge("connections_limit", "", "The most there may be.",
        |from, out| out.plain(from.connections_max)),
    // requests
    counter("requests_total", "route, method, status, cache",
        "Requests that were answered. The cache's part is none where it was not asked.",
        |_, out| write_requests(out)),
    histogram("request_duration_seconds", "route",
        "From the head of a request to the end of its reply.",
        |_, out| out.histograms("route", requests::durations())),
    histogram("request_first_byte_seconds", "cache",
        "From the head of a request to the beginning of its reply.",
        |_, out| out.histograms("cache", requests::first_bytes())),
    counter("sent_bytes_total", "source",
        "Body bytes that clients got: from the cache, from upstream, of the proxy itself.",
        |_, out| out.each("source", requests::sent_bytes())),
    counter("repository_requests_total", "registry, repository",
        "Requests answered with success (METRICS_REPOSITORIES=true).",
        |_, out| write_repositories(out, |counters| &counters.requests)),
    counter("repository_sent_bytes_total", "registry, repository",
        "Body bytes that clients got (METRICS_REPOSITORIES=true).",
        |_, out| write_repositories(out, |counters| &counters.sent_bytes)),
    // upstream
    counter("upstream_replies_total", "registry, status",
        "Replies of registries, by class of status.",
        |_, out| registries::all().for_each(|(name, counters)| {
            write_counts(out, name, "status", counters.replies());
        })),
    counter("upstream_errors_total", "registry, stage",
        "Calls to registries that failed, by the stage at which they did.",
        |_, out| registries::all().for_each(|(name, counters)| {
            let stages = Stage::ALL.iter().map(|stage| stage.name());
            write_counts(out, name, "stage", stages.zip(counters.errors()));
        })),
    histogram("upstream_head_seconds", "registry",
        "Time until the head of a registry's reply, for calls without a body.",
        |_, out| out.histograms("registry",
            registries::all().map(|(name, counters)| (name, &counters.head_times)))),
    gauge("upstream_circuit_open", "registry",
        "1 while requests fail at once because the registry was out of reach, else 0.",
        |_, out| out.each("registry",
            registries::all().map(|(name, own)| (name, u8::from(own.is_circuit_open()))))),
    // transfers
    gauge("transfers_running", "kind",
        "Blobs on their way: fill (into the cache), pull (to clients), push (from clients), \
         or unlisted. A pull whose fill runs is not counted.",
        |_, out| write_transfers(out)),
    gauge("fill_clients", "", "Clients that get their bytes from fills that run.",
        |_, out| {
            let clients = TRANSFERS.running().0.into_iter().map(|fill| u64::from(fill.clients()));
            out.plain(clients.sum::<u64>());
        }),
    counter("fills_total", "result",
        "Fills that ended: done, failed, refused by the registry, or passed on uncached.",
        |_, out| out.each("result", DownloadEnd::counts())),
    // identity
    gauge("token_expiry_timestamp_seconds", "registry, region",
        "When the ECR token ends; absent without a token.",
        |from, out| write_token_times(from, out, |report| report.expires)),
    gauge("token_renewal_timestamp_seconds", "registry, region",
        "When the next ECR token is fetched.",
        |from, out| write_token_times(from, out, |report| report.renews)),
    gauge("credentials_expiry_timestamp_seconds", "",
        "When the AWS credentials in use end; absent when they do not.",
        |from, out| out.time(&[],
            from.tokens.as_ref().and_then(|tokens| tokens.credentials_expire()))),
    gauge("clock_skew_seconds", "", "By how much AWS's clock is ahead of this machine's.",
        |from, out| out.optional(
            from.tokens.as_ref().map(|tokens| tokens.clock_skew_seconds()))),
    // the cache
    gauge("cache_used_bytes", "", "Bytes on disk of everything in the cache.",
        |from, out| write_cache(from, out, |cache| cache.sweeper.used_bytes())),
    gauge("cache_quota_bytes", "", "The most it may have (CACHE_MAX_SIZE).",
        |from, out| write_cache(from, out, |cache| cache.sweeper.quota())),
    gauge("cache_blobs", "", "Files of complete blobs and manifests.",
        |from, out| write_cache(from, out, |cache| cache.store.blob_count())),
    gauge("cache_images", "", "Tagged images, as of a few seconds ago.",
        |from, out| write_cache(from, out, |cache| cache.sweeper.image_count())),
    gauge("cache_pinned_bytes", "",
        "Bytes on disk that pinned images need (PIN), as of the last eviction.",
        |from, out| write_cache(from, out, |cache| cache.sweeper.pinned_bytes())),
    gauge("cache_scrub_end_timestamp_seconds", "",
        "When the last whole scrub ended; absent before the first.",
        |_, out| out.time(&[], scrub::progress().end())),
    gauge("cache_scrub_progress_percent", "",
        "How far the scrub is that runs; absent between two.",
        |_, out| out.optional(scrub::progress().percent())),
    gauge("prefetch_images", "state",
        "Images of PREFETCH: whole and confirmed, failed, or not tried yet (waiting).",
        |_, out| out.each("state", ["whole", "failed", "waiting"].into_iter()
            .zip(PREFETCHED.counts().into_iter().flatten()))),
    counter("prefetch_rounds_total", "", "Rounds of PREFETCH that have ended.",
        |_, out| out.optional(PREFETCHED.get().map(|round| round.rounds))),
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
        numbers: NUMBERS.iter(),
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
    numbers: Iter<'static, Number>,
    families: Iter<'static, MetricFamily>,
    text: String,
    _turn: Permit<'static>,
}

impl Pieces for Exposition {
    fn next(&mut self) -> io::Result<Piece<'_>> {
        self.text.clear();
        // These are one piece.
        self.numbers
            .by_ref()
            .for_each(|number| write_number(number, &mut self.text));
        for family in self.families.by_ref() {
            let text = &mut self.text;
            let mut samples = Samples::new(text, family.name, family.kind, family.help);
            (family.write)(&self.sources, &mut samples);
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

fn write_number(number: &Number, text: &mut String) {
    let (kind, value) = match number.value {
        NumberValue::Counter(counter) => (MetricKind::Counter, counter.get()),
        NumberValue::Gauge(gauge) => (MetricKind::Gauge, gauge.get()),
    };
    Samples::new(text, number.name, kind, number.help).plain(value);
}

fn write_requests(out: &mut Samples<'_>) {
    for (kind, count) in requests::kinds() {
        let status = match kind.status {
            0 => "other".to_owned(),
            status => status.to_string(),
        };
        let labels = [
            ("route", kind.route.name()),
            ("method", kind.method.name()),
            ("status", status.as_str()),
            ("cache", kind.cache.map_or("none", CacheOutcome::name)),
        ];
        out.with(&labels, count);
    }
}

fn write_repositories(
    out: &mut Samples<'_>,
    counter: fn(&repositories::RepositoryCounters) -> &Counter,
) {
    for ([registry, repository], counters) in repositories::all() {
        let labels = [("registry", registry), ("repository", repository)];
        out.with(&labels, counter(counters).get());
    }
}

/// Writes the counts of a registry that are not 0, each under a value of the second label.
fn write_counts<'v>(
    out: &mut Samples<'_>,
    registry: &str,
    label: &str,
    counts: impl Iterator<Item = (&'v str, u64)>,
) {
    for (value, count) in counts.filter(|(_, count)| *count > 0) {
        out.with(&[("registry", registry), (label, value)], count);
    }
}

fn write_transfers(out: &mut Samples<'_>) {
    let (running, unlisted) = TRANSFERS.running();
    for kind in TransferKind::ALL {
        let count = running.iter().filter(|running| running.kind == *kind);
        out.with(&[("kind", kind.name())], count.count());
    }
    out.with(&[("kind", "unlisted")], unlisted);
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
        let labels = [("registry", registry.name()), ("region", region)];
        out.time(&labels, time(&report));
    }
}

fn write_cache(sources: &Sources, out: &mut Samples<'_>, read: fn(&Cache) -> u64) {
    out.optional(sources.cache.as_deref().map(read));
}

#[cfg(test)]
mod tests;
