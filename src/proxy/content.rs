//! Manifests and blobs on their way from upstream to the client. Owns: the fields that a registry
//! owes with them (`Docker-Content-Digest`, `ETag`, `Content-Type`), and checking a manifest
//! against its digest. Must not: change a byte of either.

use std::io::{self, Cursor, Read};
use std::time::Instant;

use super::answer::fail;
use super::conditional;
use super::headers::DIGEST_FIELD;
use crate::budget::{self, BODIES, BODIES_BYTES_MAX, SHARE_TIMEOUT, UNCOUNTED_BYTES_MAX};
use crate::cache::description::SelfDescription;
use crate::cache::manifest::MANIFEST_BYTES_MAX;
use crate::hash::{self, Hasher};
use crate::media_type;
use crate::message::{Body, Headers, Reply, SharedBytes};
use crate::metrics;
use crate::oci::{Digest, Reference, Registry};
use crate::permits::Permit;
use crate::upstream::{Stage, UpstreamError};

/// A blob never changes (RFC 8246).
pub(super) const BLOB_CACHE_CONTROL: &str = "max-age=31536000, immutable";

/// Makes upstream's answer to GET or HEAD of a blob what a client with these fields gets.
pub(super) fn finish_blob(reply: Reply, digest: &Digest, client: &Headers) -> Reply {
    omit_if_held(supply_blob_fields(reply, digest), client)
}

/// Makes upstream's answer to GET or HEAD of a manifest what a client with these fields gets.
///
/// # Errors
/// When it breaks off, or its bytes do not have its digest.
pub(super) fn finish_manifest(
    reply: Reply,
    reference: &Reference,
    registry: &Registry,
    client: &Headers,
) -> Result<Reply, UpstreamError> {
    let reply = supply_manifest_fields(reply, reference, registry)?;
    Ok(omit_if_held(reply, client))
}

/// Sets the fields that name the blob's digest, which also identifies it for conditions and ranges.
fn supply_blob_fields(mut reply: Reply, digest: &Digest) -> Reply {
    let is_empty = reply.headers.first("Content-Range") == Some("bytes */0");
    if reply.status == 416 && is_empty {
        // An empty blob has no range, so the client gets all of it.
        reply = Reply {
            status: 200,
            body: Body::empty(),
            ..reply
        };
        reply.headers.remove("Content-Range");
        reply.headers.remove("Content-Type");
        reply.outcome.error = None;
    }
    if reply.status == 200 {
        reply.body = hash_unless_length_known(reply.body, digest);
    }
    if matches!(reply.status, 200 | 206 | 304) {
        reply.headers.set(DIGEST_FIELD, digest.as_str());
        reply.headers.set("ETag", format!("\"{digest}\""));
        reply.headers.set("Cache-Control", BLOB_CACHE_CONTROL);
        let media_type = reply.headers.first("Content-Type").unwrap_or_default();
        // S3 stores layers under a type of its own.
        if matches!(media_type, "" | "binary/octet-stream") {
            reply
                .headers
                .set("Content-Type", "application/octet-stream");
        }
    }
    reply
}

/// A body of unknown length may end anywhere and look whole (RFC 9112 §6.3, item 8). So it is
/// hashed while it streams, and cut when its end brings another digest.
fn hash_unless_length_known(body: Body, digest: &Digest) -> Body {
    let Body::Stream {
        reader,
        length: None,
    } = body
    else {
        return body;
    };
    let hashed = Hashed {
        reader,
        hasher: Some(Hasher::new(digest)),
        digest: digest.clone(),
    };
    Body::Stream {
        reader: Box::new(hashed),
        length: None,
    }
}

/// Bytes that must have this digest. If they have another, the read at their end fails.
struct Hashed {
    reader: Box<dyn Read + Send>,
    /// None once the end was reached.
    hasher: Option<Hasher>,
    digest: Digest,
}

impl Read for Hashed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        if count > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(into.get(..count).unwrap_or_default());
            }
        } else if !into.is_empty()
            && let Some(hasher) = self.hasher.take()
        {
            let found = hasher.finish();
            if found != self.digest.as_str() {
                metrics::DIGEST_FAILURES.inc();
                let why = format!("the bytes have the digest {found}, not {}", self.digest);
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
        Ok(count)
    }
}

