//! One client's socket with what was read from it and not yet used, plain or TLS. Owns: the read
//! buffer and the time limit of each read and write. Must not: know HTTP.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;

use super::limits::DoorLimits;
use super::pace::Pace;
use super::stream::ClientStream;
use super::tls::{HandshakeFault, TlsSession};
use crate::message::Certificate;

/// Bytes asked of the socket at a time while a head is read.
const READ_BYTES: usize = 4096;

/// Bytes of a file that TLS is given at a time: two records of 16 KiB. Twice as many were no
/// faster.
const TLS_PIECE_BYTES: usize = 32 * 1024;

/// A client's connection. Only its own thread reads and writes it; others may shut it down.
pub(super) struct ClientSocket {
    stream: Arc<ClientStream>,
    tls: Option<Box<TlsSession>>,
    /// Nothing more may be written: it would go out in the clear, or after a cut.
    ended: bool,
    buffer: Vec<u8>,
    used: usize,
    received: Received,
    /// The time limit that reads have at present.
    read_timeout: Duration,
    pace: Pace,
}

impl ClientSocket {
    /// Takes the stream over. Writes then last as long as `limits` let the client take.
    pub(super) fn new(stream: Arc<ClientStream>, limits: &DoorLimits) -> io::Result<Self> {
        let pace = Pace::new(limits);
        stream.set_nodelay()?;
        stream.set_write_timeout(pace.try_timeout())?;
        Ok(Self {
            stream,
            tls: None,
            ended: false,
            buffer: Vec::new(),
            used: 0,
            received: Received::default(),
            read_timeout: Duration::ZERO,
            pace,
        })
    }

