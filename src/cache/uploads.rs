//! Blobs that are pushed through us, kept as they stream by. Owns: the bytes of uploads that are
//! not ended, and how long they are kept. Must not: slow a push down, or fail one.
//!
//! What was pushed is in the cache at once: the next pull costs no download. Bytes go to a file
//! below `partial/` that has no digest for a name, since that is told when the last byte was sent.
//! A thread for each upload hashes and writes; the connection hands it copies over a short queue
//! and gives up keeping the upload when the thread cannot follow. Nothing is kept but what has the
//! digest that upstream has taken it under.
//!
//! Locks: the map of sessions, and each queue; both held for a few reads and writes of memory.

mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::fill::BlobRequest;
use crate::hash::matches;
use crate::locked::Locked as _;
use crate::permits::Permits;
use writer::{IDLE_MAX, Queue};

/// Uploads kept at a time, each with a thread and a file; more are pushed and not kept. docker
/// sends five layers at a time.
pub const WRITERS_MAX: usize = 32;
/// Uploads known by name: begun, and not yet ended. The oldest are not kept.
const SESSIONS_MAX: usize = 1024;
/// By how much the disk may delay an upload in all, beside the time it takes at [`RATE_MIN`].
const DELAY_MAX: Duration = Duration::from_secs(2);
/// Bytes a millisecond at the least: a disk that takes less, 16 MB/s, gets no copy. A pull would be
/// slower from it than from the registry.
const RATE_MIN: u64 = 16_000;
/// Longest wait for the disk before a client is told that its upload has ended. After it the blob
/// is made safe all the same, a little later: containerd gives up at 30 s.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(15);

/// All uploads.
pub struct Uploads {
    disk: Disk,
    writers: Arc<Permits>,
    sessions: Mutex<HashMap<String, Session>>,
}

struct Session {
    upload: Upload,
    touched: Instant,
}

/// What came of one upload, from its first byte on. Dropping it forgets that.
#[derive(Default)]
pub struct Upload {
    /// None before the first byte, and when it is not kept.
    queue: Option<Arc<Queue>>,
    length: u64,
    /// Waited for the disk so far.
    delay: Duration,
    given_up: bool,
}

impl Upload {
    fn give_up(&mut self) {
        self.given_up = true;
        if let Some(queue) = self.queue.take() {
            queue.close();
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
    }
}

impl Uploads {
    pub(super) fn new(disk: Disk) -> Self {
        Self {
            disk,
            writers: Arc::new(Permits::new(WRITERS_MAX)),
            sessions: Mutex::default(),
        }
    }

    /// Takes up an upload that goes on at `start`, if that is where it stands and its beginning
    /// came through us. Until it is [kept](Self::keep) again, nobody else can take it up.
    pub fn take(&self, name: &str, start: Option<u64>) -> Option<Upload> {
        let mut sessions = self.sessions.locked();
        let length = sessions.get(name)?.upload.length;
        if start.is_some_and(|start| start != length) {
            return None;
        }
        sessions.remove(name).map(|session| session.upload)
    }

    /// Upstream has taken what came, and knows the upload as `name` from now on.
    pub fn keep(&self, name: &str, upload: Upload) {
        if upload.given_up {
            return;
        }
        let touched = Instant::now();
        let mut sessions = self.sessions.locked();
        if sessions.len() >= SESSIONS_MAX {
            sessions.retain(|_, old| touched - old.touched < IDLE_MAX);
        }
        if sessions.len() >= SESSIONS_MAX {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.touched);
            let oldest = oldest.map(|(name, _)| name.clone());
            oldest.and_then(|oldest| sessions.remove(&oldest));
        }
        sessions.insert(name.to_owned(), Session { upload, touched });
    }

    /// The upload has ended, or went on in a way that was not seen here.
    pub fn forget(&self, name: &str) {
        let forgotten = self.sessions.locked().remove(name);
        drop(forgotten);
    }

    /// The next bytes of an upload. Never fails, and gives up what it would have to wait for longer
    /// than [`DELAY_MAX`].
    pub fn push(&self, upload: &mut Upload, bytes: &[u8]) {
        let Some(queue) = self.queue(upload, bytes.len() as u64) else {
            return;
        };
        upload.length = upload.length.saturating_add(bytes.len() as u64);
        let usual = Duration::from_millis(upload.length / RATE_MIN);
        let left = (DELAY_MAX + usual).saturating_sub(upload.delay);
        match queue.push(bytes, left) {
            Some(waited) => upload.delay += waited,
            None => upload.give_up(),
        }
    }

    /// So many bytes are to come; an upload that there is no room for is not begun to be kept.
    pub fn expect(&self, upload: &mut Upload, bytes: u64) {
        if let Some(queue) = self.queue(upload, bytes) {
            queue.expect(upload.length.saturating_add(bytes));
        }
    }

    /// Where bytes of an upload go. None for no bytes, and for an upload that is not kept.
    fn queue(&self, upload: &mut Upload, bytes: u64) -> Option<Arc<Queue>> {
        if upload.given_up || bytes == 0 {
            return None;
        }
        if upload.queue.is_none() {
            upload.queue = writer::start(&self.disk, &self.writers);
            upload.given_up = upload.queue.is_none();
        }
        upload.queue.clone()
    }

    /// Upstream has taken the upload, kept here or not. `named`: it said itself that it is this
    /// blob; otherwise only the hash of the bytes can say so. Says whether the blob is in the cache
    /// by now; waits for [`COMMIT_TIMEOUT`] at the longest.
    pub fn commit(&self, upload: Option<Upload>, wanted: &BlobRequest, named: bool) -> bool {
        if named {
            wanted.link(&self.disk, None);
        }
        let Some(mut upload) = upload.filter(|upload| !upload.given_up) else {
            return self.disk.store.has(&wanted.digest);
        };
        let Some(queue) = upload.queue.take() else {
            return matches(&wanted.digest, b"") && self.put_empty(wanted);
        };
        queue.commit(wanted, COMMIT_TIMEOUT)
    }

    fn put_empty(&self, wanted: &BlobRequest) -> bool {
        let put = self.disk.store.put(&wanted.digest, b"");
        match &put {
            Ok(()) => wanted.link(&self.disk, None),
            Err(error) => self.disk.faults.report("blob", error),
        }
        put.is_ok()
    }
}

#[cfg(test)]
mod tests;
