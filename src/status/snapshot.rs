//! The document of `/status.json`. Owns: its fields and their names, which stay as they are. Must
//! not: block for longer than it takes to ask the file system for its free space.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value, json};

use super::sources::Sources;
use crate::aws::token::TokenStatus;
use crate::cache::Cache;
use crate::cache::holdings::{CachedImage, PlatformsHere};
use crate::cache::images::ImagePage;
use crate::cache::moves::TagMove;
use crate::cache::scrub;
use crate::calendar::format_rfc3339;
use crate::config::{COMMIT, VERSION};
use crate::history::{self, FAILURES};
use crate::metrics;
use crate::oci::Registry;
use crate::prefetched::{PREFETCHED, PrefetchRound, PrefetchedImage};
use crate::transfers::{TRANSFERS, Transfer, TransferKind};

/// Most transfers in one document. The oldest are shown, since those may hang.
const TRANSFERS_SHOWN: usize = 200;

/// The document without history and images.
pub(super) fn document(sources: &Sources) -> Map<String, Value> {
    let token = sources.tokens.as_ref().map(|tokens| tokens.status());
    let registries = known_registries(sources);
    let (state, sentence) = sources.verdict(registries.first());
    let (started, started_at) = sources.started;
    let document = json!({
        "version": VERSION,
        "commit": COMMIT,
        "now": format_rfc3339(SystemTime::now()),
        "started": format_rfc3339(started_at),
        "uptime_s": started.elapsed().as_secs(),
        "state": state,
        "sentence": sentence,
        "offline": sources.offline,
        "identity": token.as_ref().map(identity),
        "registries": registries.iter().map(|r| registry(sources, r)).collect::<Vec<_>>(),
        "transfers": transfers(),
        "cache": sources.cache.as_deref().map(cache),
        "prefetch": PREFETCHED.get().as_ref().map(prefetch),
        "day": day(),
        "failures": FAILURES.latest(),
    });
    match document {
        Value::Object(document) => document,
        _ => Map::new(),
    }
}

/// The registries of the settings, else the identity's own, if that is known.
pub(super) fn known_registries(sources: &Sources) -> Vec<Registry> {
    if !sources.registries.is_empty() {
        return sources.registries.clone();
    }
    let own = sources.upstream.default_registry(Instant::now()).ok();
    let own = own.or_else(|| sources.cache.as_ref()?.recall_registry());
    own.into_iter().collect()
}

fn identity(token: &TokenStatus) -> Value {
    // arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE
    let account = token.arn.as_ref().and_then(|arn| arn.split(':').nth(4));
    json!({
        "arn": token.arn,
        "account": account,
        "source": token.source,
        "last_error": token.last_error,
    })
}

fn registry(sources: &Sources, registry: &Registry) -> Value {
    let state = sources.upstream.state(registry);
    let report = sources.tokens.as_ref().map(|it| it.report(registry));
    let (last_error_at, last_error) = state.last_error.unzip();
    json!({
        "name": registry.to_string(),
        "url": registry.url(),
        "region": report.as_ref().and_then(|report| report.region.as_ref()),
        "token": report.as_ref().map(|report| json!({
            "expires": report.expires.map(format_rfc3339),
            "left_s": report.expires.map(seconds_until),
            "life_s": report.life.map(|life| life.as_secs()),
            "renews_s": report.renews.map(seconds_until),
            "last_error": report.last_error,
        })),
        "breaker": if state.pause.is_some() { "open" } else { "closed" },
        "next_try_ms": state.pause.map(|pause| u64::try_from(pause.as_millis()).ok()),
        "last_error": last_error,
        "last_error_at": last_error_at.map(format_rfc3339),
    })
}

fn transfers() -> Value {
    let (running, unlisted) = TRANSFERS.running();
    let pushes = running
        .iter()
        .filter(|it| it.kind == TransferKind::Push)
        .count();
    let shown = running.iter().take(TRANSFERS_SHOWN);
    json!({
        "downloads": running.len() - pushes,
        "uploads": pushes,
        "unlisted": unlisted,
        "running": shown.map(|transfer| describe_transfer(transfer)).collect::<Vec<_>>(),
    })
}

