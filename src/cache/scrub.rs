//! The scrub: once in `SCRUB_INTERVAL` every blob is read and hashed again, slowly. Owns: its pace,
//! and the file that says how far it is. Must not: hurry; live traffic comes first.
//!
//! A blob that is not what its name says is removed, as one that a client meets is, and fetched
//! again from a repository that it belongs to. Blobs go in the order of their digests, so that a
//! restart goes on where the last run was.
//!
//! Lock: how far it is, held to copy it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::files;
use super::names::{Names, OwnedScope, Scope};
use super::paths::read_text;
use super::store::Store;
use super::verified::HashVerdict;
use crate::locked::Locked as _;
use crate::log;
use crate::metrics;
use crate::oci::Digest;
use crate::transfers::TRANSFERS;

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

/// How far the scrub is. Times are milliseconds since 1970.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ScrubPass {
    /// When the last pass began.
    started: Option<u64>,
    /// When the last whole pass ended.
    ended: Option<u64>,
    /// The last blob that was hashed; none between two passes.
    last: Option<Digest>,
}

impl ScrubPass {
    fn parse(text: &str) -> Self {
        let document: Value = serde_json::from_str(text).unwrap_or_default();
        let time = |name: &str| document.get(name)?.as_u64();
        let last = document.get("last").and_then(Value::as_str);
        Self {
            started: time("started"),
            ended: time("ended"),
            last: last.and_then(|last| last.parse().ok()),
        }
    }

    fn to_json(&self) -> String {
        let last = self.last.as_ref().map(Digest::as_str);
        json!({"started": self.started, "ended": self.ended, "last": last}).to_string()
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
    fn wait(&self, now: u64, interval: Duration) -> Duration {
        let Some(started) = self.started.filter(|_| self.last.is_none()) else {
            return Duration::ZERO;
        };
        // A time in the future is that of a clock that was set back.
        let since = now.checked_sub(started).map(Duration::from_millis);
        since.map_or(Duration::ZERO, |since| interval.saturating_sub(since))
    }

    /// When the last whole pass ended.
    pub fn end(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.ended?))
    }

    /// Hundredths of a pass that are done; none between two passes.
    pub fn percent(&self) -> Option<u64> {
        let hex = self.last.as_ref()?.hex().get(..4)?;
        Some(u64::from_str_radix(hex, 16).ok()? * 100 / 0x1_0000)
    }
}

