//! Manifests on their way in, and out for good. Owns: their largest size, and what the cache knows
//! after a push or a deletion. Must not: change a byte of one, or judge it in upstream's place.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use super::fields::{is_gone, is_success, supply_digest};
use super::frozen::FrozenTag;
use crate::budget::{self, PUSHED, Share};
use crate::cache::Cache;
use crate::cache::changes::Moment;
use crate::cache::names::Scope;
use crate::cache::pushed::PushedTag;
use crate::hash::Hasher;
use crate::media_type;
use crate::message::{Reply, RequestBody, SharedBytes};
use crate::oci::{Digest, ErrorCode, OciError, Reference, Repository, Tag};
use crate::proxy::answer::refuse;
use crate::proxy::cache_key;
use crate::proxy::content;
use crate::proxy::exchange::Exchange;
use crate::proxy::headers::DIGEST_FIELD;
use crate::upstream::{Stage, UpstreamError};

/// Largest manifest that is taken: what registries must take at the least (distribution-spec
/// "Pushing Manifests"), and ECR takes at the most.
const PUSHED_BYTES_MAX: u64 = 4 << 20;
/// Room for a pushed manifest is taken in steps of this size.
const STEP_BYTES: u64 = 256 << 10;

/// Passes a PUT on, and keeps the manifest once upstream has taken it. One that would move a frozen
/// tag is refused.
pub(in crate::proxy) fn put(
    exchange: &Exchange,
    repository: &Repository,
    reference: &Reference,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let length = body.length();
    if length.is_some_and(|length| length > PUSHED_BYTES_MAX) {
        return Ok(too_large());
    }
    let push = ManifestPush::new(exchange, repository, reference);
    if exchange.parts.frozen.is_empty() {
        return push.pass_on(body);
    }
    match (reference, push.frozen_tags().as_slice()) {
        (_, []) => push.pass_on(body),
        (Reference::Digest(digest), frozen) => match find_moved(frozen, digest) {
            Some(frozen) => Ok(frozen.refusal()),
            None => push.pass_on(body),
        },
        (Reference::Tag(_), frozen) => push.put_unmoved(body, frozen),
    }
}

/// Passes a DELETE on, by tag or by digest, and forgets what is gone. A frozen tag stays.
pub(in crate::proxy) fn delete(
    exchange: &Exchange,
    repository: &Repository,
    reference: &Reference,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let push = ManifestPush::new(exchange, repository, reference);
    let (parts, scope) = (&exchange.parts, push.scope);
    let frozen = push.cache.and_then(|cache| match reference {
        Reference::Tag(tag) => FrozenTag::find(parts, cache, scope, tag),
        Reference::Digest(digest) => FrozenTag::find_by_digest(parts, cache, scope, digest),
    });
    if let Some(frozen) = frozen {
        return Ok(frozen.refusal());
    }
    let reply = exchange.forward(body)?;
    if let (Some(cache), true) = (push.cache, is_gone(&reply)) {
        cache.note_deleted(scope, reference);
    }
    Ok(reply)
}

/// A manifest that is pushed or deleted.
struct ManifestPush<'a> {
    exchange: &'a Exchange,
    cache: Option<&'a Arc<Cache>>,
    scope: Scope<'a>,
    reference: &'a Reference,
}

impl<'a> ManifestPush<'a> {
    fn new(exchange: &'a Exchange, repository: &'a Repository, reference: &'a Reference) -> Self {
        Self {
            exchange,
            cache: exchange.parts.cache.as_ref(),
            scope: Scope {
                registry: &exchange.registry,
                repository,
            },
            reference,
        }
    }

    /// The tags that a PUT names and that must not move.
    fn frozen_tags(&self) -> Vec<FrozenTag> {
        let asked = self.exchange.resolved.query.all("tag");
        let asked = asked.filter_map(|tag| tag.parse().ok());
        let tags = self.tag().cloned().into_iter().chain(asked);
        let (parts, scope) = (&self.exchange.parts, self.scope);
        let find = |tag: Tag| FrozenTag::find(parts, self.cache?, scope, &tag);
        tags.filter_map(find).collect()
    }

