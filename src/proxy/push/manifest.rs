//! Manifests on their way in, and out for good. Owns: their largest size, and what the cache knows
//! after a push or a deletion. Must not: change a byte of one, or judge it in upstream's place.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::SystemTime;

use super::{Push, is_gone, is_success, supply};
use crate::cache::names::{List, TagEntry};
use crate::hash;
use crate::message::{Reply, RequestBody};
use crate::oci::{Digest, ErrorCode, OciError, Reference, Repository};
use crate::proxy::manifest::{self, Manifest};
use crate::proxy::pull::{self, DIGEST_FIELD};
use crate::proxy::{Pull, refuse};
use crate::upstream::UpstreamError;
use crate::uri::decode_visible;

/// Largest manifest that is taken: what registries must take at the least (distribution-spec
/// "Pushing Manifests"), and ECR takes at the most.
const PUSHED_BYTES_MAX: u64 = 4 << 20;

/// PUT.
pub(super) fn put(
    push: &Push<'_>,
    repository: &Repository,
    reference: &Reference,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let length = body.length();
    if length.is_some_and(|length| length > PUSHED_BYTES_MAX) {
        return Ok(too_large());
    }
    let pushing = push.pull.as_ref().map(|pull| {
        let name = tag_name(pull, repository, reference);
        pull.cache.pushes.begin(name)
    });
    let mut collected = Collected {
        body,
        bytes: Vec::new(),
        too_large: false,
    };
    let forwarded = push.forward(&mut RequestBody::new(&mut collected, length));
    if collected.too_large {
        return Ok(too_large());
    }
    let mut reply = forwarded?;
    if !is_success(&reply) {
        return Ok(reply);
    }
    let bytes = collected.bytes;
    // What upstream itself says goes before what we make of it.
    let said = reply.headers.first(DIGEST_FIELD).map(str::to_owned);
    let digest = match reference {
        Reference::Digest(digest) => Some(digest.clone()),
        Reference::Tag(_) => format!("sha256:{}", hash::sha256_hex(&bytes)).parse().ok(),
    };
    if let Some(digest) = &digest {
        let named = said.clone().unwrap_or_else(|| digest.to_string());
        supply(&mut reply, DIGEST_FIELD, || Some(named.clone()));
        supply(&mut reply, "Location", || {
            Some(push.own_url("/", &format!("/{named}")))
        });
    }
    push.forget(repository);
    if let (Some(pull), Some(pushing)) = (&push.pull, pushing) {
        let alone = pushing.succeeded();
        forget_tags(pull, repository, &reply);
        let digest = digest.filter(|digest| {
            let same = said.is_none_or(|said| said == digest.as_str());
            same && hash::matches(digest, &bytes)
        });
        keep(pull, repository, reference, (digest, bytes), alone);
    }
    Ok(reply)
}

/// A manifest that is pushed by its digest may be given tags along with it: `?tag=…`, and the
/// registry says `OCI-Tag` of each that it took.
fn forget_tags(pull: &Pull<'_>, repository: &Repository, reply: &Reply) {
    let query = pull.exchange.request.query().unwrap_or_default();
    let asked = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("tag="));
    let taken = reply
        .headers
        .all("OCI-Tag")
        .flat_map(|tags| tags.split(','));
    let tags = asked
        .filter_map(decode_visible)
        .chain(taken.map(|tag| tag.trim().to_owned()));
    for tag in tags.filter_map(|tag| tag.parse().ok()) {
        pull.cache.names.remove_tag(pull.scope(repository), &tag);
    }
}

/// DELETE, by tag or by digest.
pub(super) fn delete(
    push: &Push<'_>,
    repository: &Repository,
    reference: &Reference,
    body: &mut RequestBody<'_>,
) -> Result<Reply, UpstreamError> {
    let pushing = push.pull.as_ref().map(|pull| {
        let name = tag_name(pull, repository, reference);
        pull.cache.pushes.begin(name)
    });
    let reply = push.forward(body)?;
    let (Some(pull), Some(pushing), true) = (&push.pull, pushing, is_gone(&reply)) else {
        return Ok(reply);
    };
    pushing.succeeded();
    push.forget(repository);
    let scope = pull.scope(repository);
    // It may have referred to another.
    pull.cache.names.forget_referrers(scope);
    pull.cache.names.forget_pages(List::Tags(scope));
    match reference {
        Reference::Tag(tag) => pull.cache.names.remove_tag(pull.scope(repository), tag),
        Reference::Digest(digest) => drop_digest(pull, repository, digest),
    }
    pull.cache.sweeper.mark_dirty();
    Ok(reply)
}

