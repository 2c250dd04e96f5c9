//! One client's socket with what was read from it and not yet used. Owns: the read buffer and the
//! time limit of each read and write. Must not: know HTTP.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::stream::Stream;

/// Bytes asked of the socket at a time while a head is read.
const READ_BYTES: usize = 4096;

/// Bytes handed to the kernel at a time, so that the write limit is a limit on progress.
const SEND_BYTES_MAX: usize = 1 << 20;

/// A client's connection. Only its own thread reads and writes it; others may shut it down.
pub(super) struct Socket {
    stream: Arc<Stream>,
    buffer: Vec<u8>,
    used: usize,
    write_idle: Duration,
}

impl Socket {
    /// Takes the stream over. Every write then lasts `write_idle` at the longest.
    pub(super) fn new(stream: Arc<Stream>, write_idle: Duration) -> io::Result<Self> {
        stream.set_nodelay()?;
        stream.set_write_timeout(write_idle)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            used: 0,
            write_idle,
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

    /// Writes all of `bytes`; each piece lasts the write limit at the longest.
    pub(super) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        (&*self.stream)
            .write_all(bytes)
            .map_err(|error| self.write_error(error))
    }

    /// Sends up to `length` bytes of `file` from `offset` on without copying them through us, and
    /// says how many went; 0 is the end of the file. Each wait lasts the write limit at most.
    pub(super) fn send_file(&self, file: &File, offset: u64, length: u64) -> io::Result<u64> {
        let mut position = offset;
        let most = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(SEND_BYTES_MAX);
        loop {
            match rustix::fs::sendfile(&*self.stream, file, Some(&mut position), most) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.write_error(error.into())),
                Ok(count) => return Ok(count as u64),
            }
        }
    }

    fn write_error(&self, error: io::Error) -> io::Error {
        if is_timeout(&error) {
            let limit = self.write_idle.as_secs();
            let why = format!("client took nothing for {limit} s");
            return io::Error::new(io::ErrorKind::TimedOut, why);
        }
        error
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
