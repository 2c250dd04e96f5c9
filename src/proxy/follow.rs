//! `FILL_REFERRERS`: when an image comes into the cache, what refers to it comes too (signatures,
//! attestations, SBOMs), so that it can be verified without upstream. Owns: the work of the thread
//! `referrers`. Must not: keep a client waiting, or fetch without bounds.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::exchange::Parts;
use super::own::{self, OwnClient, read_body};
use super::page;
use super::referrer_queue::QueuedImage;
use crate::cache::manifest::{Named, list_named};
use crate::log::{self, Level};
use crate::message::{Body, Reply};
use crate::metrics;
use crate::oci::{Digest, Reference, Route, Tag};

/// Most manifests that are fetched for one image: far more than tools attach.
const MANIFESTS_MAX: usize = 64;
/// Most bytes of blobs that are fetched for one image: SBOMs are megabytes.
const BLOB_BYTES_MAX: u64 = 256 << 20;
/// Largest list or manifest that is searched, which one thread does: no tool writes larger ones.
const NAMES_BYTES_MAX: u64 = 4 << 20;
/// Most pages of the list that are read.
const PAGES_MAX: usize = 8;
/// Suffixes of the tags in which cosign keeps what belongs to an image, beside or instead of the
/// referrers API: `sha256-<hex>.sig` and so on (cosign `specs/SIGNATURE_SPEC.md`).
const SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];

/// The work of the thread `referrers`; never returns. No failure of one image ends it.
pub(super) fn run(parts: &Arc<Parts>) -> ! {
    loop {
        let Some(queue) = &parts.referrer_queue else {
            std::thread::park();
            continue;
        };
        let attempt = queue.next();
        let fill = AssertUnwindSafe(|| ReferrerFill::new(parts, &attempt.image).run());
        match catch_unwind(fill) {
            Ok(true) => {}
            Ok(false) => queue.retry(attempt),
            Err(_) => metrics::PANICS.inc(),
        }
    }
}

/// The work on one image.
pub(super) struct ReferrerFill<'a> {
    parts: &'a Arc<Parts>,
    image: &'a QueuedImage,
    manifests_left: usize,
    bytes_left: u64,
    blobs: usize,
    /// Upstream was out of order at some point.
    failed: bool,
}

impl<'a> ReferrerFill<'a> {
    pub(super) const fn new(parts: &'a Arc<Parts>, image: &'a QueuedImage) -> Self {
        Self {
            parts,
            image,
            manifests_left: MANIFESTS_MAX,
            bytes_left: BLOB_BYTES_MAX,
            blobs: 0,
            failed: false,
        }
    }

    /// True when nothing is left to be tried again.
    pub(super) fn run(mut self) -> bool {
        let mut found: VecDeque<Reference> = self.find_listed().into();
        for suffix in SUFFIXES {
            found.extend(self.tag_with(suffix).map(Reference::Tag));
        }
        while let Some(reference) = found.pop_front() {
            if self.manifests_left == 0 {
                log_left_out("an image has too many", &self.image.digest);
                break;
            }
            self.manifests_left -= 1;
            let Some(manifest) = self.fetch_manifest(&reference) else {
                continue;
            };
            for named in manifest {
                match named.media_type {
                    Some(_) => found.push_back(named.digest.into()),
                    None => self.fetch_blob(&named.digest, named.size.unwrap_or(0)),
                }
            }
        }
        let (blobs, manifests) = (self.blobs, MANIFESTS_MAX - self.manifests_left);
        log::debug(
            "referrers filled",
            &[
                ("repository", &self.image.repository),
                ("digest", &self.image.digest),
                ("manifests", &manifests),
                ("blobs", &blobs),
                ("failed", &self.failed),
            ],
        );
        !self.failed
    }

