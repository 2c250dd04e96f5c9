//! Manifests through the cache. Owns: freshness of tags, revalidation, stale answers. Must not:
//! change or convert a manifest, or answer a tag in a media type that the client does not accept.
//!
//! A manifest under its digest never changes, so the cache answers without upstream. A tag needs no
//! upstream within `CACHE_TAG_TTL`. After that one HEAD asks, however many clients wait. When it
//! fails for any reason but a true 404, the cache answers with what it has.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::answer::{
    API_VERSION, CacheOutcome, age, fail_miss, log_reason, mark, mark_stale, or_fail,
};
use super::content;
use super::exchange::Exchange;
use super::headers::DIGEST_FIELD;
use super::lookup::{Freshness, ManifestLookup};
use super::purpose::OwnClient;
use super::referrer_queue::QueuedImage;
use super::{absent, cache_key, conditional, headers, refusal};
use crate::cache::Cache;
use crate::cache::changes::{Fact, Moment};
use crate::cache::description::SelfDescription;
use crate::cache::held::{Manifest, TaggedManifest, confirmed_at};
use crate::cache::manifest::MANIFEST_BYTES_MAX;
use crate::cache::names::{Scope, TagEntry};
use crate::log::{self, Level};
use crate::media_type;
use crate::message::{Body, Buffered, Headers, LogNote, Reply, WholeBody};
use crate::oci::{Digest, ERROR_DOCUMENT_BYTES_MAX, Reference, Registry, Repository, Tag};
use crate::upstream::exchange::HEAD_TIMEOUT;
use crate::upstream::incoming::Incoming;
use crate::upstream::{Stage, UpstreamError};

/// Longest wait for upstream to confirm a tag while the cache holds an older answer: half of what
/// makes a person doubt, and several round trips of a bad link.
const STALE_PATIENCE: Duration = Duration::from_secs(2);

/// Answers GET and HEAD of a manifest.
pub(super) fn get(exchange: &Exchange, repository: &Repository, reference: &Reference) -> Reply {
    let Some(cache) = &exchange.parts.cache else {
        return forward(exchange, reference);
    };
    let pull = ManifestPull {
        exchange,
        cache,
        scope: Scope {
            registry: &exchange.registry,
            repository,
        },
        reference,
        asked_at: cache.now(),
    };
    match reference {
        Reference::Digest(digest) => pull.get_by_digest(digest),
        Reference::Tag(tag) => pull.get_by_tag(tag),
    }
}

/// Passes the request on without keeping anything.
fn forward(exchange: &Exchange, reference: &Reference) -> Reply {
    finish(exchange, reference, exchange.forward_bodiless())
}

/// Upstream's answer as the client gets it.
fn finish(
    exchange: &Exchange,
    reference: &Reference,
    reply: Result<Reply, UpstreamError>,
) -> Reply {
    let client = &exchange.request.headers;
    or_fail(
        reply.and_then(|reply| {
            content::finish_manifest(reply, reference, &exchange.registry, client)
        }),
    )
}

/// Tags of no partition are for all, whatever `CACHE_KEY` says: what `pull`, `PREFETCH` and
/// `import` bring.
const FOR_ALL: &str = "";

/// A request for a manifest that may be answered from the cache.
struct ManifestPull<'a> {
    exchange: &'a Exchange,
    cache: &'a Arc<Cache>,
    scope: Scope<'a>,
    reference: &'a Reference,
    /// When upstream was asked. If the repository is changed after that, the answer is not kept.
    asked_at: Moment,
}

