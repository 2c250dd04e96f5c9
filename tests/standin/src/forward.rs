//! An outbound HTTP proxy with a script, as squid would be. Owns: tunnels, forwarded requests, and
//! its refusals. Must not: look a name up: every name leads to 127.0.0.1.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::core::lock;
use crate::http::Head;
use crate::tls;

/// How the proxy answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardBehaviour {
    /// As it should.
    Honest,
    /// With this status.
    Refuse(u16),
    /// Never.
    Silent,
    /// By closing the connection.
    Close,
    /// With something that is not HTTP.
    Garbage,
    /// With a head that never ends.
    EndlessHead,
}

/// The running proxy. Dropping it stops it.
pub struct ForwardProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// `user:password` that it wants.
    login: Option<String>,
    tls: bool,
    behaviour: Mutex<ForwardBehaviour>,
    requests: Mutex<Vec<String>>,
    connections: Mutex<usize>,
    /// Held so that silence is not an end.
    silent: Mutex<Vec<Box<dyn Link>>>,
    stopped: Mutex<bool>,
}

/// The client's side, with TLS or without.
trait Link: Read + Write + Send {}

impl<T: Read + Write + Send> Link for T {}

impl ForwardProxy {
    /// Starts it on a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::with(None, false)
    }

    /// Starts one that wants this `user:password`, or that is spoken to by TLS.
    pub fn with(login: Option<&str>, tls: bool) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            login: login.map(str::to_owned),
            tls,
            behaviour: Mutex::new(ForwardBehaviour::Honest),
            requests: Mutex::default(),
            connections: Mutex::default(),
            silent: Mutex::default(),
            stopped: Mutex::new(false),
        });
        let for_thread = Arc::clone(&shared);
        let run = move || accept(&for_thread, &listener);
        Builder::new()
            .name("standin-forward".into())
            .spawn(run)
            .expect("a thread");
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without a login.
    pub fn url(&self) -> String {
        let scheme = if self.shared.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// From now on it answers like this.
    pub fn behave(&self, behaviour: ForwardBehaviour) {
        *lock(&self.shared.behaviour) = behaviour;
    }

    /// Method and target of the requests so far.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        *lock(&self.shared.connections)
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        *lock(&self.shared.stopped) = true;
        lock(&self.shared.silent).clear();
        // Wakes `accept`.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for stream in listener.incoming() {
        if *lock(&shared.stopped) {
            return;
        }
        let Ok(stream) = stream else { continue };
        *lock(&shared.connections) += 1;
        let shared = Arc::clone(shared);
        let run = move || drop(serve(&shared, stream));
        let _ = Builder::new().name("standin-forward".into()).spawn(run);
    }
}

fn serve(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let raw = stream.try_clone()?;
    let mut link: Box<dyn Link> = if shared.tls {
        Box::new(tls::accept(stream)?)
    } else {
        Box::new(stream)
    };
    loop {
        let mut head = Vec::new();
        // Byte by byte: what follows the head of a CONNECT is not ours.
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if link.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
        }
        let Some(head) = Head::read(&mut head.as_slice())? else {
            return Ok(());
        };
        lock(&shared.requests).push(format!("{} {}", head.method, head.target));
        let refused = match *lock(&shared.behaviour) {
            ForwardBehaviour::Close => return raw.shutdown(Shutdown::Both),
            ForwardBehaviour::Silent => {
                lock(&shared.silent).push(link);
                return Ok(());
            }
            ForwardBehaviour::Garbage => return link.write_all(b"SSH-2.0-standin\r\n\r\n"),
            ForwardBehaviour::EndlessHead => {
                link.write_all(b"HTTP/1.1 200 Connection established\r\n")?;
                loop {
                    link.write_all(b"Via: standin\r\n")?;
                }
            }
            ForwardBehaviour::Refuse(status) => Some(status),
            ForwardBehaviour::Honest => (!shared.lets_in(&head)).then_some(407),
        };
        if let Some(status) = refused {
            let challenge = "Proxy-Authenticate: Basic realm=\"standin\"\r\n";
            let reply = format!(
                "HTTP/1.1 {status} Not today\r\n{challenge}Content-Length: 3\r\n\
                 Connection: close\r\n\r\nno\n"
            );
            return link.write_all(reply.as_bytes());
        }
        if head.method == "CONNECT" {
            let target = connect(&head.target)?;
            link.write_all(b"HTTP/1.1 200 Connection established\r\nVia: standin\r\n\r\n")?;
            return tls::relay(&mut link, &raw, target);
        }
        if !forward(&head, &mut *link)? {
            return Ok(());
        }
    }
}

impl Shared {
    fn lets_in(&self, head: &Head) -> bool {
        let Some(login) = &self.login else {
            return head.first("proxy-authorization").is_none();
        };
        let expected = format!("Basic {}", STANDARD.encode(login));
        head.first("proxy-authorization") == Some(expected.as_str())
    }
}

/// Every name is ours: only its port counts.
fn connect(authority: &str) -> io::Result<TcpStream> {
    let (_, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    let port: u16 = port.parse().map_err(io::Error::other)?;
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Passes one request on, and its reply back; true when the connection lives on.
fn forward(head: &Head, link: &mut dyn Link) -> io::Result<bool> {
    let Some(rest) = head.target.strip_prefix("http://") else {
        link.write_all(b"HTTP/1.1 400 No URL\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(false);
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut target = connect(authority)?;
    let mut request = format!("{} /{path} HTTP/1.1\r\nConnection: close\r\n", head.method);
    for (name, value) in &head.headers {
        let ours = ["proxy-authorization", "connection"];
        if !ours.contains(&name.to_ascii_lowercase().as_str()) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    request.push_str("\r\n");
    target.write_all(request.as_bytes())?;
    let length = head.first("content-length").and_then(|l| l.parse().ok());
    let mut body = (&mut *link).take(length.unwrap_or(0));
    io::copy(&mut body, &mut target)?;
    let mut reply = BufReader::new(target);
    let mut length = None;
    let mut status = String::new();
    loop {
        let mut line = String::new();
        reply.read_line(&mut line)?;
        let lower = line.to_ascii_lowercase();
        if status.is_empty() {
            status = line.split(' ').nth(1).unwrap_or_default().to_owned();
        }
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse::<u64>().ok();
        }
        if !lower.starts_with("connection:") {
            link.write_all(line.as_bytes())?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    if head.method == "HEAD" || status == "304" || status == "204" {
        return Ok(true);
    }
    let copied = io::copy(&mut reply.take(length.unwrap_or(u64::MAX)), link)?;
    Ok(length == Some(copied))
}

/// A pause between two looks at either side of a tunnel.
pub(crate) const RELAY_POLL: Duration = Duration::from_millis(2);
