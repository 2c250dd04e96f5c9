//! The quota, and what is done now and then. Owns: room under the quota, and the work of the thread
//! `sweep`: counting what is on disk, evicting ahead, writing links and the index. Must not: keep a
//! hit waiting.
//!
//! The thread evicts when little room is left, before anybody needs it. A writer that needs room
//! all the same evicts by itself, one at a time; others that wait go on as soon as they fit.
//!
//! Another process may use the directory. One at a time evicts, after a count of what the others
//! have written, and it leaves young blobs that nothing names yet.
//!
//! Locks: the state, held for arithmetic and to wait on; under it only the store's account and the
//! queue of links. Never across I/O.

mod evict;
mod survey;

use std::cell::Cell;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use self::survey::EvictionTask;
use super::layout;
use super::names::{Names, Scope};
use super::pins::Pins;
use super::store::Store;
use crate::locked::{Locked as _, TimedWait as _};
use crate::log;
use crate::oci::Reference;

/// Least time between two writings of `index.json` (architecture.md: every few seconds at most),
/// and how often the quota is looked at unasked.
const TICK: Duration = Duration::from_secs(3);
/// How often a directory that is only read is counted: another process may fill it.
const WATCH_INTERVAL: Duration = Duration::from_secs(60);
/// Work that took long is not repeated unasked before this many times as long.
const REST_FACTOR: u32 = 20;
/// The thread begins to evict when less than this part of the quota is free.
const HIGH_WATER_PART: u64 = 20;
/// An eviction goes on until this part of the quota is free, so that not every fill needs one.
const LOW_WATER_PART: u64 = 10;
/// What the end of a file takes on the disk.
const BLOCK_BYTES: u64 = 4096;
/// Images evicted between two looks at the waiting writers.
const IMAGES_A_LOOK: u64 = 256;
/// Another process may name a blob so long after it wrote it: the other layers of the image come in
/// between.
const UNNAMED_FOR: Duration = Duration::from_secs(10 * 60);
/// Longest wait of `remove` for another process that evicts.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for another process that writes the index. It holds what we would write, too.
const INDEX_TIMEOUT: Duration = Duration::from_secs(5);