/// Fetches a digest of a repository anew, as a manifest or as a blob. False when it is not here
/// then.
pub type FetchAgain = Box<dyn Fn(Scope<'_>, &Digest, bool) -> bool + Send>;

/// Scrubs a cache.
pub struct Scrubber {
    /// Blobs.
    pub store: Arc<Store>,
    /// Links.
    pub names: Arc<Names>,
    /// How damaged ones are fetched again.
    pub fetch: FetchAgain,
    /// How often everything is hashed.
    pub interval: Duration,
}

impl Scrubber {
    /// The work of the thread `scrub`; it never returns.
    pub fn run(&self) {
        let begun = Instant::now();
        let first_after = self.interval.min(FIRST_AFTER);
        loop {
            let mut pass = read(&self.store).or_later(&progress());
            note(&pass);
            let wait = match pass.started {
                Some(_) => pass.wait(now_millis(), self.interval),
                None => first_after.saturating_sub(begun.elapsed()),
            };
            // One process at a time.
            let lock = wait
                .is_zero()
                .then(|| self.store.lock("scrub", Duration::ZERO));
            match lock.flatten() {
                Some(_lock) => self.pass(&mut pass),
                None => thread::sleep(wait.clamp(Duration::from_millis(100), LOOK)),
            }
        }
    }

    fn pass(&self, pass: &mut ScrubPass) {
        if pass.last.is_none() {
            pass.started = Some(now_millis());
        }
        let (begun, mut saved) = (Instant::now(), Instant::now());
        let (mut blobs, mut damaged, mut wanted) = (0_u64, 0, Vec::new());
        let (rate, before) = (self.rate(), pass.last.take());
        let is_done = |digest: &Digest| Some(order(digest)) <= before.as_ref().map(order);
        let digests = (0..16).flat_map(|first| self.digests(first));
        for digest in digests.skip_while(is_done) {
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
        pass.ended = Some(now_millis());
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
        let judged = self.store.judge(digest, &blob.file, blob.stamp, found);
        judged != HashVerdict::Damaged
    }

    /// Fetches each blob for one of the repositories that it belongs to. Without upstream it stays
    /// away until a client asks for it.
    fn fetch_again(&self, wanted: Vec<Digest>) {
        if wanted.is_empty() {
            return;
        }
        let owned = self.names.scopes();
        for digest in wanted {
            let scopes = owned.iter().map(OwnedScope::as_scope);
            let linked = scopes.filter_map(|scope| Some((scope, self.names.link(scope, &digest)?)));
            linked.take(REPOSITORIES_MAX).any(|(scope, link)| {
                let fetch = |is_manifest| (self.fetch)(scope, &digest, is_manifest);
                // The manifest of a platform may be linked as a blob.
                link.media_type.is_none() && fetch(false) || fetch(true)
            });
        }
    }

    fn save(&self, pass: &ScrubPass) {
        note(pass);
        let path = path(&self.store);
        // Without it a restart begins the pass again.
        let _ =
            files::replace_unsynced(&self.store.partial_root(), &path, pass.to_json().as_bytes());
    }
}

static PASS: Mutex<ScrubPass> = Mutex::new(ScrubPass {
    started: None,
    ended: None,
    last: None,
});

fn note(pass: &ScrubPass) {
    PASS.locked().clone_from(pass);
}

/// How far this process knows the scrub to be.
pub fn progress() -> ScrubPass {
    PASS.locked().clone()
}

fn now_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// Blobs go by the first digit of their digests, then by all of it.
fn order(digest: &Digest) -> (&str, &str) {
    (digest.hex(), digest.algorithm())
}

fn path(store: &Store) -> PathBuf {
    store.root().join(FILE)
}

fn read(store: &Store) -> ScrubPass {
    ScrubPass::parse(&read_text(&path(store), FILE_BYTES_MAX).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bug_a_disk_that_took_no_file_had_the_cache_scrubbed_without_end() {
        let pass = |started: u64, ended: u64| ScrubPass {
            started: Some(started * 1000),
            ended: Some(ended * 1000),
            last: None,
        };
        let (ours, interval) = (pass(1000, 1100), Duration::from_secs(600));
        let now = 1_200_000;
        for kept in [ScrubPass::default(), pass(100, 200)] {
            let known = kept.or_later(&ours);
            assert_eq!(known.wait(now, interval), Duration::from_secs(400));
        }
        // Another process has ended a later one.
        assert_eq!(pass(1150, 1190).or_later(&ours), pass(1150, 1190));
    }

    #[test]
    fn a_pass_is_due_by_the_clock_and_goes_on_after_a_restart() {
        let week = Duration::from_secs(7 * 24 * 60 * 60);
        let week_millis = 7 * 24 * 60 * 60 * 1000;
        let mut pass = ScrubPass {
            started: Some(1_000_000),
            ended: Some(2_000_000),
            last: None,
        };
        assert_eq!(pass.wait(1_010_000, week), week - Duration::from_secs(10));
        assert_eq!(pass.wait(1_000_000 + week_millis, week), Duration::ZERO);
        assert_eq!(
            pass.wait(10_000, week),
            Duration::ZERO,
            "the clock was set back"
        );
        assert_eq!(
            (pass.percent(), ScrubPass::default().wait(0, week)),
            (None, Duration::ZERO)
        );
        let half = format!("sha256:80{}", "0".repeat(62));
        pass.last = half.parse().ok();
        assert_eq!(
            (pass.wait(1_010_000, week), pass.percent()),
            (Duration::ZERO, Some(50))
        );
        assert_eq!(ScrubPass::parse(&pass.to_json()), pass);
        assert_eq!(ScrubPass::parse("{"), ScrubPass::default());
    }
}
