//! Blobs through the cache. Owns: hit, growing file, cold range, belonging. Must not: write a file
//! (the cache does), or serve a blob to a repository that upstream has not shown it in.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::conditional::{self, Selected, Wanted as Range};
use super::pull::BLOB_CACHE_CONTROL;
use super::{CacheOutcome, Pull, fail, marked, refuse};
use crate::cache::fill::{Growing, Joined, Wanted};
use crate::cache::store::Blob;
use crate::log;
use crate::message::{Body, Headers, Outcome, Piece, Pieces, Reply};
use crate::oci::{Digest, ErrorCode, OciError, Repository};
use crate::upstream::exchange::HEAD_TIMEOUT;

/// A cold range that begins this far ahead of the download is fetched on its own: at 10 MB/s the
/// client would wait a second for it.
const RANGE_AHEAD_BYTES: u64 = 8 << 20;

/// Answers GET and HEAD of a blob.
pub(super) fn get(pull: &Pull<'_>, repository: &Repository, digest: &Digest) -> Reply {
    let key = pull.key(repository, &format_args!("blobs/{digest}"));
    if let Some(refused) = pull.cache.negative.get(&key, std::time::Instant::now()) {
        return pull.refused(refused);
    }
    match pull.cache.store.blob(digest) {
        Ok(Some(blob)) => match belonging(pull, repository, digest) {
            Ok(()) => return whole(pull, digest, blob),
            Err(reply) => return *reply,
        },
        Ok(None) => {}
        Err(error) => {
            pull.cache.disk_faults.report("blob", &error);
            return pull.bypass();
        }
    }
    if pull.is_head() {
        // A HEAD does not download.
        return cold_head(pull, repository, digest);
    }
    let wanted = Wanted {
        registry: pull.registry.clone(),
        repository: repository.clone(),
        digest: digest.clone(),
    };
    match pull.cache.fills.join(&wanted) {
        Joined::Growing(growing) if growing.is_for(wanted.scope()) => {
            growing_reply(pull, digest, &growing)
        }
        Joined::Growing(growing) => match belonging(pull, repository, digest) {
            Ok(()) => growing_reply(pull, digest, &growing),
            Err(reply) => *reply,
        },
        Joined::Failed(error) => marked(fail(&error), CacheOutcome::Miss),
        Joined::Refused(refused) => {
            if refused.status == 404 {
                pull.cache
                    .negative
                    .put(&key, refused.clone(), std::time::Instant::now());
            }
            pull.refused(refused)
        }
        Joined::Bypass(Some(fetched)) if !asks_for_part(pull, digest) => {
            let reply = pull.exchange.reply(pull.registry, fetched);
            marked(
                reply.unwrap_or_else(|error| fail(&error)),
                CacheOutcome::Bypass,
            )
        }
        Joined::Bypass(_) => pull.bypass(),
    }
}

/// A blob is served for a repository only if it belongs there: a manifest of that repository names
/// it, or upstream says so now. The error is the answer if not.
fn belonging(pull: &Pull<'_>, repository: &Repository, digest: &Digest) -> Result<(), Box<Reply>> {
    let scope = pull.scope(repository);
    if pull.cache.names.link(scope, digest).is_some() {
        return Ok(());
    }
    let target = format!("/v2/{repository}/blobs/{digest}");
    match pull.head(&target, &pull.own_headers(), HEAD_TIMEOUT) {
        Ok(reply) if reply.status == 200 => {
            link(pull, repository, digest);
            Ok(())
        }
        // Asked again as the client asked it, so that it gets upstream's own words.
        Ok(_) => Err(Box::new(pull.bypass())),
        Err(error) => Err(Box::new(marked(fail(&error), CacheOutcome::Miss))),
    }
}

fn link(pull: &Pull<'_>, repository: &Repository, digest: &Digest) {
    if let Err(error) = pull
        .cache
        .names
        .set_link(pull.scope(repository), digest, None)
    {
        pull.cache.disk_faults.report("link", &error);
    }
}

fn cold_head(pull: &Pull<'_>, repository: &Repository, digest: &Digest) -> Reply {
    let mut reply = pull.bypass();
    if matches!(reply.status, 200 | 304) {
        link(pull, repository, digest);
        // Whatever the registry can do, the GET will come from here.
        reply.headers.set("Accept-Ranges", "bytes");
    }
    marked(reply, CacheOutcome::Miss)
}

