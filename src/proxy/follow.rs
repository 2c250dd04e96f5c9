//! `FILL_REFERRERS`: when an image comes into the cache, what refers to it comes too (signatures,
//! attestations, SBOMs), so that it can be verified without upstream. Owns: the queue of images,
//! the work of the thread `referrers`. Must not: keep a client waiting, or fetch without bounds.
//!
//! What it fetches goes the way that a client's request goes, and is kept by the same rules. Locks:
//! the queue, held for its own operations.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::registries::Choice;
use super::{Exchange, Own, Parts, cache_key, headers, page};
use crate::message::{Body, Headers, Piece, Reply, Request, RequestBody};
use crate::oci::{Digest, Reference, Registry, Repository, Route, Tag};
use crate::{log, metrics};

/// Images that wait for their turn at the most; each holds the fields of a request.
const QUEUE_MAX: usize = 256;
/// Signatures may be signed, and SBOMs too; what is further away is nobody's proof of the image.
const DEPTH_MAX: u8 = 2;
/// Manifests fetched for one image: far more than tools attach, far fewer than could be attached.
const MANIFESTS_MAX: usize = 64;
/// Bytes of blobs fetched for one image: SBOMs are megabytes.
const BLOB_BYTES_MAX: u64 = 256 << 20;
/// Pages of the list that are read.
const PAGES_MAX: usize = 8;
/// Attempts, while upstream is out of order, and the pause before the second; the next is longer.
const ATTEMPTS_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_secs(10);
/// Where cosign puts what it knows of an image, beside or instead of the referrers API: the tags
/// `sha256-<hex>.sig` and so on (cosign `specs/SIGNATURE_SPEC.md`).
const SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, */*";

/// Images whose referrers are to be fetched.
#[derive(Default)]
pub(super) struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    added: Condvar,
}

/// One image.
struct Job {
    registry: Registry,
    repository: Repository,
    digest: Digest,
    depth: u8,
    /// Of the client, for what `CACHE_KEY` reads of it.
    request: Request,
    attempt: u32,
    due: Instant,
}

impl Queue {
    /// A manifest was fetched for this exchange.
    pub(super) fn add(
        &self,
        exchange: &Exchange,
        registry: &Registry,
        (repository, reference, digest): (&Repository, &Reference, &Digest),
    ) {
        if exchange.depth >= DEPTH_MAX || is_attached(reference) {
            return;
        }
        self.push(Job {
            registry: registry.clone(),
            repository: repository.clone(),
            digest: digest.clone(),
            depth: exchange.depth,
            request: exchange.request.clone(),
            attempt: 1,
            due: Instant::now(),
        });
    }

    fn push(&self, job: Job) {
        let mut jobs = self.lock();
        if jobs.len() >= QUEUE_MAX {
            drop(jobs);
            log::warn(
                "referrers left out: too many images at a time",
                &[("repository", &job.repository), ("digest", &job.digest)],
            );
            return;
        }
        jobs.push_back(job);
        drop(jobs);
        self.added.notify_one();
    }

    /// Waits for the next.
    fn next(&self) -> Job {
        let mut jobs = self.lock();
        loop {
            let now = Instant::now();
            if let Some(at) = jobs.iter().position(|job| job.due <= now)
                && let Some(job) = jobs.remove(at)
            {
                return job;
            }
            let pause = jobs.iter().map(|job| job.due - now).min().unwrap_or(PAUSE);
            let waited = self.added.wait_timeout(jobs, pause);
            jobs = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        // No operation leaves a job half done.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work of the thread `referrers`; never returns. No failure of one image ends it.
pub(super) fn run(parts: &Arc<Parts>) -> ! {
    loop {
        let Some(queue) = &parts.follow else {
            std::thread::park();
            continue;
        };
        let job = queue.next();
        let fill = AssertUnwindSafe(|| Filling::new(parts, &job).run());
        let Ok(whole) = catch_unwind(fill) else {
            metrics::PANICS.inc();
            continue;
        };
        if !whole && job.attempt < ATTEMPTS_MAX {
            queue.push(Job {
                due: Instant::now() + PAUSE * job.attempt,
                attempt: job.attempt + 1,
                ..job
            });
        }
    }
}

/// The work on one image.
struct Filling<'a> {
    parts: &'a Arc<Parts>,
    job: &'a Job,
    manifests_left: usize,
    bytes_left: u64,
    blobs: usize,
    /// Upstream was out of order at some point.
    failed: bool,
}

impl<'a> Filling<'a> {
    const fn new(parts: &'a Arc<Parts>, job: &'a Job) -> Self {
        Self {
            parts,
            job,
            manifests_left: MANIFESTS_MAX,
            bytes_left: BLOB_BYTES_MAX,
            blobs: 0,
            failed: false,
        }
    }

    /// Says whether nothing is left to be tried again.
    fn run(mut self) -> bool {
        let mut found: VecDeque<Reference> = self.listed().into();
        for suffix in SUFFIXES {
            found.extend(self.tag(suffix).map(Reference::Tag));
        }
        while let Some(reference) = found.pop_front() {
            if self.manifests_left == 0 {
                log::warn(
                    "referrers left out: too many",
                    &[("digest", &self.job.digest)],
                );
                break;
            }
            self.manifests_left -= 1;
            let Some(manifest) = self.manifest(&reference) else {
                continue;
            };
            found.extend(digests(&manifest, "manifests").map(|(digest, _)| digest.into()));
            for (digest, size) in blobs(&manifest) {
                self.blob(&digest, size);
            }
        }
        let (blobs, manifests) = (self.blobs, MANIFESTS_MAX - self.manifests_left);
        log::debug(
            "referrers filled",
            &[
                ("repository", &self.job.repository),
                ("digest", &self.job.digest),
                ("manifests", &manifests),
                ("blobs", &blobs),
                ("failed", &self.failed),
            ],
        );
        !self.failed
    }

    /// What the API lists, or the tag that takes its place.
    fn listed(&mut self) -> Vec<Reference> {
        let (repository, digest) = (&self.job.repository, &self.job.digest);
        let mut target = format!("/v2/{repository}/referrers/{digest}");
        let mut found = Vec::new();
        for _ in 0..PAGES_MAX {
            let route = Route::Referrers(repository.clone(), digest.clone());
            let reply = self.ask(route, target);
            let Body::Bytes(body) = &reply.body else {
                break;
            };
            if reply.status == 404 {
                return self.tag("").map(Reference::Tag).into_iter().collect();
            }
            let list: Value = serde_json::from_slice(body).unwrap_or_default();
            found.extend(digests(&list, "manifests").map(|(digest, _)| digest.into()));
            match page::next_query(&reply.headers) {
                Some(query) if reply.status == 200 && found.len() < MANIFESTS_MAX => {
                    target = format!("/v2/{repository}/referrers/{digest}?{query}");
                }
                _ => break,
            }
        }
        found
    }

    /// `sha256-<hex>` and a suffix.
    fn tag(&self, suffix: &str) -> Option<Tag> {
        let (algorithm, hex) = (self.job.digest.algorithm(), self.job.digest.hex());
        format!("{algorithm}-{hex}{suffix}").parse().ok()
    }

    fn manifest(&mut self, reference: &Reference) -> Option<Value> {
        let name = match reference {
            Reference::Digest(digest) => digest.as_str(),
            Reference::Tag(tag) => tag.as_str(),
        };
        let repository = &self.job.repository;
        let target = format!("/v2/{repository}/manifests/{name}");
        let route = Route::Manifest(repository.clone(), reference.clone());
        match self.ask(route, target) {
            Reply {
                status: 200,
                body: Body::Bytes(bytes),
                ..
            } => serde_json::from_slice(&bytes).ok(),
            _ => None,
        }
    }

    /// Waits for the download, so that one at a time goes on.
    fn blob(&mut self, digest: &Digest, size: u64) {
        let Some(left) = self.bytes_left.checked_sub(size) else {
            log::warn(
                "referrer left out: too large",
                &[("digest", digest), ("bytes", &size)],
            );
            return;
        };
        self.bytes_left = left;
        let repository = &self.job.repository;
        let target = format!("/v2/{repository}/blobs/{digest}");
        let reply = self.ask(Route::Blob(repository.clone(), digest.clone()), target);
        if let (200, Body::Pieces { mut pieces, .. }) = (reply.status, reply.body) {
            loop {
                match pieces.next() {
                    Ok(Piece::End) => break self.blobs += 1,
                    Ok(_) => {}
                    Err(_) => break self.failed = true,
                }
            }
        }
    }

    /// Asks as a client would, and as one that may see what this image's client saw.
    fn ask(&mut self, route: Route, target: String) -> Reply {
        let mut fields = self.job.request.headers.clone();
        fields.retain(|name, _| !page::is_condition(name));
        fields.set("Accept", ACCEPT);
        let exchange = self.exchange(route, target, fields);
        let mut nothing = std::io::empty();
        let reply = exchange.run(&mut RequestBody::new(&mut nothing, Some(0)));
        self.failed |= matches!(reply.status, 429 | 500..=599);
        reply
    }

    fn exchange(&self, route: Route, target: String, fields: Headers) -> Exchange {
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let request = Request {
            method: "GET".to_owned(),
            target: target.clone(),
            headers: fields,
            ..self.job.request.clone()
        };
        Exchange {
            parts: Arc::clone(self.parts),
            partition: cache_key::partition(&self.parts.cache_key, &request, &path),
            own: Own::default(),
            headers: headers::for_upstream(&request.headers, &route, "GET"),
            request,
            choice: Choice::Known(self.job.registry.clone()),
            path,
            target,
            route,
            depth: self.job.depth + 1,
        }
    }
}

/// True for the tags that referrers have themselves.
fn is_attached(reference: &Reference) -> bool {
    match reference {
        Reference::Tag(tag) => {
            let rest = tag.as_str().strip_prefix("sha256-");
            rest.is_some_and(|rest| rest.len() >= 64)
        }
        Reference::Digest(_) => false,
    }
}

/// Digests and sizes in a list of descriptors.
fn digests<'a>(document: &'a Value, list: &str) -> impl Iterator<Item = (Digest, u64)> + 'a {
    let list = document.get(list).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(descriptor)
}

fn descriptor(value: &Value) -> Option<(Digest, u64)> {
    let digest = value.get("digest")?.as_str()?.parse().ok()?;
    Some((
        digest,
        value.get("size").and_then(Value::as_u64).unwrap_or(0),
    ))
}

fn blobs(manifest: &Value) -> Vec<(Digest, u64)> {
    let config = manifest.get("config").and_then(descriptor);
    let lists = digests(manifest, "layers").chain(digests(manifest, "blobs"));
    config.into_iter().chain(lists).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(n: usize, due: Instant) -> Job {
        let digest = format!("sha256:{n:064x}");
        Job {
            registry: "r.example".parse().unwrap(),
            repository: "a".parse().unwrap(),
            digest: digest.parse().unwrap(),
            depth: 0,
            request: Request {
                method: "GET".into(),
                target: "/v2/a/manifests/1".into(),
                headers: Headers::new(),
                peer: crate::message::Peer {
                    address: None,
                    port: 0,
                    tls: false,
                    certificate: crate::message::Certificate::NotAsked,
                },
                id: "1".into(),
            },
            attempt: 1,
            due,
        }
    }

    #[test]
    fn the_queue_is_bounded_and_what_is_due_goes_first() {
        let (queue, now) = (Queue::default(), Instant::now());
        queue.push(job(0, now + PAUSE * 100));
        for n in 1..QUEUE_MAX + 5 {
            queue.push(job(n, now));
        }
        assert_eq!(queue.lock().len(), QUEUE_MAX);
        for n in 1..QUEUE_MAX {
            assert_eq!(queue.next().digest.hex(), format!("{n:064x}"));
        }
        assert_eq!(queue.lock().len(), 1, "what is due later waits");
    }

    #[test]
    fn what_is_attached_is_not_an_image() {
        let tag = |text: &str| is_attached(&Reference::Tag(text.parse().unwrap()));
        let hex = "a".repeat(64);
        assert!(tag(&format!("sha256-{hex}")) && tag(&format!("sha256-{hex}.sig")));
        assert!(!tag("1.0") && !tag("sha256-abc"));
        let digest: Digest = format!("sha256:{hex}").parse().unwrap();
        assert!(!is_attached(&digest.into()));
    }

    #[test]
    fn a_manifests_blobs_are_found() {
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
        let manifest = serde_json::json!({"config": {"digest": digest(1), "size": 2},
            "layers": [{"digest": digest(2), "size": 3}, {"digest": "x"}, 5],
            "blobs": [{"digest": digest(3)}], "manifests": 7});
        let found: Vec<(String, u64)> = blobs(&manifest)
            .into_iter()
            .map(|(digest, size)| (digest.to_string(), size))
            .collect();
        assert_eq!(found, [(digest(1), 2), (digest(2), 3), (digest(3), 0)]);
        assert_eq!(digests(&manifest, "manifests").count(), 0);
        assert_eq!(blobs(&Value::Null), []);
    }
}
