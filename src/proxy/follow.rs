//! `FILL_REFERRERS`: when an image comes into the cache, what refers to it comes too (signatures,
//! attestations, SBOMs), so that it can be verified without upstream. Owns: the work of the thread
//! `referrers`. Must not: keep a client waiting, or fetch without bounds.

use std::collections::VecDeque;
use std::sync::Arc;

use super::exchange::Parts;
use super::own::read_body;
use super::page;
use super::purpose::OwnClient;
use crate::cache::manifest::{Named, list_named};
use crate::log;
use crate::message::{Body, Reply};
use crate::metrics;
use crate::oci::Digest;

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
        let image = &attempt.image;
        let fill = || fetch_referrers(parts, &image.client, &image.digest);
        if metrics::count_panic(fill) == Some(false) {
            queue.retry(attempt);
        }
    }
}

/// Fetches what refers to a manifest that `client` asked for, with the rights of that client. False
/// when some of it is to be tried again.
pub(super) fn fetch_referrers(parts: &Arc<Parts>, client: &OwnClient, digest: &Digest) -> bool {
    let mut fill = ReferrerFill {
        parts,
        client: OwnClient {
            depth: client.depth + 1,
            ..client.clone()
        },
        digest,
        manifests: 0,
        blobs: 0,
        bytes_left: BLOB_BYTES_MAX,
        failed: false,
    };
    fill.run();
    log::debug(
        "referrers filled",
        &[
            ("repository", &client.scope.repository),
            ("digest", digest),
            ("manifests", &fill.manifests),
            ("blobs", &fill.blobs),
            ("failed", &fill.failed),
        ],
    );
    !fill.failed
}

struct ReferrerFill<'a> {
    parts: &'a Arc<Parts>,
    client: OwnClient,
    digest: &'a Digest,
    manifests: usize,
    blobs: usize,
    bytes_left: u64,
    /// True when upstream was out of order at some point.
    failed: bool,
}

impl ReferrerFill<'_> {
    fn run(&mut self) {
        let mut found: VecDeque<String> = self.find_listed().into();
        found.extend(SUFFIXES.map(|suffix| self.tag_with(suffix)));
        while let Some(reference) = found.pop_front() {
            if self.manifests == MANIFESTS_MAX {
                return self
                    .client
                    .log_left_out("an image has too many", self.digest);
            }
            self.manifests += 1;
            let manifest = self.ask(&format!("manifests/{reference}"));
            for named in read_named(manifest.body) {
                match named.media_type {
                    Some(_) => found.push_back(named.digest.to_string()),
                    None => self.fetch_blob(&named.digest, named.size.unwrap_or(0)),
                }
            }
        }
    }

    /// Finds the referrers that the API lists, or the tag that takes its place.
    fn find_listed(&mut self) -> Vec<String> {
        let (mut found, mut query) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let reply = self.ask(&format!("referrers/{}{query}", self.digest));
            if reply.status == 404 {
                return vec![self.tag_with("")];
            }
            let named = read_named(reply.body).into_iter();
            found.extend(named.map(|named| named.digest.to_string()));
            match page::next_query(&reply.headers) {
                Some(next) if reply.status == 200 && found.len() < MANIFESTS_MAX => {
                    query = format!("?{next}");
                }
                _ => break,
            }
        }
        found
    }

    /// `sha256-<hex>` and a suffix.
    fn tag_with(&self, suffix: &str) -> String {
        format!("{}-{}{suffix}", self.digest.algorithm(), self.digest.hex())
    }

    /// Waits until the blob is kept, so that one download at a time goes on.
    fn fetch_blob(&mut self, digest: &Digest, size: u64) {
        let Some(left) = self.bytes_left.checked_sub(size) else {
            return self.client.log_left_out("they are too large", digest);
        };
        self.bytes_left = left;
        let reply = self.ask(&format!("blobs/{digest}"));
        if reply.status == 200 {
            match self
                .client
                .keep_blob(self.parts, digest, reply, &mut |_| {})
            {
                Ok(_) => self.blobs += 1,
                Err(_) => self.failed = true,
            }
        }
    }

    fn ask(&mut self, place: &str) -> Reply {
        let reply = self.client.get(self.parts, place);
        self.failed |= matches!(reply.status, 429 | 500..=599);
        reply
    }
}

/// Reads what a list or a manifest names. A body that breaks off, or is larger than any of an
/// image, names nothing; nor does an error document.
fn read_named(body: Body) -> Vec<Named> {
    let bytes = read_body(body, NAMES_BYTES_MAX);
    bytes.map_or_else(Vec::new, |bytes| list_named(&bytes))
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
