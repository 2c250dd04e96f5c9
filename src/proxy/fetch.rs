//! An image fetched into the cache as clients would fetch it: its manifests, the blobs of the
//! platforms that are wanted, and what refers to it. For `pull` and `PREFETCH`. Owns: the order of
//! that, and giving way to clients. Must not: know how an answer is kept.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::exchange::Parts;
use super::own::{ACCEPT, NOT_KEPT, read_body};
use super::purpose::{OwnClient, Purpose};
use super::registries::Choice;
use super::{dispatch, follow};
use crate::cache::closure::{ANY_PLATFORM, NO_PLATFORM};
use crate::cache::manifest::{MANIFEST_BYTES_MAX, ManifestContent, Named};
use crate::cache::names::{OwnedScope, Scope};
use crate::cache::store::Store;
use crate::cache::tree::ManifestWalk;
use crate::image_name::ImageName;
use crate::locked::Locked as _;
use crate::message::{Headers, Peer, Reply, Request};
use crate::oci::{Digest, Reference, Repository, Route};
use crate::platforms::Platforms;
use crate::transfers::TRANSFERS;
use crate::upstream::exchange::HEAD_TIMEOUT;

/// Blobs of one image at a time, when somebody waits for it: as many as docker fetches.
const BLOBS_AT_A_TIME: usize = 3;
/// Manifests of one image: far more than there are platforms.
const MANIFESTS_MAX: usize = 1000;
/// Longest time that a blob in the background waits for those of clients. Then it has its turn, so
/// that a busy proxy prefetches all the same.
const GIVE_WAY_MAX: Duration = Duration::from_secs(60);
/// Pause between two checks whether clients still wait.
const CHECK_PAUSE: Duration = Duration::from_millis(100);
/// Most faults that are reported for one image.
const FAULTS_MAX: usize = 20;

/// An image that is wanted in the cache.
pub struct ImageFetch<'a> {
    /// Its name.
    pub name: &'a ImageName,
    /// The platforms that are wanted.
    pub platforms: &'a Platforms,
    /// Why it is fetched. A fetch that nobody waits for gives way to clients.
    pub purpose: Purpose,
    /// Called with the bytes of blobs that are here by now, and of all blobs that are wanted.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// The result of fetching an image.
#[derive(Debug, Default)]
pub struct FetchedImage {
    /// Its manifest.
    pub digest: Option<Digest>,
    /// Blobs that were fetched; the others were here.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The faults, each with what it befell; none for an image that is complete and confirmed.
    pub faults: Vec<String>,
}

pub(super) fn run(parts: &Arc<Parts>, wanted: &ImageFetch<'_>) -> FetchedImage {
    let mut fetched = FetchedImage::default();
    if let Err(why) = fetch(parts, wanted, &mut fetched) {
        fetched.faults.push(why);
    }
    fetched.faults.truncate(FAULTS_MAX);
    fetched
}

/// # Errors
/// Why nothing more can be fetched of the image.
fn fetch(
    parts: &Arc<Parts>,
    wanted: &ImageFetch<'_>,
    fetched: &mut FetchedImage,
) -> Result<(), String> {
    let name = wanted.name;
    let host = name.host().map(|host| format!("{host}/"));
    let (host, repository) = (host.unwrap_or_default(), name.repository());
    let reference = name.reference().as_str();
    let like = request(format!("/v2/{host}{repository}/manifests/{reference}"));
    let resolved = parts.registries.resolve(&like, &|| parts.own_registry());
    let resolved = resolved.map_err(|error| error.message)?;
    if let (Some(host), true) = (name.host(), resolved.prefix.is_empty()) {
        return Err(format!("{host} is in neither ECR nor NAMESPACES"));
    }
    let Route::Manifest(repository, reference) = resolved.route else {
        return Err("it is not the name of an image".to_owned());
    };
    let work = ImageWork::new(parts, &resolved.choice, repository, like, wanted.purpose)?;
    let manifests = work.fetch_manifests(&reference, wanted.platforms, fetched)?;
    work.fetch_blobs(&manifests, wanted.progress, fetched);
    work.fetch_referrers(&manifests, fetched);
    Ok(())
}