/// Holds the cache to its quota.
#[derive(Debug)]
pub struct Sweeper {
    store: Arc<Store>,
    names: Arc<Names>,
    /// Bytes that the cache may have.
    pub quota: u64,
    state: Mutex<SweepState>,
    /// There is work, a pass has ended, or room was given back.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct SweepState {
    stopped: bool,
    /// The index is to be written.
    is_index_old: bool,
    /// What is on disk has been counted.
    is_counted: bool,
    /// Another process has used the directory since the last count.
    is_shared: bool,
    /// Tagged images, as of the last writing of the index.
    images: u64,
    pins: Arc<Pins>,
    /// Bytes on disk that pinned images need, as of the last eviction.
    pinned_bytes: u64,
    /// Pinned images leave less room than the last eviction was to make.
    is_full_of_pins: bool,
    /// Bytes promised to fills and not yet written.
    reserved: u64,
    /// Bytes that callers wait for.
    wanted: u64,
    /// A thread of this process evicts.
    is_evicting: bool,
    /// Evictions ended.
    ended: u64,
    /// The last eviction could not free what was asked of it.
    is_exhausted: bool,
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
        let mut state = self.sweeper.state.locked();
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
        if self.sweeper.state.locked().wanted > 0 {
            self.sweeper.changed.notify_all();
        }
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
            changed: Condvar::new(),
        })
    }

    /// Lets eviction never touch these images, instead of those that were named before.
    pub fn pin(&self, pins: Pins) {
        self.state.locked().pins = Arc::new(pins);
    }

    /// Removes an image with all that nothing else needs, though it was used just now. Says how
    /// many bytes that freed. Blocks, for as long as it takes to read every manifest.
    ///
    /// # Errors
    /// Why it stays: it is not here, belongs to another image, or is pinned.
    pub fn remove(&self, scope: Scope<'_>, reference: &Reference) -> Result<u64, String> {
        let lock = self.store.lock("evict", REMOVE_TIMEOUT);
        let _lock = lock.ok_or("another process evicts; try again")?;
        let pins = Arc::clone(&self.state.locked().pins);
        let removed = evict::remove(self.task(&pins, None), scope, reference);
        self.mark_dirty();
        removed
    }

    fn task<'a>(&'a self, pins: &'a Pins, unnamed_since: Option<SystemTime>) -> EvictionTask<'a> {
        EvictionTask {
            store: &self.store,
            names: &self.names,
            pins,
            unnamed_since,
        }
    }

    /// Bytes on disk that pinned images need, as of the last eviction.
    pub fn pinned_bytes(&self) -> u64 {
        self.state.locked().pinned_bytes
    }

    /// True when pinned images left less room than the last eviction was to make: other images are
    /// sent without being kept.
    pub fn is_full_of_pins(&self) -> bool {
        self.state.locked().is_full_of_pins
    }

    /// Tagged images in the cache, as they were a few seconds ago.
    pub fn image_count(&self) -> u64 {
        self.state.locked().images
    }

    /// Bytes on disk of all that is kept. Until the first count has ended, earlier runs' are
    /// missing.
    pub fn used_bytes(&self) -> u64 {
        self.store.used_bytes() + self.names.used_bytes()
    }

    /// The work of the thread `sweep`; returns after [`Self::stop`].
    pub fn run(self: &Arc<Self>) {
        self.count();
        let look_interval = match self.store.is_read_only() {
            true => WATCH_INTERVAL,
            false => TICK,
        };
        let mut index_due = Instant::now();
        let (mut pass_due, mut look_due) = (index_due, index_due + look_interval);
        while self.wait_for_work(index_due) {
            let begun = Instant::now();
            if begun >= look_due {
                self.look_for_others();
                look_due = rest(begun).max(begun + look_interval);
            }
            let begun = Instant::now();
            let pass = (begun >= pass_due).then(|| self.begin_pass_ahead());
            if let Some(pass) = pass.flatten() {
                self.evict_for_waiting_writers(pass, None);
                pass_due = rest(begun);
            }
            self.write_links();
            if self.state.locked().is_index_old && begun >= index_due {
                self.write_index_now();
                index_due = rest(begun);
            }
        }
    }

    /// Waits until links or the index are to be written, or for a while; false after
    /// [`Self::stop`]. Other processes wait for the links.
    fn wait_for_work(&self, index_due: Instant) -> bool {
        let until = Instant::now() + TICK;
        let mut state = self.state.locked();
        loop {
            let due = match state.is_index_old {
                true => index_due.min(until),
                false => until,
            };
            let left = due.saturating_duration_since(Instant::now());
            if state.stopped || self.has_links() || left.is_zero() {
                return !state.stopped;
            }
            state = self.changed.wait_for(state, left);
        }
    }

    /// Ends [`Self::run`] and every wait for room.
    pub fn stop(&self) {
        self.state.locked().stopped = true;
        self.changed.notify_all();
    }

    /// A tag changed: the index is to be written.
    pub fn mark_dirty(&self) {
        self.state.locked().is_index_old = true;
        self.changed.notify_all();
    }

    /// A blob came. The thread looks at the index and the quota within a few seconds; it is not
    /// woken for each of many blobs.
    pub fn note_blob(&self) {
        if !std::mem::replace(&mut self.state.locked().is_index_old, true) {
            self.changed.notify_all();
        }
    }

    /// Room for `bytes` more. Evicts if need be, or waits for the one that does. None when there is
    /// none by `deadline`, or when an eviction has shown that none can be made. More than the quota
    /// is refused at once.
    pub fn make_room(self: &Arc<Self>, bytes: u64, deadline: Instant) -> Option<Reservation> {
        // A file takes whole blocks.
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        if bytes > self.quota {
            return None;
        }
        let mut state = self.state.locked();
        // Only a pass that begins after this call knows of it.
        let known = state.ended + u64::from(state.is_evicting);
        while state.is_counted && !self.fits(&state, bytes) {
            let left = deadline.saturating_duration_since(Instant::now());
            // One that freed enough leaves hope: somebody else was quicker to take the room.
            let is_hopeless = state.ended > known && state.is_exhausted;
            if state.stopped || is_hopeless || left.is_zero() {
                return None;
            }
            state.wanted = state.wanted.saturating_add(bytes);
            state = match self.begin_pass(&mut state) {
                None => self.changed.wait_for(state, left),
                Some(pass) => {
                    drop(state);
                    self.evict_for_waiting_writers(pass, Some(deadline));
                    self.state.locked()
                }
            };
            state.wanted = state.wanted.saturating_sub(bytes);
        }
        state.reserved = state.reserved.saturating_add(bytes);
        drop(state);
        Some(Reservation {
            sweeper: Arc::clone(self),
            left: bytes,
        })
    }

    /// Writes the links that wait, and the index; for shutdown.
    pub fn write_all(&self) {
        self.write_links();
        self.write_index_now();
    }

    fn has_links(&self) -> bool {
        !self.store.is_read_only() && self.names.pending.first().is_some()
    }

    fn write_links(&self) {
        if !self.has_links() {
            return;
        }
        let has_room = || self.used_bytes() < self.quota;
        if let Err(error) = self.names.write_links(&has_room) {
            log::warn("links were not written", &[("error", &error)]);
        }
    }

    fn write_index_now(&self) {
        // The process that writes last has read what the others wrote before.
        let _lock = self.store.lock("index", INDEX_TIMEOUT);
        self.state.locked().is_index_old = false;
        match layout::write_index(&self.store, &self.names) {
            Ok(images) => self.state.locked().images = images as u64,
            Err(error) => log::warn("index.json was not written", &[("error", &error)]),
        }
    }

    /// Counts what is on the disk; until then, whatever fits the quota may begin. For the thread,
    /// and for a command that has none. Blocks, for as long as it takes to look at every file.
    pub fn count(&self) {
        let begun = Instant::now();
        let is_shared = self.tidy();
        self.count_now();
        let fields: [log::Field<'_>; 4] = [
            ("blobs", &self.store.blob_count()),
            ("bytes", &self.used_bytes()),
            ("quota_bytes", &self.quota),
            ("ms", &begun.elapsed().as_millis()),
        ];
        log::info("cache counted", &fields);
        let mut state = self.state.locked();
        state.is_shared = is_shared;
        state.is_counted = true;
        // A crash may have left an old index.
        state.is_index_old = true;
    }

    fn count_now(&self) {
        self.names.count();
        if let Err(error) = self.store.count(&mut |_| {}) {
            log::warn("cache was not counted", &[("error", &error)]);
        }
    }

    /// Counts again when another process uses the directory, or just has. Says whether one does.
    fn look_for_others(&self) -> bool {
        let is_shared = self.tidy();
        let was_shared = std::mem::replace(&mut self.state.locked().is_shared, is_shared);
        if is_shared || was_shared {
            self.count_now();
        }
        // What others put into a directory that is only read is known by looking.
        self.state.locked().is_index_old |= self.store.is_read_only();
        is_shared
    }

    /// Removes what ended processes left. Says whether another one uses the directory, or may.
    fn tidy(&self) -> bool {
        let is_shared = self.store.tidy().unwrap_or_else(|error| {
            log::warn("leftovers were not removed", &[("error", &error)]);
            true
        });
        is_shared || self.store.is_read_only()
    }

    /// The right to evict; none while somebody else does: each would count the other's work as
    /// lost.
    fn begin_pass(self: &Arc<Self>, state: &mut SweepState) -> Option<Pass> {
        let is_free = !std::mem::replace(&mut state.is_evicting, true);
        is_free.then(|| Pass(Arc::clone(self)))
    }

    /// The same, when little room is left.
    fn begin_pass_ahead(self: &Arc<Self>) -> Option<Pass> {
        let mut state = self.state.locked();
        let is_full = !self.fits(&state, self.quota / HIGH_WATER_PART);
        let is_due = is_full && !self.store.is_read_only();
        is_due.then(|| self.begin_pass(&mut state)).flatten()
    }

    /// One eviction, for the waiting writers and for the quota itself; ends at `deadline`.
    fn evict_for_waiting_writers(&self, pass: Pass, deadline: Option<Instant>) {
        let (claimed, pins) = {
            let state = self.state.locked();
            let claimed = state.reserved.saturating_add(state.wanted);
            (claimed, Arc::clone(&state.pins))
        };
        let free = claimed.max(self.quota / LOW_WATER_PART);
        let target = self.quota.saturating_sub(free);
        let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let now = Instant::now();
        let patience = deadline.map(|deadline| deadline.saturating_duration_since(now));
        // Another process that evicts now frees the room that we need.
        let lock = self.store.lock("evict", patience.unwrap_or_default());
        if lock.is_none() {
            self.state.locked().is_exhausted = deadline.is_some() && !is_late();
            return;
        }
        let is_shared = self.look_for_others();
        let since = SystemTime::now().checked_sub(UNNAMED_FOR);
        let looks = Cell::new(0_u64);
        let stop = || {
            looks.set(looks.get() + 1);
            if !looks.get().is_multiple_of(IMAGES_A_LOOK) {
                return false;
            }
            self.changed.notify_all();
            self.state.locked().stopped || is_late()
        };
        let task = self.task(&pins, since.filter(|_| is_shared));
        let pinned = evict::evict(task, target, &stop);
        let is_exhausted = self.used_bytes() > target && !is_late();
        let mut state = self.state.locked();
        state.is_exhausted = is_exhausted;
        let was_full = state.is_full_of_pins;
        if let Some(bytes) = pinned {
            state.pinned_bytes = bytes;
            let fixed = bytes.saturating_add(self.names.used_bytes());
            state.is_full_of_pins = bytes > 0 && fixed > target;
        }
        let is_news = state.is_full_of_pins && !was_full;
        drop(state);
        if is_news {
            let fields: [log::Field<'_>; 2] = [
                ("pinned_bytes", &self.pinned_bytes()),
                ("quota_bytes", &self.quota),
            ];
            let what = "pinned images fill the cache, and others find no room: \
                        raise CACHE_MAX_SIZE, or let PIN name fewer";
            log::warn(what, &fields);
        }
        drop(pass);
    }

    fn fits(&self, state: &SweepState, bytes: u64) -> bool {
        let claimed = state.reserved.saturating_add(bytes);
        self.used_bytes().saturating_add(claimed) <= self.quota
    }
}

/// The right to evict, given back when dropped.
#[derive(Debug)]
struct Pass(Arc<Sweeper>);

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.0.state.locked();
        state.is_evicting = false;
        state.ended += 1;
        drop(state);
        self.0.changed.notify_all();
    }
}

/// When work that began at `begun` and ends now may be done again unasked.
fn rest(begun: Instant) -> Instant {
    let now = Instant::now();
    let pause = now.duration_since(begun).saturating_mul(REST_FACTOR);
    now + pause.max(TICK)
}

#[cfg(test)]
mod tests;