impl ManifestPull<'_> {
    fn get_by_digest(&self, digest: &Digest) -> Reply {
        if let Some(manifest) = self.cache.manifest(self.scope, digest) {
            log_reason("the cache has the manifest, linked in this repository");
            return self.serve(&manifest, CacheOutcome::Hit);
        }
        if let Some(absent) = self.absent() {
            return absent;
        }
        let key = self.key(digest.as_str());
        if let Some(refused) = self.cache.negative.get(&key, Instant::now()) {
            log_reason("upstream said a moment ago that it is missing");
            return mark(self.dress(refused), CacheOutcome::Miss);
        }
        log_reason("the cache has no such manifest in this repository: upstream is asked");
        let lookup = self.share(&key, || match self.adopt(digest) {
            Some(manifest) => {
                ManifestLookup::Found(manifest, Freshness::Revalidated(SystemTime::now()))
            }
            None => self.fetch(),
        });
        self.answer(&key, lookup)
    }

    fn get_by_tag(&self, tag: &Tag) -> Reply {
        let exchange = self.exchange;
        let (request, path) = (&exchange.request, &exchange.resolved.path);
        let partition = match exchange.purpose.confirms_tags() {
            true => FOR_ALL.to_owned(),
            false => cache_key::partition(&exchange.parts.cache_key, request, path),
        };
        let (registry, repository) = (self.scope.registry.name(), self.scope.repository.as_str());
        let frozen = &exchange.parts.frozen;
        let is_frozen = frozen.matches(registry, repository, tag.as_str());
        let held = self.find(&partition, tag, is_frozen);
        let needs_no_call = |held: &&TaggedManifest| {
            is_frozen || (held.is_fresh && !exchange.purpose.confirms_tags())
        };
        if let Some(held) = held.as_ref().filter(needs_no_call) {
            log_reason(match is_frozen {
                true => "the tag is one of FREEZE_TAGS",
                false => "the tag was confirmed within CACHE_TAG_TTL",
            });
            let age = age(held.confirmed).to_string();
            return self
                .serve(&held.manifest, CacheOutcome::Hit)
                .with("Age", age);
        }
        if held.is_none()
            && is_frozen
            && let Some(digest) = self.find_lost(&partition, tag)
        {
            let reference = &Reference::Digest(digest.clone());
            return ManifestPull { reference, ..*self }.get_by_digest(&digest);
        }
        if held.is_none()
            && let Some(absent) = self.absent()
        {
            return absent;
        }
        let key = self.key(tag.as_str());
        if held.is_none()
            && let Some(refused) = self.cache.negative.get(&key, Instant::now())
        {
            log_reason("upstream said a moment ago that it is missing");
            return mark(self.dress(refused), CacheOutcome::Miss);
        }
        log_reason(match held {
            Some(_) => "the tag is older than CACHE_TAG_TTL: upstream is to confirm it",
            None => "the cache has the tag in no type that the client accepts: upstream is asked",
        });
        let lookup = TagLookup {
            pull: self,
            tag,
            partition: &partition,
        };
        if let (Some(held), Err(why)) = (&held, exchange.upstream()) {
            return self.answer(&key, lookup.as_stale(held, why));
        }
        let flight = format!("{key} {partition}");
        let shared = self.share(&flight, || match &held {
            Some(held) => lookup.revalidate(held),
            None => lookup.fetch(),
        });
        match (shared, &held) {
            // Another client asks for too long: upstream is out of reach for this one.
            (ManifestLookup::Failed(error), Some(held)) => {
                self.answer(&key, lookup.as_stale(held, error))
            }
            (shared, _) => self.answer(&key, shared),
        }
    }

    /// Finds the manifest of the tag for this client: the one that was confirmed last, under its
    /// `CACHE_KEY` or for all clients.
    fn find(&self, partition: &str, tag: &Tag, is_frozen: bool) -> Option<TaggedManifest> {
        let client = &self.exchange.request.headers;
        let find = |partition| self.cache.find_tagged(self.scope, partition, tag, client);
        let own = find(partition);
        if partition == FOR_ALL || (is_frozen && own.is_some()) {
            return own;
        }
        let found = own.into_iter().chain(find(FOR_ALL));
        found.max_by_key(|found| found.confirmed)
    }

    /// Finds the digest of a frozen tag when the cache has the tag but has lost its manifest.
    fn find_lost(&self, partition: &str, tag: &Tag) -> Option<Digest> {
        let client = &self.exchange.request.headers;
        let accepts = |entry: &TagEntry| media_type::accepts(client, &entry.media_type);
        let partitions = [partition, FOR_ALL].into_iter();
        let mut entries = partitions.flat_map(|of| self.cache.names.tag(self.scope, of, tag));
        entries.find(accepts).map(|entry| entry.digest)
    }

    /// The answer when nothing is cached and upstream must not be asked.
    fn absent(&self) -> Option<Reply> {
        absent::manifest(self.exchange, self.cache, self.scope, self.reference)
    }

    /// Names the manifest, and what the client accepts: another type may be another manifest.
    fn key(&self, name: &str) -> String {
        let accept = self.exchange.request.headers.join_values("Accept");
        let accept = accept.unwrap_or_default();
        format!("{} manifests/{name} accept={accept}", self.scope)
    }

    /// Asks upstream once for all clients that ask under the same key since the repository was last
    /// changed. Each waits until its own deadline. All share a failure too: a client that asked
    /// again after it would wait twice as long.
    fn share(&self, key: &str, ask: impl FnOnce() -> ManifestLookup) -> ManifestLookup {
        let (flights, deadline) = (&self.exchange.parts.manifests, self.exchange.deadline);
        let changed = self.cache.names.changes.last(self.scope, Fact::Contents);
        let key = format!("{key} {changed:?}");
        let shared = flights.run(&key, deadline, ask);
        shared.unwrap_or_else(|| match self.exchange.time_left() {
            Err(late) => ManifestLookup::Failed(late),
            // The client that asked for all has ended without a result.
            Ok(_) => self.fetch(),
        })
    }

    /// A manifest that another repository brought into the cache: one HEAD shows whether it is in
    /// this one too, and no second download is needed.
    fn adopt(&self, digest: &Digest) -> Option<Manifest> {
        if !self.cache.store.has(digest) {
            return None;
        }
        let headers = headers::for_cache(&self.exchange.request.headers);
        let reply = self.ask("HEAD", &headers, HEAD_TIMEOUT).ok()?;
        let media_type = media_type::read(&reply.headers)?;
        let named = reply.headers.first(DIGEST_FIELD);
        if reply.status != 200 || named != Some(digest.as_str()) {
            return None;
        }
        let bytes = self.cache.manifest_bytes(digest)?;
        let description = SelfDescription::read(&bytes, Some(&media_type))?;
        let media_type = description.media_type.unwrap_or(media_type);
        self.cache
            .link_manifest(self.scope, digest, &media_type, &bytes, self.asked_at);
        Some(Manifest {
            digest: digest.clone(),
            media_type,
            body: self.cache.manifest_body(digest)?,
        })
    }

    /// Downloads the manifest, verifies and keeps it.
    fn fetch(&self) -> ManifestLookup {
        let headers = headers::for_cache(&self.exchange.request.headers);
        let reply = self.ask("GET", &headers, HEAD_TIMEOUT);
        let lookup = reply.and_then(|reply| self.receive(reply));
        lookup.unwrap_or_else(ManifestLookup::Failed)
    }

    fn ask(
        &self,
        method: &str,
        headers: &Headers,
        patience: Duration,
    ) -> Result<Incoming, UpstreamError> {
        let (repository, name) = (self.scope.repository, self.reference.as_str());
        let target = format!("/v2/{repository}/manifests/{name}");
        self.exchange.ask(method, &target, headers, patience)
    }

    fn receive(&self, mut reply: Incoming) -> Result<ManifestLookup, UpstreamError> {
        let registry = self.scope.registry;
        if reply.status != 200 {
            let limit = ERROR_DOCUMENT_BYTES_MAX;
            let body = content::read_whole(&mut *reply.body, reply.length, limit, registry)?;
            return Ok(ManifestLookup::Refused(Buffered {
                status: reply.status,
                headers: reply.headers,
                body,
            }));
        }
        content::refuse_encoded(&reply.headers, registry)?;
        let limit = MANIFEST_BYTES_MAX;
        let bytes = content::read_whole(&mut *reply.body, reply.length, limit, registry)?;
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Ok(ManifestLookup::TooLarge);
        }
        let content_type = media_type::read(&reply.headers);
        let description =
            content::describe(&bytes, content_type.as_deref(), self.reference, registry)?;
        let buffered = Buffered {
            status: reply.status,
            headers: reply.headers,
            body: bytes,
        };
        if description.is_signed {
            return Ok(ManifestLookup::Signed(buffered));
        }
        let (bytes, named) = (&buffered.body, buffered.headers.first(DIGEST_FIELD));
        let media_type = description.media_type.or(content_type);
        let mut manifest = Manifest {
            digest: content::verify(self.reference, bytes, named, registry)?,
            // The type in the document is the same for all tags that lead to it.
            media_type: media_type.unwrap_or_else(|| "application/octet-stream".to_owned()),
            body: WholeBody::Bytes(bytes.clone()),
        };
        if !media_type::accepts(&self.exchange.request.headers, &manifest.media_type) {
            return Ok(ManifestLookup::Unaccepted(buffered));
        }
        let freshness = match find_stale_reason(registry, &buffered.headers) {
            Some(error) => Freshness::Stale(error, confirmed_at(&buffered.headers)),
            None => Freshness::Fetched(confirmed_at(&buffered.headers)),
        };
        let (cache, asked_at) = (self.cache, self.asked_at);
        if cache.keep_manifest(self.scope, &mut manifest, asked_at) {
            self.queue_referrers(&manifest.digest);
        }
        Ok(ManifestLookup::Found(manifest, freshness))
    }

    /// With `FILL_REFERRERS`, has the referrers of the manifest fetched, too.
    fn queue_referrers(&self, digest: &Digest) {
        let exchange = self.exchange;
        if let Some(queue) = &exchange.parts.referrer_queue {
            let client = OwnClient {
                scope: self.scope.to_owned(),
                like: Arc::clone(&exchange.request),
                depth: exchange.depth,
                purpose: exchange.purpose,
            };
            let digest = digest.clone();
            queue.add(QueuedImage { client, digest }, self.reference);
        }
    }

    fn answer(&self, key: &str, lookup: ManifestLookup) -> Reply {
        match lookup {
            ManifestLookup::Failed(error) => fail_miss(&error),
            ManifestLookup::Found(manifest, freshness) => self.serve_found(&manifest, &freshness),
            ManifestLookup::Refused(refused) => {
                if refusal::is_registrys_404(&refused) {
                    let (fact, answer) = (self.absence(), refused.clone());
                    self.cache
                        .remember_missing(self.scope, fact, key, answer, self.asked_at);
                }
                mark(self.dress(refused), CacheOutcome::Miss)
            }
            ManifestLookup::Signed(manifest) | ManifestLookup::Unaccepted(manifest) => {
                mark(self.dress(manifest), CacheOutcome::Bypass)
            }
            ManifestLookup::TooLarge => {
                let reply = forward(self.exchange, self.reference);
                mark(reply, CacheOutcome::Bypass)
            }
        }
    }

    /// Answers with a manifest that upstream has sent, has confirmed, or could not confirm.
    fn serve_found(&self, manifest: &Manifest, freshness: &Freshness) -> Reply {
        let age = age(confirmed(freshness));
        let reply = match freshness {
            Freshness::Fetched(_) => self.serve(manifest, CacheOutcome::Miss),
            Freshness::Revalidated(_) => self.serve(manifest, CacheOutcome::Revalidated),
            Freshness::Stale(error, _) => {
                let reply = self.serve(manifest, CacheOutcome::Stale);
                return mark_stale(reply, error).with("Age", age.to_string());
            }
        };
        match age {
            0 => reply,
            age => reply.with("Age", age.to_string()),
        }
    }

    /// The fact that a 404 states.
    const fn absence(&self) -> Fact<'_> {
        match self.reference {
            Reference::Digest(digest) => Fact::Absent(digest),
            Reference::Tag(tag) => Fact::Tag(tag),
        }
    }

    /// Makes upstream's own answer what the client gets.
    fn dress(&self, buffered: Buffered) -> Reply {
        let method = &self.exchange.request.method;
        let reply = self.exchange.dress_buffered(method, buffered);
        finish(self.exchange, self.reference, reply)
    }

    fn serve(&self, manifest: &Manifest, outcome: CacheOutcome) -> Reply {
        let etag = format!("\"{}\"", manifest.digest);
        let unchanged = conditional::is_not_modified(&self.exchange.request.headers, &etag);
        let length = Some(manifest.body.length());
        let (status, body) = match (unchanged, self.exchange.is_head()) {
            (true, _) => (304, Body::empty()),
            (false, true) => (200, Body::Empty { length }),
            (false, false) => (200, manifest.body.clone().into()),
        };
        let headers = Headers::from_iter([
            API_VERSION,
            ("Content-Type", &manifest.media_type),
            (DIGEST_FIELD, manifest.digest.as_str()),
            ("ETag", &etag),
        ]);
        let reply = Reply {
            status,
            headers,
            body,
            outcome: LogNote::default(),
        };
        mark(reply, outcome)
    }
}

