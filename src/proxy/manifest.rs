//! Manifests through the cache. Owns: freshness of tags, revalidation, stale answers, what a
//! manifest vouches for. Must not: change or convert a manifest, or answer a tag from another
//! media type than the client takes.
//!
//! By digest: immutable, no upstream call. By tag: within `CACHE_TAG_TTL` no upstream call, after
//! it one HEAD however many ask; if that fails for any reason but a true 404, what we have.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::conditional;
use super::pull::{self, DIGEST_FIELD, MANIFEST_BYTES_MAX, media_type};
use super::{CacheOutcome, Pull, fail, marked, stale_warning};
use crate::cache::manifest::named_by;
use crate::cache::names::TagEntry;
use crate::hash;
use crate::log;
use crate::message::{Body, Buffered, Headers, Outcome, Reply};
use crate::oci::{Digest, ERROR_DOCUMENT_BYTES_MAX, Reference, Repository, Tag};
use crate::upstream::client::Incoming;
use crate::upstream::exchange::{Call, HEAD_TIMEOUT};
use crate::upstream::{Stage, UpstreamError};

/// Longest wait for upstream's word on a tag that we hold an older answer to: half of what makes a
/// person doubt, and several round trips of a bad link.
const STALE_PATIENCE: Duration = Duration::from_secs(2);

/// A manifest in memory.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Arc<Vec<u8>>,
}

/// What asking for a manifest came to; shared by all who asked at the same time.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    Failed(UpstreamError),
    /// Upstream answered something else.
    Refused(Buffered),
    /// Upstream confirmed what we have, or sent it anew.
    Found(Manifest, Freshness),
    /// Too large to keep.
    TooLarge,
}

/// Where a found manifest comes from.
#[derive(Debug, Clone)]
pub(super) enum Freshness {
    Fetched,
    Revalidated,
    /// Upstream could not say; last confirmed so many seconds ago.
    Stale(UpstreamError, u64),
}

/// Answers GET and HEAD of a manifest.
pub(super) fn get(pull: &Pull<'_>, repository: &Repository, reference: &Reference) -> Reply {
    match reference {
        Reference::Digest(digest) => by_digest(pull, repository, digest),
        Reference::Tag(tag) => by_tag(pull, repository, tag),
    }
}

fn by_digest(pull: &Pull<'_>, repository: &Repository, digest: &Digest) -> Reply {
    let key = key(pull, repository, digest.as_str());
    if let Some(manifest) = stored(pull, repository, digest) {
        return found(pull, &manifest, CacheOutcome::Hit);
    }
    if let Some(refused) = pull.cache.negative.get(&key, Instant::now()) {
        return pull.refused(refused);
    }
    let deadline = Instant::now() + HEAD_TIMEOUT;
    let asked = pull.exchange.parts.manifests.run(&key, deadline, || {
        match adopt(pull, repository, digest) {
            Some(manifest) => Asked::Found(manifest, Freshness::Revalidated),
            None => fetch(pull, repository, &Reference::Digest(digest.clone())),
        }
    });
    answer(pull, &key, asked)
}

/// Names what is asked for. Clients that accept different types may get different manifests, or
/// none. A client may send as much of `Accept` as fits a head, so the key holds its digest.
fn key(pull: &Pull<'_>, repository: &Repository, name: &str) -> String {
    let accept = pull.exchange.request.headers.joined("Accept");
    let accept = accept.unwrap_or_default();
    pull.key(
        repository,
        &format_args!(
            "manifests/{name} accept={}",
            hash::sha256_hex(accept.as_bytes())
        ),
    )
}

/// A manifest that another repository brought into the cache: one HEAD says whether it is in this
/// one too, and no second download is needed.
fn adopt(pull: &Pull<'_>, repository: &Repository, digest: &Digest) -> Option<Manifest> {
    if !pull.cache.store.has(digest) {
        return None;
    }
    let target = format!("/v2/{repository}/manifests/{digest}");
    let reply = pull.head(&target, &pull.own_headers(), HEAD_TIMEOUT).ok()?;
    let media_type = media_type(&reply.headers).filter(|_| reply.status == 200)?;
    let bytes = read(pull, digest)?;
    let manifest = Manifest {
        digest: digest.clone(),
        media_type,
        bytes: Arc::new(bytes),
    };
    vouch(pull, repository, &manifest);
    Some(manifest)
}

