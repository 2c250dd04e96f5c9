//! The proxy's own requests. They are answered as a client's requests are, and the same rules
//! decide what is kept. Owns: making them, and reading their answers whole. Must not: know why they
//! are made.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::answer::refuse;
use super::dispatch::{self, Accepted};
use super::exchange::Parts;
use super::page;
use super::purpose::{OwnClient, Purpose};
use super::query::Query;
use super::registries::{Choice, ResolvedRequest};
use crate::message::{Body, Piece, Pieces, Reply, Request, RequestBody};
use crate::metrics::CacheOutcome;
use crate::oci::{Digest, Route};
use crate::upstream::exchange::HEAD_TIMEOUT;

/// `Accept` for every kind of manifest.
pub const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, */*";

/// Longest time from the last byte of a blob until the cache has it: one fsync on a busy disk.
const KEPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two checks whether the cache has it.
const CHECK_PAUSE: Duration = Duration::from_millis(20);

/// The fault of content that has come but is not in the cache.
pub(super) const NOT_KEPT: &str = "was not kept: the log says why";

impl OwnClient {
    /// True when the cache has a blob or a manifest, and knows that it belongs to the repository.
    pub(super) fn is_kept(&self, parts: &Parts, digest: &Digest) -> bool {
        let scope = self.scope.as_scope();
        parts.cache.as_ref().is_some_and(|cache| {
            cache.store.has(digest) && cache.names.link(scope, digest).is_some()
        })
    }

    /// Reads a blob to its end, and waits until the cache has it: the process may end after that.
    /// Tells how long each piece of it was. Returns its bytes.
    ///
    /// # Errors
    /// Why the cache does not have it.
    pub(super) fn keep_blob(
        &self,
        parts: &Parts,
        digest: &Digest,
        reply: Reply,
        on_piece: &mut dyn FnMut(u64),
    ) -> Result<u64, String> {
        let Body::Pieces { mut pieces, .. } = reply.body else {
            return Err(NOT_KEPT.to_owned());
        };
        let mut bytes = 0;
        let drained = drain(&mut *pieces, &mut |count| {
            bytes += count;
            on_piece(count);
        });
        drained.map_err(|error| error.to_string())?;
        let is_passed_on = reply.outcome.cache == Some(CacheOutcome::Bypass);
        let until = Instant::now() + KEPT_TIMEOUT;
        while !self.is_kept(parts, digest) {
            if is_passed_on || Instant::now() >= until {
                return Err(NOT_KEPT.to_owned());
            }
            thread::sleep(CHECK_PAUSE);
        }
        Ok(bytes)
    }

    /// Gets `place` in the repository, such as `manifests/1.0`. Blocks until the head is there.
    pub(super) fn get(&self, parts: &Arc<Parts>, place: &str) -> Reply {
        let target = format!("/v2/{}/{place}", self.scope.repository);
        let mut request = Request {
            method: "GET".to_owned(),
            target: target.clone(),
            ..(*self.like).clone()
        };
        request.headers.retain(|name, _| !page::is_condition(name));
        request.headers.set("Accept", ACCEPT);
        let path = request.path().to_owned();
        let route = match Route::parse(&path) {
            Ok(route) => route,
            Err(error) => return refuse(&error),
        };
        let is_blob = matches!(route, Route::Blob(..));
        let resolved = ResolvedRequest {
            choice: Choice::Known(self.scope.registry.clone()),
            route,
            path,
            target,
            query: Query::default(),
            prefix: String::new(),
            added: String::new(),
            parameter: None,
            namespace: None,
        };
        let mut nothing = io::empty();
        let body = &mut RequestBody::new(&mut nothing, Some(0));
        let accepted = Accepted {
            request: Arc::new(request),
            resolved,
            depth: self.depth,
            purpose: self.purpose,
            deadline: Instant::now() + HEAD_TIMEOUT,
        };
        let reply = dispatch::run(parts, accepted, body);
        if self.purpose == Purpose::Prefetch && !is_blob {
            keep_rate(parts, &reply);
        }
        reply
    }
}

/// Waits as long as `PREFETCH_RATE` demands for a manifest or a list that came from upstream. A
/// blob waits while it comes.
fn keep_rate(parts: &Parts, reply: &Reply) {
    let length = match &reply.body {
        Body::Bytes(bytes) => Some(bytes.len() as u64),
        Body::Pieces { length, .. } => *length,
        _ => None,
    };
    let is_old = matches!(
        reply.outcome.cache,
        Some(CacheOutcome::Hit | CacheOutcome::Revalidated | CacheOutcome::Stale)
    );
    if let (Some(cache), Some(length), false) = (&parts.cache, length, is_old) {
        cache.fills.keep_rate(length);
    }
}

/// Reads a body of at most `limit` bytes. None for a larger one, and for one that breaks off.
pub(super) fn read_body(body: Body, limit: u64) -> Option<Vec<u8>> {
    match body {
        Body::Bytes(bytes) => Some(bytes.to_vec()),
        Body::Pieces {
            mut pieces,
            length: Some(length),
        } if length <= limit => read_pieces(&mut *pieces).ok(),
        _ => None,
    }
}

/// Reads a body to its end, and tells how long each piece of it was.
fn drain(pieces: &mut dyn Pieces, on_piece: &mut dyn FnMut(u64)) -> io::Result<()> {
    loop {
        match pieces.next()? {
            Piece::Bytes(piece) => on_piece(piece.len() as u64),
            Piece::File { length, .. } => on_piece(length),
            Piece::End => return Ok(()),
        }
    }
}

fn read_pieces(pieces: &mut dyn Pieces) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        match pieces.next()? {
            Piece::Bytes(piece) => bytes.extend_from_slice(piece),
            Piece::File {
                file,
                offset,
                length,
            } => {
                let start = bytes.len();
                let length = usize::try_from(length).map_err(io::Error::other)?;
                bytes.resize(start + length, 0);
                file.read_exact_at(bytes.get_mut(start..).unwrap_or_default(), offset)?;
            }
            Piece::End => return Ok(bytes),
        }
    }
}
