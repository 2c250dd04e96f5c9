//! The scrub: once in `SCRUB_INTERVAL` every blob is read and hashed again, slowly. Owns: its pace,
//! and the file that says how far it is. Must not: hurry; live traffic comes first.
//!
//! A blob that is not what its name says is removed, as one that a client meets is, and fetched
//! again from a repository that it belongs to. Blobs go in the order of their digests, so that a
//! restart goes on where the last run was.
//!
//! Lock: how far it is, held to copy it.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::files;
use super::fill::{BlobRequest, Fills, Joined};
use super::names::{Names, Scope};
use super::store::Store;
use super::verified::Stamp;
use crate::hash::matches;
use crate::locked::Locked as _;
use crate::log;
use crate::message::Headers;
use crate::metrics;
use crate::oci::{Digest, Registry};
use crate::transfers::TRANSFERS;
use crate::upstream::exchange::{Call, Upstream};

/// The file that says how far it is.
const FILE: &str = "aws-ecr-proxy-scrub";
/// Least and most bytes in a second. The least lets a small cache be done in a while; the most is a
/// tenth of what a disk of today reads.
const RATE_MIN: u64 = 4 << 20;
const RATE_MAX: u64 = 64 << 20;
/// A pass is meant to take this part of the interval.
const PASS_PART: u32 = 4;
/// Pauses are so many times as long while blobs are on their way: a pass still ends in time.
const LIVE_FACTOR: u32 = 3;
/// Longest time between two looks whether a pass is due.
const LOOK: Duration = Duration::from_secs(30);
/// A directory that was never scrubbed waits so long at the most: a start has other work.
const FIRST_AFTER: Duration = Duration::from_secs(60 * 60);
/// Time between two writings of the file.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 4096;
/// Repositories that are asked for one blob.
const REPOSITORIES_MAX: usize = 4;
/// Longest wait for a manifest that is fetched again.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest manifest that is fetched again.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// How far the scrub is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ScrubPass {
    /// When the last pass began.
    pub started: Option<SystemTime>,
    /// When the last whole pass ended.
    pub ended: Option<SystemTime>,
    /// The last blob that was hashed; none between two passes.
    pub last: Option<Digest>,
}

impl ScrubPass {
    fn parse(text: &[u8]) -> Self {
        let document: Value = serde_json::from_slice(text).unwrap_or_default();
        let time = |name: &str| {
            let millis = Duration::from_millis(document.get(name)?.as_u64()?);
            UNIX_EPOCH.checked_add(millis)
        };
        Self {
            started: time("started"),
            ended: time("ended"),
            last: document
                .get("last")
                .and_then(|last| last.as_str()?.parse().ok()),
        }
    }

    fn to_json(&self) -> String {
        let millis = |time: &Option<SystemTime>| {
            let since = time.as_ref()?.duration_since(UNIX_EPOCH).ok()?;
            u64::try_from(since.as_millis()).ok()
        };
        json!({
            "started": millis(&self.started),
            "ended": millis(&self.ended),
            "last": self.last.as_ref().map(Digest::as_str),
        })
        .to_string()
    }

    /// The file's, or what this process knows when its last pass ended later: a full disk does not
    /// take the file, and that pass must not begin again at once.
    fn or_later(self, ours: &Self) -> Self {
        match ours.ended > self.ended {
            true => ours.clone(),
            false => self,
        }
    }

    /// How long it is until a pass is to begin, or to go on.
    fn wait(&self, now: SystemTime, interval: Duration) -> Duration {
        let Some(started) = self.started.filter(|_| self.last.is_none()) else {
            return Duration::ZERO;
        };
        // A time in the future is that of a clock that was set back.
        now.duration_since(started)
            .map_or(Duration::ZERO, |since| interval.saturating_sub(since))
    }

    /// Hundredths of a pass that are done; none between two passes.
    pub fn percent(&self) -> Option<u64> {
        let hex = self.last.as_ref()?.hex().get(..4)?;
        Some(u64::from_str_radix(hex, 16).ok()? * 100 / 0x1_0000)
    }
}

/// Scrubs a cache.
pub struct Scrubber {
    store: Arc<Store>,
    names: Arc<Names>,
    fills: Arc<Fills>,
    upstream: Arc<Upstream>,
    registries: Vec<Registry>,
    interval: Duration,
}

impl Scrubber {
    /// For the cache with these parts, once in `interval`. `registries` says how each is spoken to.
    pub fn new(
        (store, names): (Arc<Store>, Arc<Names>),
        fills: Arc<Fills>,
        upstream: Arc<Upstream>,
        registries: Vec<Registry>,
        interval: Duration,
    ) -> Self {
        Self {
            store,
            names,
            fills,
            upstream,
            registries,
            interval,
        }
    }