    /// Finds the referrers that the API lists, or the tag that takes its place.
    fn find_listed(&mut self) -> Vec<Reference> {
        let (repository, digest) = (&self.image.repository, &self.image.digest);
        let mut target = format!("/v2/{repository}/referrers/{digest}");
        let mut found = Vec::new();
        for _ in 0..PAGES_MAX {
            let route = Route::Referrers(repository.clone(), digest.clone());
            let reply = self.ask(route, target);
            if reply.status == 404 {
                return self.tag_with("").map(Reference::Tag).into_iter().collect();
            }
            let (status, headers) = (reply.status, reply.headers);
            found.extend(
                read_named(reply.body)
                    .into_iter()
                    .map(|named| named.digest.into()),
            );
            match page::next_query(&headers) {
                Some(query) if status == 200 && found.len() < MANIFESTS_MAX => {
                    target = format!("/v2/{repository}/referrers/{digest}?{query}");
                }
                _ => break,
            }
        }
        found
    }

    /// `sha256-<hex>` and a suffix.
    fn tag_with(&self, suffix: &str) -> Option<Tag> {
        let (algorithm, hex) = (self.image.digest.algorithm(), self.image.digest.hex());
        format!("{algorithm}-{hex}{suffix}").parse().ok()
    }

    /// Fetches a manifest. Returns what it names.
    fn fetch_manifest(&mut self, reference: &Reference) -> Option<Vec<Named>> {
        let (repository, name) = (&self.image.repository, reference.as_str());
        let target = format!("/v2/{repository}/manifests/{name}");
        let route = Route::Manifest(repository.clone(), reference.clone());
        let reply = self.ask(route, target);
        (reply.status == 200).then(|| read_named(reply.body))
    }

    /// Waits for the download, so that one at a time goes on.
    fn fetch_blob(&mut self, digest: &Digest, size: u64) {
        let Some(left) = self.bytes_left.checked_sub(size) else {
            log_left_out("they are too large", digest);
            return;
        };
        self.bytes_left = left;
        let repository = &self.image.repository;
        let target = format!("/v2/{repository}/blobs/{digest}");
        let reply = self.ask(Route::Blob(repository.clone(), digest.clone()), target);
        if let (200, Body::Pieces { mut pieces, .. }) = (reply.status, reply.body) {
            match own::drain(&mut *pieces, &mut |_| {}) {
                Ok(()) => self.blobs += 1,
                Err(_) => self.failed = true,
            }
        }
    }

    /// Asks with the rights of the client that asked for the image.
    fn ask(&mut self, route: Route, target: String) -> Reply {
        let image = self.image;
        let client = OwnClient {
            parts: self.parts,
            registry: &image.registry,
            like: &image.request,
            depth: image.depth + 1,
            purpose: image.purpose,
        };
        let reply = client.get(route, target);
        self.failed |= matches!(reply.status, 429 | 500..=599);
        reply
    }
}

/// What a list or a manifest names. Nothing, when it breaks off or is larger than those of images
/// are.
fn read_named(body: Body) -> Vec<Named> {
    let bytes = read_body(body, NAMES_BYTES_MAX);
    bytes.map_or_else(Vec::new, |bytes| list_named(&bytes))
}

fn log_left_out(why: &str, digest: &Digest) {
    let fields: [log::Field<'_>; 1] = [("digest", digest)];
    log::cause(Level::Warn, "referrers left out", ("reason", &why), &fields);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::scratch::Scratch;
    use crate::message::WholeBody;

    #[test]
    fn bug_a_list_that_came_from_a_file_named_nothing() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let list = format!(r#"{{"manifests":[{{"digest":"{digest}","mediaType":"a/b"}}]}}"#);
        let scratch = Scratch::new();
        let path = scratch.path().join("page");
        std::fs::write(&path, format!("heading{list}")).unwrap();
        let file = WholeBody::File {
            file: Arc::new(std::fs::File::open(&path).unwrap()),
            offset: 7,
            length: list.len() as u64,
        };
        for body in [WholeBody::Bytes(list.into_bytes().into()), file] {
            let named = read_named(body.into());
            assert_eq!(named.len(), 1);
            assert_eq!(named[0].digest.as_str(), digest);
        }
    }
}
