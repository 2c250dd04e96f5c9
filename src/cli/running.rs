//! The running proxy, as commands of the same settings ask it. Owns: how it is found, and one
//! request to it. Must not: wait longer than the limit, or judge the answer.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::bounded;
use crate::config::{ListenHost, VERSION};
use crate::secret::Secret;
use crate::upstream::loopback::{self, LoopbackCertificates};

/// Longest time, start to end. Container engines give a health check 5 s and more, and a proxy that
/// is well answers within one.
const LIMIT: Duration = Duration::from_secs(3);
/// Most bytes that are read of a reply. The largest, a status with 200 transfers and 100 failures,
/// has some 300 KB.
const BYTES_MAX: u64 = 4 << 20;
/// The prefix of a unix socket's path.
const UNIX: &str = "unix:";

/// A question to the running proxy.
#[derive(Debug, Clone)]
pub(super) struct LocalQuestion {
    /// Where: `HOST:PORT`, or `unix:` and a path.
    pub(super) place: String,
    /// Files for TLS; none where the proxy speaks plain HTTP.
    pub(super) tls: Option<LoopbackCertificates>,
    /// The value of `Authorization`.
    pub(super) authorization: Option<Secret<String>>,
    /// Path and query.
    pub(super) target: &'static str,
    /// The command that asks; part of `User-Agent`.
    pub(super) command: &'static str,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// The place at which a proxy with these settings listens. `setting`: the setting with the port.
///
/// # Errors
/// When the settings do not name the port.
pub(super) fn place(host: &ListenHost, port: u16, setting: &str) -> Result<String, String> {
    match host {
        ListenHost::Unix(path) => Ok(format!("{UNIX}{}", path.display())),
        ListenHost::Address(_) | ListenHost::Name(_) if port == 0 => Err(format!(
            "{setting}: expected the port that the running proxy listens on"
        )),
        ListenHost::Address(host) => Ok(SocketAddr::new(reachable(*host), port).to_string()),
        ListenHost::Name(name) => Ok(format!("{name}:{port}")),
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

/// Status and body of the answer. Blocks for [`LIMIT`] at the longest.
///
/// # Errors
/// When there is no answer in time, or it is not HTTP.
pub(super) fn ask(question: &LocalQuestion) -> Result<(u16, String), String> {
    ask_within(LIMIT, question)
}

fn ask_within(limit: Duration, question: &LocalQuestion) -> Result<(u16, String), String> {
    let asked = question.clone();
    let answer = bounded::within(limit, move || connect_and_ask(&asked));
    let answer = answer.and_then(|answer| answer.map_err(|error| error.to_string()));
    answer.map_err(|why| format!("no answer from {}: {why}", question.place))
}

fn connect_and_ask(question: &LocalQuestion) -> io::Result<(u16, String)> {
    let place = question.place.as_str();
    let (stream, host): (Box<dyn Stream>, &str) = match place.strip_prefix(UNIX) {
        Some(path) => (Box::new(UnixStream::connect(path)?), "localhost"),
        None => (Box::new(TcpStream::connect(place)?), place),
    };
    match &question.tls {
        Some(files) => exchange(loopback::connect(stream, files)?, host, question),
        None => exchange(stream, host, question),
    }
}

fn exchange(
    mut stream: impl Read + Write,
    host: &str,
    question: &LocalQuestion,
) -> io::Result<(u16, String)> {
    let (target, command) = (question.target, question.command);
    let mut request = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\n\
         User-Agent: aws-ecr-proxy/{VERSION} {command}\r\nConnection: close\r\n"
    );
    if let Some(value) = &question.authorization {
        request.push_str(&format!("Authorization: {}\r\n", value.expose()));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut reply = Vec::new();
    stream.take(BYTES_MAX).read_to_end(&mut reply)?;
    status_and_body(&reply)
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
        let place = listener.local_addr().unwrap().to_string();
        for tls in [None, Some(LoopbackCertificates::default())] {
            let question = LocalQuestion {
                place: place.clone(),
                tls,
                authorization: None,
                target: "/readyz",
                command: "test",
            };
            let error = ask_within(Duration::from_millis(30), &question).unwrap_err();
            let expected = format!("no answer from {place}: no outcome within 1 s");
            assert_eq!(error, expected);
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
