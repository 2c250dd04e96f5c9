//! A small HTTP/1.1 server side. Owns: heads, request bodies, and how a reply (right or wrong) gets
//! onto the wire. Must not: know what a request means.

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::content::Content;
use crate::core::Core;
use crate::{Fault, Server};

/// Longest head that is read; far above what a proxy may send.
const HEAD_BYTES_MAX: u64 = 256 * 1024;
/// Bytes of a body sent at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// The head of a request.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    keep_alive: bool,
}

impl Head {
    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        crate::first(&self.headers, name)
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The value of a query parameter, byte for byte as it was sent.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query()
            .split('&')
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(other, _)| *other == name)
            .map(|(_, value)| value)
    }

    /// Reads a head; none at the end of the connection.
    pub(crate) fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut reader = reader.take(HEAD_BYTES_MAX);
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line)?;
            if line.is_empty() && lines.is_empty() {
                return Ok(None);
            }
            let line = line.strip_suffix(b"\r\n").ok_or_else(|| bad("line"))?;
            if line.is_empty() {
                break;
            }
            lines.push(String::from_utf8(line.to_vec()).map_err(|_| bad("line"))?);
        }
        let mut lines = lines.into_iter();
        let request = lines.next().ok_or_else(|| bad("request line"))?;
        let parts: Vec<&str> = request.split(' ').collect();
        let &[method, target, version] = parts.as_slice() else {
            return Err(bad("request line"));
        };
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(|| bad("field"))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let connection = crate::first(&headers, "connection").unwrap_or_default();
        let keep_alive = version == "HTTP/1.1" && !connection.eq_ignore_ascii_case("close");
        Ok(Some(Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers,
            keep_alive,
        }))
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("bad {what}"))
}

enum Framing {
    Length(u64),
    Chunk(u64),
    Ended,
}

/// The body of a request. Answers `Expect: 100-continue` at the first read.
pub(crate) struct RequestBody<'a> {
    reader: &'a mut dyn BufRead,
    stream: &'a TcpStream,
    framing: Framing,
    first_chunk: bool,
    expects: bool,
    taken: u64,
}

impl<'a> RequestBody<'a> {
    pub(crate) fn new(
        reader: &'a mut dyn BufRead,
        stream: &'a TcpStream,
        head: &Head,
    ) -> io::Result<Self> {
        let chunked = head.first("transfer-encoding").is_some();
        let framing = match head.first("content-length") {
            Some(_) if chunked => return Err(bad("framing")),
            Some(length) => Framing::Length(length.parse().map_err(|_| bad("length"))?),
            None if chunked => Framing::Chunk(0),
            None => Framing::Length(0),
        };
        let expects = head.first("expect").is_some();
        Ok(Self {
            reader,
            stream,
            framing,
            first_chunk: true,
            expects,
            taken: 0,
        })
    }

    /// Bytes read so far, without framing.
    pub(crate) const fn taken(&self) -> u64 {
        self.taken
    }

    pub(crate) fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the rest and throws it away.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink()).map(drop)
    }

    /// Sees to it that bytes of the body are at hand, or that it has ended.
    fn advance(&mut self) -> io::Result<u64> {
        loop {
            match self.framing {
                Framing::Ended | Framing::Length(0) => {
                    self.framing = Framing::Ended;
                    return Ok(0);
                }
                Framing::Length(left) => return Ok(left),
                Framing::Chunk(left) if left > 0 => return Ok(left),
                Framing::Chunk(_) => self.next_chunk()?,
            }
        }
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.first_chunk) && !self.line()?.is_empty() {
            return Err(bad("chunk end"));
        }
        let line = self.line()?;
        let size = line.split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(|_| bad("chunk size"))?;
        self.framing = Framing::Chunk(size);
        if size == 0 {
            while !self.line()?.is_empty() {}
            self.framing = Framing::Ended;
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut *self.reader).take(4096).read_line(&mut line)?;
        let line = line.strip_suffix("\r\n").ok_or_else(|| bad("chunk"))?;
        Ok(line.to_owned())
    }
}

