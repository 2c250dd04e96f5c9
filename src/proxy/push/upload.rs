//! Blobs on their way in. Owns: the fields of the upload protocol (distribution-spec "Pushing
//! Blobs"), ECR's ways with them, and the copy for the cache. Must not: wait for that copy, or know
//! where an upload stands by anything but the bytes that came through here.

use std::io::{self, Read};
use std::sync::Arc;

use super::{Push, is_gone, is_success, supply};
use crate::cache::fill::Wanted;
use crate::cache::uploads::{Upload, Uploads};
use crate::message::{Reply, RequestBody};
use crate::oci::{Digest, Repository};
use crate::proxy::pull::DIGEST_FIELD;
use crate::range;
use crate::upstream::UpstreamError;
use crate::uri;

/// What stands before the name of an upload.
const UPLOADS: &str = "/blobs/uploads/";
/// Names the upload, for clients of before the specification; ECR leaves it out.
const UUID_FIELD: &str = "Docker-Upload-UUID";

/// POST: begins an upload, brings a blob in one request, or mounts one.
pub(super) fn begin(
    push: &Push<'_>,
    repository: &Repository,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let whole = parameter(push, "digest");
    let has_body = body.length() != Some(0);
    let mut upload = push.cache().and_then(|cache| {
        let wanted = whole.as_ref().filter(|_| has_body)?;
        (!cache.store.has(wanted)).then(|| cache.uploads.whole())
    });
    let mut reply = forward(push, body, upload.as_mut())?;
    match reply.status {
        // A registry may begin an upload all the same, and wait for the blob.
        202 => {
            supply(&mut reply, "Range", || Some("0-0".to_owned()));
            let name = answered_name(push, repository, &mut reply);
            if let (Some(cache), Some(name)) = (push.cache(), name) {
                cache.uploads.begin(&name);
            }
        }
        201 => {
            let mounted = parameter(push, "mount");
            if let Some(digest) = whole.or(mounted) {
                taken(push, repository, &digest, &mut reply);
                commit(push, repository, &digest, upload);
            }
        }
        _ => {}
    }
    Ok(reply)
}

