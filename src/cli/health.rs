//! The command `health`. Owns: how the running proxy is found and asked. Must not: know how it
//! comes by its answer.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{complain, fail, print};
use crate::config::{Settings, VERSION};

/// Longest time for `health`, start to end: container engines give a health check 5 s and more,
/// and a proxy that is well answers within one.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest reply that `health` reads; `/readyz` has one line.
const HEALTH_REPLY_BYTES_MAX: usize = 16 << 10;

/// Asks `/readyz` of the proxy that runs with the same settings.
pub(super) fn health(settings: &Settings, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let place = match &settings.listen_unix {
        Some(path) => Place::Unix(path.clone()),
        None if settings.listen_port == 0 => {
            let why = "LISTEN_PORT=0: expected the port that the running proxy listens on";
            return complain(err, &[why]);
        }
        None => {
            let host = reachable(settings.listen_host);
            Place::Tcp(SocketAddr::new(host, settings.listen_port))
        }
    };
    match ask(&place, HEALTH_TIMEOUT) {
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
fn ask(place: &Place, limit: Duration) -> io::Result<(u16, String)> {
    let started = Instant::now();
    let left = || {
        let left = limit.saturating_sub(started.elapsed());
        // A zero time-out means none to the system.
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("time-out after {limit:?}"));
        if left.is_zero() {
            Err(late())
        } else {
            Ok(left)
        }
    };
    let (socket, host) = match place {
        Place::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, left()?)?;
            (OwnedFd::from(stream), address.to_string())
        }
        Place::Unix(path) => (connect_unix(path, left()?)?, "localhost".to_owned()),
    };
    let mut stream = File::from(socket);
    set_socket_timeout(&stream, Timeout::Send, Some(left()?))?;
    let request = format!(
        "GET /readyz HTTP/1.1\r\nHost: {host}\r\nUser-Agent: aws-ecr-proxy/{VERSION} health\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut reply = Vec::new();
    let mut piece = [0; 4096];
    while reply.len() < HEALTH_REPLY_BYTES_MAX {
        set_socket_timeout(&stream, Timeout::Recv, Some(left()?))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => reply.extend_from_slice(piece.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Each read gets what is left, so the reason given is the whole limit.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => drop(left()?),
            Err(error) => return Err(error),
        }
    }
    status_and_reason(&reply)
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
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn health_gives_up_on_a_silent_peer() {
        // The listener's backlog takes the connection; nobody ever answers.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place::Tcp(listener.local_addr().unwrap());
        let error = ask(&place, Duration::from_millis(30)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
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