fn asks_for_part(pull: &Pull<'_>, digest: &Digest) -> bool {
    range(pull, digest) != Range::Whole
}

fn range(pull: &Pull<'_>, digest: &Digest) -> Range {
    conditional::wanted(&pull.exchange.request.headers, &tag(digest))
}

/// A complete blob.
fn whole(pull: &Pull<'_>, digest: &Digest, blob: Blob) -> Reply {
    if let Some(reply) = not_modified(pull, digest) {
        return marked(reply, CacheOutcome::Hit);
    }
    let size = blob.size;
    let body = |start: u64, end: u64| {
        let length = Some(end - start);
        let pieces = Box::new(Part {
            blob,
            position: start,
            end,
        });
        if pull.is_head() {
            Body::Empty { length }
        } else {
            Body::Pieces { pieces, length }
        }
    };
    // A range on a HEAD has no meaning (RFC 9110 §14.2).
    let range = if pull.is_head() {
        Range::Whole
    } else {
        range(pull, digest)
    };
    let reply = match range.of(size) {
        Selected::Whole => reply(digest, 200, body(0, size)),
        Selected::Part { start, end } => reply(digest, 206, body(start, end))
            .with("Content-Range", format!("bytes {start}-{}/{size}", end - 1)),
        Selected::Unsatisfiable => unsatisfiable(digest, size),
    };
    marked(reply, CacheOutcome::Hit)
}

/// For a client that holds it already.
fn not_modified(pull: &Pull<'_>, digest: &Digest) -> Option<Reply> {
    let held = conditional::is_not_modified(&pull.exchange.request.headers, &tag(digest));
    held.then(|| reply(digest, 304, Body::empty()))
}

fn tag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// A blob that is still being downloaded.
fn growing_reply(pull: &Pull<'_>, digest: &Digest, growing: &Arc<Growing>) -> Reply {
    let total = growing.total();
    if let Some(reply) = not_modified(pull, digest) {
        return marked(reply, CacheOutcome::Miss);
    }
    let reply = match range(pull, digest).of(total) {
        Selected::Whole => reply(digest, 200, growing.body(0, total)),
        Selected::Unsatisfiable => unsatisfiable(digest, total),
        Selected::Part { start, .. } if start > growing.written() + RANGE_AHEAD_BYTES => {
            log::debug(
                "range far ahead of the download",
                &[("digest", digest), ("at", &start)],
            );
            return pull.bypass();
        }
        Selected::Part { start, end } => reply(digest, 206, growing.body(start, end)).with(
            "Content-Range",
            format!("bytes {start}-{}/{total}", end - 1),
        ),
    };
    marked(reply, CacheOutcome::Miss)
}

/// Without a word of how long it may be kept: whoever stores it must not take it for the blob.
fn unsatisfiable(digest: &Digest, size: u64) -> Reply {
    let why = format!("blob {digest} has {size} bytes: the range begins behind its end");
    refuse(&OciError::new(ErrorCode::RangeInvalid, why))
        .with("Content-Range", format!("bytes */{size}"))
        .with("Accept-Ranges", "bytes")
        // Of the blob, as registries say it; the document's own tag would be another.
        .with("Docker-Content-Digest", digest.to_string())
}

fn reply(digest: &Digest, status: u16, body: Body) -> Reply {
    let headers = Headers::from_iter([
        (super::API_VERSION.0, super::API_VERSION.1.to_owned()),
        ("Docker-Content-Digest", digest.to_string()),
        ("ETag", tag(digest)),
        ("Content-Type", "application/octet-stream".to_owned()),
        ("Accept-Ranges", "bytes".to_owned()),
        ("Cache-Control", BLOB_CACHE_CONTROL.to_owned()),
    ]);
    Reply {
        status,
        headers,
        body,
        outcome: Outcome::default(),
    }
}

/// Bytes of a complete blob, which eviction leaves alone while they are read.
struct Part {
    blob: Blob,
    position: u64,
    end: u64,
}

impl Pieces for Part {
    fn next(&mut self) -> io::Result<Piece<'_>> {
        if self.position >= self.end {
            return Ok(Piece::End);
        }
        let (offset, length) = (self.position, self.end - self.position);
        self.position = self.end;
        let file: &File = &self.blob.file;
        Ok(Piece::File {
            file,
            offset,
            length,
        })
    }
}
