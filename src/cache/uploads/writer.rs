//! The thread of one upload. Owns: the queue to it, the file without a name, hashing, and making it
//! a blob. Must not: publish anything that has another digest.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::cache::disk::Disk;
use crate::cache::fill::BlobRequest;
use crate::cache::sweep::Reservation;
use crate::hash::Hasher;
use crate::locked::{Locked as _, TimedWait as _};
use crate::log::{self, Level};
use crate::metrics;
use crate::permits::Permits;

/// The thread ends when it has heard nothing for so long: clients go on within seconds.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(10 * 60);
/// Bytes that wait for the thread at the most: a burst of the network, and little memory.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Room is reserved in steps of so much where the length is not known.
const RESERVE_BYTES: u64 = 32 << 20;
/// Longest wait for room under the quota.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// Stack of the thread: hashing and file I/O.
const STACK_BYTES: usize = 256 * 1024;

/// What the connection hands to the thread.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<CopyQueue>,
    changed: Condvar,
}

#[derive(Default)]
struct CopyQueue {
    /// Those that are to be written next.
    bytes: Vec<u8>,
    /// So long is the upload to become.
    expected: Option<u64>,
    /// The blob that it is to be, with these bytes.
    wanted: Option<BlobRequest>,
    /// The connection is done with it.
    closed: bool,
    /// The thread is done: whether there is a blob now.
    ended: Option<bool>,
}

impl CopyQueue {
    const fn is_full(&self) -> bool {
        self.bytes.len() >= QUEUE_BYTES_MAX
    }
}

impl Queue {
    /// Hands over a copy and says how long that took; none when it took longer than `patience`, or
    /// the thread has given up.
    pub(super) fn push(&self, bytes: &[u8], patience: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let is_over = |state: &CopyQueue| state.ended.is_some() || !state.is_full();
        let state = self.state.locked();
        let mut state = self.changed.wait_until(state, begun + patience, is_over);
        if state.ended.is_some() || state.is_full() {
            return None;
        }
        let was_empty = state.bytes.is_empty();
        state.bytes.extend_from_slice(bytes);
        drop(state);
        if was_empty {
            self.changed.notify_all();
        }
        Some(begun.elapsed())
    }

    /// The upload is to become `length` bytes long.
    pub(super) fn expect(&self, length: u64) {
        self.state.locked().expected = Some(length);
        self.changed.notify_all();
    }

    /// Lets the thread make it a blob, and waits until it has, or for `patience`.
    pub(super) fn commit(&self, wanted: &BlobRequest, patience: Duration) -> bool {
        let mut state = self.state.locked();
        state.wanted = Some(wanted.clone());
        self.changed.notify_all();
        let has_ended = |state: &CopyQueue| state.ended.is_some();
        let deadline = Instant::now() + patience;
        self.changed.wait_until(state, deadline, has_ended).ended == Some(true)
    }

    /// What came so far is not wanted any more.
    pub(super) fn close(&self) {
        self.state.locked().closed = true;
        self.changed.notify_all();
    }

    /// Waits for something to do, and puts the next bytes in the place of those that were written:
    /// the two buffers last as long as the upload. Returns the length that is expected, and the
    /// blob that it is to be then. None when nothing is wanted, or comes for [`IDLE_MAX`].
    fn next(&self, bytes: &mut Vec<u8>) -> Option<(Option<u64>, Option<BlobRequest>)> {
        let has_work = |state: &CopyQueue| {
            state.wanted.is_some() || state.expected.is_some() || !state.bytes.is_empty()
        };
        let is_over = |state: &CopyQueue| state.closed || has_work(state);
        let (state, deadline) = (self.state.locked(), Instant::now() + IDLE_MAX);
        let mut state = self.changed.wait_until(state, deadline, is_over);
        if state.closed || !has_work(&state) {
            return None;
        }
        if state.is_full() {
            self.changed.notify_all();
        }
        bytes.clear();
        std::mem::swap(bytes, &mut state.bytes);
        Some((state.expected.take(), state.wanted.take()))
    }

    fn end(&self, kept: bool) {
        let mut state = self.state.locked();
        state.ended = Some(kept);
        state.bytes = Vec::new();
        drop(state);
        self.changed.notify_all();
    }
}

/// Starts a thread; none when there are too many, or it is refused.
pub(super) fn start(disk: &Disk, threads: &Arc<Permits>) -> Option<Arc<Queue>> {
    let permit = threads.take_owned(Instant::now())?;
    let queue = Arc::new(Queue::default());
    let (disk, items) = (disk.clone(), Arc::clone(&queue));
    let run = move || {
        let kept = metrics::count_panic(|| run(&disk, &items)) == Some(true);
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
    let mut bytes = Vec::new();
    while let Some((expected, wanted)) = queue.next(&mut bytes) {
        let has_room = expected.is_none_or(|length| writing.reserve(length));
        if !has_room || !writing.write(&bytes) {
            return false;
        }
        if let Some(wanted) = wanted {
            return writing.commit(&wanted);
        }
    }
    false
}

struct Writing<'a> {
    disk: &'a Disk,
    file: File,
    path: Unnamed,
    hasher: Hasher,
    /// Bytes written.
    length: u64,
    /// Bytes that there is room for.
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
            length: 0,
            room: 0,
            reserved: Vec::new(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        let end = self.length + bytes.len() as u64;
        if self.room < end && !self.reserve(end.max(self.length + RESERVE_BYTES)) {
            return false;
        }
        let written = self.file.write_all(bytes);
        self.hasher.update(bytes);
        self.length = end;
        self.disk.faults.check("upload", written).is_some()
    }

    /// Makes room for an upload of `length` bytes.
    fn reserve(&mut self, length: u64) -> bool {
        let missing = length.saturating_sub(self.room);
        let until = Instant::now() + ROOM_TIMEOUT;
        match self.disk.make_room(missing, until) {
            Ok(reservation) => {
                self.reserved.push(reservation);
                self.room += missing;
                true
            }
            Err(why) => {
                let fields: [log::Field<'_>; 1] = [("bytes", &missing)];
                log::cause(Level::Info, "upload not cached", ("reason", &why), &fields);
                false
            }
        }
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
