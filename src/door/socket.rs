//! One client's socket with what was read from it and not yet used, plain or TLS. Owns: the read
//! buffer and the time limit of each read and write. Must not: know HTTP.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::stream::Stream;
use super::tls::{HandshakeFault, Session};
use crate::message::Certificate;

/// Bytes asked of the socket at a time while a head is read.
const READ_BYTES: usize = 4096;

/// Bytes handed to the kernel at a time, so that the write limit is a limit on progress.
const SEND_BYTES_MAX: usize = 1 << 20;
/// Bytes of a file that TLS is given at a time: two records of 16 KiB. Twice as many were no
/// faster.
const TLS_PIECE_BYTES: usize = 32 * 1024;

/// A client's connection. Only its own thread reads and writes it; others may shut it down.
pub(super) struct Socket {
    stream: Arc<Stream>,
    tls: Option<Box<Session>>,
    /// Nothing more may be written: it would go out in the clear, or after a cut.
    ended: bool,
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
            tls: None,
            ended: false,
            buffer: Vec::new(),
            used: 0,
            write_idle,
        })
    }

    /// The first byte that comes, which stays where it is; none when the client closed.
    pub(super) fn peek(&self, deadline: Instant) -> io::Result<Option<u8>> {
        set_read_deadline(&self.stream, deadline)?;
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
        mut session: Session,
        deadline: Instant,
    ) -> Result<Certificate, HandshakeFault> {
        let left = deadline.saturating_duration_since(Instant::now());
        let write_limit = left.max(Duration::from_millis(1));
        self.stream.set_write_timeout(write_limit)?;
        let stream = &*self.stream;
        let mut timed = Timed { stream, deadline };
        let certificate = session.handshake(&mut timed, &mut &*self.stream)?;
        self.stream.set_write_timeout(self.write_idle)?;
        self.tls = Some(Box::new(session));
        Ok(certificate)
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
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        let length = self.buffer.len();
        self.buffer.resize(length + READ_BYTES, 0);
        let room = self.buffer.get_mut(length..).unwrap_or_default();
        let read = receive(&self.stream, self.tls.as_deref_mut(), room, deadline);
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
        receive(&self.stream, self.tls.as_deref_mut(), into, deadline)
    }

    /// Writes all of `bytes`; each piece lasts the write limit at the longest.
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = &*self.stream;
        let written = match &mut self.tls {
            _ if self.ended => Err(io::ErrorKind::BrokenPipe.into()),
            Some(tls) => tls.write_all(&mut stream, bytes),
            None => stream.write_all(bytes),
        };
        written.map_err(|error| self.write_error(error))
    }

    /// Sends up to `length` bytes of `file` from `offset` on without copying them through us (but
    /// for TLS), and says how many went; 0 is the end of the file. Each wait lasts the write limit
    /// at most.
    pub(super) fn send_file(&mut self, file: &File, offset: u64, length: u64) -> io::Result<u64> {
        let mut position = offset;
        let most = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(SEND_BYTES_MAX);
        if self.tls.is_some() {
            return self.copy_file(file, offset, most);
        }
        loop {
            match rustix::fs::sendfile(&*self.stream, file, Some(&mut position), most) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.write_error(error.into())),
                Ok(count) => return Ok(count as u64),
            }
        }
    }

    fn copy_file(&mut self, file: &File, offset: u64, most: usize) -> io::Result<u64> {
        let mut piece = vec![0; most.min(TLS_PIECE_BYTES)];
        let mut sent = 0;
        while sent < most {
            let room = piece.len().min(most - sent);
            let room = piece.get_mut(..room).unwrap_or_default();
            let count = match file.read_at(room, offset + sent as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if count == 0 {
                break;
            }
            self.write_all(piece.get(..count).unwrap_or_default())?;
            sent += count;
        }
        Ok(sent as u64)
    }

    fn write_error(&self, error: io::Error) -> io::Error {
        if is_timeout(&error) {
            let limit = self.write_idle.as_secs();
            let why = format!("client took nothing for {limit} s");
            return io::Error::new(io::ErrorKind::TimedOut, why);
        }
        error
    }

    /// Says that nothing more will be written. What is read afterwards is no longer decrypted.
    pub(super) fn finish_writing(&mut self) {
        self.end_tls();
        // Fails only when the client is gone, which is where this leads to anyway.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends a TLS session as it should end before a close; nothing may be written afterwards.
    pub(super) fn end_tls(&mut self) {
        if let Some(session) = self.tls.take() {
            session.close(&mut &*self.stream);
            self.ended = true;
        }
    }

    /// Makes the coming close a reset, without `close_notify`, so that the client cannot take what
    /// it got for whole.
    pub(super) fn reset_on_close(&mut self) {
        self.tls = None;
        self.ended = true;
        let _ = rustix::net::sockopt::set_socket_linger(&*self.stream, Some(Duration::ZERO));
    }
}

/// Reads the stream, through TLS where there is one, waiting until `deadline`.
fn receive(
    stream: &Stream,
    tls: Option<&mut Session>,
    into: &mut [u8],
    deadline: Instant,
) -> io::Result<usize> {
    let mut timed = Timed { stream, deadline };
    match tls {
        Some(tls) => tls.read(&mut timed, &mut &*stream, into),
        None => timed.read(into),
    }
}

/// A stream each of whose reads ends by the deadline, however many there are.
struct Timed<'a> {
    stream: &'a Stream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        set_read_deadline(self.stream, self.deadline)?;
        read_uninterrupted(self.stream, into)
    }
}

fn set_read_deadline(stream: &Stream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(left.max(Duration::from_millis(1)))
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
