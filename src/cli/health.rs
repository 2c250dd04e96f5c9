//! `health`: asks the running proxy's `/readyz`, for a container's health check in an image without
//! a shell. Owns: how the proxy is found, and that one request. Must not: wait longer than its
//! limit.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{complain, fail, print};
use crate::config::{ListenHost, Settings, VERSION};
use crate::log::Format;
use crate::upstream::loopback;

/// Longest time for `health`, start to end: container engines give a health check 5 s and more,
/// and a proxy that is well answers within one.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest reply that `health` reads; `/readyz` has one line.
const HEALTH_REPLY_BYTES_MAX: usize = 16 << 10;

/// Asks `/readyz` of the proxy that runs with the same settings.
pub(super) fn run(settings: &Settings, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let place = match &settings.listen_host {
        ListenHost::Unix(path) => Place::Unix(path.clone()),
        ListenHost::Address(_) | ListenHost::Name(_) if settings.listen_port == 0 => {
            let why = "LISTEN_PORT=0: expected the port that the running proxy listens on";
            return complain(err, Format::Text, &[why]);
        }
        ListenHost::Address(host) => {
            Place::Tcp(SocketAddr::new(reachable(*host), settings.listen_port))
        }
        ListenHost::Name(name) => {
            let found = (name.as_str(), settings.listen_port).to_socket_addrs();
            match found.map(|mut addresses| addresses.next()) {
                Ok(Some(address)) => Place::Tcp(address),
                Ok(None) => {
                    return complain(
                        err,
                        Format::Text,
                        &[&format!("LISTEN_HOST={name}: no address")],
                    );
                }
                Err(error) => {
                    return complain(
                        err,
                        Format::Text,
                        &[&format!("LISTEN_HOST={name}: {error}")],
                    );
                }
            }
        }
    };
    match ask(&place, settings.tls.enabled, HEALTH_TIMEOUT) {
        Ok((200, reason)) => print(out, err, &format!("{reason}\n")),
        Ok((status, reason)) => fail(out, err, &format!("not ready: {status} {reason}\n")),
        Err(error) => fail(out, err, &format!("no answer from {place}: {error}\n")),
    }
}

