//! One client's socket with what was read from it and not yet used. Owns: the read buffer and the
//! time limit of each read and write. Must not: know HTTP.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Limits;
use super::pace::Pace;
use super::stream::Stream;

/// Bytes asked of the socket at a time while a head is read.
const READ_BYTES: usize = 4096;

/// A client's connection. Only its own thread reads and writes it; others may shut it down.
pub(super) struct Socket {
    stream: Arc<Stream>,
    buffer: Vec<u8>,
    used: usize,
    /// Of its one thread; borrowed for a moment after each write.
    pace: RefCell<Pace>,
}

impl Socket {
    /// Takes the stream over. Writes then last as long as `limits` let the client take.
    pub(super) fn new(stream: Arc<Stream>, limits: &Limits) -> io::Result<Self> {
        let pace = Pace::new(limits);
        stream.set_nodelay()?;
        stream.set_write_timeout(pace.try_timeout())?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            used: 0,
            pace: RefCell::new(pace),
        })
    }

    /// What was read and not yet used.
    pub(super) fn buffered(&self) -> &[u8] {
        self.buffer.get(self.used..).unwrap_or_default()
    }

    /// Marks the first `count` buffered bytes as used.
    pub(super) fn consume(&mut self, count: usize) {
        self.used = (self.used + count).min(self.buffer.len());
        if self.used == self.buffer.len() {
            self.buffer.clear();
            self.used = 0;
            // An idle connection should not keep the buffer of its largest head.
            self.buffer.shrink_to(READ_BYTES);
        }
    }

    /// Waits until `deadline` for more bytes and buffers them; 0 is the end of the stream.
    pub(super) fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        self.set_read_deadline(deadline)?;
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        let length = self.buffer.len();
        self.buffer.resize(length + READ_BYTES, 0);
        let room = self.buffer.get_mut(length..).unwrap_or_default();
        let read = read_uninterrupted(&self.stream, room);
        self.buffer
            .truncate(length + read.as_ref().copied().unwrap_or(0));
        read
    }

    /// Reads buffered bytes first, then the socket, waiting until `deadline`.
    pub(super) fn read(&mut self, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
        if !self.buffered().is_empty() {
            let count = self.buffered().read(into)?;
            self.consume(count);
            return Ok(count);
        }
        self.set_read_deadline(deadline)?;
        read_uninterrupted(&self.stream, into)
    }

    /// Writes all of `bytes`, unless the client is too slow for it.
    pub(super) fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.paced(bytes.len(), || (&*self.stream).write(bytes))?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends up to `length` bytes of `file` from `offset` on without copying them through us, and
    /// says how many went; 0 is the end of the file.
    pub(super) fn send_file(&self, file: &File, offset: u64, length: u64) -> io::Result<u64> {
        let mut position = offset;
        let most = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(self.pace.borrow().bytes_max());
        let mut send = || {
            let sent = rustix::fs::sendfile(&*self.stream, file, Some(&mut position), most);
            sent.map_err(io::Error::from)
        };
        Ok(self.paced(most, &mut send)? as u64)
    }

    /// Tries to send until some of the `wanted` bytes went, or the client is too slow for it.
    fn paced(
        &self,
        wanted: usize,
        mut send: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let begun = Instant::now();
            let sent = match send() {
                Ok(count) => Some(count),
                Err(error) if is_timeout(&error) => None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
                Err(error) => return Err(error),
            };
            let taken = sent.unwrap_or(0);
            let waited = begun.elapsed();
            self.pace.borrow_mut().note(waited, wanted, taken)?;
            if let Some(count) = sent {
                return Ok(count);
            }
        }
    }

    /// Says that nothing more will be written.
    pub(super) fn finish_writing(&self) {
        // Fails only when the client is gone, which is where this leads to anyway.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Makes the coming close a reset, so that the client cannot take what it got for whole.
    pub(super) fn reset_on_close(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(&*self.stream, Some(Duration::ZERO));
    }

    fn set_read_deadline(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream
            .set_read_timeout(left.max(Duration::from_millis(1)))
    }
}

/// With a read time-out set, a signal interrupts even a restartable read (signal(7)).
fn read_uninterrupted(mut stream: &Stream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// True for the error of a read or write that ran into its time limit.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}