    /// The work of the thread `scrub`; it never returns.
    pub fn run(&self) {
        let begun = Instant::now();
        let first_after = self.interval.min(FIRST_AFTER);
        let mut ours = ScrubPass::default();
        loop {
            let mut pass = read(&self.store).or_later(&ours);
            note(&pass);
            let mut wait = pass.wait(SystemTime::now(), self.interval);
            if pass.started.is_none() {
                wait = first_after.saturating_sub(begun.elapsed());
            }
            // One process at a time.
            let lock = wait
                .is_zero()
                .then(|| self.store.lock("scrub", Duration::ZERO));
            match lock.flatten() {
                Some(_lock) => {
                    self.pass(&mut pass);
                    ours = pass;
                }
                None => thread::sleep(wait.clamp(Duration::from_millis(100), LOOK)),
            }
        }
    }

    fn pass(&self, pass: &mut ScrubPass) {
        if pass.last.is_none() {
            pass.started = Some(SystemTime::now());
        }
        let (begun, mut saved) = (Instant::now(), Instant::now());
        let (mut blobs, mut damaged, mut wanted) = (0_u64, 0, Vec::new());
        let (rate, before) = (self.rate(), pass.last.take());
        let is_done = |digest: &Digest| {
            let last = before.as_ref();
            last.is_some_and(|last| order(digest) <= order(last))
        };
        for digest in (0..16).flat_map(|first| self.digests(first)) {
            if is_done(&digest) {
                continue;
            }
            blobs += 1;
            if !self.check(&digest, rate) {
                damaged += 1;
                wanted.push(digest.clone());
            }
            pass.last = Some(digest);
            if saved.elapsed() >= SAVE_INTERVAL {
                self.save(pass);
                self.fetch_again(std::mem::take(&mut wanted));
                saved = Instant::now();
            }
        }
        self.fetch_again(wanted);
        pass.last = None;
        pass.ended = Some(SystemTime::now());
        self.save(pass);
        let took = begun.elapsed().as_millis();
        let fields: [log::Field<'_>; 3] = [("blobs", &blobs), ("damaged", &damaged), ("ms", &took)];
        log::info("cache scrubbed", &fields);
    }

    /// Bytes in a second.
    fn rate(&self) -> u64 {
        let seconds = (self.interval / PASS_PART).as_secs().max(1);
        (self.store.used_bytes() / seconds).clamp(RATE_MIN, RATE_MAX)
    }

    /// The blobs whose digest has this first digit, in order.
    fn digests(&self, first: u8) -> Vec<Digest> {
        let mut digests = Vec::new();
        let digit = format!("{first:x}");
        let listed = self.store.each_blob(&mut |digest| {
            if digest.hex().starts_with(&digit) {
                digests.push(digest);
            }
        });
        if let Err(error) = listed {
            log::warn("blobs were not listed", &[("error", &error)]);
        }
        digests.sort_unstable_by(|one, other| order(one).cmp(&order(other)));
        digests
    }

    /// Hashes a blob. False for a damaged one, which is gone then.
    fn check(&self, digest: &Digest, rate: u64) -> bool {
        let Ok(Some(blob)) = self.store.blob(digest) else {
            return true;
        };
        let found = blob.hash(digest, &mut |bytes| {
            metrics::SCRUBBED_BYTES.add(bytes);
            let pause = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1));
            let is_live = !TRANSFERS.running().0.is_empty();
            thread::sleep(if is_live { pause * LIVE_FACTOR } else { pause });
        });
        let now = blob.file.metadata().map(|metadata| Stamp::of(&metadata));
        if now.ok() != Some(blob.stamp) {
            return true;
        }
        // A sector that cannot be read is damage, too.
        let is_whole = found.is_ok_and(|found| found == digest.as_str());
        match is_whole {
            true => self.store.set_verified(digest, blob.stamp),
            false => self.store.remove_damaged(digest, blob.stamp),
        }
        is_whole
    }

    /// Fetches blobs for one of the repositories that each belongs to, by one look at all of them.
    /// Without upstream a blob stays away until a client asks for it.
    fn fetch_again(&self, mut wanted: Vec<Digest>) {
        let mut asked = HashMap::new();
        let places = match wanted.is_empty() {
            true => Vec::new(),
            false => self.names.scopes(),
        };
        for mut place in places {
            if let Some(registry) = self.find_registry(&place.registry) {
                place.registry = registry;
            }
            wanted.retain(|digest| {
                let Some(link) = self.names.link(place.scope(), digest) else {
                    return true;
                };
                let asked = asked.entry(digest.clone()).or_insert(0);
                *asked += 1;
                let is_kept = match link.media_type {
                    Some(media_type) => self.fetch_manifest(place.scope(), digest, &media_type),
                    None => self.fetch_blob(place.scope(), digest),
                };
                !is_kept && *asked < REPOSITORIES_MAX
            });
        }
    }

    /// How a registry is spoken to: the folder does not say it.
    fn find_registry(&self, named: &Registry) -> Option<Registry> {
        let known = self.registries.iter().cloned();
        let mut known = known.chain(self.names.remembered_registry());
        known.find(|registry| registry.name() == named.name())
    }

    fn fetch_blob(&self, scope: Scope<'_>, digest: &Digest) -> bool {
        let wanted = BlobRequest {
            registry: scope.registry.clone(),
            repository: scope.repository.clone(),
            digest: digest.clone(),
            asked_at: self.names.changes.now(),
            is_background: true,
        };
        match self.fills.join(&wanted) {
            Joined::Growing(_) | Joined::Unproven(_) => true,
            // The manifest of a platform may be linked as a blob.
            Joined::Refused(_) => self.fetch_manifest(scope, digest, "*/*"),
            Joined::Failed(_) | Joined::Bypass(_) => false,
        }
    }

    fn fetch_manifest(&self, scope: Scope<'_>, digest: &Digest, media_type: &str) -> bool {
        let headers = Headers::from_iter([("Accept", media_type)]);
        let call = Call {
            registry: scope.registry,
            method: "GET",
            target: &format!("/v2/{}/manifests/{digest}", scope.repository),
            headers: &headers,
            patience: FETCH_TIMEOUT,
            whole: true,
        };
        let Ok(mut fetched) = self.upstream.fetch_bodiless(call) else {
            return false;
        };
        let deadline = Instant::now() + FETCH_TIMEOUT;
        let body = fetched.reply.read_body(MANIFEST_BYTES_MAX, deadline);
        let bytes = body.ok().filter(|bytes| matches(digest, bytes));
        bytes.is_some_and(|bytes| self.store.put(digest, &bytes).is_ok())
    }

    fn save(&self, pass: &ScrubPass) {
        note(pass);
        let path = path(&self.store);
        // Without it a restart begins the pass again.
        let _ =
            files::replace_unsynced(&self.store.partial_root(), &path, pass.to_json().as_bytes());
    }
}