/// ECR leaves the digest out of its answer to GET, and clients need it.
fn supply_manifest_fields(
    mut reply: Reply,
    reference: &Reference,
    registry: &Registry,
) -> Result<Reply, UpstreamError> {
    if reply.status != 200 {
        return Ok(reply);
    }
    refuse_encoded(&reply.headers, registry)?;
    let mut media_type = media_type::read(&reply.headers);
    let mut digest = match reference {
        Reference::Digest(digest) => Some(digest.to_string()),
        Reference::Tag(_) => reply.headers.first(DIGEST_FIELD).map(str::to_owned),
    };
    reply.body = match buffer(reply.body, registry)? {
        Body::Bytes(bytes) => {
            let description = describe(&bytes, media_type.as_deref(), reference, registry)?;
            if !description.is_signed {
                let verified = verify(reference, &bytes, digest.as_deref(), registry)?;
                digest = Some(verified.to_string());
            }
            media_type = description.media_type.or(media_type);
            Body::Bytes(bytes)
        }
        body => match reference {
            Reference::Digest(digest) => hash_unless_length_known(body, digest),
            Reference::Tag(_) => body,
        },
    };
    if let Some(media_type) = media_type {
        reply.headers.set("Content-Type", media_type);
    }
    if let Some(digest) = digest {
        reply.headers.set("ETag", format!("\"{digest}\""));
        reply.headers.set(DIGEST_FIELD, digest);
    }
    Ok(reply)
}

/// Reads a manifest into memory, unless it is too large.
fn buffer(body: Body, registry: &Registry) -> Result<Body, UpstreamError> {
    let Body::Stream { mut reader, length } = body else {
        return Ok(body);
    };
    let bytes = read_whole(&mut *reader, length, MANIFEST_BYTES_MAX, registry)?;
    if bytes.len() as u64 <= MANIFEST_BYTES_MAX {
        return Ok(Body::Bytes(bytes));
    }
    let reader = Box::new(Cursor::new(bytes).chain(reader));
    Ok(Body::Stream { reader, length })
}

/// Reads what a manifest says about itself. `content_type`: the type under which it came.
///
/// # Errors
/// When the bytes are no manifest: an error page from a host in between, or a part of a manifest.
pub(super) fn describe(
    bytes: &[u8],
    content_type: Option<&str>,
    reference: &Reference,
    registry: &Registry,
) -> Result<SelfDescription, UpstreamError> {
    let turn = take_turn_for(bytes, registry)?;
    let description = SelfDescription::read(bytes, content_type);
    drop(turn);
    if let Some(description) = description {
        return Ok(description);
    }
    // When the client named a digest, "another digest" says more than "no manifest".
    verify(reference, bytes, None, registry)?;
    let reason = "its answer is no manifest".to_owned();
    Err(UpstreamError::at(registry, Stage::Transfer, reason))
}

/// Leaves the body out for a client that holds it already.
fn omit_if_held(mut reply: Reply, client: &Headers) -> Reply {
    // Before any range (RFC 9110 §13.2.2).
    let is_content = matches!(reply.status, 200 | 206);
    let etag = reply.headers.first("ETag").filter(|_| is_content);
    if etag.is_some_and(|etag| conditional::is_not_modified(client, etag)) {
        reply.headers.remove("Content-Range");
        reply.status = 304;
        reply.body = Body::empty();
    }
    reply
}

/// Checks that the bytes are not encoded: a digest is made of the plain bytes, and we ask for
/// those.
///
/// # Errors
/// When the bytes are encoded all the same.
pub(super) fn refuse_encoded(headers: &Headers, registry: &Registry) -> Result<(), UpstreamError> {
    let encoding = headers.first("Content-Encoding").unwrap_or_default();
    if matches!(encoding, "" | "identity") {
        return Ok(());
    }
    let reason = format!("it sent Content-Encoding {encoding:?}, but identity was asked for");
    Err(UpstreamError::at(registry, Stage::Transfer, reason))
}

/// Reads a small body to its end, or one byte past `limit`. `length`: as upstream announced it. The
/// bytes count against the budget for as long as anybody holds them.
///
/// # Errors
/// When it breaks off, comes too late, or the budget has no room for it in time.
pub(super) fn read_whole(
    reader: &mut dyn Read,
    length: Option<u64>,
    limit: u64,
    registry: &Registry,
) -> Result<SharedBytes, UpstreamError> {
    let no_room = || no_room(registry);
    let broken = |error: io::Error| broken_off(registry, &error);
    let take = |bytes: u64| BODIES.take(bytes, Instant::now() + SHARE_TIMEOUT);
    let mut room = length.unwrap_or(UNCOUNTED_BYTES_MAX).clamp(1, limit + 1);
    let mut share = take(budget::count_bytes(room)).ok_or_else(no_room)?;
    let mut bytes = Vec::new();
    loop {
        let left = room - bytes.len() as u64;
        bytes.reserve_exact(usize::try_from(left).unwrap_or_default());
        let part = Read::take(&mut *reader, left).read_to_end(&mut bytes);
        part.map_err(broken)?;
        let mut next = [0];
        let is_whole = (bytes.len() as u64) < room || room > limit;
        if is_whole || reader.read(&mut next).map_err(broken)? == 0 {
            return Ok(SharedBytes::with_share(bytes, share));
        }
        room = (2 * room).min(limit + 1);
        let more = take(budget::count_bytes(room) - share.bytes()).ok_or_else(no_room)?;
        share.merge(more);
        bytes.extend_from_slice(&next);
    }
}

