//! Blobs through the cache. Owns: hit, growing file, cold range, belonging. Must not: write a file
//! (the cache does), or serve a blob to a repository that upstream has not shown it in.

use std::sync::Arc;
use std::time::Instant;

use super::answer::{API_VERSION, CacheOutcome, fail_miss, log_reason, mark, or_fail, refuse};
use super::conditional::{self, RangeSpec, Selected};
use super::content::{self, BLOB_CACHE_CONTROL};
use super::exchange::Exchange;
use super::headers::DIGEST_FIELD;
use super::purpose::Purpose;
use super::{absent, headers, refusal};
use crate::cache::Cache;
use crate::cache::changes::{Fact, Moment};
use crate::cache::fill::{BlobRequest, Growing, Joined};
use crate::cache::names::Scope;
use crate::cache::verify::Opened;
use crate::log;
use crate::message::{Body, Buffered, Headers, LogNote, Reply};
use crate::oci::{Digest, ErrorCode, OciError, Repository};
use crate::transfers::{TRANSFERS, Transfer, TransferKind};
use crate::upstream::UpstreamError;
use crate::upstream::exchange::HEAD_TIMEOUT;
use crate::upstream::incoming::Incoming;

/// A cold range that begins this far ahead of the download is fetched on its own: at 10 MB/s the
/// client would wait a second for it.
const RANGE_AHEAD_BYTES: u64 = 8 << 20;

/// Answers GET and HEAD of a blob.
pub(super) fn get(exchange: &Exchange, repository: &Repository, digest: &Digest) -> Reply {
    if exchange.passes_redirect() {
        let client = &exchange.request.headers;
        let reply = exchange.forward_unfollowed();
        let reply = reply.map(|reply| content::finish_blob(reply, digest, client));
        return mark(or_fail(reply), CacheOutcome::Bypass);
    }
    let mut reply = find(exchange, repository, digest);
    list_pull(exchange, repository, digest, &mut reply, None);
    reply
}

/// Lists the transfer of the blob to the client, unless it is listed already.
fn list_pull(
    exchange: &Exchange,
    repository: &Repository,
    digest: &Digest,
    reply: &mut Reply,
    fill: Option<&Arc<Transfer>>,
) {
    let from_cache = matches!(reply.body, Body::Pieces { .. });
    let has_body = from_cache || matches!(reply.body, Body::Stream { .. });
    if !has_body || reply.outcome.transfer.is_some() || !matches!(reply.status, 200 | 206) {
        return;
    }
    let subject = exchange.subject(repository, Some(digest));
    let mut pull = Transfer::new(TransferKind::Pull, from_cache, subject, reply.body.length());
    pull.joined = fill.map(Arc::clone);
    reply.outcome.transfer = Some(Arc::new(TRANSFERS.list(pull)));
}

fn find(exchange: &Exchange, repository: &Repository, digest: &Digest) -> Reply {
    match &exchange.parts.cache {
        None => finish(exchange, digest, exchange.forward_bodiless()),
        Some(cache) => {
            let registry = &exchange.registry;
            let scope = Scope {
                registry,
                repository,
            };
            let pull = BlobPull {
                exchange,
                cache,
                scope,
                digest,
                asked_at: cache.now(),
            };
            pull.answer()
        }
    }
}

/// Upstream's answer as the client gets it.
fn finish(exchange: &Exchange, digest: &Digest, reply: Result<Reply, UpstreamError>) -> Reply {
    let client = &exchange.request.headers;
    let reply = or_fail(reply.map(|reply| content::finish_blob(reply, digest, client)));
    let range = conditional::requested_range(client, &etag(digest));
    let is_whole = reply.status == 200 && !exchange.is_head();
    match reply.body.length() {
        // Hosts differ in their answers to such a range, so upstream was asked for the whole blob.
        Some(size) if is_whole && range == RangeSpec::Inverted && size > 0 => Reply {
            outcome: reply.outcome,
            ..refuse_range(digest, size)
        },
        _ => reply,
    }
}

/// A request for a blob that may be answered from the cache.
struct BlobPull<'a> {
    exchange: &'a Exchange,
    cache: &'a Arc<Cache>,
    scope: Scope<'a>,
    digest: &'a Digest,
    /// When upstream was asked. If the repository is changed after that, the answer is not kept.
    asked_at: Moment,
}