/// Where the running proxy is.
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Place {
    /// The `Host` to ask for; on a unix socket any will do.
    fn host(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// The address that TLS is spoken with; on a unix socket any will do, as nothing is verified.
    const fn ip(&self) -> IpAddr {
        match self {
            Self::Tcp(address) => address.ip(),
            Self::Unix(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The address at which a listener on `host` is found from the same machine.
const fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        specific => specific,
    }
}

/// Status and body of `/readyz`. Blocks for `limit` at the longest.
fn ask(place: &Place, tls: bool, limit: Duration) -> io::Result<(u16, String)> {
    let stream = Timed::connect(place, limit)?;
    if tls {
        // What is asked and answered is no secret, and the probes need no certificate of ours.
        let stream = loopback::dangerous_unverified(place.ip(), stream)?;
        return exchange(stream, &place.host());
    }
    exchange(stream, &place.host())
}

fn exchange(mut stream: impl Read + Write, host: &str) -> io::Result<(u16, String)> {
    let request = format!(
        "GET /readyz HTTP/1.1\r\nHost: {host}\r\nUser-Agent: aws-ecr-proxy/{VERSION} health\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut reply = Vec::new();
    let mut piece = [0; 4096];
    while reply.len() < HEALTH_REPLY_BYTES_MAX {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => reply.extend_from_slice(piece.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    status_and_reason(&reply)
}

/// A socket on which everything is over within the limit.
struct Timed {
    /// A TCP or unix socket: the system reads and writes both alike.
    socket: File,
    started: Instant,
    limit: Duration,
}

impl Timed {
    fn connect(place: &Place, limit: Duration) -> io::Result<Self> {
        let started = Instant::now();
        let socket = match place {
            Place::Tcp(address) => TcpStream::connect_timeout(address, limit)?.into(),
            Place::Unix(path) => connect_unix(path, limit)?,
        };
        Ok(Self {
            socket: File::from(socket),
            started,
            limit,
        })
    }

    /// What is left of the limit; a zero time-out would mean none to the system.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.limit.saturating_sub(self.started.elapsed());
        let left = Some(left).filter(|left| !left.is_zero());
        left.ok_or_else(|| self.late()).map(Some)
    }

    /// Each call gets what is left, so the reason given is the whole limit.
    fn late(&self) -> io::Error {
        let why = format!("time-out after {:?}", self.limit);
        io::Error::new(io::ErrorKind::TimedOut, why)
    }

    fn named(&self, error: io::Error) -> io::Error {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.late(),
            _ => error,
        }
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        set_socket_timeout(&self.socket, Timeout::Recv, self.left()?)?;
        let read = self.socket.read(into);
        read.map_err(|error| self.named(error))
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        set_socket_timeout(&self.socket, Timeout::Send, self.left()?)?;
        let written = self.socket.write(bytes);
        written.map_err(|error| self.named(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// Connects within `limit`: a full backlog makes it wait, for as long as the socket may send.
fn connect_unix(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Splits a reply whose connection was closed after it (RFC 9112 §2.1, §4).
fn status_and_reason(reply: &[u8]) -> io::Result<(u16, String)> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "the reply is not HTTP");
    let text = String::from_utf8_lossy(reply);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(odd)?;
    let line = head.lines().next().unwrap_or_default();
    let rest = line.strip_prefix("HTTP/1.").ok_or_else(odd)?;
    let status = rest.split(' ').nth(1).and_then(|word| word.parse().ok());
    let reason = body.trim().replace(char::is_control, " ");
    Ok((status.ok_or_else(odd)?, reason))
}

#[cfg(test)]
mod tests {
    use super::super::tests::try_run;
    use super::*;
    use crate::config::{EXIT_FAILED, EXIT_OK, EXIT_SETTINGS};
    use std::net::TcpListener;
    use std::thread;

    /// Answers one connection with `reply` and returns what it was asked.
    fn responder(reply: &'static [u8]) -> (u16, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let length = stream.read(&mut asked).unwrap();
            stream.write_all(reply).unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        };
        let thread = thread::Builder::new().spawn(answer).unwrap();
        (port, thread)
    }

    #[test]
    fn health_is_the_answer_of_readyz() {
        for (reply, code, expected) in [
            (
                &b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nready\n"[..],
                EXIT_OK,
                "ready\n",
            ),
            (
                b"HTTP/1.1 503 Service Unavailable\r\n\r\nno token:\ndraining",
                EXIT_FAILED,
                "not ready: 503 no token: draining\n",
            ),
        ] {
            let (port, thread) = responder(reply);
            let outcome = try_run(&["health"], &[("LISTEN_PORT", &port.to_string())]);
            assert_eq!((outcome.code, outcome.out.as_str()), (code, expected));
            let asked = thread.join().unwrap();
            assert!(asked.starts_with("GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:"));
        }
    }

    #[test]
    fn health_fails_when_the_answer_is_not_http_or_there_is_none() {
        for reply in [&b""[..], b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 \r\n\r\n"] {
            let (port, thread) = responder(reply);
            let outcome = try_run(&["health"], &[("LISTEN_PORT", &port.to_string())]);
            assert_eq!(outcome.code, EXIT_FAILED);
            assert!(
                outcome.out.contains("the reply is not HTTP"),
                "{}",
                outcome.out
            );
            thread.join().unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        drop(listener);
        let outcome = try_run(&["health", "--listen-port", &port], &[]);
        assert_eq!(outcome.code, EXIT_FAILED);
        assert!(
            outcome.out.contains("no answer from 127.0.0.1:"),
            "{}",
            outcome.out
        );
    }

    #[test]
    fn health_gives_up_on_a_silent_peer() {
        // The listener's backlog takes the connection; nobody ever answers.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place::Tcp(listener.local_addr().unwrap());
        for tls in [false, true] {
            let error = ask(&place, tls, Duration::from_millis(30)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }

    #[test]
    fn health_needs_a_port() {
        let outcome = try_run(&["health"], &[("LISTEN_PORT", "0")]);
        assert_eq!(outcome.code, EXIT_SETTINGS);
        assert!(outcome.err.contains("LISTEN_PORT=0: expected the port"));
    }

    #[test]
    fn any_address_is_asked_on_loopback() {
        for (host, expected) in [
            ("0.0.0.0", "127.0.0.1"),
            ("::", "::1"),
            ("192.0.2.7", "192.0.2.7"),
            ("::1", "::1"),
        ] {
            let host: IpAddr = host.parse().unwrap();
            assert_eq!(reachable(host), expected.parse::<IpAddr>().unwrap());
        }
    }
}