impl Read for RequestBody<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.expects) {
            let mut stream = self.stream;
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let left = self.advance()?;
        if left == 0 {
            return Ok(0);
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let count = self.reader.read(&mut buf[..most])?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.taken += count as u64;
        let left = left - count as u64;
        self.framing = match self.framing {
            Framing::Chunk(_) => Framing::Chunk(left),
            _ => Framing::Length(left),
        };
        Ok(count)
    }
}

/// A reply before any fault is laid on it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    body: Content,
    start: u64,
    length: u64,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Content>) -> Self {
        let body = body.into();
        let length = body.len();
        Self {
            status,
            headers: Vec::new(),
            body,
            start: 0,
            length,
        }
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self::new(status, Vec::new())
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// `content`, or the part of it that `range` (RFC 9110 §14.2, one range) asks for.
    pub(crate) fn of(content: Content, range: Option<&str>) -> Self {
        let size = content.len();
        match range.and_then(|range| parse_range(range, size)) {
            None => Self::new(200, content).with("Accept-Ranges", "bytes"),
            Some(None) => Self::empty(416).with("Content-Range", format!("bytes */{size}")),
            Some(Some((first, last))) => {
                let mut reply = Self::new(206, content)
                    .with("Accept-Ranges", "bytes")
                    .with("Content-Range", format!("bytes {first}-{last}/{size}"));
                (reply.start, reply.length) = (first, last - first + 1);
                reply
            }
        }
    }
}

/// Inclusive bounds; `Some(None)` cannot be satisfied, `None` is to be ignored.
fn parse_range(range: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let suffix: u64 = last.parse().ok()?;
        return Some((suffix > 0 && size > 0).then(|| (size.saturating_sub(suffix), size - 1)));
    }
    let first: u64 = first.parse().ok()?;
    let last = match last {
        "" => u64::MAX,
        last => last.parse().ok()?,
    };
    (first <= last).then(|| (first < size).then(|| (first, last.min(size.saturating_sub(1)))))
}

/// Writes replies to one connection.
pub(crate) struct Writer<'a> {
    pub(crate) core: &'a Core,
    pub(crate) server: Server,
    pub(crate) stream: &'a TcpStream,
}

/// How a body goes out.
struct Plan {
    piece: usize,
    pause: Option<Duration>,
    stop: Option<(u64, Stop)>,
    wrong_last_byte: bool,
    chunked: bool,
}

#[derive(Clone, Copy)]
enum Stop {
    Close,
    Reset,
    Stall,
}

impl Plan {
    fn of(fault: Option<&Fault>) -> Self {
        let (piece, pause) = match fault {
            Some(Fault::Drip { bytes, every }) => ((*bytes).max(1), Some(*every)),
            _ => (PIECE_BYTES, None),
        };
        let stop = match fault {
            Some(Fault::CutAfter(bytes)) => Some((*bytes, Stop::Close)),
            Some(Fault::Chunked { cut_after }) => cut_after.map(|bytes| (bytes, Stop::Close)),
            Some(Fault::ResetAfter(bytes)) => Some((*bytes, Stop::Reset)),
            Some(Fault::StallAfter(bytes)) => Some((*bytes, Stop::Stall)),
            _ => None,
        };
        Self {
            piece,
            pause,
            stop,
            wrong_last_byte: matches!(fault, Some(Fault::WrongBytes)),
            chunked: matches!(fault, Some(Fault::Chunked { .. })),
        }
    }
}