    /// Reads a manifest whole, and passes it on when its digest is the one that the tags keep.
    fn put_unmoved(
        &self,
        body: &mut RequestBody<'_>,
        frozen: &[FrozenTag],
    ) -> Result<Reply, UpstreamError> {
        let mut collected = Collected::new(body, Hasher::sha256(), true);
        let read = io::copy(&mut collected, &mut io::sink());
        if collected.too_large {
            return Ok(too_large());
        }
        let registry = self.scope.registry;
        read.map_err(|error| UpstreamError::at(registry, Stage::ClientBody, error.to_string()))?;
        let (bytes, found) = collected.finish();
        let bytes = bytes.ok_or_else(|| content::no_room(registry))?;
        if let Some(frozen) = found
            .parse()
            .ok()
            .and_then(|found| find_moved(frozen, &found))
        {
            return Ok(frozen.refusal());
        }
        let (mut reader, length) = (&*bytes, bytes.len() as u64);
        self.pass_on(&mut RequestBody::new(&mut reader, Some(length)))
    }

    fn pass_on(&self, body: &mut RequestBody<'_>) -> Result<Reply, UpstreamError> {
        let length = body.length();
        let begun_at = self.cache.map(|cache| cache.now());
        let hasher = match self.reference {
            Reference::Digest(digest) => Hasher::new(digest),
            Reference::Tag(_) => Hasher::sha256(),
        };
        let mut collected = Collected::new(body, hasher, self.cache.is_some());
        let forwarded = self
            .exchange
            .forward(&mut RequestBody::new(&mut collected, length));
        if collected.too_large {
            return Ok(too_large());
        }
        let mut reply = forwarded?;
        if !is_success(&reply) {
            return Ok(reply);
        }
        let (kept, found) = collected.finish();
        let digest = match self.reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(_) => found.parse().ok(),
        };
        if let Some(digest) = &digest {
            supply_digest(self.exchange, &mut reply, digest, "/", "/");
        }
        if let (Some(cache), Some(begun_at)) = (self.cache, begun_at) {
            let named = reply.headers.first(DIGEST_FIELD).unwrap_or_default();
            let is_agreed = |digest: &Digest| named == digest.as_str() && found == digest.as_str();
            let kept = digest.filter(is_agreed).zip(kept);
            self.keep(cache, kept, &reply, begun_at);
        }
        Ok(reply)
    }

    const fn tag(&self) -> Option<&'a Tag> {
        match self.reference {
            Reference::Tag(tag) => Some(tag),
            Reference::Digest(_) => None,
        }
    }

    /// A manifest that is pushed by its digest may be given tags along with it: `?tag=…`, and the
    /// registry names in `OCI-Tag` each that it took.
    fn given_tags(&self, reply: &Reply) -> Vec<Tag> {
        let asked = self.exchange.resolved.query.all("tag");
        let taken = reply.headers.all("OCI-Tag");
        let taken = taken.flat_map(|tags| tags.split(',')).map(str::trim);
        let tags = asked.chain(taken);
        tags.filter_map(|tag| tag.parse().ok()).collect()
    }

    /// Upstream has taken the manifest. It is in the cache at once, if its bytes were kept and have
    /// the digest that upstream names.
    fn keep(
        &self,
        cache: &Cache,
        kept: Option<(Digest, SharedBytes)>,
        reply: &Reply,
        begun_at: Moment,
    ) {
        let named = reply.headers.first(DIGEST_FIELD);
        let named: Option<Digest> = named.and_then(|named| named.parse().ok());
        let others = self.given_tags(reply);
        let since = cache.note_pushed(self.scope, named.as_ref(), self.tag(), &others, begun_at);
        let Some(kept) = kept else {
            return;
        };
        let (parts, request) = (&self.exchange.parts, &self.exchange.request);
        let partition =
            cache_key::partition(&parts.cache_key, request, &self.exchange.resolved.path);
        let tag = self.tag().zip(since).map(|(tag, since)| PushedTag {
            tag,
            partition: &partition,
            since,
        });
        let content_type = media_type::read(&request.headers);
        cache.keep_pushed(self.scope, kept, content_type, tag, begun_at);
    }
}

/// The tag that would move if it were given this digest.
fn find_moved<'a>(frozen: &'a [FrozenTag], digest: &Digest) -> Option<&'a FrozenTag> {
    frozen.iter().find(|frozen| !frozen.keeps(digest))
}