/// Fetches one digest of a repository, as a manifest or as a blob, while nobody waits for it.
///
/// # Errors
/// Why it is not in the cache.
pub(super) fn fetch_digest(
    parts: &Arc<Parts>,
    scope: Scope<'_>,
    digest: &Digest,
    is_manifest: bool,
) -> Result<(), String> {
    let name = scope.registry.name();
    let choice = parts.registries.find(name, &|| parts.own_registry());
    let choice = choice.ok_or("its registry is not in ECR")?;
    let (like, repository) = (request("/v2/".to_owned()), scope.repository.clone());
    let work = ImageWork::new(parts, &choice, repository, like, Purpose::Prefetch)?;
    match is_manifest {
        true => work.fetch_manifest(digest.as_str()).map(drop),
        false => work.fetch_blob(digest, &|_| {}).map(drop),
    }
}

/// A request as a client would make it.
fn request(target: String) -> Arc<Request> {
    Arc::new(Request {
        method: "GET".to_owned(),
        target,
        headers: Headers::from_iter([("Accept", ACCEPT)]),
        peer: Peer::on_unix_socket(),
        id: "own".to_owned(),
    })
}

/// A manifest that is in the cache by now.
struct KeptManifest {
    digest: Digest,
    content: ManifestContent,
}

/// The work on one image.
struct ImageWork<'a> {
    parts: &'a Arc<Parts>,
    client: OwnClient,
}

impl<'a> ImageWork<'a> {
    fn new(
        parts: &'a Arc<Parts>,
        choice: &Choice,
        repository: Repository,
        like: Arc<Request>,
        purpose: Purpose,
    ) -> Result<Self, String> {
        let deadline = Instant::now() + HEAD_TIMEOUT;
        let registry = dispatch::resolve_registry(parts, choice, deadline);
        let registry = registry.map_err(|reply| describe(*reply))?;
        let client = OwnClient {
            scope: OwnedScope {
                registry,
                repository,
            },
            like,
            depth: 0,
            purpose,
        };
        Ok(Self { parts, client })
    }

    /// Fetches a manifest. A stale answer is a fault: upstream has not confirmed it.
    fn fetch_manifest(&self, reference: &str) -> Result<KeptManifest, String> {
        self.give_way();
        let reply = self
            .client
            .get(self.parts, &format!("manifests/{reference}"));
        if reply.status != 200 {
            return Err(format!("manifest {reference}: {}", describe(reply)));
        }
        if let Some(warning) = reply.headers.first("Warning") {
            return Err(format!("{reference} is not confirmed: {warning}"));
        }
        let digest = reply
            .outcome
            .digest
            .filter(|digest| self.client.is_kept(self.parts, digest));
        let digest = digest.ok_or_else(|| format!("manifest {reference} {NOT_KEPT}"))?;
        let bytes = read_body(reply.body, MANIFEST_BYTES_MAX);
        let bytes =
            bytes.ok_or_else(|| format!("manifest {reference} broke off, or is too large"))?;
        let content = ManifestContent::read(&bytes);
        Ok(KeptManifest { digest, content })
    }

    /// Fetches the manifests of the image, for the platforms that are wanted.
    ///
    /// # Errors
    /// Why its own manifest was not fetched.
    fn fetch_manifests(
        &self,
        reference: &Reference,
        platforms: &Platforms,
        fetched: &mut FetchedImage,
    ) -> Result<Vec<KeptManifest>, String> {
        let root = self.fetch_manifest(reference.as_str())?.digest;
        let (mut tree, mut manifests) = (ManifestWalk::new(MANIFESTS_MAX), Vec::new());
        tree.enter(&root, None);
        fetched.digest = Some(root);
        let mut met = BTreeSet::new();
        while let Some(found) = tree.advance() {
            let platform = found.platform.as_deref().unwrap_or(ANY_PLATFORM);
            if platform != NO_PLATFORM && !platforms.picks(platform) {
                met.insert(platform.to_owned());
                continue;
            }
            // The root, which is the first, comes from the cache by now.
            match self.fetch_manifest(found.digest.as_str()) {
                Ok(manifest) => {
                    if !manifest.content.is_index && platform != NO_PLATFORM {
                        met.insert(platform.to_owned());
                    }
                    tree.descend(&manifest.content);
                    manifests.push(manifest);
                }
                Err(why) => fetched.faults.push(why),
            }
        }
        if tree.is_cut {
            let why = "it has more manifests or blobs than any image that registries take";
            fetched.faults.push(why.to_owned());
        }
        let met: Vec<&str> = met.iter().map(String::as_str).collect();
        let refused = platforms.refuse(&met);
        let is_all = fetched.faults.is_empty();
        fetched.faults.extend(refused.filter(|_| is_all));
        Ok(manifests)
    }

