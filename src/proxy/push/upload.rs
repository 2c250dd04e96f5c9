//! Blobs on their way in. Owns: the fields of the upload protocol (distribution-spec "Pushing
//! Blobs"), what ECR does otherwise, and the copy for the cache. Must not: wait for that copy, or
//! learn the state of an upload from anything but the bytes that came through here.

use std::io::{self, Read};
use std::sync::Arc;

use super::fields::{is_gone, is_success, lacks, supply, supply_digest};
use crate::cache::Cache;
use crate::cache::fill::BlobRequest;
use crate::cache::names::{OwnedScope, Scope};
use crate::cache::uploads::{Upload, Uploads};
use crate::message::{Reply, RequestBody};
use crate::oci::{Digest, Repository};
use crate::proxy::exchange::Exchange;
use crate::proxy::headers::DIGEST_FIELD;
use crate::range;
use crate::transfers::{Running, TRANSFERS, Transfer, TransferKind};
use crate::upstream::UpstreamError;

/// The part of a path before the name of an upload.
const UPLOADS: &str = "/blobs/uploads/";
/// Names the upload for clients older than the specification; ECR leaves it out.
const UUID_FIELD: &str = "Docker-Upload-UUID";

/// POST: begins an upload, brings a blob in one request, or mounts one.
pub(in crate::proxy) fn begin(
    exchange: &Exchange,
    repository: &Repository,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let whole = digest_parameter(exchange, "digest");
    let has_body = body.length() != Some(0);
    let mut upload = cache(exchange).and_then(|cache| {
        let digest = whole.as_ref().filter(|_| has_body)?;
        (!cache.store.has(digest)).then(Upload::default)
    });
    let digest = whole.or_else(|| digest_parameter(exchange, "mount"));
    let wanted = blob_request(exchange, repository, digest.as_ref());
    let mut reply = forward(exchange, repository, digest.as_ref(), body, upload.as_mut())?;
    match reply.status {
        // A registry may begin an upload all the same, and wait for the blob.
        202 => {
            supply(&mut reply, "Range", "0-0".to_owned());
            let name = learn_name(exchange, repository, &mut reply);
            if let (Some(cache), Some(name)) = (cache(exchange), name) {
                cache.uploads.keep(&name, Upload::default());
            }
        }
        201 => {
            if let Some(digest) = digest {
                complete(exchange, wanted, upload, &digest, &mut reply);
            }
        }
        _ => {}
    }
    Ok(reply)
}

/// Passes on a request about an upload that was begun: PATCH, PUT, DELETE or GET.
pub(in crate::proxy) fn go_on(
    exchange: &Exchange,
    repository: &Repository,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let path = exchange
        .resolved
        .target
        .split('?')
        .next()
        .unwrap_or_default();
    let name = session(path).map(|session| qualify_name(exchange, repository, session));
    let name = name.unwrap_or_default();
    match exchange.request.method.as_str() {
        "PATCH" => patch(exchange, repository, &name, body),
        "PUT" => put(exchange, repository, &name, body),
        "DELETE" => exchange.forward(body).inspect(|reply| {
            if let (Some(cache), true) = (cache(exchange), is_gone(reply)) {
                cache.uploads.forget(&name);
            }
        }),
        _ => {
            let mut reply = exchange.forward(body)?;
            if is_success(&reply) {
                let next = learn_name(exchange, repository, &mut reply);
                if let (Some(cache), Some(next)) = (cache(exchange), next)
                    && let Some(upload) = cache.uploads.take(&name, None)
                {
                    cache.uploads.keep(&next, upload);
                }
            }
            Ok(reply)
        }
    }
}

fn patch(
    exchange: &Exchange,
    repository: &Repository,
    name: &str,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let chunk = chunk_range(exchange);
    let mut upload = take(exchange, name, chunk.map(|(start, _)| start));
    let mut reply = forward(exchange, repository, None, body, upload.as_mut())?;
    match reply.status {
        // ECR says 201 (containers-roadmap#2831), the specification 202.
        201 => reply.status = 202,
        200..=299 => {}
        _ => return Ok(reply),
    }
    if let Some((_, end)) = chunk {
        supply(&mut reply, "Range", format!("0-{end}"));
    }
    let next = learn_name(exchange, repository, &mut reply);
    if let Some(cache) = cache(exchange) {
        match upload {
            Some(upload) => cache.uploads.keep(next.as_deref().unwrap_or(name), upload),
            // Its beginning is missing here, or it is not what upstream has now.
            None => cache.uploads.forget(name),
        }
    }
    Ok(reply)
}

fn put(
    exchange: &Exchange,
    repository: &Repository,
    name: &str,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let digest = digest_parameter(exchange, "digest");
    let start = chunk_range(exchange).map(|(start, _)| start);
    let mut upload = take(exchange, name, start);
    if let (Some(cache), Some(digest)) = (cache(exchange), &digest)
        && cache.store.has(digest)
    {
        upload = None;
    }
    let wanted = blob_request(exchange, repository, digest.as_ref());
    let mut reply = forward(exchange, repository, digest.as_ref(), body, upload.as_mut())?;
    if let (true, Some(digest)) = (is_success(&reply), digest) {
        complete(exchange, wanted, upload, &digest, &mut reply);
        if let Some(cache) = cache(exchange) {
            cache.uploads.forget(name);
        }
    }
    Ok(reply)
}