/// Everything about an upload that was begun.
pub(super) fn go_on(
    push: &Push<'_>,
    repository: &Repository,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let path = push.exchange.target.split('?').next().unwrap_or_default();
    let name = session(path).map(|session| name(push, repository, session));
    let name = name.unwrap_or_default();
    match push.method() {
        "PATCH" => patch(push, repository, &name, body),
        "PUT" => put(push, repository, &name, body),
        "DELETE" => push.forward(body).inspect(|reply| {
            if let (Some(cache), true) = (push.cache(), is_gone(reply)) {
                cache.uploads.forget(&name);
            }
        }),
        _ => {
            let mut reply = push.forward(body)?;
            if is_success(&reply) {
                let next = answered_name(push, repository, &mut reply);
                if let (Some(cache), Some(next)) = (push.cache(), next)
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
    push: &Push<'_>,
    repository: &Repository,
    name: &str,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let chunk = chunk_range(push);
    let mut upload = take(push, name, chunk.map(|(start, _)| start));
    let mut reply = forward(push, body, upload.as_mut())?;
    if !is_success(&reply) {
        return Ok(reply);
    }
    // ECR says 201 (containers-roadmap#2831), the specification 202.
    if reply.status == 201 {
        reply.status = 202;
    }
    supply(&mut reply, "Range", || {
        chunk.map(|(_, end)| format!("0-{end}"))
    });
    let next = answered_name(push, repository, &mut reply);
    if let Some(cache) = push.cache() {
        match upload {
            Some(upload) => cache.uploads.keep(next.as_deref().unwrap_or(name), upload),
            // Its beginning is missing here, or it is not what upstream has now.
            None => cache.uploads.forget(name),
        }
    }
    Ok(reply)
}

fn put(
    push: &Push<'_>,
    repository: &Repository,
    name: &str,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let digest = parameter(push, "digest");
    let start = chunk_range(push).map(|(start, _)| start);
    let mut upload = take(push, name, start);
    if let (Some(cache), Some(digest)) = (push.cache(), &digest)
        && cache.store.has(digest)
    {
        upload = None;
    }
    let mut reply = forward(push, body, upload.as_mut())?;
    if let (true, Some(digest)) = (is_success(&reply), digest) {
        taken(push, repository, &digest, &mut reply);
        commit(push, repository, &digest, upload);
        if let Some(cache) = push.cache() {
            cache.uploads.forget(name);
        }
    }
    Ok(reply)
}

/// Passes the request on, with a copy of its body for the cache.
fn forward(
    push: &Push<'_>,
    body: &mut RequestBody<'_>,
    upload: Option<&mut Upload>,
) -> Result<Reply, UpstreamError> {
    let (Some(cache), Some(upload)) = (push.cache(), upload) else {
        return push.forward(body);
    };
    let (uploads, length) = (&cache.uploads, body.length());
    uploads.expect(upload, length.unwrap_or_default());
    let mut copied = Copied {
        body,
        uploads,
        upload,
    };
    push.forward(&mut RequestBody::new(&mut copied, length))
}

/// Hands what is read from a body to the cache.
struct Copied<'a, 'b> {
    body: &'a mut RequestBody<'b>,
    uploads: &'a Arc<Uploads>,
    upload: &'a mut Upload,
}

impl Read for Copied<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(into)?;
        let bytes = into.get(..count).unwrap_or_default();
        self.uploads.push(self.upload, bytes);
        Ok(count)
    }
}

fn take(push: &Push<'_>, name: &str, start: Option<u64>) -> Option<Upload> {
    push.cache()?.uploads.take(name, start)
}

/// Upstream has the blob: what it owes the client.
fn taken(push: &Push<'_>, repository: &Repository, digest: &Digest, reply: &mut Reply) {
    push.forget(repository);
    supply(reply, DIGEST_FIELD, || Some(digest.to_string()));
    supply(reply, "Location", || {
        Some(push.own_url("/blobs/uploads", &format!("/blobs/{digest}")))
    });
}

/// Upstream has the blob, and it belongs to the repository: so it does here.
fn commit(push: &Push<'_>, repository: &Repository, digest: &Digest, upload: Option<Upload>) {
    let Some(pull) = &push.pull else {
        return;
    };
    let wanted = Wanted {
        registry: push.registry.clone(),
        repository: repository.clone(),
        digest: digest.clone(),
    };
    let uploads = &pull.cache.uploads;
    if uploads.commit(upload, &wanted) {
        pull.cache.remember(push.registry);
    }
}

/// What the upload is known as after this reply, which is owed what names it.
fn answered_name(push: &Push<'_>, repository: &Repository, reply: &mut Reply) -> Option<String> {
    let begun = matches!(push.method(), "POST");
    supply(reply, "Location", || {
        let target = &push.exchange.request.target;
        (!begun).then(|| format!("{}{target}", push.exchange.own.address))
    });
    let location = reply.headers.first("Location")?;
    let path = location.split('?').next().unwrap_or_default();
    let session = session(path)?.to_owned();
    supply(reply, UUID_FIELD, || {
        (!session.contains('/')).then(|| session.clone())
    });
    Some(name(push, repository, &session))
}

/// The registry's own word for an upload, out of a URL's path.
fn session(path: &str) -> Option<&str> {
    let (_, session) = path.rsplit_once(UPLOADS)?;
    (!session.is_empty()).then_some(session)
}

/// Names an upload among those of all registries and repositories.
fn name(push: &Push<'_>, repository: &Repository, session: &str) -> String {
    format!("{} {repository} {session}", push.registry)
}

/// A digest in the query.
fn parameter(push: &Push<'_>, wanted: &str) -> Option<Digest> {
    digest_in(push.exchange.request.query()?, wanted)
}

fn chunk_range(push: &Push<'_>) -> Option<(u64, u64)> {
    let headers = &push.exchange.request.headers;
    headers.first("Content-Range").and_then(range::parse_chunk)
}

/// A digest has nothing that needs encoding, but clients encode its colon.
fn digest_in(query: &str, wanted: &str) -> Option<Digest> {
    let value = uri::decode_visible(uri::parameter(query, wanted)?)?;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_in_queries() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let encoded = digest.replace(':', "%3A");
        for query in [
            format!("digest={digest}"),
            format!("_state=a%3D&digest={encoded}"),
            format!("digest={encoded}&digest=x"),
        ] {
            assert_eq!(digest_in(&query, "digest").unwrap().as_str(), digest);
        }
        for query in ["", "digest", "digest=", "digest=sha256:..", "mount=x"] {
            assert_eq!(digest_in(query, "digest"), None, "{query}");
        }
    }

    #[test]
    fn sessions() {
        assert_eq!(session("/v2/a/blobs/uploads/1"), Some("1"));
        assert_eq!(session("http://p/v2/a/blobs/uploads/x/y"), Some("x/y"));
        assert_eq!(session("/v2/a/blobs/uploads/"), None);
        assert_eq!(session("/v2/a/blobs/sha256:0"), None);
    }
}
