//! `/metrics`: every number of the process, in the text format of Prometheus. Owns: the table of
//! the numbers that have labels, or are not counted. Must not: read the disk, or hold a lock while
//! it writes.
//!
//! `docs/metrics.md` has them all. `UPDATE_DOCS=1 cargo test` writes it anew.

use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::snapshot::known_registries;
use super::sources::Sources;
use crate::aws::token::TokenReport;
use crate::cache::{Cache, scrub};
use crate::config::{COMMIT, VERSION};
use crate::message::{Body, Piece, Pieces, Reply};
use crate::metrics::text::MetricKind::{Counter, Gauge};
use crate::metrics::text::{CONTENT_TYPE, Family, Samples};
use crate::metrics::{COUNTED, requests};
use crate::permits::{Permit, Permits};
use crate::prefetched::PREFETCHED;
use crate::transfers::{TRANSFERS, TransferKind};

/// Scrapes at a time: each holds a few hundred kilobytes of text at the most, and nobody has more
/// than a few Prometheus.
const SCRAPES_MAX: usize = 8;

static SCRAPES: Permits = Permits::new(SCRAPES_MAX);

/// Numbers that other parts know. One line a name where it fits.
#[rustfmt::skip]
static READ: &[Family<Sources>] = &[
    // the process
    Family::new(Gauge, "build_info", &["version", "commit"], "Always 1; what runs.",
        |_, out| out.with(&[VERSION, COMMIT], 1)),
    Family::new(Gauge, "start_timestamp_seconds", &[], "When the process started.",
        |from, out| out.time(&[], Some(from.started.1))),
    Family::new(Gauge, "ready", &[], "1 while /readyz answers 200, else 0.",
        |from, out| out.with(&[], u8::from(from.is_ready()))),
    Family::new(Gauge, "offline", &[], "1 with OFFLINE=true, else 0.",
        |from, out| out.with(&[], u8::from(from.offline))),
    Family::new(Gauge, "workers", &[], "Workers in all (WORKERS).",
        |from, out| out.with(&[], from.workers)),
    Family::new(Gauge, "connections_limit", &[], "The most there may be.",
        |from, out| out.with(&[], from.connections_max)),
    // transfers
    Family::new(Gauge, "transfers_running", &["kind"],
        "Blobs on their way: fill (into the cache), pull (to clients), push (from clients), \
         or unlisted. A pull whose fill runs is not counted.",
        |_, out| write_transfers(out)),
    Family::new(Gauge, "fill_clients", &[], "Clients that get their bytes from fills that run.",
        |_, out| out.with(&[],
            TRANSFERS.running().0.iter().map(|fill| fill.clients()).sum::<u32>())),
    // identity
    Family::new(Gauge, "token_expiry_timestamp_seconds", &["registry", "region"],
        "When the ECR token ends; absent without a token.",
        |from, out| write_token_times(from, out, |report| report.expires)),
    Family::new(Gauge, "token_renewal_timestamp_seconds", &["registry", "region"],
        "When the next ECR token is fetched.",
        |from, out| write_token_times(from, out, |report| report.renews)),
    Family::new(Gauge, "credentials_expiry_timestamp_seconds", &[],
        "When the AWS credentials in use end; absent when they do not.",
        |from, out| out.time(&[], from.tokens.as_ref().and_then(|t| t.credentials_expire()))),
    Family::new(Gauge, "clock_skew_seconds", &[],
        "By how much AWS's clock is ahead of this machine's.",
        |from, out| out.optional(from.tokens.as_ref().and_then(|t| t.clock_skew_seconds()))),
    // the cache
    Family::new(Gauge, "cache_used_bytes", &[], "Bytes on disk of everything in the cache.",
        |from, out| write_cache(from, out, |cache| cache.sweeper.used_bytes())),
    Family::new(Gauge, "cache_quota_bytes", &[], "The most it may have (CACHE_MAX_SIZE).",
        |from, out| write_cache(from, out, |cache| cache.sweeper.quota)),
    Family::new(Gauge, "cache_blobs", &[], "Files of complete blobs and manifests.",
        |from, out| write_cache(from, out, |cache| cache.store.blob_count())),
    Family::new(Gauge, "cache_images", &[], "Tagged images, as of a few seconds ago.",
        |from, out| write_cache(from, out, |cache| cache.sweeper.image_count())),
    Family::new(Gauge, "cache_pinned_bytes", &[],
        "Bytes on disk that pinned images need (PIN), as of the last eviction.",
        |from, out| write_cache(from, out, |cache| cache.sweeper.pinned_bytes())),
    Family::new(Gauge, "cache_scrub_end_timestamp_seconds", &[],
        "When the last whole scrub ended; absent before the first.",
        |_, out| out.time(&[], scrub::progress().end())),
    Family::new(Gauge, "cache_scrub_progress_percent", &[],
        "How far the scrub is that runs; absent between two.",
        |_, out| out.optional(scrub::progress().percent())),
    Family::new(Gauge, "prefetch_images", &["state"],
        "Images of PREFETCH: whole and confirmed, failed, or not tried yet (waiting).",
        |_, out| write_prefetch(out)),
    Family::new(Counter, "prefetch_rounds_total", &[], "Rounds of PREFETCH that have ended.",
        |_, out| out.optional(PREFETCHED.get().map(|round| round.rounds))),
];