/// The failure of a body that did not come whole.
pub(super) fn broken_off(registry: &Registry, error: &io::Error) -> UpstreamError {
    let stage = match error.kind() {
        io::ErrorKind::TimedOut => Stage::Timeout,
        _ => Stage::Transfer,
    };
    UpstreamError::at(registry, stage, format!("body broke off: {error}"))
}

/// Counts a body that was made here against the budget. When there is no room for it in time, the
/// client is told to come again.
pub(super) fn count_body(reply: Reply, registry: &Registry) -> Reply {
    let Body::Bytes(bytes) = &reply.body else {
        return reply;
    };
    let needed = budget::count_bytes(bytes.len() as u64);
    if needed == 0 || bytes.is_counted() {
        return reply;
    }
    match BODIES.take(needed, Instant::now() + SHARE_TIMEOUT) {
        Some(share) => {
            bytes.count(share);
            reply
        }
        None => fail(&no_room(registry)),
    }
}

/// Waits for a turn to work on a large body; a small one needs none.
///
/// # Errors
/// When the turn did not come.
pub(super) fn take_turn_for(
    body: &[u8],
    registry: &Registry,
) -> Result<Option<Permit<'static>>, UpstreamError> {
    if budget::count_bytes(body.len() as u64) == 0 {
        return Ok(None);
    }
    let turn = budget::take_turn();
    turn.map(Some).ok_or_else(|| no_room(registry))
}

/// The failure of a request whose body finds no room in memory.
pub(super) fn no_room(registry: &Registry) -> UpstreamError {
    let limit_mib = BODIES_BYTES_MAX >> 20;
    let reason = format!("{limit_mib} MiB of bodies are held already; try again");
    UpstreamError::at(registry, Stage::Queue, reason)
}