fn by_tag(pull: &Pull<'_>, repository: &Repository, tag: &Tag) -> Reply {
    let cache = pull.cache;
    let scope = pull.scope(repository);
    let partition = pull.exchange.partition.as_str();
    let accepts = &pull.exchange.request.headers;
    let held = cache
        .names
        .tag(scope, partition, tag)
        .into_iter()
        .find_map(|entry| {
            let taken = conditional::accepts(accepts, &entry.media_type);
            let manifest = stored(pull, repository, &entry.digest).filter(|_| taken)?;
            Some((entry, manifest))
        });
    if let Some((entry, manifest)) = &held {
        cache
            .names
            .touch(scope, partition, Some(tag), &entry.digest);
        if cache.is_fresh(entry.confirmed) {
            let age = age(entry.confirmed).to_string();
            return found(pull, manifest, CacheOutcome::Hit).with("Age", age);
        }
    }
    let key = key(pull, repository, tag.as_str());
    if held.is_none()
        && let Some(refused) = cache.negative.get(&key, Instant::now())
    {
        return pull.refused(refused);
    }
    let flight = format!("{key} {partition}");
    let deadline = Instant::now() + HEAD_TIMEOUT;
    let asked = pull.exchange.parts.manifests.run(&flight, deadline, || {
        ask(pull, repository, tag, partition, held.as_ref())
    });
    answer(pull, &key, asked)
}

/// With the type of what we hold in `Accept`, for a registry that says 404 of what is there to who
/// does not name its type, but takes everything (docker-registry does so with OCI's types): the
/// image would be lost to everybody by one curl.
fn accepting(mut headers: Headers, media_type: &str) -> Headers {
    match headers.joined("Accept") {
        Some(accept) if accept.contains(media_type) => {}
        Some(accept) => headers.set("Accept", format!("{media_type}, {accept}")),
        None => headers.set("Accept", format!("{media_type}, */*")),
    }
    headers
}

/// Asks upstream for a tag: whether it still is what we hold, or what it is.
fn ask(
    pull: &Pull<'_>,
    repository: &Repository,
    tag: &Tag,
    partition: &str,
    held: Option<&(TagEntry, Manifest)>,
) -> Asked {
    let (cache, scope) = (pull.cache, pull.scope(repository));
    let pushes = cache.pushes.count();
    let reference = Reference::Tag(tag.clone());
    let Some((entry, manifest)) = held else {
        let asked = fetch(pull, repository, &reference);
        if let Asked::Found(manifest, _) = &asked {
            keep_tag(pull, repository, tag, pushes, manifest);
        }
        return asked;
    };
    let stale = |error: UpstreamError| {
        log::info(
            "tag served stale",
            &[("tag", &tag.as_str()), ("reason", &error)],
        );
        let age = age(entry.confirmed);
        Asked::Found(manifest.clone(), Freshness::Stale(error, age))
    };
    let target = format!("/v2/{repository}/manifests/{}", tag.as_str());
    let headers = accepting(pull.own_headers(), &manifest.media_type);
    let reply = match pull.head(&target, &headers, STALE_PATIENCE) {
        Ok(reply) => reply,
        Err(error) => return stale(error),
    };
    match (reply.status, reply.headers.first(DIGEST_FIELD)) {
        (200, Some(digest)) if digest == manifest.digest.as_str() => {
            let confirmed =
                cache
                    .names
                    .confirm_tag(scope, partition, tag, &entry.digest, SystemTime::now());
            if let Err(error) = confirmed {
                cache.disk_faults.report("tag", &error);
            }
            Asked::Found(manifest.clone(), Freshness::Revalidated)
        }
        (200, _) => match fetch(pull, repository, &reference) {
            Asked::Found(manifest, freshness) => {
                keep_tag(pull, repository, tag, pushes, &manifest);
                Asked::Found(manifest, freshness)
            }
            Asked::Failed(error) => stale(error),
            Asked::Refused(refused) if refused.status != 404 => {
                stale(unusual(pull, refused.status))
            }
            asked => asked,
        },
        (404, _) => {
            cache.names.remove_tag(scope, tag);
            cache.sweeper.mark_dirty();
            // A HEAD has no body to pass on, so the registry is asked for its words.
            fetch(pull, repository, &reference)
        }
        (status, _) => stale(unusual(pull, status)),
    }
}