/// The answer to a scrape. It is written piece by piece, as the client takes it.
///
/// # Errors
/// When too many scrape at a time.
pub(super) fn answer(sources: &Arc<Sources>) -> Result<Reply, &'static str> {
    let turn = SCRAPES.take(Instant::now());
    let turn = turn.ok_or("too many scrapes at a time; try again")?;
    requests::begin_at_zero();
    let sources = Arc::clone(sources);
    let counted = COUNTED.iter().filter_map(|family| family.text(&()));
    let read = READ.iter().filter_map(move |family| family.text(&sources));
    let pieces = Box::new(Exposition {
        families: Box::new(counted.chain(read)),
        text: String::new(),
        _turn: turn,
    });
    let mut reply = Reply::new(200, CONTENT_TYPE, "").with("Cache-Control", "no-store");
    reply.body = Body::Pieces {
        pieces,
        length: None,
    };
    Ok(reply)
}

/// The text on its way, family by family.
struct Exposition {
    families: Box<dyn Iterator<Item = String> + Send>,
    text: String,
    _turn: Permit<'static>,
}

impl Pieces for Exposition {
    fn next(&mut self) -> io::Result<Piece<'_>> {
        let Some(text) = self.families.next() else {
            return Ok(Piece::End);
        };
        self.text = text;
        Ok(Piece::Bytes(self.text.as_bytes()))
    }
}

fn write_transfers(out: &mut Samples) {
    let (running, unlisted) = TRANSFERS.running();
    for kind in TransferKind::ALL {
        let count = running.iter().filter(|running| running.kind == *kind);
        out.with(&[kind.name()], count.count());
    }
    out.with(&["unlisted"], unlisted);
}

fn write_prefetch(out: &mut Samples) {
    let counts = PREFETCHED.counts().into_iter().flatten();
    for (state, count) in ["whole", "failed", "waiting"].iter().zip(counts) {
        out.with(&[state], count);
    }
}

fn write_token_times(
    sources: &Sources,
    out: &mut Samples,
    time: fn(&TokenReport) -> Option<SystemTime>,
) {
    let Some(tokens) = &sources.tokens else {
        return;
    };
    for registry in known_registries(sources) {
        let report = tokens.report(&registry);
        let region = report.region.as_deref().unwrap_or_default();
        out.time(&[registry.name(), region], time(&report));
    }
}

fn write_cache(sources: &Sources, out: &mut Samples, read: fn(&Cache) -> u64) {
    out.optional(sources.cache.as_deref().map(read));
}

#[cfg(test)]
mod tests;
