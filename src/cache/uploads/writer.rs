//! The thread of one upload. Owns: the queue to it, the file without a name, hashing, and making it
//! a blob. Must not: publish anything that has another digest.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cache::disk::Disk;
use crate::cache::fill::BlobRequest;
use crate::cache::sweep::Reservation;
use crate::hash::Hasher;
use crate::locked::Locked as _;
use crate::log::{self, Level};
use crate::metrics;
use crate::permits::Permits;

/// The thread ends when it has heard nothing for so long: clients go on within seconds.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(10 * 60);
/// Bytes that wait for the thread at the most: a burst of the network, and little memory.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Bytes that are handed over in one piece at the most: the kernel writes a few large pieces with
/// half the work of many small ones.
const PIECE_BYTES: usize = 128 * 1024;
/// Room is reserved in steps of so much where the length is not known.
const RESERVE_BYTES: u64 = 32 << 20;
/// Longest wait for room under the quota.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// Room left free on the disk for everything else that writes there.
const FREE_BYTES_MIN: u64 = 1 << 20;
/// Stack of the thread: hashing and file I/O.
const STACK_BYTES: usize = 256 * 1024;

/// What the connection hands to the thread.
pub(super) struct Queue {
    state: Mutex<CopyQueue>,
    changed: Condvar,
}

#[derive(Default)]
struct CopyQueue {
    items: VecDeque<Item>,
    bytes: usize,
    /// The buffers of pieces that were written, for the next ones: the allocator would give each
    /// back to the system, and the system would clear it each time. No more than once waited.
    spare: Vec<Vec<u8>>,
    /// The connection is done with it.
    closed: bool,
    /// The thread is done: whether there is a blob now.
    ended: Option<bool>,
}