    fn fetch_blobs(
        &self,
        manifests: &[KeptManifest],
        progress: &(dyn Fn(u64, u64) + Sync),
        fetched: &mut FetchedImage,
    ) {
        let contents = manifests.iter().map(|manifest| &manifest.content);
        let images = contents.filter(|content| !content.is_index);
        let mut seen = HashSet::new();
        let named = images.flat_map(|content| &content.named);
        let blobs: Vec<&Named> = named.filter(|named| seen.insert(&named.digest)).collect();
        let total = blobs.iter().filter_map(|named| named.size).sum();
        let done = AtomicU64::new(0);
        let progress = |bytes: u64| progress(done.fetch_add(bytes, Relaxed) + bytes, total);
        let (waiting, fetched) = (Mutex::new(blobs.into_iter()), Mutex::new(fetched));
        let next = || waiting.locked().next();
        let work = || {
            while let Some(Named { digest, size, .. }) = next() {
                if self.is_whole(digest) {
                    progress(size.unwrap_or_default());
                    continue;
                }
                let result = self.fetch_blob(digest, &progress);
                let mut fetched = fetched.locked();
                match result {
                    Ok(bytes) => {
                        fetched.blobs += 1;
                        fetched.bytes += bytes;
                    }
                    Err(why) => fetched.faults.push(format!("blob {digest}: {why}")),
                }
            }
        };
        let at_a_time = match self.client.purpose {
            Purpose::Pull => BLOBS_AT_A_TIME,
            _ => 1,
        };
        thread::scope(|scope| {
            for _ in 1..at_a_time {
                let thread = thread::Builder::new().name("pull".into());
                // A thread that is refused is no fault: this one does its work.
                let _ = thread.spawn_scoped(scope, work);
            }
            work();
        });
    }

    /// True for a blob that is here. `pull` hashes it: one that is damaged goes, and is fetched.
    fn is_whole(&self, digest: &Digest) -> bool {
        let store = self.parts.cache.as_ref().map(|cache| &cache.store);
        let open = |store: &Arc<Store>| store.open_verified(digest, u64::MAX).ok().flatten();
        self.client.is_kept(self.parts, digest)
            && (self.client.purpose != Purpose::Pull || store.and_then(open).is_some())
    }

    fn fetch_blob(&self, digest: &Digest, progress: &dyn Fn(u64)) -> Result<u64, String> {
        self.give_way();
        let reply = self.client.get(self.parts, &format!("blobs/{digest}"));
        if reply.status != 200 {
            return Err(describe(reply));
        }
        let mut on_piece = |count| progress(count);
        self.client
            .keep_blob(self.parts, digest, reply, &mut on_piece)
    }

    /// Fetches what refers to the image. When a blob of the image is new, also fetches what refers
    /// to its other manifests.
    fn fetch_referrers(&self, manifests: &[KeptManifest], fetched: &mut FetchedImage) {
        let all = fetched.blobs > 0;
        for manifest in manifests.iter().take(if all { MANIFESTS_MAX } else { 1 }) {
            self.give_way();
            let digest = &manifest.digest;
            if !follow::fetch_referrers(self.parts, &self.client, digest) {
                let why = format!("not all referrers of {digest} could be fetched");
                fetched.faults.push(why);
            }
        }
    }

    /// Waits while clients wait for bytes of upstream.
    fn give_way(&self) {
        let until = Instant::now() + GIVE_WAY_MAX;
        while self.client.purpose == Purpose::Prefetch
            && TRANSFERS.serve_clients()
            && Instant::now() < until
        {
            thread::sleep(CHECK_PAUSE);
        }
    }
}

/// The status and message of an error document.
fn describe(reply: Reply) -> String {
    let status = reply.status;
    let bytes = read_body(reply.body, MANIFEST_BYTES_MAX).unwrap_or_default();
    let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = document
        .pointer("/errors/0/message")
        .and_then(Value::as_str);
    match message {
        Some(message) => format!("{status}: {message}"),
        None => format!("answered {status}"),
    }
}
