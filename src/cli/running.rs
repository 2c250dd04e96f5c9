//! The running proxy, as commands of the same settings ask it. Owns: how it is found, and one
//! request to it. Must not: wait longer than the limit, or judge the answer.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::config::{ListenHost, Settings, VERSION};
use crate::secret::Secret;
use crate::upstream::loopback::{self, LoopbackCertificates};

/// What is asked for, and what it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalQuestion<'a> {
    /// Files for TLS; none where the proxy speaks plain HTTP.
    pub(super) tls: Option<LoopbackCertificates<'a>>,
    /// The value of `Authorization`.
    pub(super) authorization: Option<&'a Secret<String>>,
    /// Path and query.
    pub(super) target: &'a str,
    /// The command that asks; part of `User-Agent`.
    pub(super) command: &'a str,
    /// Longest time, start to end.
    pub(super) limit: Duration,
    /// Most bytes that are read of the reply.
    pub(super) bytes_max: usize,
}

/// Where the running proxy is.
pub(super) enum ProxyAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl ProxyAddress {
    /// Where a proxy with these settings listens.
    ///
    /// # Errors
    /// When the settings do not tell.
    pub(super) fn of(settings: &Settings) -> Result<Self, String> {
        Self::find(&settings.listen_host, settings.listen_port, "LISTEN_PORT=0")
    }

    /// Where its status is.
    ///
    /// # Errors
    /// When the settings do not tell.
    pub(super) fn of_status(settings: &Settings) -> Result<Self, String> {
        match &settings.metrics.listen {
            None => Self::of(settings),
            Some(listen) => Self::find(&listen.host, listen.port, "METRICS_LISTEN with port 0"),
        }
    }

    /// `setting`: the one that has the port.
    fn find(host: &ListenHost, port: u16, setting: &str) -> Result<Self, String> {
        let address = match host {
            ListenHost::Unix(path) => return Ok(Self::Unix(path.clone())),
            ListenHost::Address(_) | ListenHost::Name(_) if port == 0 => {
                return Err(format!(
                    "{setting}: expected the port that the running proxy listens on"
                ));
            }
            ListenHost::Address(host) => SocketAddr::new(reachable(*host), port),
            ListenHost::Name(name) => {
                let found = (name.as_str(), port).to_socket_addrs();
                let found = found.map_err(|error| format!("{name}: {error}"))?;
                let first = { found }.next();
                first.ok_or_else(|| format!("{name}: no address"))?
            }
        };
        Ok(Self::Tcp(address))
    }

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

impl fmt::Display for ProxyAddress {
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

/// Status and body of the answer. Blocks for the question's limit at the longest.
///
/// # Errors
/// When there is no answer in time, or it is not HTTP.
pub(super) fn ask(place: &ProxyAddress, question: LocalQuestion<'_>) -> io::Result<(u16, String)> {
    let stream = Timed::connect(place, question.limit)?;
    match question.tls {
        Some(files) => {
            let stream = loopback::connect(place.ip(), stream, files)?;
            exchange(stream, &place.host(), question)
        }
        None => exchange(stream, &place.host(), question),
    }
}

fn exchange(
    mut stream: impl Read + Write,
    host: &str,
    question: LocalQuestion<'_>,
) -> io::Result<(u16, String)> {
    let LocalQuestion {
        target, command, ..
    } = question;
    let mut request = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\n\
         User-Agent: aws-ecr-proxy/{VERSION} {command}\r\nConnection: close\r\n"
    );
    if let Some(value) = question.authorization {
        request.push_str(&format!("Authorization: {}\r\n", value.expose()));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut reply = Vec::new();
    let mut piece = [0; 4096];
    while reply.len() < question.bytes_max {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => reply.extend_from_slice(piece.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    status_and_body(&reply)
}

/// A socket on which everything is over within the limit.
struct Timed {
    /// A TCP or unix socket: the system reads and writes both alike.
    socket: File,
    started: Instant,
    limit: Duration,
}

impl Timed {
    fn connect(place: &ProxyAddress, limit: Duration) -> io::Result<Self> {
        let started = Instant::now();
        let socket = match place {
            ProxyAddress::Tcp(address) => TcpStream::connect_timeout(address, limit)?.into(),
            ProxyAddress::Unix(path) => connect_unix(path, limit)?,
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
fn status_and_body(reply: &[u8]) -> io::Result<(u16, String)> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "the reply is not HTTP");
    let text = String::from_utf8_lossy(reply);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(odd)?;
    let line = head.lines().next().unwrap_or_default();
    let rest = line.strip_prefix("HTTP/1.").ok_or_else(odd)?;
    let status = rest.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok((status.ok_or_else(odd)?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn asking_gives_up_on_a_silent_peer() {
        // The listener's backlog takes the connection; nobody ever answers.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = ProxyAddress::Tcp(listener.local_addr().unwrap());
        for tls in [None, Some(LoopbackCertificates::default())] {
            let question = LocalQuestion {
                tls,
                authorization: None,
                target: "/readyz",
                command: "test",
                limit: Duration::from_millis(30),
                bytes_max: 1024,
            };
            let error = ask(&place, question).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
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
