//! What happened of late. Owns: the last 24 hours by the minute, and the last failures. Must not:
//! lock for a request that succeeds.
//!
//! The minutes are a ring of atomics, 80 KB. Whoever counts first in a minute clears its place, so
//! that no timer is needed. What is counted by others in that very moment may be lost.
//!
//! Lock: the failures, held to add one or to copy them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex};
use std::time::{Instant, SystemTime};

use crate::label::label;
use crate::locked::Locked;

/// Minutes that are kept: a day.
pub const MINUTES: usize = 24 * 60;
/// Failures that are kept: more than a page shows, and 300 KB with the longest texts.
pub const FAILURES_MAX: usize = 100;
/// Longest text of a failure's field.
const TEXT_BYTES_MAX: usize = 512;

label! {
    /// How a request under `/v2` ended.
    pub enum Outcome {
        /// From the cache.
        Hit = "hit",
        /// From the cache, which upstream could not confirm.
        Stale = "stale",
        /// From upstream: it was not in the cache, or is not kept there.
        Miss = "miss",
        /// Anything else that went well: lists, logins, uploads.
        Other = "other",
        /// The client was told that it may not, or that its request is wrong.
        Refused = "refused",
        /// The fault was here or upstream.
        Failed = "failed",
    }
}

label! {
    /// Bytes that are counted by the minute.
    pub enum Bytes {
        /// To clients, out of the cache: upstream did not have to send them.
        Saved = "saved_bytes",
        /// To clients, from upstream.
        Upstream = "upstream_bytes",
        /// Removed from the cache to hold the quota.
        Evicted = "evicted_bytes",
    }
}

/// Numbers of a minute: requests by [`Outcome`], then bytes by [`Bytes`].
pub const NUMBERS: usize = Outcome::ALL.len() + Bytes::ALL.len();

/// The names of a minute's numbers.
pub fn names() -> impl Iterator<Item = &'static str> {
    let outcomes = Outcome::ALL.iter().map(|outcome| outcome.name());
    outcomes.chain(Bytes::ALL.iter().map(|kind| kind.name()))
}

/// A place in the ring.
struct MinuteSlot {
    /// The minute that it has, counted from 1; 0 before the first.
    minute: AtomicU32,
    requests: [AtomicU32; Outcome::ALL.len()],
    bytes: [AtomicU64; Bytes::ALL.len()],
}

/// The ring of minutes.
pub struct History {
    slots: [MinuteSlot; MINUTES],
}

/// The history of this process.
pub static HISTORY: History = History::new();
/// The last failures of this process.
pub static FAILURES: Failures = Failures(Mutex::new(VecDeque::new()));
/// When the first minute began.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The minute it is, counted from 1.
pub fn minute_now() -> u32 {
    let minutes = STARTED.elapsed().as_secs() / 60;
    u32::try_from(minutes).unwrap_or(u32::MAX - 1) + 1
}

impl History {
    const fn new() -> Self {
        Self {
            slots: [const {
                MinuteSlot {
                    minute: AtomicU32::new(0),
                    requests: [const { AtomicU32::new(0) }; Outcome::ALL.len()],
                    bytes: [const { AtomicU64::new(0) }; Bytes::ALL.len()],
                }
            }; MINUTES],
        }
    }