/// Seconds since upstream last confirmed it (RFC 9111 §5.1).
pub(super) fn age(confirmed: SystemTime) -> u64 {
    let age = SystemTime::now().duration_since(confirmed);
    age.unwrap_or_default().as_secs()
}

fn unusual(pull: &Pull<'_>, status: u16) -> UpstreamError {
    let reason = format!("it answered {status}");
    UpstreamError {
        stage: Stage::Transfer,
        to: pull.registry.url(),
        reason,
    }
}

/// Downloads a manifest, verifies and keeps it.
fn fetch(pull: &Pull<'_>, repository: &Repository, reference: &Reference) -> Asked {
    let name = match reference {
        Reference::Digest(digest) => digest.as_str(),
        Reference::Tag(tag) => tag.as_str(),
    };
    let call = Call {
        registry: pull.registry,
        method: "GET",
        target: &format!("/v2/{repository}/manifests/{name}"),
        headers: &pull.own_headers(),
        patience: HEAD_TIMEOUT,
        whole: true,
    };
    let reply = match pull.exchange.parts.upstream.fetch_bodiless(call) {
        Ok(fetched) => fetched.reply,
        Err(error) => return Asked::Failed(error),
    };
    take(pull, repository, reference, reply).unwrap_or_else(Asked::Failed)
}

fn take(
    pull: &Pull<'_>,
    repository: &Repository,
    reference: &Reference,
    mut reply: Incoming,
) -> Result<Asked, UpstreamError> {
    if reply.status != 200 {
        let body = pull::read_whole(&mut *reply.body, ERROR_DOCUMENT_BYTES_MAX, pull.registry)?;
        let (status, headers) = (reply.status, reply.headers);
        return Ok(Asked::Refused(Buffered {
            status,
            headers,
            body: body.into(),
        }));
    }
    pull::unencoded(&reply.headers, pull.registry)?;
    let bytes = pull::read_whole(&mut *reply.body, MANIFEST_BYTES_MAX, pull.registry)?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Ok(Asked::TooLarge);
    }
    let named = reply.headers.first(DIGEST_FIELD);
    let digest = pull::verify(reference, &bytes, named, pull.registry)?;
    let media_type = media_type(&reply.headers);
    let media_type = media_type.unwrap_or_else(|| "application/octet-stream".to_owned());
    let manifest = Manifest {
        digest,
        media_type,
        bytes: Arc::new(bytes),
    };
    match pull.cache.store.put(&manifest.digest, &manifest.bytes) {
        Ok(()) => {
            vouch(pull, repository, &manifest);
            if let Some(queue) = &pull.exchange.parts.follow {
                let image = (repository, reference, &manifest.digest);
                queue.add(pull.exchange, pull.registry, image);
            }
        }
        Err(error) => pull.cache.disk_faults.report("manifest", &error),
    }
    Ok(Asked::Found(manifest, Freshness::Fetched))
}