/// Passes the request on, with a copy of its body for the cache. While it has a body it is a listed
/// transfer.
fn forward(
    exchange: &Exchange,
    repository: &Repository,
    digest: Option<&Digest>,
    body: &mut RequestBody<'_>,
    upload: Option<&mut Upload>,
) -> Result<Reply, UpstreamError> {
    let length = body.length();
    if length == Some(0) {
        return exchange.forward(body);
    }
    let subject = exchange.subject(repository, digest);
    let transfer = TRANSFERS.list(Transfer::new(TransferKind::Push, false, subject, length));
    let keep = cache(exchange).zip(upload).map(|(cache, upload)| {
        cache.uploads.expect(upload, length.unwrap_or_default());
        (&cache.uploads, upload)
    });
    let mut watched = Watched {
        body,
        transfer,
        keep,
    };
    exchange.forward(&mut RequestBody::new(&mut watched, length))
}

/// Counts what is read from a body, and hands it to the cache if it is to be kept.
struct Watched<'a, 'b> {
    body: &'a mut RequestBody<'b>,
    transfer: Running,
    keep: Option<(&'a Arc<Uploads>, &'a mut Upload)>,
}

impl Read for Watched<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(into)?;
        self.transfer.add(count as u64);
        if let Some((uploads, upload)) = &mut self.keep {
            uploads.push(upload, into.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

fn cache(exchange: &Exchange) -> Option<&Cache> {
    exchange.parts.cache.as_deref()
}

fn take(exchange: &Exchange, name: &str, start: Option<u64>) -> Option<Upload> {
    cache(exchange)?.uploads.take(name, start)
}

/// Describes the blob that upstream is about to get; none without a cache.
fn blob_request(
    exchange: &Exchange,
    repository: &Repository,
    digest: Option<&Digest>,
) -> Option<BlobRequest> {
    let asked_at = cache(exchange)?.now();
    let scope = OwnedScope {
        registry: exchange.registry.clone(),
        repository: repository.clone(),
    };
    Some(BlobRequest {
        scope,
        digest: digest?.clone(),
        asked_at,
        is_background: false,
    })
}

/// Ends a push that upstream has taken: the cache takes the blob too, and the client gets the
/// fields that are owed to it. `upload`: the copy of what upstream was given.
fn complete(
    exchange: &Exchange,
    wanted: Option<BlobRequest>,
    upload: Option<Upload>,
    digest: &Digest,
    reply: &mut Reply,
) {
    if let (Some(cache), Some(wanted)) = (cache(exchange), wanted) {
        let named = reply.headers.first(DIGEST_FIELD) == Some(digest.as_str());
        cache.commit_upload(&wanted, upload, named);
    }
    supply_digest(exchange, reply, digest, "/blobs/uploads", "/blobs/");
}

/// Passes the DELETE of a blob on.
pub(in crate::proxy) fn delete_blob(
    exchange: &Exchange,
    repository: &Repository,
    digest: &Digest,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    exchange.forward(body).inspect(|reply| {
        if let (Some(cache), true) = (cache(exchange), is_gone(reply)) {
            let registry = &exchange.registry;
            let scope = Scope {
                registry,
                repository,
            };
            cache.note_deleted_blob(scope, digest);
        }
    })
}

/// Learns the upload's name from the reply, after supplying the fields that name it.
fn learn_name(exchange: &Exchange, repository: &Repository, reply: &mut Reply) -> Option<String> {
    let begun = exchange.request.method == "POST";
    if !begun && lacks(reply, "Location") {
        let (origin, target) = (exchange.client_address().origin, &exchange.request.target);
        reply.headers.set("Location", format!("{origin}{target}"));
    }
    let location = reply.headers.first("Location")?;
    let path = location.split('?').next().unwrap_or_default();
    let session = session(path)?.to_owned();
    if !session.contains('/') {
        supply(reply, UUID_FIELD, session.clone());
    }
    Some(qualify_name(exchange, repository, &session))
}

/// The registry's own name for an upload, from the path of a URL.
fn session(path: &str) -> Option<&str> {
    let (_, session) = path.rsplit_once(UPLOADS)?;
    (!session.is_empty()).then_some(session)
}

/// Makes a name for an upload that no upload of another registry or repository has.
fn qualify_name(exchange: &Exchange, repository: &Repository, session: &str) -> String {
    format!("{} {repository} {session}", exchange.registry)
}

/// The digest in a parameter of the query.
fn digest_parameter(exchange: &Exchange, name: &str) -> Option<Digest> {
    exchange.resolved.query.get(name)?.parse().ok()
}

fn chunk_range(exchange: &Exchange) -> Option<(u64, u64)> {
    let headers = &exchange.request.headers;
    headers.first("Content-Range").and_then(range::parse_chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions() {
        assert_eq!(session("/v2/a/blobs/uploads/1"), Some("1"));
        assert_eq!(session("http://p/v2/a/blobs/uploads/x/y"), Some("x/y"));
        assert_eq!(session("/v2/a/blobs/uploads/"), None);
        assert_eq!(session("/v2/a/blobs/sha256:0"), None);
    }
}
