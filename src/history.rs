//! Recent events. Owns: the last 24 hours by the minute, and the last failures. Must not: lock for
//! a request that succeeds.
//!
//! The minutes are a ring of atomics, 80 KB. The thread that counts first in a minute clears its
//! place, so that no timer is needed. Counts of other threads in that very moment may be lost.
//!
//! Lock: the failures, held to add one or to copy them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use serde_json::Value;

use crate::label::label;
use crate::locked::Locked;

/// Minutes that are kept: a day.
pub const MINUTES: usize = 24 * 60;
/// Failures that are kept: more than a page shows, and 300 KB with the longest texts.
pub const FAILURES_MAX: usize = 100;

label! {
    /// What is counted by the minute: requests under `/v2` by their end, then bytes.
    pub enum Event {
        /// From the cache.
        Hit = "hit",
        /// From the cache, which upstream could not confirm.
        Stale = "stale",
        /// From upstream: it was not in the cache, or is not kept there.
        Miss = "miss",
        /// Anything else that went well: lists, logins, uploads.
        Other = "other",
        /// The client has not the right, or its request is wrong.
        Refused = "refused",
        /// The fault was here or upstream.
        Failed = "failed",
        /// Bytes to clients, out of the cache: upstream did not have to send them.
        SavedBytes = "saved_bytes",
        /// Bytes to clients, from upstream.
        UpstreamBytes = "upstream_bytes",
        /// Bytes removed from the cache to hold the quota.
        EvictedBytes = "evicted_bytes",
    }
}

/// The first of [`Event::ALL`], which are requests.
const REQUESTS: usize = Event::SavedBytes as usize;

/// A place in the ring.
#[derive(Default)]
struct MinuteSlot {
    /// The minute that it has, counted from 1; 0 before the first.
    minute: AtomicU32,
    requests: [AtomicU32; REQUESTS],
    bytes: [AtomicU64; Event::ALL.len() - REQUESTS],
}

/// The ring of minutes.
struct History(Box<[MinuteSlot]>);

static HISTORY: LazyLock<History> = LazyLock::new(History::new);
/// The last failures of this process.
pub static FAILURES: Failures = Failures(Mutex::new(VecDeque::new()));
/// When the first minute began.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Adds to a number of this minute.
pub fn count(event: Event, number: u64) {
    HISTORY.count(minute_now(), event, number);
}

/// The name of each number, and its values: one for each minute since the start, a day at the most.
/// The last is this minute's.
pub fn series() -> impl Iterator<Item = (&'static str, Vec<u64>)> {
    let minute = minute_now();
    let series = move |event: &Event| (event.name(), HISTORY.until(minute, *event));
    Event::ALL.iter().map(series)
}

/// The minute it is, counted from 1.
fn minute_now() -> u32 {
    let minutes = STARTED.elapsed().as_secs() / 60;
    u32::try_from(minutes).unwrap_or(u32::MAX - 1) + 1
}

impl History {
    fn new() -> Self {
        Self((0..MINUTES).map(|_| MinuteSlot::default()).collect())
    }

    fn slot(&self, minute: u32) -> Option<&MinuteSlot> {
        self.0.get(minute as usize % MINUTES)
    }

    fn count(&self, minute: u32, event: Event, number: u64) {
        let Some(slot) = self.slot(minute) else {
            return;
        };
        // The first thread clears the counts of the day before.
        if slot.minute.load(Relaxed) != minute && slot.minute.swap(minute, Relaxed) != minute {
            slot.requests.iter().for_each(|sum| sum.store(0, Relaxed));
            slot.bytes.iter().for_each(|sum| sum.store(0, Relaxed));
        }
        if let Some(sum) = slot.requests.get(event as usize) {
            sum.fetch_add(u32::try_from(number).unwrap_or(u32::MAX), Relaxed);
        } else if let Some(sum) = slot.bytes.get(event as usize - REQUESTS) {
            sum.fetch_add(number, Relaxed);
        }
    }

    /// One number of the minutes up to this one, the oldest first.
    fn until(&self, minute: u32, event: Event) -> Vec<u64> {
        let first = minute.saturating_sub(u32::try_from(MINUTES).unwrap_or(0)) + 1;
        let read = |minute| {
            let slot = self.slot(minute);
            let slot = slot.filter(|slot| slot.minute.load(Relaxed) == minute)?;
            let requests = slot.requests.iter().map(|sum| sum.load(Relaxed).into());
            let bytes = slot.bytes.iter().map(|sum| sum.load(Relaxed));
            requests.chain(bytes).nth(event as usize)
        };
        let minutes = first..=minute;
        minutes.map(|at| read(at).unwrap_or_default()).collect()
    }
}

/// The last requests that failed, as `/status.json` shows them.
pub struct Failures(Mutex<VecDeque<Value>>);

impl Failures {
    /// Keeps a failure; the oldest goes when there are too many.
    pub fn add(&self, failure: Value) {
        let mut kept = self.0.locked();
        kept.truncate(FAILURES_MAX - 1);
        kept.push_front(failure);
    }

    /// The failures, the last one first.
    pub fn latest(&self) -> Vec<Value> {
        self.0.locked().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_kept_by_the_minute() {
        let history = History::new();
        history.count(1, Event::Hit, 1);
        history.count(3, Event::Failed, 1);
        history.count(3, Event::SavedBytes, 7);
        history.count(3, Event::SavedBytes, 5 << 40);
        assert_eq!(history.until(3, Event::Hit), [1, 0, 0]);
        assert_eq!(history.until(3, Event::Failed), [0, 0, 1]);
        let saved = history.until(3, Event::SavedBytes);
        assert_eq!(saved, [0, 0, (5 << 40) + 7]);
        assert_eq!(history.until(3, Event::UpstreamBytes), [0; 3]);
    }

    #[test]
    fn a_place_is_cleared_a_day_later() {
        let history = History::new();
        let day = u32::try_from(MINUTES).unwrap();
        history.count(5, Event::Miss, 1);
        let misses = |until| history.until(until, Event::Miss);
        assert_eq!((misses(day).len(), misses(day)[4]), (MINUTES, 1));
        // Nobody counted in the minute that has the same place.
        assert_eq!(misses(day + 5)[MINUTES - 1], 0);
        history.count(day + 5, Event::Hit, 1);
        assert_eq!(misses(day + 5), [0; MINUTES]);
        assert_eq!(history.until(day + 5, Event::Hit)[MINUTES - 1], 1);
    }

    #[test]
    fn the_ring_takes_less_than_100_kilobytes() {
        let bytes = size_of_val(&*History::new().0);
        assert!(bytes < 100_000, "{bytes}");
    }

    #[test]
    fn failures_are_bounded_and_the_last_comes_first() {
        let failures = Failures(Mutex::default());
        for number in 0..FAILURES_MAX + 3 {
            failures.add(number.into());
        }
        let latest = failures.latest();
        assert_eq!((latest.len(), &latest[0]), (FAILURES_MAX, &102.into()));
    }
}