enum Item {
    Bytes(Vec<u8>),
    Expect(u64),
    Commit(BlobRequest),
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Hands over a copy and says how long that took; none when it took longer than `patience`, or
    /// the thread has given up.
    pub(super) fn push(&self, bytes: &[u8], patience: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let mut state = self.state.locked();
        while state.ended.is_none() && state.bytes > QUEUE_BYTES_MAX {
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.ended.is_some() {
            return None;
        }
        state.bytes += bytes.len();
        let was_empty = state.items.is_empty();
        match state.items.back_mut() {
            Some(Item::Bytes(piece)) if piece.len() + bytes.len() <= PIECE_BYTES => {
                piece.extend_from_slice(bytes);
            }
            _ => {
                let new_piece = || Vec::with_capacity(PIECE_BYTES);
                let mut piece = state.spare.pop().unwrap_or_else(new_piece);
                piece.extend_from_slice(bytes);
                state.items.push_back(Item::Bytes(piece));
            }
        }
        drop(state);
        if was_empty {
            self.changed.notify_all();
        }
        Some(begun.elapsed())
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.state.locked().items.push_back(Item::Expect(bytes));
        self.changed.notify_all();
    }

    /// Lets the thread make it a blob, and waits until it has, or for `patience`.
    pub(super) fn commit(&self, wanted: &BlobRequest, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state.locked();
        state.items.push_back(Item::Commit(wanted.clone()));
        self.changed.notify_all();
        loop {
            if let Some(kept) = state.ended {
                return kept;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What came so far is not wanted any more.
    pub(super) fn close(&self) {
        let mut state = self.state.locked();
        state.closed = true;
        state.items.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// The next item; none when there will be none, or none comes for [`IDLE_MAX`].
    fn next(&self) -> Option<Item> {
        let until = Instant::now() + IDLE_MAX;
        let mut state = self.state.locked();
        loop {
            if state.closed {
                return None;
            }
            if let Some(item) = state.items.pop_front() {
                let was_full = state.bytes > QUEUE_BYTES_MAX;
                if let Item::Bytes(bytes) = &item {
                    state.bytes -= bytes.len();
                }
                drop(state);
                if was_full {
                    self.changed.notify_all();
                }
                return Some(item);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the buffer of a piece that was written.
    fn reuse(&self, mut piece: Vec<u8>) {
        piece.clear();
        self.state.locked().spare.push(piece);
    }

    fn end(&self, kept: bool) {
        let mut state = self.state.locked();
        state.ended = Some(kept);
        state.items.clear();
        state.spare = Vec::new();
        drop(state);
        self.changed.notify_all();
    }
}

/// Starts a thread; none when there are too many, or it is refused.
pub(super) fn start(disk: &Disk, threads: &Arc<Permits>) -> Option<Arc<Queue>> {
    let permit = threads.take_owned(Instant::now())?;
    let queue = Arc::new(Queue::new());
    let (disk, items) = (disk.clone(), Arc::clone(&queue));
    let run = move || {
        let work = AssertUnwindSafe(|| run(&disk, &items));
        let kept = catch_unwind(work).unwrap_or_else(|_| {
            metrics::PANICS.inc();
            false
        });
        // Before anybody is told of the end, so that there is a place for the next one.
        drop(permit);
        items.end(kept);
    };
    let thread = std::thread::Builder::new().name("upload".into());
    thread.stack_size(STACK_BYTES).spawn(run).ok()?;
    Some(queue)
}

fn run(disk: &Disk, queue: &Queue) -> bool {
    let Some(mut writing) = disk.faults.check("upload", Writing::open(disk)) else {
        return false;
    };
    while let Some(item) = queue.next() {
        match item {
            Item::Bytes(bytes) => {
                if !writing.write(&bytes) {
                    return false;
                }
                queue.reuse(bytes);
            }
            Item::Expect(bytes) => {
                if !writing.reserve(bytes) {
                    return false;
                }
            }
            Item::Commit(wanted) => return writing.commit(&wanted),
        }
    }
    false
}

struct Writing<'a> {
    disk: &'a Disk,
    file: File,
    path: Unnamed,
    hasher: Hasher,
    /// Bytes reserved and not yet written.
    room: u64,
    /// Held until the blob is on the account.
    reserved: Vec<Reservation>,
}

/// Removed when dropped, unless it has become a blob by then.
struct Unnamed(PathBuf);

impl Drop for Unnamed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl<'a> Writing<'a> {
    fn open(disk: &'a Disk) -> io::Result<Self> {
        let (path, file) = disk.store.create_unnamed()?;
        Ok(Self {
            disk,
            file,
            path: Unnamed(path),
            hasher: Hasher::sha256(),
            room: 0,
            reserved: Vec::new(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        let length = bytes.len() as u64;
        if self.room < length && !self.reserve(length.max(RESERVE_BYTES)) {
            return false;
        }
        if let Err(error) = self.file.write_all(bytes) {
            self.disk.faults.report("upload", &error);
            return false;
        }
        self.room = self.room.saturating_sub(length);
        self.hasher.update(bytes);
        true
    }

    fn reserve(&mut self, bytes: u64) -> bool {
        let missing = bytes.saturating_sub(self.room);
        let free = self.disk.store.free_bytes().unwrap_or(u64::MAX);
        let unspent = self.room;
        let room = || {
            let until = Instant::now() + ROOM_TIMEOUT;
            self.disk.sweeper.make_room(missing, until)
        };
        let fits = free.saturating_sub(FREE_BYTES_MIN) >= missing.saturating_add(unspent);
        let Some(reservation) = fits.then(room).flatten() else {
            let why = "there is no room in CACHE_MAX_SIZE";
            log::cause(
                Level::Info,
                "upload not cached",
                ("reason", &why),
                &[("bytes", &missing)],
            );
            return false;
        };
        self.reserved.push(reservation);
        self.room = self.room.saturating_add(missing);
        true
    }

    fn commit(self, wanted: &BlobRequest) -> bool {
        let disk = self.disk;
        let found = self.hasher.finish();
        if found != wanted.digest.as_str() {
            // A part of it went past us, or it is named by another algorithm.
            log::debug(
                "upload not kept",
                &[("digest", &wanted.digest), ("found", &found)],
            );
            return false;
        }
        let _reading = disk.store.reading(&wanted.digest);
        let published = disk
            .store
            .publish_unnamed(&wanted.digest, &self.path.0, &self.file);
        if disk.faults.check("blob", published).is_none() {
            return false;
        }
        // Its bytes are the proof that it belongs there.
        let size = disk.store.size(&wanted.digest).unwrap_or_default();
        wanted.link(disk, Some(size));
        disk.sweeper.mark_dirty();
        true
    }
}
