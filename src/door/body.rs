//! Request bodies. Owns: the framing of RFC 9112 §6 and §7.1 on the way in, `100 Continue`, the
//! idle limit, the least rate. Must not: buffer a body, or let an early end pass for a whole body.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::head::BodyFraming;
use super::limits::DoorLimits;
use super::rate::Rate;
use super::socket::{ClientSocket, is_timeout};
use crate::metrics;

/// A chunk-size line with its extensions; nobody sends extensions of more than a few bytes.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Hex digits of a chunk size: 64 bits.
const CHUNK_SIZE_DIGITS_MAX: usize = 16;
/// All trailer lines of a body together; they are read and dropped.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Why a body could not be read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BodyFault {
    /// The client ended or broke the connection.
    Gone,
    /// The framing is broken.
    Malformed(String),
    /// Less came than the least rate.
    Slow(String),
    /// Nothing came for the idle limit.
    Stalled,
}

/// Reads one body from the socket and stops at its end.
pub(super) struct BodyReader<'a> {
    socket: &'a mut ClientSocket,
    state: BodyState,
    expects_continue: bool,
    idle: Duration,
    rate: Rate,
    fault: Option<BodyFault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyState {
    /// Bytes left of a body with a length.
    Length(u64),
    /// Before a chunk-size line.
    ChunkLine,
    /// Bytes left of a chunk.
    Chunk(u64),
    /// After the last chunk; bytes of trailer seen.
    Trailer(usize),
    Done,
}

impl<'a> BodyReader<'a> {
    pub(super) fn new(
        socket: &'a mut ClientSocket,
        framing: BodyFraming,
        expects_continue: bool,
        limits: &DoorLimits,
    ) -> Self {
        let state = match framing {
            BodyFraming::Chunked => BodyState::ChunkLine,
            BodyFraming::Length(0) => BodyState::Done,
            BodyFraming::Length(length) => BodyState::Length(length),
        };
        Self {
            socket,
            state,
            expects_continue,
            idle: limits.body_idle,
            rate: Rate::new(limits.min_rate),
            fault: None,
        }
    }

    /// True when the body was read to its end, so that the next request can follow.
    pub(super) fn is_done(&self) -> bool {
        self.state == BodyState::Done
    }

    /// Why reading failed, if it did.
    pub(super) fn fault(&self) -> Option<&BodyFault> {
        self.fault.as_ref()
    }

    fn read_body(&mut self, into: &mut [u8]) -> Result<usize, BodyFault> {
        if self.state == BodyState::Done || into.is_empty() {
            return Ok(0);
        }
        if std::mem::take(&mut self.expects_continue) {
            let sent = self.socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            sent.map_err(|_| BodyFault::Gone)?;
        }
        loop {
            match self.state {
                BodyState::Done => return Ok(0),
                BodyState::Length(left) => {
                    let count = self.read_piece(into, left)?;
                    let left = left - count as u64;
                    self.state = if left == 0 {
                        BodyState::Done
                    } else {
                        BodyState::Length(left)
                    };
                    return Ok(count);
                }
                BodyState::ChunkLine => {
                    let line = self.read_line(CHUNK_LINE_BYTES_MAX)?;
                    self.state = match chunk_size(&line)? {
                        0 => BodyState::Trailer(0),
                        size => BodyState::Chunk(size),
                    };
                }
                BodyState::Chunk(left) => {
                    let count = self.read_piece(into, left)?;
                    let left = left - count as u64;
                    self.state = BodyState::Chunk(left);
                    if left == 0 {
                        self.end_chunk()?;
                    }
                    return Ok(count);
                }
                BodyState::Trailer(seen) => {
                    let line = self.read_line(TRAILER_BYTES_MAX.saturating_sub(seen))?;
                    self.state = match line.len() {
                        0 => BodyState::Done,
                        length => BodyState::Trailer(seen + length),
                    };
                }
            }
        }
    }

    /// The CRLF that ends a chunk's data.
    fn end_chunk(&mut self) -> Result<(), BodyFault> {
        if !self.read_line(0)?.is_empty() {
            return Err(malformed("chunk is longer than its size"));
        }
        self.state = BodyState::ChunkLine;
        Ok(())
    }

