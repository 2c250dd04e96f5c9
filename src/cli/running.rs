//! The running proxy, as commands of the same settings ask it. Owns: how it is found, and one
//! request to it. Must not: wait longer than the limit, or judge the answer.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::bounded;
use crate::config::{ListenHost, Settings, VERSION};
use crate::secret::Secret;
use crate::upstream::loopback::{self, LoopbackCertificates};

/// What is asked for, and what it may take.
#[derive(Debug, Clone)]
pub(super) struct LocalQuestion {
    /// Files for TLS; none where the proxy speaks plain HTTP.
    pub(super) tls: Option<LoopbackCertificates>,
    /// The value of `Authorization`.
    pub(super) authorization: Option<Secret<String>>,
    /// Path and query.
    pub(super) target: &'static str,
    /// The command that asks; part of `User-Agent`.
    pub(super) command: &'static str,
    /// Longest time, start to end.
    pub(super) limit: Duration,
    /// Most bytes that are read of the reply.
    pub(super) bytes_max: u64,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Where the running proxy is.
#[derive(Debug, Clone)]
pub(super) enum ProxyAddress {
    /// Host and port.
    Tcp(String),
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
        match host {
            ListenHost::Unix(path) => Ok(Self::Unix(path.clone())),
            ListenHost::Address(_) | ListenHost::Name(_) if port == 0 => Err(format!(
                "{setting}: expected the port that the running proxy listens on"
            )),
            ListenHost::Address(host) => {
                let address = SocketAddr::new(reachable(*host), port);
                Ok(Self::Tcp(address.to_string()))
            }
            ListenHost::Name(name) => Ok(Self::Tcp(format!("{name}:{port}"))),
        }
    }

    /// Asks, and waits for all of the reply.
    fn ask(&self, question: &LocalQuestion) -> io::Result<(u16, String)> {
        let (stream, host): (Box<dyn Stream>, &str) = match self {
            Self::Tcp(address) => (Box::new(TcpStream::connect(address)?), address),
            Self::Unix(path) => (Box::new(UnixStream::connect(path)?), "localhost"),
        };
        match &question.tls {
            Some(files) => exchange(loopback::connect(stream, files)?, host, question),
            None => exchange(stream, host, question),
        }
    }
}

impl fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
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
pub(super) fn ask(place: &ProxyAddress, question: &LocalQuestion) -> Result<(u16, String), String> {
    let (place, question) = (place.clone(), question.clone());
    let answer = bounded::within(question.limit, move || place.ask(&question))?;
    answer.map_err(|error| error.to_string())
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
    stream.take(question.bytes_max).read_to_end(&mut reply)?;
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
        let place = ProxyAddress::Tcp(listener.local_addr().unwrap().to_string());
        for tls in [None, Some(LoopbackCertificates::default())] {
            let question = LocalQuestion {
                tls,
                authorization: None,
                target: "/readyz",
                command: "test",
                limit: Duration::from_millis(30),
                bytes_max: 1024,
            };
            let error = ask(&place, &question).unwrap_err();
            assert_eq!(error, "no outcome within 1 s");
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
