//! Reading ahead. Owns: the thread that takes a large body from upstream, while its download hashes
//! and writes what came before. Must not: know what the bytes are, or where they go.
//!
//! A body comes in records of 16 KiB and less. They are handed over in large pieces that end where
//! the file's large pages end: the kernel writes those with less than half of the work, and clients
//! are woken once for each piece.
//!
//! Lock: the bytes that wait, held to copy a record or to change a buffer, never across I/O.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crate::locked::{Locked as _, TimedWait as _};
use crate::log::RequestScope;
use crate::metrics;

/// Bytes of a whole piece. Two of them are kept for each download: one that is written, and one
/// that comes.
pub(super) const PIECE_BYTES: usize = 256 * 1024;
/// Bytes that wait are handed over after so long, however few they are.
const HANDOVER_INTERVAL: Duration = Duration::from_millis(1);
/// Bytes read at a time: one TLS record (RFC 8446 §5.1).
const RECORD_BYTES: usize = 16 * 1024;
/// Stack of the thread: TLS.
const STACK_BYTES: usize = 256 * 1024;

/// A body that a thread of its own reads. An error of it comes after all bytes before it.
pub(super) struct ReadAhead {
    shared: Arc<Shared>,
    piece: Vec<u8>,
    /// Bytes of the piece that were consumed.
    consumed: usize,
    /// When fewer bytes than a whole piece may be taken.
    due: Instant,
}

struct Shared {
    waiting: Mutex<UnreadBytes>,
    changed: Condvar,
}

/// The bytes between the two threads.
#[derive(Default)]
struct UnreadBytes {
    bytes: Vec<u8>,
    /// Where in the file they end.
    end: u64,
    /// How the body ended.
    outcome: Option<io::Result<()>>,
    /// Nobody takes them any more.
    is_closed: bool,
    /// One of the two sleeps. (To wake nobody costs a call of the kernel, too.)
    is_awaited: bool,
}

impl ReadAhead {
    /// Begins to read `body`, whose first byte is byte `offset` of the file.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(body: Box<dyn Read + Send>, offset: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::new(UnreadBytes {
                bytes: Vec::with_capacity(PIECE_BYTES),
                end: offset,
                ..UnreadBytes::default()
            }),
            changed: Condvar::new(),
        });
        let reader = Arc::clone(&shared);
        let work = RequestScope::pass_on(move || {
            let outcome = metrics::count_panic(|| reader.read(body))
                .unwrap_or_else(|| Err(io::Error::other("reading it panicked")));
            reader.waiting.locked().outcome = Some(outcome);
            reader.changed.notify_all();
        });
        let thread = Builder::new().name("read-ahead".to_owned());
        thread.stack_size(STACK_BYTES).spawn(work)?;
        Ok(Self {
            shared,
            piece: Vec::with_capacity(PIECE_BYTES),
            consumed: 0,
            due: Instant::now(),
        })
    }

    /// Changes the empty piece for the next one. It stays empty at the end of the body.
    fn take(&mut self) -> io::Result<()> {
        self.piece.clear();
        self.consumed = 0;
        let mut waiting = self.shared.waiting.locked();
        loop {
            let now = Instant::now();
            let is_due = !waiting.bytes.is_empty() && now >= self.due;
            if is_due || waiting.room() == 0 || waiting.outcome.is_some() {
                break;
            }
            let most = match waiting.bytes.is_empty() {
                true => Duration::MAX,
                false => self.due.saturating_duration_since(now),
            };
            waiting = self.shared.wait(waiting, most);
        }
        std::mem::swap(&mut self.piece, &mut waiting.bytes);
        self.shared.wake(&mut waiting);
        self.due = Instant::now() + HANDOVER_INTERVAL;
        match self.piece.is_empty() {
            true => waiting.outcome.replace(Ok(())).unwrap_or(Ok(())),
            false => Ok(()),
        }
    }
}

impl BufRead for ReadAhead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.consumed >= self.piece.len() {
            self.take()?;
        }
        Ok(self.piece.get(self.consumed..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.consumed += count;
    }
}

impl Read for ReadAhead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

impl Drop for ReadAhead {
    /// The thread ends after the read that it is in, which has a time limit of its own.
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.locked();
        waiting.is_closed = true;
        self.shared.wake(&mut waiting);
    }
}

impl UnreadBytes {
    /// Bytes up to the end of this piece; 0 when it is whole.
    fn room(&self) -> usize {
        let past = usize::try_from(self.end % PIECE_BYTES as u64).unwrap_or_default();
        match past == 0 && !self.bytes.is_empty() {
            true => 0,
            false => PIECE_BYTES - past,
        }
    }
}

impl Shared {
    /// Hands over all of a body.
    fn read(&self, mut body: Box<dyn Read + Send>) -> io::Result<()> {
        let mut record = vec![0; RECORD_BYTES];
        loop {
            match body.read(&mut record) {
                Ok(0) => return Ok(()),
                Ok(count) if !self.push(record.get(..count).unwrap_or_default()) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Adds a record, once there is room for it. False when nobody wants it.
    fn push(&self, mut record: &[u8]) -> bool {
        let mut waiting = self.waiting.locked();
        while !record.is_empty() && !waiting.is_closed {
            let (fits, rest) = record.split_at(record.len().min(waiting.room()));
            if fits.is_empty() {
                waiting = self.wait(waiting, Duration::MAX);
                continue;
            }
            let was_empty = waiting.bytes.is_empty();
            waiting.bytes.extend_from_slice(fits);
            waiting.end += fits.len() as u64;
            record = rest;
            if was_empty || waiting.room() == 0 {
                self.wake(&mut waiting);
            }
        }
        !waiting.is_closed
    }

    fn wait<'a>(
        &self,
        mut waiting: MutexGuard<'a, UnreadBytes>,
        most: Duration,
    ) -> MutexGuard<'a, UnreadBytes> {
        waiting.is_awaited = true;
        self.changed.wait_for(waiting, most)
    }

    fn wake(&self, waiting: &mut UnreadBytes) {
        if std::mem::take(&mut waiting.is_awaited) {
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