/// A pushed manifest is in the cache at once, and vouches for all it names: upstream has looked
/// whether it is there.
fn keep(
    pull: &Pull<'_>,
    repository: &Repository,
    reference: &Reference,
    (digest, bytes): (Option<Digest>, Vec<u8>),
    alone: bool,
) {
    let (cache, scope) = (pull.cache, pull.scope(repository));
    if let Reference::Tag(tag) = reference {
        // In every partition: whoever asks next, asks upstream.
        cache.names.remove_tag(scope, tag);
    }
    // Any manifest may refer to another.
    cache.names.forget_referrers(scope);
    cache.sweeper.mark_dirty();
    let media_type = media_type(pull, &bytes);
    let (Some(digest), Some(media_type)) = (digest, media_type) else {
        return;
    };
    let pushed = Manifest {
        digest,
        media_type,
        bytes: Arc::new(bytes),
    };
    if let Err(error) = cache.store.put(&pushed.digest, &pushed.bytes) {
        return cache.disk_faults.report("manifest", &error);
    }
    manifest::vouch(pull, repository, &pushed);
    if let (Reference::Tag(tag), true) = (reference, alone) {
        let entry = TagEntry {
            digest: pushed.digest,
            media_type: pushed.media_type,
            confirmed: SystemTime::now(),
        };
        let partition = &pull.exchange.partition;
        if let Err(error) = cache.names.set_tag(scope, partition, tag, entry) {
            cache.disk_faults.report("tag", &error);
        }
    }
}

/// A manifest is gone, and with it the tags that led to it.
fn drop_digest(pull: &Pull<'_>, repository: &Repository, digest: &Digest) {
    let (names, scope) = (&pull.cache.names, pull.scope(repository));
    names.remove_link(scope, digest);
    let tags = names.tags(scope);
    for tag in tags.iter().filter_map(|tag| tag.parse().ok()) {
        let entries = names.tag_anywhere(scope, &tag);
        if entries.iter().any(|entry| entry.digest == *digest) {
            names.remove_tag(scope, &tag);
        }
    }
}

/// What the client said it is; else what it says itself.
fn media_type(pull: &Pull<'_>, bytes: &[u8]) -> Option<String> {
    pull::media_type(&pull.exchange.request.headers).or_else(|| {
        let document: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        document.get("mediaType")?.as_str().map(str::to_owned)
    })
}

fn tag_name(pull: &Pull<'_>, repository: &Repository, reference: &Reference) -> String {
    match reference {
        Reference::Digest(digest) => pull.key(repository, digest),
        Reference::Tag(tag) => pull.key(repository, &tag.as_str()),
    }
}

fn too_large() -> Reply {
    let why = format!("manifest is over {PUSHED_BYTES_MAX} bytes, the most that is taken");
    refuse(&OciError::new(ErrorCode::ManifestInvalid, why).with_status(413))
}

/// Keeps what is read from a body, and ends it when it is too large.
struct Collected<'a, 'b> {
    body: &'a mut RequestBody<'b>,
    bytes: Vec<u8>,
    too_large: bool,
}

impl Read for Collected<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(into)?;
        let have = self.bytes.len() as u64;
        if have + count as u64 > PUSHED_BYTES_MAX {
            self.too_large = true;
            // Upstream must not take the part for the whole.
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes
            .extend_from_slice(into.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(length: u64) -> (io::Result<u64>, usize, bool) {
        let mut reader = io::repeat(b'x').take(length);
        let mut body = RequestBody::new(&mut reader, None);
        let mut collected = Collected {
            body: &mut body,
            bytes: Vec::new(),
            too_large: false,
        };
        let read = io::copy(&mut collected, &mut io::sink());
        (read, collected.bytes.len(), collected.too_large)
    }

    #[test]
    fn a_manifest_of_the_largest_size_is_taken_and_no_larger_one() {
        let most = usize::try_from(PUSHED_BYTES_MAX).unwrap();
        let (read, length, too_large) = collect(PUSHED_BYTES_MAX);
        assert_eq!(
            (read.unwrap(), length, too_large),
            (PUSHED_BYTES_MAX, most, false)
        );
        let (read, length, too_large) = collect(PUSHED_BYTES_MAX + 1);
        assert!(read.is_err() && too_large && length <= most);
        let reply = too_large_reply();
        assert_eq!(reply.0, 413);
        assert!(reply.1.contains("MANIFEST_INVALID"), "{}", reply.1);
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