impl BlobPull<'_> {
    fn answer(&self) -> Reply {
        let found = self.cache.open_blob(self.scope, self.digest, self.asked_at);
        match found {
            Ok(Some(found)) if found.is_linked => {
                log_reason("the cache has the blob, linked in this repository");
                self.serve_stored(found.blob)
            }
            Ok(found) => self.answer_unproven(found.map(|found| found.blob)),
            Err(error) => {
                self.cache.disk_faults.report("blob", &error);
                self.bypass()
            }
        }
    }

    /// Answers when the repository has no link to the blob. `blob`: another repository brought it
    /// into the cache.
    fn answer_unproven(&self, blob: Option<Opened>) -> Reply {
        if let Some(why) = self.exchange.cache_alone() {
            return match blob {
                Some(blob) if self.is_named_here() => self.serve_stored(blob),
                _ => absent::blob(why, self.cache, self.scope, self.digest),
            };
        }
        let key = format!("{} blobs/{}", self.scope, self.digest);
        if let Some(refused) = self.cache.negative.get(&key, Instant::now()) {
            log_reason("upstream said a moment ago that it is missing");
            return self.answer_refused(refused);
        }
        log_reason(match (&blob, self.exchange.is_head()) {
            (Some(_), _) => "stored, not linked in this repository: upstream is asked",
            (None, true) => "the cache has no such blob: the HEAD is passed on",
            (None, false) => "the cache has no such blob: its download is joined or begun",
        });
        match blob {
            Some(blob) => self.if_belonging(|| self.serve_stored(blob)),
            // A HEAD does not download.
            None if self.exchange.is_head() => self.answer_cold_head(),
            None => self.join(&key),
        }
    }

    /// Joins the download, or begins it.
    fn join(&self, key: &str) -> Reply {
        let wanted = BlobRequest {
            scope: self.scope.to_owned(),
            digest: self.digest.clone(),
            asked_at: self.asked_at,
            is_background: self.exchange.purpose == Purpose::Prefetch,
        };
        match self.cache.fills.join(&wanted) {
            Joined::Growing(growing) => self.serve_growing(&growing),
            Joined::Unproven(growing) => self.if_belonging(|| self.serve_growing(&growing)),
            Joined::Failed(error) => fail_miss(&error),
            Joined::Refused(refused) => {
                // A 404 that is not the registry's own may be gone in a moment.
                if refusal::is_registrys_404(&refused) {
                    let (fact, answer) = (Fact::Absent(self.digest), refused.clone());
                    self.cache
                        .remember_missing(self.scope, fact, key, answer, self.asked_at);
                }
                self.answer_refused(refused)
            }
            Joined::Bypass(Some(fetched)) if self.requested_range() == RangeSpec::Whole => {
                let reply = self.exchange.dress_fetched(fetched);
                let reply = finish(self.exchange, self.digest, reply);
                mark(reply, CacheOutcome::Bypass)
            }
            Joined::Bypass(_) => self.bypass(),
        }
    }

    /// Gives the answer if the blob belongs to the repository: a manifest there names it, or
    /// upstream shows it there now.
    fn if_belonging(&self, answer: impl FnOnce() -> Reply) -> Reply {
        if self.cache.names.link(self.scope, self.digest).is_some() {
            return answer();
        }
        match self.head() {
            // A middlebox answers 200 to anything, but it does not name the blob.
            Ok(reply) if reply.status == 200 && self.is_named_by(&reply) => {
                self.cache.link_blob(self.scope, self.digest, self.asked_at);
                answer()
            }
            // The client's own request is passed on, so that it gets upstream's own answer.
            Ok(_) => self.bypass(),
            Err(_) if self.is_named_here() => answer(),
            Err(error) => fail_miss(&error),
        }
    }

    /// True when a cached manifest of the repository names the blob. A crash may lose a link, which
    /// is written without fsync. The image must not be lost with it when upstream cannot be asked.
    fn is_named_here(&self) -> bool {
        let is_named = self.cache.holdings().is_named(self.scope, self.digest);
        if is_named {
            self.cache.link_blob(self.scope, self.digest, self.asked_at);
        }
        is_named
    }

    fn is_named_by(&self, reply: &Incoming) -> bool {
        reply.headers.first(DIGEST_FIELD) == Some(self.digest.as_str())
    }

    /// Asks upstream for the blob's head.
    fn head(&self) -> Result<Incoming, UpstreamError> {
        let target = format!("/v2/{}/blobs/{}", self.scope.repository, self.digest);
        let headers = headers::for_cache(&self.exchange.request.headers);
        self.exchange.ask("HEAD", &target, &headers, HEAD_TIMEOUT)
    }

    /// Passes the request on without keeping anything.
    fn bypass(&self) -> Reply {
        let reply = self.exchange.forward_bodiless();
        let reply = finish(self.exchange, self.digest, reply);
        mark(reply, CacheOutcome::Bypass)
    }

    /// Answers with upstream's own refusal.
    fn answer_refused(&self, refused: Buffered) -> Reply {
        let method = &self.exchange.request.method;
        let reply = self.exchange.dress_buffered(method, refused);
        mark(
            finish(self.exchange, self.digest, reply),
            CacheOutcome::Miss,
        )
    }

    fn answer_cold_head(&self) -> Reply {
        let mut reply = self.bypass();
        if matches!(reply.status, 200 | 304) {
            // The GET that follows is answered from here, and ranges work here.
            reply.headers.set("Accept-Ranges", "bytes");
        }
        mark(reply, CacheOutcome::Miss)
    }

    /// A complete blob.
    fn serve_stored(&self, blob: Opened) -> Reply {
        let (size, is_head) = (blob.size(), self.exchange.is_head());
        let selected = self.select(size);
        let reply = make_selected(self.digest, selected, size, |start, end| match is_head {
            true => Body::Empty {
                length: Some(end - start),
            },
            false => blob.body(start, end),
        });
        mark(reply, CacheOutcome::Hit)
    }

    /// A blob that is still being downloaded.
    fn serve_growing(&self, growing: &Arc<Growing>) -> Reply {
        let total = growing.total();
        let selected = self.select(total);
        if let Some(Selected::Part { start, .. }) = selected
            && start > growing.written() + RANGE_AHEAD_BYTES
        {
            log::debug(
                "range far ahead of the download",
                &[("digest", self.digest), ("at", &start)],
            );
            return self.bypass();
        }
        let body = |start, end| growing.body(start, end);
        let reply = make_selected(self.digest, selected, total, body);
        let mut reply = mark(reply, CacheOutcome::Miss);
        let (repository, fill) = (self.scope.repository, Some(&growing.transfer));
        list_pull(self.exchange, repository, self.digest, &mut reply, fill);
        reply
    }

    /// The part of a blob of this size that the client gets; none when it holds the blob already.
    fn select(&self, size: u64) -> Option<Selected> {
        conditional::select(&self.exchange.request, &etag(self.digest), size)
    }

    fn requested_range(&self) -> RangeSpec {
        conditional::requested_range(&self.exchange.request.headers, &etag(self.digest))
    }
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Refuses a range behind the end. The answer has no `Cache-Control`: a cache on the way must not
/// take it for the blob.
fn refuse_range(digest: &Digest, size: u64) -> Reply {
    let why = format!("blob {digest} has {size} bytes: the range begins behind its end");
    refuse(&OciError::new(ErrorCode::RangeInvalid, why))
        .with("Content-Range", format!("bytes */{size}"))
        .with("Accept-Ranges", "bytes")
        // Registries name the digest of the blob here, not that of the error document.
        .with(DIGEST_FIELD, digest.to_string())
}

/// Answers with what is selected of a blob of this size; nothing of it when the client holds it.
fn make_selected(
    digest: &Digest,
    selected: Option<Selected>,
    size: u64,
    body: impl FnOnce(u64, u64) -> Body,
) -> Reply {
    match selected {
        None => make_reply(digest, 304, Body::empty()),
        Some(Selected::Whole) => make_reply(digest, 200, body(0, size)),
        Some(Selected::Unsatisfiable) => refuse_range(digest, size),
        Some(Selected::Part { start, end }) => {
            let range = format!("bytes {start}-{}/{size}", end - 1);
            make_reply(digest, 206, body(start, end)).with("Content-Range", range)
        }
    }
}

fn make_reply(digest: &Digest, status: u16, body: Body) -> Reply {
    let headers = Headers::from_iter([
        (API_VERSION.0, API_VERSION.1.to_owned()),
        (DIGEST_FIELD, digest.to_string()),
        ("ETag", etag(digest)),
        ("Content-Type", "application/octet-stream".to_owned()),
        ("Accept-Ranges", "bytes".to_owned()),
        ("Cache-Control", BLOB_CACHE_CONTROL.to_owned()),
    ]);
    Reply {
        status,
        headers,
        body,
        outcome: LogNote::default(),
    }
}