fn describe_transfer(transfer: &Transfer) -> Value {
    let (bytes, total, rate) = (transfer.bytes(), transfer.total(), transfer.rate());
    let left = total.map(|total| total.saturating_sub(bytes));
    let subject = &transfer.subject;
    json!({
        "kind": transfer.kind.name(),
        "source": if transfer.from_cache { "cache" } else { "upstream" },
        "registry": subject.registry,
        "repository": subject.repository,
        "digest": subject.digest,
        "request": subject.request,
        "peer": subject.peer,
        "bytes": bytes,
        "total_bytes": total,
        "bytes_per_second": rate,
        "left_s": left.and_then(|left| left.checked_div(rate)),
        "age_s": transfer.age().as_secs(),
        "idle_s": transfer.idle().as_secs(),
        "clients": if transfer.kind == TransferKind::Fill { transfer.clients() } else { 1 },
    })
}

fn cache(cache: &Cache) -> Value {
    let scrub = scrub::progress();
    json!({
        "directory": cache.store.root().display().to_string(),
        "used_bytes": cache.sweeper.used_bytes(),
        "quota_bytes": cache.sweeper.quota,
        "free_bytes": cache.store.free_bytes().ok(),
        "pinned_bytes": cache.sweeper.pinned_bytes(),
        "is_full_of_pins": cache.sweeper.is_full_of_pins(),
        "evicted_images": metrics::CACHE_IMAGES_EVICTED.get(),
        "evicted_bytes": metrics::CACHE_BYTES_EVICTED.get(),
        "scrub_ended": scrub.end().map(format_rfc3339),
        "scrub_percent": scrub.percent(),
        "damaged_blobs": metrics::CACHE_BLOBS_DAMAGED.get(),
        "write_failures": metrics::CACHE_WRITE_FAILURES.get(),
    })
}

fn prefetch(round: &PrefetchRound) -> Value {
    let image = |image: &PrefetchedImage| {
        json!({
            "name": image.name,
            "digest": image.digest,
            "error": image.error,
            "confirmed": image.confirmed.map(format_rfc3339),
        })
    };
    let now = Instant::now();
    let next = round.next.map(|next| next.saturating_duration_since(now));
    json!({
        "rounds": round.rounds,
        "running": round.running,
        "next_s": next.map(|next| next.as_secs()),
        "list_error": round.list_error,
        "images": round.images.iter().map(image).collect::<Vec<_>>(),
    })
}

/// The last 24 hours in sums.
fn day() -> Value {
    let sums = history::series().map(|(name, minutes)| (name, minutes.iter().sum::<u64>()));
    sums.collect()
}

/// The last 24 hours, since the start at the longest, by the minute.
pub(super) fn history() -> Value {
    let mut document = Map::new();
    for (name, minutes) in history::series() {
        document.insert("minutes".to_owned(), minutes.len().into());
        document.insert(name.to_owned(), minutes.into());
    }
    document.into()
}

/// A page of images, and the tags that moved, each with its registry.
pub(super) fn images(page: &ImagePage, moves: &[(String, TagMove)]) -> Value {
    json!({
        "total": page.total,
        "matching": page.matching,
        "is_whole": page.is_whole,
        "list": page.images.iter().map(image).collect::<Vec<_>>(),
        "moves": moves.iter().map(tag_move).collect::<Vec<_>>(),
    })
}

fn tag_move((registry, moved): &(String, TagMove)) -> Value {
    json!({
        "at": moved.at,
        "registry": registry,
        "repository": moved.repository,
        "tag": moved.tag,
        "from": moved.from.as_str(),
        "to": moved.to.as_str(),
    })
}

fn image(image: &CachedImage) -> Value {
    let here = PlatformsHere::of(&image.closure.parts);
    // Without its manifest nothing is known to be here.
    let is_here = image.closure.bytes_here > 0;
    json!({
        "registry": image.scope.registry.to_string(),
        "repository": image.scope.repository.as_str(),
        "tag": image.tag.as_ref().map(|tag| tag.as_str()),
        "digest": is_here.then(|| image.digest.as_str()),
        "platforms": here.whole,
        "incomplete": here.partial,
        "bytes": image.closure.bytes_here,
        "pulled": format_rfc3339(image.pulled),
        "confirmed": image.confirmed.map(format_rfc3339),
    })
}

/// Seconds from now; 0 for what is over.
fn seconds_until(time: SystemTime) -> u64 {
    let left = time.duration_since(SystemTime::now());
    left.unwrap_or(Duration::ZERO).as_secs()
}