    fn read_piece(&mut self, into: &mut [u8], left: u64) -> Result<usize, BodyFault> {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let into = into.get_mut(..most).unwrap_or_default();
        let count = self.read_timed(|socket, deadline| socket.read(into, deadline))?;
        metrics::RECEIVED_BYTES.add(count as u64);
        Ok(count)
    }

    /// Runs one read of the socket within the idle limit. Only the time of this read counts against
    /// the client: between two reads, upstream or the proxy is slow. All bytes that came count for
    /// the client, also those of a TLS record that is not complete yet.
    fn read_timed(
        &mut self,
        mut read: impl FnMut(&mut ClientSocket, Instant) -> io::Result<usize>,
    ) -> Result<usize, BodyFault> {
        let mut idle = Duration::ZERO;
        loop {
            let wait = self.idle.saturating_sub(idle).min(self.rate.time_left());
            let begun = Instant::now();
            let before = self.socket.received().bytes;
            let result = read(self.socket, begun + wait);
            let waited = begun.elapsed();
            let received = self.socket.received();
            let came = received.bytes.saturating_sub(before);
            idle = match received.last {
                Some(last) if came > 0 => last.elapsed(),
                _ => idle + waited,
            };
            let count = match result {
                Ok(0) => return Err(BodyFault::Gone),
                Ok(count) => count,
                Err(error) if !is_timeout(&error) => return Err(BodyFault::Gone),
                Err(_) if idle >= self.idle => return Err(BodyFault::Stalled),
                Err(_) => 0,
            };
            let verdict = self.rate.record(waited, came);
            verdict.map_err(|verdict| BodyFault::Slow(verdict.to_string()))?;
            if count > 0 {
                return Ok(count);
            }
        }
    }

    /// A line of at most `limit` bytes, without its CRLF.
    fn read_line(&mut self, limit: usize) -> Result<Vec<u8>, BodyFault> {
        let bad_line = || malformed("a line of the chunked body is too long or malformed");
        loop {
            let buffered = self.socket.buffered();
            if let Some(end) = buffered.iter().position(|byte| *byte == b'\n') {
                let line = buffered.get(..end).unwrap_or_default();
                let Some(line) = line.strip_suffix(b"\r") else {
                    return Err(malformed("a line of the chunked body ends in a bare LF"));
                };
                let line = line.to_vec();
                if line.len() > limit || line.contains(&b'\r') || line.contains(&0) {
                    return Err(bad_line());
                }
                self.socket.consume(end + 1);
                return Ok(line);
            }
            if buffered.len() > limit + 1 {
                return Err(bad_line());
            }
            self.read_timed(ClientSocket::fill)?;
        }
    }
}

impl Read for BodyReader<'_> {
    /// An early end is `UnexpectedEof`, never `Ok(0)`; after a fault every read fails.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.fault.is_none() {
            match self.read_body(into) {
                Ok(count) => return Ok(count),
                Err(fault) => self.fault = Some(fault),
            }
        }
        let (kind, why) = match &self.fault {
            Some(BodyFault::Malformed(why)) => (io::ErrorKind::InvalidData, why.as_str()),
            Some(BodyFault::Slow(why)) => (io::ErrorKind::TimedOut, why.as_str()),
            Some(BodyFault::Stalled) => (io::ErrorKind::TimedOut, "client sent nothing"),
            _ => (io::ErrorKind::UnexpectedEof, "client ended the body early"),
        };
        Err(io::Error::new(kind, why.to_owned()))
    }
}

fn malformed(why: &str) -> BodyFault {
    BodyFault::Malformed(why.to_owned())
}

