//! HTTP clients. Own: one connection each, a deadline on everything, and the verdict whether a
//! reply was whole. Must not: forgive a fault.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use standin::Hasher;

/// For a whole reply. Tests that wait for the proxy's own time-outs set another one.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);
/// Bodies up to that length are kept; of longer ones, only length and digest.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Sends bytes and reads until the other side closes (or resets: what came before counts).
///
/// Panics when that takes longer than [`DEADLINE`].
pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut connection = Timed::connect(address, DEADLINE).expect("a connection");
    // The other side may answer and close before it has read all.
    let _ = connection.write_all(bytes);
    let mut reply = Vec::new();
    let mut buf = [0; 8192];
    loop {
        match connection.read(&mut buf) {
            Ok(0) => return reply,
            Ok(count) => reply.extend_from_slice(&buf[..count]),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                panic!(
                    "no end within {DEADLINE:?} after {:?}",
                    String::from_utf8_lossy(&reply)
                )
            }
            Err(_) => return reply,
        }
    }
}

/// Names and values, in order.
type Fields = Vec<(String, String)>;

/// A reply, and how it ended.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) reason: String,
    /// In order, names as sent.
    pub(crate) headers: Fields,
    /// Empty when the body was longer than 16 MiB.
    pub(crate) body: Vec<u8>,
    /// Bytes of the body that came.
    pub(crate) length: u64,
    /// `sha256:…` of the bytes that came.
    pub(crate) digest: String,
    /// False when the body was short, reset, timed out, or its chunks broken: see `fault`.
    pub(crate) complete: bool,
    /// Why it is not complete.
    pub(crate) fault: Option<String>,
}

impl Response {
    /// The first field of that name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.headers.iter();
        let found = fields.find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// All fields of that name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let fields = self.headers.iter();
        let fields = fields.filter(move |(other, _)| other.eq_ignore_ascii_case(name));
        fields.map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client on one connection, kept alive over requests.
pub(crate) struct Http {
    reader: BufReader<Timed>,
    host: String,
}

impl Http {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::connect_within(address, DEADLINE)
    }

    /// Connects; each reply must be whole within `limit`.
    pub(crate) fn connect_within(address: SocketAddr, limit: Duration) -> Self {
        let timed = Timed::connect(address, limit);
        Self {
            reader: BufReader::with_capacity(64 * 1024, timed.expect("a connection")),
            host: address.to_string(),
        }
    }

    /// Connects and shakes hands.
    ///
    /// # Errors
    /// When the handshake fails, on either side as far as that shows.
    pub(crate) fn connect_tls(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let mut timed = Timed::connect(address, DEADLINE)?;
        timed.start_tls(config)?;
        Ok(Self {
            reader: BufReader::with_capacity(64 * 1024, timed),
            host: address.to_string(),
        })
    }

    /// The TLS session, for what is known of its handshake.
    pub(crate) fn tls(&self) -> &ClientConnection {
        self.reader.get_ref().tls.as_ref().expect("a TLS client")
    }

