//! The sockets. Owns: listeners, one thread per connection, and the faults that replace an answer.
//! Must not: know what a right answer is.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use crate::core::Core;
use crate::fault::Then;
use crate::http::{Head, Reply, RequestBody, Writer};
use crate::{Fault, Server, aws, metadata, registry, s3};

/// A connection's thread needs no deep stack, and there may be a thousand of them.
const STACK_BYTES: usize = 256 * 1024;

static CONNECTION: AtomicU64 = AtomicU64::new(1);

/// A listener and its thread. Dropping it closes the port; connections live on.
pub(crate) struct Listener {
    address: SocketAddr,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(crate) fn start(core: &Arc<Core>, server: Server, listener: TcpListener) -> Self {
        let closing = Arc::new(AtomicBool::new(false));
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        let (core, flag) = (Arc::clone(core), Arc::clone(&closing));
        let thread = Builder::new()
            .name(format!("standin-{}", server.name()))
            .spawn(move || accept(&core, server, &listener, &flag))
            .expect("a thread for a listener");
        Self {
            address,
            closing,
            thread: Some(thread),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        // Wakes `accept`, which has no time-out.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(core: &Arc<Core>, server: Server, listener: &TcpListener, closing: &AtomicBool) {
    loop {
        let accepted = listener.accept();
        if closing.load(Ordering::SeqCst) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, or a client that left again: neither ends the listener.
            core.pause(Duration::from_millis(10));
            continue;
        };
        let id = CONNECTION.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(stream);
        core.keep(id, server, &stream);
        let core_of_connection = Arc::clone(core);
        let spawned = Builder::new()
            .name(format!("standin-{}-{id}", server.name()))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let _forgotten = Forget(&core_of_connection, id);
                let _ = serve(&core_of_connection, server, id, &stream);
            });
        if spawned.is_err() {
            core.forget(id);
        }
    }
}

/// Lets go of a connection when its thread ends, by a panic too: then the client sees the end.
struct Forget<'a>(&'a Core, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

fn serve(core: &Core, server: Server, id: u64, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let writer = Writer {
        core,
        server,
        stream,
    };
    loop {
        let head = match Head::read(&mut reader) {
            Ok(Some(head)) if !core.stopped() => head,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return writer.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            }
            _ => return Ok(()),
        };
        let entry = core.record(server, id, &head);
        let mut body = RequestBody::new(&mut reader, stream, &head)?;
        let alive = exchange(&writer, entry, &head, &mut body);
        core.complete(entry, body.taken(), None);
        if !alive? {
            return Ok(());
        }
    }
}

/// Answers one request; true when the connection lives on.
fn exchange(
    writer: &Writer<'_>,
    entry: usize,
    head: &Head,
    body: &mut RequestBody<'_>,
) -> io::Result<bool> {
    let core = writer.core;
    // The API's calls differ by their form; its bodies are small, so read ahead.
    let form = match writer.server {
        Server::Api => body.read_all()?,
        Server::Metadata | Server::Registry | Server::S3 => Vec::new(),
    };
    let fault = core.take_fault(writer.server, head, &String::from_utf8_lossy(&form));
    if let Some(fault) = &fault
        && without_body(writer, entry, head, body, fault)?
    {
        return Ok(false);
    }
    let reply = match fault.as_ref().and_then(|fault| instead(core, head, fault)) {
        Some(reply) => reply,
        None => match writer.server {
            Server::Registry => registry::answer(core, head, body, fault.as_ref())?,
            Server::S3 => s3::answer(core, head, fault.as_ref()),
            Server::Api => aws::answer(core, head, &form),
            Server::Metadata => metadata::answer(core, head),
        },
    };
    body.drain()?;
    core.complete(entry, body.taken(), Some(reply.status));
    writer.reply(head, &reply, fault.as_ref())
}