/// A manifest that upstream has shown or taken in a repository vouches for every digest it names.
pub(super) fn vouch(pull: &Pull<'_>, repository: &Repository, manifest: &Manifest) {
    let (cache, scope) = (pull.cache, pull.scope(repository));
    let mut links = vec![(manifest.digest.clone(), Some(manifest.media_type.clone()))];
    links.extend(
        named_by(&manifest.bytes)
            .into_iter()
            .map(|(digest, _)| (digest, None)),
    );
    for (digest, media_type) in links {
        if let Err(error) = cache.names.set_link(scope, &digest, media_type.as_deref()) {
            return cache.disk_faults.report("link", &error);
        }
    }
    cache.remember(pull.registry);
    cache.sweeper.mark_dirty();
}

fn keep_tag(
    pull: &Pull<'_>,
    repository: &Repository,
    tag: &Tag,
    pushes_before: u64,
    manifest: &Manifest,
) {
    if pull.cache.pushes.count() != pushes_before {
        return;
    }
    let partition = &pull.exchange.partition;
    let entry = TagEntry {
        digest: manifest.digest.clone(),
        media_type: manifest.media_type.clone(),
        confirmed: SystemTime::now(),
    };
    let kept = pull
        .cache
        .names
        .set_tag(pull.scope(repository), partition, tag, entry);
    if let Err(error) = kept {
        pull.cache.disk_faults.report("tag", &error);
    }
    pull.cache.sweeper.mark_dirty();
}

/// A manifest that the cache holds for this repository.
fn stored(pull: &Pull<'_>, repository: &Repository, digest: &Digest) -> Option<Manifest> {
    let scope = pull.scope(repository);
    let media_type = pull.cache.names.link(scope, digest)?.media_type?;
    let bytes = read(pull, digest)?;
    pull.cache.names.touch(scope, "", None, digest);
    Some(Manifest {
        digest: digest.clone(),
        media_type,
        bytes: Arc::new(bytes),
    })
}

fn read(pull: &Pull<'_>, digest: &Digest) -> Option<Vec<u8>> {
    pull.cache
        .store
        .read(digest, MANIFEST_BYTES_MAX)
        .unwrap_or_else(|error| {
            pull.cache.disk_faults.report("manifest", &error);
            None
        })
}

fn answer(pull: &Pull<'_>, key: &str, asked: Option<Asked>) -> Reply {
    match asked {
        Some(Asked::Failed(error)) => marked(fail(&error), CacheOutcome::Miss),
        Some(Asked::Found(manifest, Freshness::Fetched)) => {
            found(pull, &manifest, CacheOutcome::Miss)
        }
        Some(Asked::Found(manifest, Freshness::Revalidated)) => {
            found(pull, &manifest, CacheOutcome::Revalidated)
        }
        Some(Asked::Found(manifest, Freshness::Stale(error, age))) => {
            found(pull, &manifest, CacheOutcome::Stale)
                .with("Warning", stale_warning(&error))
                .with("Age", age.to_string())
        }
        Some(Asked::Refused(refused)) => {
            if refused.status == 404 {
                pull.cache
                    .negative
                    .put(key, refused.clone(), Instant::now());
            }
            pull.refused(refused)
        }
        Some(Asked::TooLarge) => pull.bypass(),
        // The one who asked for all of us is gone, or takes too long.
        None => pull.bypass(),
    }
}

fn found(pull: &Pull<'_>, manifest: &Manifest, outcome: CacheOutcome) -> Reply {
    let tag = format!("\"{}\"", manifest.digest);
    let unchanged = conditional::is_not_modified(&pull.exchange.request.headers, &tag);
    let length = Some(manifest.bytes.len() as u64);
    let (status, body) = match (unchanged, pull.is_head()) {
        (true, _) => (304, Body::empty()),
        (false, true) => (200, Body::Empty { length }),
        (false, false) => (200, Body::Bytes(manifest.bytes.to_vec().into())),
    };
    let headers = Headers::from_iter([
        (super::API_VERSION.0, super::API_VERSION.1.to_owned()),
        ("Content-Type", manifest.media_type.clone()),
        (DIGEST_FIELD, manifest.digest.to_string()),
        ("ETag", tag),
    ]);
    marked(
        Reply {
            status,
            headers,
            body,
            outcome: Outcome::default(),
        },
        outcome,
    )
}