    /// Reads until the other side ends; an error when it does so without a word (`close_notify`).
    pub(crate) fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        self.reader.get_mut().start();
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).map(|_| rest)
    }

    /// A client on a connection that the test has made.
    pub(crate) fn on(stream: TcpStream) -> Self {
        // It may be gone already, with its answer still to be read.
        let host = stream.peer_addr().map(|address| address.to_string());
        let timed = Timed {
            stream,
            tls: None,
            limit: DEADLINE,
            until: Instant::now() + DEADLINE,
        };
        Self {
            reader: BufReader::with_capacity(64 * 1024, timed),
            host: host.unwrap_or_default(),
        }
    }

    /// One request on a connection of its own.
    pub(crate) fn once(
        address: SocketAddr,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        Self::connect(address).request(method, target, headers, body)
    }

    /// A GET on a connection of its own.
    pub(crate) fn get_once(address: SocketAddr, target: &str) -> Response {
        Self::once(address, "GET", target, &[], b"")
    }

    /// The same; none when it is refused, or ends before a head.
    pub(crate) fn try_get_once(address: SocketAddr, target: &str) -> Option<Response> {
        let stream = TcpStream::connect(address).ok()?;
        Self::on(stream).try_request("GET", target, &[], b"").ok()
    }

    /// GET.
    pub(crate) fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    /// HEAD.
    pub(crate) fn head(&mut self, target: &str) -> Response {
        self.request("HEAD", target, &[], b"")
    }

    /// Any request; `Content-Length` is sent with a body, and with POST, PUT and PATCH.
    ///
    /// Panics when no well-formed head comes back.
    pub(crate) fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let response = self.try_request(method, target, headers, body);
        response.unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    /// The same, with an error when no well-formed head comes back.
    pub(crate) fn try_request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut fields = headers.to_vec();
        let length = body.len().to_string();
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            fields.push(("Content-Length", &length));
        }
        self.reader.get_mut().start();
        self.send_head(method, target, &fields)?;
        // An early answer may come with a reset of the rest; the answer counts.
        let sent = self.reader.get_mut().write_all(body);
        self.receive(method)
            .map_err(|error| sent.err().unwrap_or(error))
    }

    /// A request whose body comes chunked, from a reader.
    pub(crate) fn request_chunked(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &mut dyn Read,
    ) -> io::Result<Response> {
        let mut fields = headers.to_vec();
        fields.push(("Transfer-Encoding", "chunked"));
        self.reader.get_mut().start();
        self.send_head(method, target, &fields)?;
        let mut buf = vec![0; 64 * 1024];
        loop {
            let count = body.read(&mut buf)?;
            let connection = self.reader.get_mut();
            let mut chunk = format!("{count:x}\r\n").into_bytes();
            chunk.extend_from_slice(&buf[..count]);
            chunk.extend_from_slice(b"\r\n");
            if connection.write_all(&chunk).is_err() || count == 0 {
                return self.receive(method);
            }
        }
    }

    /// A request whose body of `length` bytes comes from a reader.
    pub(crate) fn request_streamed(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        (length, body): (u64, &mut dyn Read),
    ) -> io::Result<Response> {
        let mut fields = headers.to_vec();
        let length = length.to_string();
        fields.push(("Content-Length", &length));
        self.reader.get_mut().start();
        self.send_head(method, target, &fields)?;
        let _ = io::copy(body, self.reader.get_mut());
        self.receive(method)
    }

    /// Sends a head with `Host` and these fields, and nothing more.
    pub(crate) fn send_head(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<()> {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            head.push_str(&format!("Host: {}\r\n", self.host));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes())
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Says in TLS that no more will come from this side.
    pub(crate) fn close_notify(&mut self) {
        let timed = self.reader.get_mut();
        timed
            .tls
            .as_mut()
            .expect("a TLS client")
            .send_close_notify();
        timed.flush().expect("a close_notify sent");
    }

    /// No more bytes will come from this side.
    pub(crate) fn half_close(&self) {
        let _ = self.reader.get_ref().stream.shutdown(Shutdown::Write);
    }

    /// The stream itself.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.reader.get_ref().stream
    }

    /// True when the other side has closed, or does so within `limit`, without a further byte.
    pub(crate) fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.reader.get_mut().start_with(limit);
        match self.reader.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => error.kind() != io::ErrorKind::TimedOut,
        }
    }

    /// Reads the reply to a `method`, past interim (1xx) ones.
    pub(crate) fn receive(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let (status, reason, headers) = self.receive_head()?;
            if (100..200).contains(&status) {
                continue;
            }
            let mut response = Response {
                status,
                reason,
                headers,
                body: Vec::new(),
                length: 0,
                digest: String::new(),
                complete: false,
                fault: None,
            };
            let mut sink = Sink::default();
            let outcome = self.receive_body(method, &response, &mut sink);
            response.complete = outcome.is_ok();
            response.fault = outcome.err().map(|error| error.to_string());
            response.length = sink.hasher.len();
            response.digest = sink.hasher.digest();
            response.body = sink.kept;
            return Ok(response);
        }
    }

    fn receive_head(&mut self) -> io::Result<(u16, String, Fields)> {
        let line = self.line()?;
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| line.strip_prefix("HTTP/1.0 "));
        let status = status.ok_or_else(|| bad("status line", &line))?;
        let (status, reason) = status.split_once(' ').unwrap_or((status, ""));
        let code = status.parse().ok().filter(|_| status.len() == 3);
        let status = code.ok_or_else(|| bad("status line", &line))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, reason.to_owned(), headers));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad("field", &line))?;
            if name.is_empty() || name.contains([' ', '\t']) {
                return Err(bad("field name", &line));
            }
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    fn receive_body(&mut self, method: &str, head: &Response, sink: &mut Sink) -> io::Result<()> {
        let lengths: Vec<&str> = head.all("content-length").collect();
        let coding: Vec<&str> = head.all("transfer-encoding").collect();
        if method == "HEAD" || matches!(head.status, 204 | 304) {
            return Ok(());
        }
        match (lengths.as_slice(), coding.as_slice()) {
            ([length], []) => {
                let length = length.parse().map_err(|_| bad("content-length", length))?;
                self.receive_bytes(length, sink)
            }
            ([], ["chunked"]) => self.receive_chunks(sink),
            ([], []) => {
                // Delimited by the connection's end (RFC 9112 §6.3): a reset is an error.
                while self.receive_some(u64::MAX, sink)? > 0 {}
                Ok(())
            }
            _ => Err(bad("framing", &format!("{:?}", head.headers))),
        }
    }

    fn receive_bytes(&mut self, length: u64, sink: &mut Sink) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let count = self.receive_some(left, sink)?;
            if count == 0 {
                let got = length - left;
                let text = format!("body ended after {got} of {length} bytes");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            left -= count;
        }
        Ok(())
    }

    fn receive_some(&mut self, most: u64, sink: &mut Sink) -> io::Result<u64> {
        let bytes = self.reader.fill_buf()?;
        let count = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        sink.take(&bytes[..count]);
        self.reader.consume(count);
        Ok(count as u64)
    }

    fn receive_chunks(&mut self, sink: &mut Sink) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default();
            let size = u64::from_str_radix(size, 16).map_err(|_| bad("chunk size", &line))?;
            self.receive_bytes(size, sink)?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(());
            }
            let end = self.line()?;
            if !end.is_empty() {
                return Err(bad("chunk end", &end));
            }
        }
    }

    /// A line that ends as it must, in CR LF.
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        let text = String::from_utf8_lossy(&line).into_owned();
        if line.is_empty() {
            let text = "the connection ended before a line";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        match text.strip_suffix("\r\n") {
            Some(line) if !line.contains(['\r', '\n', '\0']) => Ok(line.to_owned()),
            _ => Err(bad("line", &text)),
        }
    }
}