/// How far it is, for those who ask what the process does.
static PASS: Mutex<ScrubPass> = Mutex::new(ScrubPass {
    started: None,
    ended: None,
    last: None,
});

fn note(pass: &ScrubPass) {
    PASS.locked().clone_from(pass);
}

/// When the last whole pass ended.
pub fn last_end() -> Option<SystemTime> {
    PASS.locked().ended
}

/// Hundredths of the pass that runs.
pub fn percent() -> Option<u64> {
    PASS.locked().percent()
}

/// Blobs go by the first digit of their digests, then by all of it.
fn order(digest: &Digest) -> (&str, &str) {
    (digest.hex(), digest.algorithm())
}

fn path(store: &Store) -> PathBuf {
    store.root().join(FILE)
}

fn read(store: &Store) -> ScrubPass {
    let path = path(store);
    let is_small = fs::metadata(&path).is_ok_and(|found| found.len() <= FILE_BYTES_MAX);
    let text = is_small.then(|| fs::read(&path).ok()).flatten();
    ScrubPass::parse(&text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bug_a_disk_that_took_no_file_had_the_cache_scrubbed_without_end() {
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        let pass = |started, ended| ScrubPass {
            started: at(started),
            ended: at(ended),
            last: None,
        };
        let (ours, interval) = (pass(1000, 1100), Duration::from_secs(600));
        let now = UNIX_EPOCH + Duration::from_secs(1200);
        for kept in [ScrubPass::default(), pass(100, 200)] {
            let known = kept.or_later(&ours);
            assert_eq!(known.wait(now, interval), Duration::from_secs(400));
        }
        // Another process has ended a later one.
        assert_eq!(pass(1150, 1190).or_later(&ours), pass(1150, 1190));
    }

    #[test]
    fn a_pass_is_due_by_the_clock_and_goes_on_after_a_restart() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let week = Duration::from_secs(7 * 24 * 60 * 60);
        let mut pass = ScrubPass {
            started: Some(at(1000)),
            ended: Some(at(2000)),
            last: None,
        };
        assert_eq!(pass.wait(at(1010), week), week - Duration::from_secs(10));
        assert_eq!(pass.wait(at(1000) + week, week), Duration::ZERO);
        assert_eq!(
            pass.wait(at(10), week),
            Duration::ZERO,
            "the clock was set back"
        );
        assert_eq!(
            (pass.percent(), ScrubPass::default().wait(at(0), week)),
            (None, Duration::ZERO)
        );
        let half = format!("sha256:80{}", "0".repeat(62));
        pass.last = half.parse().ok();
        assert_eq!(
            (pass.wait(at(1010), week), pass.percent()),
            (Duration::ZERO, Some(50))
        );
        assert_eq!(ScrubPass::parse(pass.to_json().as_bytes()), pass);
        assert_eq!(ScrubPass::parse(b"{"), ScrubPass::default());
    }
}