/// Finds the digest of a manifest: the one in the request, else `named`, which upstream sent, else
/// the SHA-256 of its bytes.
///
/// # Errors
/// When the bytes have another digest.
pub(super) fn verify(
    reference: &Reference,
    bytes: &[u8],
    named: Option<&str>,
    registry: &Registry,
) -> Result<Digest, UpstreamError> {
    let found = format!("sha256:{}", hash::sha256_hex(bytes));
    let wrong = || {
        let reason = format!("its manifest has the digest {found}, not the expected one");
        UpstreamError::at(registry, Stage::Transfer, reason)
    };
    let known = |named: &&str| named.starts_with("sha256:") || named.starts_with("sha512:");
    let expected: Option<Digest> = match (reference, named.filter(known)) {
        (Reference::Digest(digest), _) => Some(digest.clone()),
        (Reference::Tag(_), Some(named)) => Some(named.parse().map_err(|_| wrong())?),
        (Reference::Tag(_), None) => None,
    };
    match expected {
        Some(digest) if hash::matches(&digest, bytes) => Ok(digest),
        Some(_) => Err(wrong()),
        None => found.parse().map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Headers, LogNote};

    const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;
    const DIGEST: &str = "sha256:bafebd36189ad3688b7b3915ea55d461e0bfcfbdde11e54b0a123999fb6be50f";
    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn reply(status: u16, body: Body) -> Reply {
        Reply {
            status,
            headers: Headers::new(),
            body,
            outcome: LogNote::default(),
        }
    }

    fn stream(bytes: &'static [u8]) -> Body {
        Body::Stream {
            reader: Box::new(bytes),
            length: Some(bytes.len() as u64),
        }
    }

    fn registry() -> Registry {
        "r.example".parse().unwrap()
    }

    #[test]
    fn a_manifest_by_tag_gets_its_digest() {
        let reference = Reference::Tag("1".parse().unwrap());
        let reply =
            supply_manifest_fields(reply(200, stream(MANIFEST)), &reference, &registry()).unwrap();
        assert_eq!(reply.headers.first(DIGEST_FIELD), Some(DIGEST));
        assert_eq!(
            reply.headers.first("ETag"),
            Some(format!("\"{DIGEST}\"").as_str())
        );
    }

    #[test]
    fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
        let reference = Reference::Digest(DIGEST.parse().unwrap());
        let supply =
            |bytes| supply_manifest_fields(reply(200, stream(bytes)), &reference, &registry());
        assert!(supply(MANIFEST).is_ok());
        let error = supply(br#"{"schemaVersion":1}"#).unwrap_err();
        assert_eq!(error.stage, Stage::Transfer);
    }

    #[test]
    fn bug_a_tag_named_by_sha512_got_another_digest() {
        let bytes = b"{}";
        let digest = |named: Option<&str>| {
            let reference = Reference::Tag("1".parse().unwrap());
            verify(&reference, bytes, named, &registry()).map(|digest| digest.to_string())
        };
        let sha512 = {
            let hash = ring::digest::digest(&ring::digest::SHA512, bytes);
            let hex: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
            format!("sha512:{hex}")
        };
        let sha256 = format!("sha256:{}", hash::sha256_hex(bytes));
        assert_eq!(digest(Some(&sha512)).unwrap(), sha512);
        assert_eq!(digest(Some(&sha256)).unwrap(), sha256);
        assert_eq!(digest(None).unwrap(), sha256);
        assert_eq!(digest(Some("md5:0")).unwrap(), sha256);
        for wrong in [EMPTY, "sha256:0", "sha512:0", &sha512.replace('0', "1")] {
            assert!(digest(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bug_a_page_was_passed_on_as_a_manifest() {
        let reference = Reference::Tag("1".parse().unwrap());
        for page in [
            &b"<html>"[..],
            b"",
            b"{}",
            br#"{"schemaVersion":2,"layers":["#,
        ] {
            let reply = reply(200, stream(page)).with("Content-Type", "application/json");
            let error = supply_manifest_fields(reply, &reference, &registry()).unwrap_err();
            assert_eq!(error.stage, Stage::Transfer);
        }
    }

    #[test]
    fn a_signed_manifest_keeps_the_digest_that_upstream_names() {
        let signed = br#"{"schemaVersion":1,"signatures":[]}"#;
        for (reference, expected) in [
            (Reference::Digest(DIGEST.parse().unwrap()), DIGEST),
            (Reference::Tag("1".parse().unwrap()), EMPTY),
        ] {
            let reply = reply(200, stream(signed)).with(DIGEST_FIELD, EMPTY);
            let reply = supply_manifest_fields(reply, &reference, &registry()).unwrap();
            assert_eq!(reply.headers.first(DIGEST_FIELD), Some(expected));
        }
    }

    #[test]
    fn an_encoded_manifest_is_an_error() {
        let reference = Reference::Tag("1".parse().unwrap());
        for (encoding, is_error) in [("gzip", true), ("zstd", true), ("identity", false)] {
            let reply = reply(200, stream(MANIFEST)).with("Content-Encoding", encoding);
            let reply = supply_manifest_fields(reply, &reference, &registry());
            assert_eq!(reply.is_err(), is_error, "{encoding}");
        }
    }

    #[test]
    fn an_empty_blob_is_whole_whatever_part_is_asked_for() {
        let asked = |range: &str| {
            let refused = reply(416, stream(b"<Error/>")).with("Content-Range", range);
            supply_blob_fields(
                refused.with("Content-Type", "application/xml"),
                &EMPTY.parse().unwrap(),
            )
        };
        let whole = asked("bytes */0");
        assert_eq!((whole.status, whole.body.length()), (200, Some(0)));
        let media_type = whole.headers.first("Content-Type");
        assert_eq!(media_type, Some("application/octet-stream"));
        assert_eq!(whole.headers.first("Content-Range"), None);
        assert_eq!(asked("bytes */9").status, 416);
    }

    #[test]
    fn a_manifest_that_breaks_off_is_an_error() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
        let reference = Reference::Tag("1".parse().unwrap());
        let body = Body::Stream {
            reader: Box::new(Broken),
            length: None,
        };
        assert!(supply_manifest_fields(reply(200, body), &reference, &registry()).is_err());
    }

    #[test]
    fn errors_pass_as_they_are() {
        let reference = Reference::Tag("1".parse().unwrap());
        let reply =
            supply_manifest_fields(reply(404, stream(b"no")), &reference, &registry()).unwrap();
        assert_eq!(reply.headers.first(DIGEST_FIELD), None);
        assert_eq!(
            supply_blob_fields(reply, &EMPTY.parse().unwrap())
                .headers
                .first("ETag"),
            None
        );
    }

    #[test]
    fn a_blob_is_known_by_its_digest() {
        let stored = reply(206, stream(b"")).with("Content-Type", "binary/octet-stream");
        let reply = supply_blob_fields(stored.with("ETag", "\"s3\""), &EMPTY.parse().unwrap());
        assert_eq!(
            reply.headers.first("ETag"),
            Some(format!("\"{EMPTY}\"").as_str())
        );
        assert_eq!(
            reply.headers.first("Content-Type"),
            Some("application/octet-stream")
        );
    }
}