    /// Counts a request that ended in this minute.
    pub fn count(&self, outcome: Outcome, minute: u32) {
        let slot = self.slot(minute);
        if let Some(count) = slot.and_then(|slot| slot.requests.get(outcome as usize)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Adds bytes to this minute.
    pub fn add(&self, kind: Bytes, bytes: u64, minute: u32) {
        if bytes == 0 {
            return;
        }
        let slot = self.slot(minute);
        if let Some(sum) = slot.and_then(|slot| slot.bytes.get(kind as usize)) {
            sum.fetch_add(bytes, Relaxed);
        }
    }

    /// The numbers of the minutes up to this one, the oldest first: since the start, and at most
    /// [`MINUTES`].
    pub fn until(&self, minute: u32) -> Vec<[u64; NUMBERS]> {
        let first = minute.saturating_sub(u32::try_from(MINUTES).unwrap_or(0)) + 1;
        (first..=minute)
            .map(|minute| self.read(minute).unwrap_or_default())
            .collect()
    }

    /// The numbers of a minute; none when nothing was counted in it.
    fn read(&self, minute: u32) -> Option<[u64; NUMBERS]> {
        let slot = self.place(minute)?;
        let requests = slot.requests.iter().map(|count| count.load(Relaxed).into());
        let mut numbers = requests.chain(slot.bytes.iter().map(|sum| sum.load(Relaxed)));
        let is_its = slot.minute.load(Relaxed) == minute;
        is_its.then(|| std::array::from_fn(|_| numbers.next().unwrap_or_default()))
    }

    /// The place of a minute, cleared of what was a day before.
    fn slot(&self, minute: u32) -> Option<&MinuteSlot> {
        let slot = self.place(minute)?;
        if slot.minute.load(Relaxed) != minute && slot.minute.swap(minute, Relaxed) != minute {
            slot.requests
                .iter()
                .for_each(|count| count.store(0, Relaxed));
            slot.bytes.iter().for_each(|sum| sum.store(0, Relaxed));
        }
        Some(slot)
    }

    fn place(&self, minute: u32) -> Option<&MinuteSlot> {
        self.slots.get(minute as usize % MINUTES)
    }
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// When it ended.
    pub at: SystemTime,
    /// The request's id, as the log has it.
    pub request: String,
    /// The method.
    pub method: String,
    /// The target, as the log shows it.
    pub target: String,
    /// The status of the reply.
    pub status: u16,
    /// What went wrong.
    pub error: String,
    /// The client's address.
    pub peer: String,
}

/// The last failures.
pub struct Failures(Mutex<VecDeque<Failure>>);

impl Failures {
    /// Keeps a failure; the oldest goes when there are too many.
    pub fn add(&self, mut failure: Failure) {
        for text in [
            &mut failure.request,
            &mut failure.method,
            &mut failure.target,
            &mut failure.error,
            &mut failure.peer,
        ] {
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        }
        let mut kept = self.0.locked();
        kept.truncate(FAILURES_MAX - 1);
        kept.push_front(failure);
    }

    /// The failures, the last one first.
    pub fn latest(&self) -> Vec<Failure> {
        let kept = self.0.locked();
        kept.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> Box<History> {
        Box::new(History::new())
    }

    #[test]
    fn a_day_is_kept_by_the_minute() {
        let history = history();
        history.count(Outcome::Hit, 1);
        history.count(Outcome::Failed, 3);
        history.add(Bytes::Saved, 7, 3);
        history.add(Bytes::Saved, 5, 3);
        let minutes = history.until(3);
        assert_eq!(minutes.len(), 3);
        assert_eq!(minutes[0], [1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(minutes[1], [0; NUMBERS]);
        assert_eq!((minutes[2][5], minutes[2][6]), (1, 12));
    }

    #[test]
    fn a_place_is_cleared_a_day_later() {
        let history = history();
        let day = u32::try_from(MINUTES).unwrap();
        history.count(Outcome::Miss, 5);
        assert_eq!(history.until(day).len(), MINUTES);
        assert_eq!(history.until(day)[4][2], 1);
        // Nobody counted in the minute that has the same place.
        assert_eq!(history.until(day + 5)[MINUTES - 1], [0; NUMBERS]);
        history.count(Outcome::Hit, day + 5);
        let minutes = history.until(day + 5);
        assert_eq!(minutes.len(), MINUTES);
        assert_eq!(minutes[MINUTES - 1], [1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_ring_takes_less_than_100_kilobytes() {
        assert!(size_of::<History>() < 100_000, "{}", size_of::<History>());
    }

    #[test]
    fn failures_are_bounded_and_the_last_comes_first() {
        let failures = Failures(Mutex::default());
        for number in 0..FAILURES_MAX + 3 {
            failures.add(Failure {
                at: SystemTime::UNIX_EPOCH,
                request: number.to_string(),
                method: "GET".into(),
                target: "ä".repeat(TEXT_BYTES_MAX),
                status: 502,
                error: "why".into(),
                peer: String::new(),
            });
        }
        let latest = failures.latest();
        assert_eq!(latest.len(), FAILURES_MAX);
        assert_eq!(latest[0].request, (FAILURES_MAX + 2).to_string());
        assert_eq!(latest[0].target.len(), TEXT_BYTES_MAX);
    }
}