fn bad(what: &str, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("bad {what}: {text:?}"))
}

#[derive(Default)]
struct Sink {
    kept: Vec<u8>,
    hasher: Hasher,
}

impl Sink {
    fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if self.hasher.len() <= KEPT_BYTES_MAX as u64 {
            self.kept.extend_from_slice(bytes);
        } else {
            self.kept = Vec::new();
        }
    }
}

/// A stream on which everything since `start` must be over in time.
struct Timed {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    limit: Duration,
    until: Instant,
}

impl Timed {
    fn connect(address: SocketAddr, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            tls: None,
            limit,
            until: Instant::now() + limit,
        })
    }

    fn start_tls(&mut self, config: &Arc<ClientConfig>) -> io::Result<()> {
        let name = ServerName::from(self.stream.peer_addr()?.ip());
        let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.set_write_timeout(self.left()?)?;
        let mut tls = Box::new(tls);
        while tls.is_handshaking() {
            timed_out(tls.complete_io(&mut self.stream))?;
        }
        while tls.wants_write() {
            timed_out(tls.write_tls(&mut self.stream))?;
        }
        self.tls = Some(tls);
        Ok(())
    }

    fn start(&mut self) {
        self.start_with(self.limit);
    }

    fn start_with(&mut self, limit: Duration) {
        self.until = Instant::now() + limit;
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        let over = || io::Error::new(io::ErrorKind::TimedOut, "the test's deadline is over");
        Some(left)
            .filter(|left| !left.is_zero())
            .ok_or_else(over)
            .map(Some)
    }
}

/// The system says `WouldBlock` when a socket's time is over.
fn timed_out<T>(outcome: io::Result<T>) -> io::Result<T> {
    outcome.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::TimedOut, "the test's deadline is over")
        }
        _ => error,
    })
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.set_read_timeout(self.left()?)?;
            let read = match &mut self.tls {
                Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).read(buf),
                None => self.stream.read(buf),
            };
            // A read with a time limit is interrupted when the machine stops for a while.
            if !matches!(&read, Err(error) if error.kind() == io::ErrorKind::Interrupted) {
                return timed_out(read);
            }
        }
    }
}

impl Write for Timed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        timed_out(match &mut self.tls {
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).write(buf),
            None => self.stream.write(buf),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).flush(),
            None => Ok(()),
        }
    }
}