fn too_large() -> Reply {
    let why = format!("the manifest is larger than the {PUSHED_BYTES_MAX} bytes that are allowed");
    refuse(&OciError::new(ErrorCode::ManifestInvalid, why).with_status(413))
}

/// Hashes what is read from a body and keeps it, as long as there is room for that. Ends the body
/// when it is too large.
struct Collected<'a, 'b> {
    body: &'a mut RequestBody<'b>,
    hasher: Hasher,
    count: u64,
    /// None when nothing is to be kept, or when there is no room.
    kept: Option<Vec<u8>>,
    share: Option<Share>,
    too_large: bool,
}

impl<'a, 'b> Collected<'a, 'b> {
    fn new(body: &'a mut RequestBody<'b>, hasher: Hasher, keeps: bool) -> Self {
        Self {
            body,
            hasher,
            count: 0,
            kept: keeps.then(Vec::new),
            share: None,
            too_large: false,
        }
    }

    /// The bytes, if they were kept, and their digest.
    fn finish(self) -> (Option<SharedBytes>, String) {
        let kept = self.kept.map(|bytes| match self.share {
            Some(share) => SharedBytes::with_share(bytes, share),
            None => bytes.into(),
        });
        (kept, self.hasher.finish())
    }

    fn keep(&mut self, piece: &[u8]) {
        let Some(bytes) = &mut self.kept else {
            return;
        };
        let needed = budget::count_bytes((bytes.len() + piece.len()) as u64);
        let taken = self.share.as_ref().map_or(0, Share::bytes);
        if needed > taken {
            let more = needed.next_multiple_of(STEP_BYTES) - taken;
            // A push never waits for room.
            let Some(more) = PUSHED.take(more, Instant::now()) else {
                (self.kept, self.share) = (None, None);
                return;
            };
            bytes.reserve_exact(usize::try_from(more.bytes()).unwrap_or_default());
            match &mut self.share {
                Some(share) => share.merge(more),
                None => self.share = Some(more),
            }
        }
        bytes.extend_from_slice(piece);
    }
}

impl Read for Collected<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(into)?;
        self.count += count as u64;
        if self.count > PUSHED_BYTES_MAX {
            self.too_large = true;
            // Upstream must not take the part for the whole.
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let piece = into.get(..count).unwrap_or_default();
        self.hasher.update(piece);
        self.keep(piece);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a body of `length` bytes: how many were read, how many kept, and whether they are too
    /// many.
    fn collect(length: u64) -> (io::Result<u64>, Option<SharedBytes>, bool) {
        let mut reader = io::repeat(b'x').take(length);
        let mut body = RequestBody::new(&mut reader, None);
        let mut collected = Collected::new(&mut body, Hasher::sha256(), true);
        let read = io::copy(&mut collected, &mut io::sink());
        let too_large = collected.too_large;
        (read, collected.finish().0, too_large)
    }

    #[test]
    fn a_manifest_of_the_largest_size_is_taken_and_no_larger_one() {
        let (read, kept, too_large) = collect(PUSHED_BYTES_MAX);
        let kept = kept.map(|bytes| bytes.len() as u64);
        assert_eq!((read.unwrap(), too_large), (PUSHED_BYTES_MAX, false));
        assert!(kept.is_none_or(|kept| kept == PUSHED_BYTES_MAX));
        let (read, _, too_large) = collect(PUSHED_BYTES_MAX + 1);
        assert!(read.is_err() && too_large);
        let reply = too_large_reply();
        assert_eq!(reply.0, 413);
        assert!(reply.1.contains("MANIFEST_INVALID"), "{}", reply.1);
    }

    #[test]
    fn bug_pushed_manifests_were_held_without_bounds() {
        let mut held = Vec::new();
        for _ in 0..16 {
            let (read, kept, _) = collect(PUSHED_BYTES_MAX);
            assert_eq!(read.unwrap(), PUSHED_BYTES_MAX, "all of it goes upstream");
            held.extend(kept);
        }
        assert!(held.len() <= 2, "{}", held.len());
        // Small ones always have room.
        assert!(collect(1000).1.is_some_and(|bytes| bytes.len() == 1000));
    }

    fn too_large_reply() -> (u16, String) {
        let reply = too_large();
        match reply.body {
            crate::message::Body::Bytes(bytes) => {
                (reply.status, String::from_utf8(bytes.to_vec()).unwrap())
            }
            _ => panic!("no document"),
        }
    }
}