    /// The first byte that comes, which stays where it is; none when the client closed.
    pub(super) fn peek(&mut self, deadline: Instant) -> io::Result<Option<u8>> {
        set_read_deadline(&self.stream, &mut self.read_timeout, deadline)?;
        let mut byte = [0];
        loop {
            let flags = rustix::net::RecvFlags::PEEK;
            match rustix::net::recv(&*self.stream, &mut byte, flags) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok((_, count)) => return Ok((count > 0).then_some(byte[0])),
            }
        }
    }

    /// Shakes hands until `deadline`; from then on everything goes through `session`.
    pub(super) fn start_tls(
        &mut self,
        mut session: TlsSession,
        deadline: Instant,
    ) -> Result<Certificate, HandshakeFault> {
        let left = deadline.saturating_duration_since(Instant::now());
        let write_limit = left.max(Duration::from_millis(1));
        self.stream.set_write_timeout(write_limit)?;
        let mut timed = TimedReader {
            stream: &self.stream,
            received: &mut self.received,
            timeout: &mut self.read_timeout,
            deadline,
        };
        let certificate = session.handshake(&mut timed, &mut &*self.stream)?;
        self.stream.set_write_timeout(self.pace.try_timeout())?;
        self.tls = Some(Box::new(session));
        Ok(certificate)
    }

    /// The bytes that were read and not yet used.
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
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let length = buffer.len();
        buffer.resize(length + READ_BYTES, 0);
        let read = self.receive(buffer.get_mut(length..).unwrap_or_default(), deadline);
        buffer.truncate(length + read.as_ref().copied().unwrap_or(0));
        self.buffer = buffer;
        read
    }

    /// Reads buffered bytes first, then the socket, waiting until `deadline`.
    pub(super) fn read(&mut self, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
        if !self.buffered().is_empty() {
            let count = self.buffered().read(into)?;
            self.consume(count);
            return Ok(count);
        }
        self.receive(into, deadline)
    }

    /// The bytes that came from the client so far. They are counted on the wire: a TLS record can
    /// be read only when it is whole, and a slow client takes a while to send one.
    pub(super) const fn received(&self) -> Received {
        self.received
    }

    /// Reads the stream, through TLS where there is one, waiting until `deadline`.
    fn receive(&mut self, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let mut timed = TimedReader {
            stream: &self.stream,
            received: &mut self.received,
            timeout: &mut self.read_timeout,
            deadline,
        };
        let mut paced = PacedWriter {
            stream: &self.stream,
            pace: &mut self.pace,
        };
        match &mut self.tls {
            Some(tls) => tls.read(&mut timed, &mut paced, into),
            None => timed.read(into),
        }
    }

    /// Writes all of `bytes`, unless the client is too slow for it.
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut paced = PacedWriter {
            stream: &self.stream,
            pace: &mut self.pace,
        };
        match &mut self.tls {
            Some(tls) => tls.write_all(&mut paced, bytes),
            None => paced.write_all(bytes),
        }
    }

    /// Writes all of `bytes` when more bytes follow at once. Without TLS the system sends both in
    /// one packet.
    pub(super) fn write_with_more(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.tls.is_some() || self.ended {
            return self.write_all(bytes);
        }
        let mut paced = PacedWriter {
            stream: &self.stream,
            pace: &mut self.pace,
        };
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        let mut left = bytes;
        while !left.is_empty() {
            let send = |stream: &ClientStream| Ok(rustix::net::send(stream, left, flags)?);
            let sent = paced.send(left.len(), send)?;
            left = left.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends up to `length` bytes of `file` from `offset` on without copying them through us (but
    /// for TLS, by way of `buffer`), and says how many went; 0 is the end of the file.
    pub(super) fn send_file(
        &mut self,
        file: &File,
        offset: u64,
        length: u64,
        buffer: &mut Vec<u8>,
    ) -> io::Result<u64> {
        let mut position = offset;
        let most = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(self.pace.bytes_max());
        if self.tls.is_some() {
            return self.copy_file(file, offset, most, buffer);
        }
        let mut paced = PacedWriter {
            stream: &self.stream,
            pace: &mut self.pace,
        };
        let sent = paced.send(most, |stream| {
            let sent = rustix::fs::sendfile(stream, file, Some(&mut position), most);
            sent.map_err(io::Error::from)
        });
        Ok(sent? as u64)
    }

    /// Copies one piece at a time, so that it is known how much was sent when the client leaves
    /// half-way. All pieces share a buffer: with a new one for each, mapping its pages was a third
    /// of the kernel's work.
    fn copy_file(
        &mut self,
        file: &File,
        offset: u64,
        most: usize,
        buffer: &mut Vec<u8>,
    ) -> io::Result<u64> {
        buffer.resize(TLS_PIECE_BYTES, 0);
        let piece = buffer.get_mut(..most.min(TLS_PIECE_BYTES));
        let piece = piece.unwrap_or_default();
        let count = loop {
            match file.read_at(piece, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.write_all(piece.get(..count).unwrap_or_default())?;
        Ok(count as u64)
    }

    /// Says that nothing more will be written. What is read afterwards is no longer decrypted.
    pub(super) fn finish_writing(&mut self) {
        self.end_tls();
        // Fails only when the client is gone already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends a TLS session as it should end before a close; nothing may be written afterwards.
    pub(super) fn end_tls(&mut self) {
        if let Some(session) = self.tls.take() {
            session.close(&mut PacedWriter {
                stream: &self.stream,
                pace: &mut self.pace,
            });
            self.ended = true;
        }
    }

    /// Makes the coming close a reset, without `close_notify`, so that the client cannot take a
    /// part for the whole.
    pub(super) fn reset_on_close(&mut self) {
        self.tls = None;
        self.ended = true;
        let _ = rustix::net::sockopt::set_socket_linger(&*self.stream, Some(Duration::ZERO));
    }
}

/// Bytes that came from a client, and when the last of them did.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Received {
    pub(super) bytes: u64,
    pub(super) last: Option<Instant>,
}

/// Reads a stream; each read ends by the deadline.
struct TimedReader<'a> {
    stream: &'a ClientStream,
    received: &'a mut Received,
    timeout: &'a mut Duration,
    deadline: Instant,
}

impl Read for TimedReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        set_read_deadline(self.stream, self.timeout, self.deadline)?;
        let count = read_uninterrupted(self.stream, into)?;
        self.received.bytes = self.received.bytes.saturating_add(count as u64);
        self.received.last = Some(Instant::now());
        Ok(count)
    }
}

/// Writes a stream at the client's pace. All bytes on the wire count, also those that TLS adds.
struct PacedWriter<'a> {
    stream: &'a ClientStream,
    pace: &'a mut Pace,
}

impl PacedWriter<'_> {
    /// Tries to send until some of the `wanted` bytes went, or the client is too slow for it.
    fn send(
        &mut self,
        wanted: usize,
        mut send: impl FnMut(&ClientStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let begun = Instant::now();
            let sent = match send(self.stream) {
                Ok(count) => Some(count),
                Err(error) if is_timeout(&error) => None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
                Err(error) => return Err(error),
            };
            let waited = begun.elapsed();
            self.pace.record(waited, wanted, sent.unwrap_or(0))?;
            if let Some(count) = sent {
                return Ok(count);
            }
        }
    }
}

impl Write for PacedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes.len(), |mut stream| stream.write(bytes))
    }

    /// TLS hands over several records at a time.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let wanted = parts.iter().map(|part| part.len()).sum();
        self.send(wanted, |mut stream| stream.write_vectored(parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes the next read end by `deadline`, or up to a millisecond later. The time limit that is
/// `set` already is then often the right one, which saves a system call.
fn set_read_deadline(
    stream: &ClientStream,
    set: &mut Duration,
    deadline: Instant,
) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let limit = Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
        + Duration::from_millis(1);
    if limit != *set {
        stream.set_read_timeout(limit)?;
        *set = limit;
    }
    Ok(())
}

/// With a read time-out set, a signal interrupts even a restartable read (signal(7)).
fn read_uninterrupted(mut stream: &ClientStream, into: &mut [u8]) -> io::Result<usize> {
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