impl Writer<'_> {
    /// Writes `reply` to a request with `head`, under `fault`. True when the connection may live on.
    pub(crate) fn reply(
        &self,
        head: &Head,
        reply: &Reply,
        fault: Option<&Fault>,
    ) -> io::Result<bool> {
        let plan = Plan::of(fault);
        let delta = match fault {
            Some(Fault::WrongLength(delta)) => *delta,
            _ => 0,
        };
        let keep_alive = head.keep_alive && delta == 0;
        if matches!(fault, Some(Fault::Late)) && !self.core.wait_for_release() {
            return Ok(false);
        }
        self.head(reply, &plan, delta, keep_alive)?;
        if head.method == "HEAD" || matches!(reply.status, 204 | 304) {
            return Ok(keep_alive);
        }
        Ok(self.body(reply, &plan)? && keep_alive)
    }

    fn head(&self, reply: &Reply, plan: &Plan, delta: i64, keep_alive: bool) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", reply.status, reason(reply.status));
        let mut field = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                head.push_str(part);
            }
        };
        for (name, value) in &reply.headers {
            field(name, value);
        }
        field("Date", &httpdate::fmt_http_date(self.core.now(self.server)));
        if plan.chunked {
            field("Transfer-Encoding", "chunked");
        } else if reply.status != 204 {
            let length = reply.length.saturating_add_signed(delta);
            field("Content-Length", &length.to_string());
        }
        if !keep_alive {
            field("Connection", "close");
        }
        head.push_str("\r\n");
        self.send(head.as_bytes())
    }

    /// False when the connection is to be closed.
    fn body(&self, reply: &Reply, plan: &Plan) -> io::Result<bool> {
        let mut buf = vec![0; plan.piece.min(PIECE_BYTES)];
        let (mut stop, mut sent) = (plan.stop, 0);
        loop {
            if let Some((_, how)) = stop.take_if(|(at, _)| *at <= sent) {
                match how {
                    Stop::Close => return Ok(false),
                    Stop::Reset => return self.reset().map(|()| false),
                    Stop::Stall if !self.core.wait_for_release() => return Ok(false),
                    Stop::Stall => {}
                }
            }
            if sent == reply.length {
                break;
            }
            let until = stop.map_or(reply.length, |(at, _)| at.min(reply.length));
            let most = usize::try_from(until - sent).unwrap_or(usize::MAX);
            let most = most.min(buf.len());
            let count = reply.body.read_at(reply.start + sent, &mut buf[..most]);
            sent += count as u64;
            if plan.wrong_last_byte && sent == reply.length {
                buf[count - 1] ^= 0x55;
            }
            if plan.chunked {
                self.send(format!("{count:x}\r\n").as_bytes())?;
            }
            self.send(&buf[..count])?;
            self.core.count_sent(self.server, count);
            if plan.chunked {
                self.send(b"\r\n")?;
            }
            if plan.pause.is_some_and(|pause| !self.core.pause(pause)) {
                return Ok(false);
            }
        }
        if plan.chunked {
            self.send(b"0\r\n\r\n")?;
        }
        Ok(true)
    }

    /// Sends at the server's rate.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream;
        let piece = self.core.piece_at_rate(self.server).unwrap_or(PIECE_BYTES);
        for piece in bytes.chunks(piece) {
            if !self.core.throttle(self.server, piece.len()) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            stream.write_all(piece)?;
        }
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        rustix::net::sockopt::set_socket_linger(self.stream, Some(Duration::ZERO))?;
        Ok(())
    }

    pub(crate) fn half_close(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Some Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_satisfied_refused_or_ignored() {
        assert_eq!(parse_range("bytes=0-4", 10), Some(Some((0, 4))));
        assert_eq!(parse_range("bytes=8-", 10), Some(Some((8, 9))));
        assert_eq!(parse_range("bytes=-3", 10), Some(Some((7, 9))));
        assert_eq!(parse_range("bytes=2-99", 10), Some(Some((2, 9))));
        assert_eq!(parse_range("bytes=10-", 10), Some(None));
        for ignored in ["bytes=5-2", "lines=1-2", "bytes=0-1,3-4", "bytes=x-"] {
            assert_eq!(parse_range(ignored, 10), None, "{ignored}");
        }
    }

    #[test]
    fn a_head_is_read_whole_or_refused() {
        let whole = b"GET /a?b=1%2B&c HTTP/1.1\r\nHost: x\r\nA:  b \r\n\r\n";
        let head = Head::read(&mut &whole[..]).unwrap().unwrap();
        assert_eq!((head.path(), head.parameter("b")), ("/a", Some("1%2B")));
        assert_eq!(head.first("a"), Some("b"));
        assert!(Head::read(&mut &b""[..]).unwrap().is_none());
        assert!(Head::read(&mut &whole[..20]).is_err());
        assert!(Head::read(&mut &b"GET / HTTP/1.1\n\n"[..]).is_err());
    }
}