/// Asking upstream what a tag means.
struct TagLookup<'a> {
    pull: &'a ManifestPull<'a>,
    tag: &'a Tag,
    partition: &'a str,
}

impl TagLookup<'_> {
    /// Downloads what the tag means, and keeps it.
    fn fetch(&self) -> ManifestLookup {
        let (pull, lookup) = (self.pull, self.pull.fetch());
        if let ManifestLookup::Found(manifest, freshness) = &lookup {
            let (scope, partition, asked_at) = (pull.scope, self.partition, pull.asked_at);
            let shown = (manifest, confirmed(freshness));
            pull.cache
                .keep_tag(scope, partition, self.tag, shown, asked_at);
        }
        lookup
    }

    /// Asks whether the tag still means what the cache holds, and fetches what else it means.
    fn revalidate(&self, held: &TaggedManifest) -> ManifestLookup {
        let (pull, manifest) = (self.pull, &held.manifest);
        let headers = headers::for_cache(&pull.exchange.request.headers);
        let headers = accept_also(headers, &manifest.media_type);
        let reply = match pull.ask("HEAD", &headers, STALE_PATIENCE) {
            Ok(reply) => reply,
            Err(error) => return self.as_stale(held, error),
        };
        match (reply.status, reply.headers.first(DIGEST_FIELD)) {
            (200, Some(named)) if named == manifest.digest.as_str() => {
                log_reason("upstream confirmed the tag");
                let (scope, asked_at) = (pull.scope, pull.asked_at);
                let shown = (&manifest.digest, &reply.headers);
                let confirmed =
                    pull.cache
                        .confirm_tag(scope, self.partition, self.tag, shown, asked_at);
                let freshness = match find_stale_reason(scope.registry, &reply.headers) {
                    Some(error) => Freshness::Stale(error, confirmed),
                    None => Freshness::Revalidated(confirmed),
                };
                ManifestLookup::Found(manifest.clone(), freshness)
            }
            // The 404 to a HEAD has no body, which would show whether it is the registry's own.
            (200 | 404, _) => {
                log_reason("upstream names another manifest, or none: it is fetched");
                self.replace(held)
            }
            (status, _) => self.as_stale(held, self.unexpected_status(status)),
        }
    }

    /// Fetches what the tag means instead of what the cache holds. Anything but a manifest or a
    /// registry's own 404 is an outage.
    fn replace(&self, held: &TaggedManifest) -> ManifestLookup {
        let (pull, cache) = (self.pull, self.pull.cache);
        match self.fetch() {
            ManifestLookup::Failed(error) => self.as_stale(held, error),
            ManifestLookup::Refused(refused) if refusal::is_registrys_404(&refused) => {
                let names = &cache.names;
                names.remove_missing_tag(pull.scope, self.tag, pull.asked_at);
                cache.sweeper.mark_dirty();
                ManifestLookup::Refused(refused)
            }
            ManifestLookup::Refused(refused) => {
                self.as_stale(held, self.unexpected_status(refused.status))
            }
            ManifestLookup::Unaccepted(_) => {
                let reason = "it sent a type that was not asked for".to_owned();
                self.as_stale(held, self.fault(reason))
            }
            lookup => {
                if let ManifestLookup::Found(new, _) = &lookup
                    && new.media_type != held.manifest.media_type
                {
                    cache.note_move(pull.scope, self.tag, &held.manifest.digest, &new.digest);
                }
                lookup
            }
        }
    }

    /// Answers with what the cache holds, because upstream could not confirm it.
    fn as_stale(&self, held: &TaggedManifest, error: UpstreamError) -> ManifestLookup {
        let fields: [log::Field<'_>; 1] = [("tag", &self.tag.as_str())];
        log::cause(Level::Info, "tag served stale", ("reason", &error), &fields);
        let freshness = Freshness::Stale(error, held.confirmed);
        ManifestLookup::Found(held.manifest.clone(), freshness)
    }

    fn unexpected_status(&self, status: u16) -> UpstreamError {
        self.fault(match status {
            404 => "its 404 is not the registry's own".to_owned(),
            status => format!("it answered {status}"),
        })
    }

    fn fault(&self, reason: String) -> UpstreamError {
        UpstreamError::at(self.pull.scope.registry, Stage::Transfer, reason)
    }
}

/// When the registry itself last confirmed a manifest.
const fn confirmed(freshness: &Freshness) -> SystemTime {
    match freshness {
        Freshness::Fetched(at) | Freshness::Revalidated(at) | Freshness::Stale(_, at) => *at,
    }
}

/// Finds why the answer of another proxy is stale; none when the registry has confirmed it.
fn find_stale_reason(registry: &Registry, headers: &Headers) -> Option<UpstreamError> {
    headers
        .first("X-Cache")
        .filter(|outcome| *outcome == "STALE")?;
    let why = headers.first("Warning").unwrap_or("no reason given");
    let reason = format!("it answers from its cache ({why})");
    Some(UpstreamError::at(registry, Stage::Transfer, reason))
}

/// Adds the type that the cache holds to `Accept`: some registries (docker-registry, for OCI's
/// types) answer 404 to a client that accepts anything but does not name the type. One curl would
/// then remove the image from the cache for everybody.
fn accept_also(mut headers: Headers, media_type: &str) -> Headers {
    match headers.join_values("Accept") {
        Some(accept) if accept.contains(media_type) => {}
        Some(accept) => headers.set("Accept", format!("{media_type}, {accept}")),
        None => headers.set("Accept", format!("{media_type}, */*")),
    }
    headers
}