/// `1*HEXDIG`, then nothing or an extension, which is ignored (RFC 9112 §7.1.1). White space is
/// allowed before an extension only, and control characters nowhere.
fn chunk_size(line: &[u8]) -> Result<u64, BodyFault> {
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (size, extension) = line.split_at(digits);
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let first = extension.iter().find(|byte| !is_blank(byte));
    let is_extension = first == Some(&b';')
        && extension
            .iter()
            .all(|byte| is_blank(byte) || !byte.is_ascii_control());
    let is_well_formed = digits <= CHUNK_SIZE_DIGITS_MAX && (extension.is_empty() || is_extension);
    let size = std::str::from_utf8(size)
        .ok()
        .filter(|_| is_well_formed)
        .and_then(|text| u64::from_str_radix(text, 16).ok());
    size.ok_or_else(|| malformed("chunk size is not a hex number of at most 16 digits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    /// Reads a body of which the client sends `bytes` and then closes its sending side.
    fn read(framing: BodyFraming, bytes: &[u8]) -> (Result<Vec<u8>, BodyFault>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Arc::new(listener.accept().unwrap().0.into());
        client.write_all(bytes).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let limits = DoorLimits {
            body_idle: Duration::from_secs(5),
            ..DoorLimits::new(1)
        };
        let mut socket = ClientSocket::new(stream, &limits).unwrap();
        let mut body = BodyReader::new(&mut socket, framing, false, &limits);
        let mut whole = Vec::new();
        let read = body.read_to_end(&mut whole);
        let result = match (read, body.fault().cloned()) {
            (Ok(_), None) => {
                assert!(body.is_done());
                Ok(whole)
            }
            (Err(_), Some(fault)) => Err(fault),
            other => panic!("{other:?}"),
        };
        let mut rest = socket.buffered().to_vec();
        while socket
            .fill(Instant::now() + Duration::from_secs(5))
            .unwrap()
            > 0
        {
            rest = socket.buffered().to_vec();
        }
        (result, rest)
    }

    #[test]
    fn a_length_ends_the_body() {
        let (body, rest) = read(BodyFraming::Length(5), b"helloGET /");
        assert_eq!(
            (body.unwrap(), rest),
            (b"hello".to_vec(), b"GET /".to_vec())
        );
        assert_eq!(read(BodyFraming::Length(0), b"").0.unwrap(), b"");
    }

    #[test]
    fn an_early_end_is_a_fault() {
        assert_eq!(
            read(BodyFraming::Length(6), b"hello").0,
            Err(BodyFault::Gone)
        );
        for bytes in [
            "",
            "5",
            "5\r\nhel",
            "5\r\nhello",
            "5\r\nhello\r\n",
            "0\r\n",
            "0\r\nX: 1\r\n",
        ] {
            assert_eq!(
                read(BodyFraming::Chunked, bytes.as_bytes()).0,
                Err(BodyFault::Gone),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn chunks_are_joined_and_the_next_request_is_left() {
        let bytes = b"5\r\nhello\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nGET /";
        let (body, rest) = read(BodyFraming::Chunked, bytes);
        assert_eq!(
            (body.unwrap(), rest),
            (b"hello0123456789".to_vec(), b"GET /".to_vec())
        );
    }

    #[test]
    fn broken_chunks_are_refused() {
        let long = format!(
            "5;{}\r\nhello\r\n0\r\n\r\n",
            "x".repeat(CHUNK_LINE_BYTES_MAX)
        );
        let trailer = format!("0\r\nX: {}\r\n\r\n", "x".repeat(TRAILER_BYTES_MAX));
        for bytes in [
            "x\r\n",
            "-5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "5 x\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "5\t\r\nhello\r\n",
            "5\x0c;\r\nhello\r\n",
            "5;\x7f\r\nhello\r\n",
            "11111111111111111\r\n",
            "5\nhello\r\n",
            "5\r\nhello\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello!!",
            "\r\n",
            &long,
            &trailer,
        ] {
            let (result, _) = read(BodyFraming::Chunked, bytes.as_bytes());
            assert!(
                matches!(result, Err(BodyFault::Malformed(_))),
                "{bytes:?} {result:?}"
            );
        }
    }

    #[test]
    fn a_stalled_client_is_a_fault() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Arc::new(listener.accept().unwrap().0.into());
        let limits = DoorLimits {
            body_idle: Duration::from_millis(20),
            ..DoorLimits::new(1)
        };
        let mut socket = ClientSocket::new(stream, &limits).unwrap();
        let mut body = BodyReader::new(&mut socket, BodyFraming::Length(1), false, &limits);
        assert!(body.read(&mut [0; 8]).is_err());
        assert_eq!(body.fault(), Some(&BodyFault::Stalled));
        assert!(body.read(&mut [0; 8]).is_err());
    }
}