/// Faults that do not wait for the request's body; true when one struck, and the connection ends.
fn without_body(
    writer: &Writer<'_>,
    entry: usize,
    head: &Head,
    body: &mut RequestBody<'_>,
    fault: &Fault,
) -> io::Result<bool> {
    match fault {
        Fault::CloseBeforeHead => {}
        Fault::Silent => {
            writer.core.wait_for_release();
        }
        Fault::StallUpload(bytes) => {
            io::copy(&mut body.take(*bytes), &mut io::sink())?;
            writer.core.wait_for_release();
        }
        Fault::Raw(bytes) => {
            let mut stream = writer.stream;
            stream.write_all(bytes)?;
        }
        Fault::RefuseEarly { status, then } => {
            refuse(writer, entry, head, body, (*status, *then))?;
        }
        Fault::RefuseMidway {
            after,
            status,
            then,
        } => {
            io::copy(&mut body.take(*after), &mut io::sink())?;
            refuse(writer, entry, head, body, (*status, *then))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Answers while the body is on its way.
fn refuse(
    writer: &Writer<'_>,
    entry: usize,
    head: &Head,
    body: &mut RequestBody<'_>,
    (status, then): (u16, Then),
) -> io::Result<()> {
    let reply = match status {
        401 => registry::unauthorized(),
        _ => registry::error(status, "EARLY", "refused early"),
    };
    writer.core.complete(entry, body.taken(), Some(status));
    writer.reply(head, &reply.with("Connection", "close"), None)?;
    match then {
        Then::Close => {}
        Then::Drain => {
            writer.half_close();
            body.drain()?;
        }
        Then::Hold => {
            writer.core.wait_for_release();
        }
    }
    Ok(())
}

/// Faults that put another answer in the right one's place.
fn instead(core: &Core, head: &Head, fault: &Fault) -> Option<Reply> {
    Some(match fault {
        Fault::Status(status, headers, body) => {
            let mut reply = Reply::new(*status, body.clone());
            reply.headers.extend(headers.iter().cloned());
            reply
        }
        Fault::Unauthorized401 => registry::unauthorized(),
        Fault::ExpiredToken403 => registry::expired(core),
        Fault::PublicExpired400 => registry::public_expired(),
        Fault::TooMany429 { retry_after } => {
            let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate exceeded"}]}"#;
            let reply = Reply::new(429, body.as_bytes()).with("Content-Type", "application/json");
            match retry_after {
                Some(seconds) => reply.with("Retry-After", seconds.to_string()),
                None => reply,
            }
        }
        Fault::RedirectLoop => {
            let host = head.first("host").unwrap_or_default();
            redirect(format!("http://{host}{}", head.target))
        }
        Fault::RedirectTo(url) => redirect(url.clone()),
        _ => return None,
    })
}

pub(crate) fn redirect(url: String) -> Reply {
    Reply::empty(307).with("Location", url)
}

/// Listens on a free port.
pub(crate) fn bind() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0)).expect("a port on the loopback interface")
}

/// Takes a port that was just closed without listening on it.
pub(crate) fn hold(address: SocketAddr) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
    let socket = socket.expect("a socket");
    sockopt::set_socket_reuseaddr(&socket, true).expect("SO_REUSEADDR");
    // An outgoing connection may have the port for a moment.
    for _ in 0..HOLD_ATTEMPTS {
        if rustix::net::bind(&socket, &address).is_ok() {
            return socket;
        }
        std::thread::sleep(HOLD_PAUSE);
    }
    panic!("{address} was taken while the server was down");
}

/// Listens on a port that was held.
pub(crate) fn listen(held: OwnedFd) -> TcpListener {
    const BACKLOG: i32 = 1024;
    rustix::net::listen(&held, BACKLOG).expect("to listen where we listened before");
    TcpListener::from(held)
}

/// Tries to take a port back.
const HOLD_ATTEMPTS: usize = 500;
const HOLD_PAUSE: Duration = Duration::from_millis(10);
