//! The quota, and what is done now and then. Owns: the work of the thread `sweep`: counting what is
//! on disk, evicting, writing the index. Must not: be waited for by a hit.
//!
//! Locks: the state, held for arithmetic and to wait on; under it only the store's account. Never
//! across I/O.

mod evict;
mod survey;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::layout;
use super::names::Names;
use super::store::Store;
use crate::log;

/// Least time between two writings of `index.json` (architecture.md: every few seconds at most),
/// and how often the quota is looked at unasked.
const TICK: Duration = Duration::from_secs(3);
/// An unasked pass, or an index, that took long is not begun again before this many times as long.
const REST_FACTOR: u32 = 20;
/// An eviction goes on until this part of the quota is free, so that not every fill needs one.
const SLACK_PART: u64 = 20;

/// Holds the cache to its quota.
#[derive(Debug)]
pub struct Sweeper {
    store: Arc<Store>,
    names: Arc<Names>,
    quota: u64,
    state: Mutex<State>,
    /// For the thread: there is work.
    work: Condvar,
    /// For those who wait for room: a pass has ended, or room was given back.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    dirty: bool,
    /// What is on disk has been counted.
    counted: bool,
    /// Bytes promised to fills and not yet written.
    reserved: u64,
    /// Bytes that callers wait for.
    wanted: u64,
    /// Evictions begun and ended.
    begun: u64,
    ended: u64,
}

/// Room for a fill: counts against the quota until it is spent or dropped.
#[derive(Debug)]
pub struct Reservation {
    sweeper: Arc<Sweeper>,
    left: u64,
}

impl Reservation {
    /// The fill wrote `bytes`, which the store's account has by now
    /// ([`Store::add_used`]): they count there, no longer here.
    pub fn spend(&mut self, bytes: u64) {
        let spent = bytes.min(self.left);
        self.left -= spent;
        let mut state = self.sweeper.locked();
        state.reserved = state.reserved.saturating_sub(spent);
    }

    /// Bytes not yet spent.
    pub const fn left(&self) -> u64 {
        self.left
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.spend(self.left);
        self.sweeper.room.notify_all();
    }
}

impl Sweeper {
    /// For a cache of at most `quota` bytes.
    pub fn new(store: Arc<Store>, names: Arc<Names>, quota: u64) -> Arc<Self> {
        Arc::new(Self {
            store,
            names,
            quota,
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
        })
    }

    /// The work of the thread `sweep`; returns after [`Self::stop`].
    pub fn run(&self) {
        self.first_count();
        let (mut index_due, mut pass_due) = (Instant::now(), Instant::now());
        while let Some(work) = self.next(index_due, pass_due) {
            let begun = Instant::now();
            if work.evict {
                self.pass();
                pass_due = rest(begun);
            }
            if work.index {
                self.write_index_now();
                index_due = rest(begun);
            }
        }
    }

    /// Ends [`Self::run`] and every wait for room.
    pub fn stop(&self) {
        self.locked().stopped = true;
        self.work.notify_all();
        self.room.notify_all();
    }

    /// A tag changed: the index is to be written.
    pub fn mark_dirty(&self) {
        self.locked().dirty = true;
        self.work.notify_all();
    }

    /// Room for `bytes` more, evicting if need be; none when there is none by `deadline`, or when
    /// an eviction has shown that none can be made. More than the quota is refused at once.
    pub fn make_room(self: &Arc<Self>, bytes: u64, deadline: Instant) -> Option<Reservation> {
        if bytes > self.quota {
            return None;
        }
        let mut state = self.locked();
        let begun = state.begun;
        while state.counted && !self.fits(&state, bytes) {
            let left = deadline.saturating_duration_since(Instant::now());
            // Only a pass that began after this call knows of it.
            let hopeless = state.ended > begun;
            if state.stopped || hopeless || left.is_zero() {
                return None;
            }
            state.wanted = state.wanted.saturating_add(bytes);
            self.work.notify_all();
            let waited = self.room.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.wanted = state.wanted.saturating_sub(bytes);
        }
        state.reserved = state.reserved.saturating_add(bytes);
        drop(state);
        Some(Reservation {
            sweeper: Arc::clone(self),
            left: bytes,
        })
    }

    /// Evicts until at most `target` bytes are used, or nothing more may go. For the thread `sweep`
    /// (and tests): two at a time would each count the other's work for lost.
    pub fn evict(&self, target: u64) {
        let stop = || self.locked().stopped;
        evict::evict(&self.store, &self.names, target, &stop);
    }

    /// Writes the index at once; for shutdown.
    pub fn write_index_now(&self) {
        self.locked().dirty = false;
        if let Err(error) = layout::write_index(&self.store, &self.names) {
            log::warn("index.json was not written", &[("error", &error)]);
        }
    }

    fn first_count(&self) {
        let begun = Instant::now();
        if let Err(error) = self.store.remove_leftovers() {
            log::warn("leftovers were not removed", &[("error", &error)]);
        }
        let mut blobs = 0_u64;
        match self.store.count(&mut |_| blobs += 1) {
            Ok(()) => log::info(
                "cache counted",
                &[
                    ("blobs", &blobs),
                    ("bytes", &self.store.used_bytes()),
                    ("quota", &self.quota),
                    ("ms", &begun.elapsed().as_millis()),
                ],
            ),
            Err(error) => log::warn("cache was not counted", &[("error", &error)]),
        }
        self.locked().counted = true;
    }

    /// Waits for work; none after [`Self::stop`].
    fn next(&self, index_due: Instant, pass_due: Instant) -> Option<Work> {
        let mut state = self.locked();
        loop {
            if state.stopped {
                return None;
            }
            let now = Instant::now();
            let over = !self.fits(&state, 0) && now >= pass_due;
            let work = Work {
                evict: state.wanted > 0 || over,
                index: state.dirty && now >= index_due,
            };
            if work.evict {
                state.begun += 1;
            }
            if work.evict || work.index {
                return Some(work);
            }
            let pause = match state.dirty {
                true => index_due.saturating_duration_since(now).min(TICK),
                false => TICK,
            };
            let waited = self.work.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// One eviction, for those who wait and for the quota itself.
    fn pass(&self) {
        let claimed = {
            let state = self.locked();
            state.reserved.saturating_add(state.wanted)
        };
        let slack = self.quota / SLACK_PART;
        self.evict(self.quota.saturating_sub(claimed.max(slack)));
        self.locked().ended += 1;
        self.room.notify_all();
    }

    fn fits(&self, state: &State, bytes: u64) -> bool {
        let claimed = state.reserved.saturating_add(bytes);
        self.store.used_bytes().saturating_add(claimed) <= self.quota
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread has to do.
struct Work {
    evict: bool,
    index: bool,
}

/// When work that began at `begun` and ends now may be done again unasked.
fn rest(begun: Instant) -> Instant {
    let now = Instant::now();
    let pause = now.duration_since(begun).saturating_mul(REST_FACTOR);
    now + pause.max(TICK)
}

#[cfg(test)]
mod tests;
