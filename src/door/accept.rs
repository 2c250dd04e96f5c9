//! Listening. Owns: the accept threads, giving each connection a thread of its own, the start of
//! the drain. Must not: read or write a client's bytes, but for the canned refusal when there is no
//! thread.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::connection;
use super::connections::{Connection, DoorState};
use super::lanes::Workers;
use super::limits::{CONNECTION_STACK_BYTES, DoorLimits};
use super::stream::{ClientStream, Listener};
use super::tls::{NO_ROOM_ALERT, ServerTls};
use crate::log::{self, Level};
use crate::message::{Entrance, Peer};
use crate::metrics;

/// First pause after accept failed for want of descriptors or memory; doubles up to the next.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest such pause: long enough to spare the processor, short enough to go unnoticed.
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// How often a refused client's bytes are read before the close; all reads take one head at most.
const REFUSED_READS_MAX: usize = 8;
/// The answer for a client when there is no thread for it.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
Content-Length: 85\r\nRetry-After: 2\r\nConnection: close\r\n\r\n\
{\"errors\":[{\"code\":\"UNAVAILABLE\",\"message\":\"too many connections; try again soon\"}]}\n";

/// A listening side of the proxy.
pub struct Door {
    shared: Arc<DoorState>,
    listeners: Vec<Listener>,
}

/// The result of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy when the time was over, and were cut.
    pub cut: usize,
}

impl Door {
    /// Starts one accept thread per listener; with `tls` all of them speak it. `on_lost` is called
    /// with the thread's name when one of them ends before the drain.
    ///
    /// # Errors
    /// When a thread or a descriptor is refused.
    pub fn open(
        listeners: Vec<Listener>,
        workers: Workers,
        limits: DoorLimits,
        tls: Option<Arc<ServerTls>>,
        entrance: Entrance,
        on_lost: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> io::Result<Self> {
        let shared = Arc::new(DoorState::new(limits, workers, tls, entrance)?);
        for listener in &listeners {
            listener.set_nonblocking()?;
            let (listener, shared) = (listener.try_clone()?, Arc::clone(&shared));
            let on_lost = Arc::clone(&on_lost);
            let accept = move || {
                let run = AssertUnwindSafe(|| accept(&listener, &shared));
                let panicked = catch_unwind(run).is_err();
                if panicked || !shared.is_draining() {
                    on_lost("accept");
                }
            };
            let thread = std::thread::Builder::new().name("accept".into());
            thread.stack_size(CONNECTION_STACK_BYTES).spawn(accept)?;
        }
        Ok(Self { shared, listeners })
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.shared.count()
    }

    /// Stops accepting; replies from now on close their connection. New clients are refused; at a
    /// socket that was handed in they wait for the next process.
    pub fn stop_accepting(&self) {
        self.shared.set_draining();
        for listener in &self.listeners {
            listener.close();
        }
    }

    /// Stops accepting, closes idle connections, waits up to `grace` for busy ones, cuts the rest.
    /// Blocks for as long.
    pub fn drain(&self, grace: Duration) -> Drained {
        self.stop_accepting();
        Drained {
            cut: self.shared.drain(grace),
        }
    }
}

fn accept(listener: &Listener, shared: &Arc<DoorState>) {
    let mut backoff = BACKOFF_MIN;
    while !shared.is_draining() {
        let accepted = listener
            .wait(shared.drain_begun())
            .and_then(|()| listener.accept());
        match accepted {
            Ok((stream, address)) => {
                backoff = BACKOFF_MIN;
                admit(shared, stream, address);
            }
            Err(_) if shared.is_draining() => return,
            // The client has left in the meantime.
            Err(error) if is_no_client(&error) => {}
            // The client was gone before we took it, or a network error of its own connection,
            // which accept(2) says to treat like EAGAIN.
            Err(error) if !is_shortage(&error) => {
                log::debug("accept failed", &[("error", &error)]);
                // EINVAL would mean that the listener is no listener any more.
                if error.kind() == io::ErrorKind::InvalidInput {
                    log::error("listener is gone", &[("error", &error)]);
                    return;
                }
            }
            Err(error) => {
                let pause = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX);
                let fields: [log::Field<'_>; 1] = [("pause_ms", &pause)];
                let message = "accept failed; pausing";
                log::cause(Level::Warn, message, ("error", &error), &fields);
                // The pause comes first: the last client gets the time to send its request.
                std::thread::sleep(backoff);
                shared.close_longest_idle();
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

fn is_no_client(error: &io::Error) -> bool {
    let kind = error.kind();
    kind == io::ErrorKind::WouldBlock || kind == io::ErrorKind::Interrupted
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM: the client did nothing wrong, but there is no room for it.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    shortages
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Gives the connection a thread. When a cap is reached, it takes the place of the connection that
/// has been idle longest.
fn admit(shared: &Arc<DoorState>, stream: ClientStream, address: Option<SocketAddr>) {
    metrics::CONNECTIONS_ACCEPTED.inc();
    let ip = address.map(|address| address.ip());
    if let Err(why) = shared.make_room(ip) {
        return refuse(shared, &stream, &why);
    }
    let connection = shared.register(stream, ip);
    let peer = Peer {
        address: ip,
        port: address.map_or(0, |address| address.port()),
        entrance: shared.entrance,
        ..Peer::on_unix_socket()
    };
    let thread = std::thread::Builder::new().name(format!("conn-{}", connection.number()));
    let (run_shared, run_connection_state) = (Arc::clone(shared), Arc::clone(&connection));
    let run = move || run_connection(&run_shared, run_connection_state, &peer);
    if let Err(error) = thread.stack_size(CONNECTION_STACK_BYTES).spawn(run) {
        refuse(shared, &connection.stream(), &format!("no thread: {error}"));
        shared.unregister(connection);
        shared.close_longest_idle();
    }
}

fn run_connection(shared: &DoorState, connection: Arc<Connection>, peer: &Peer) {
    if metrics::count_panic(|| connection::serve(shared, &connection, peer)).is_none() {
        connection.reset_on_close();
    }
    shared.unregister(connection);
}

/// Answers that there is no room. Never waits for the client: the accept thread must not block.
fn refuse(shared: &DoorState, stream: &ClientStream, why: &str) {
    metrics::CONNECTIONS_REFUSED.inc();
    log::cause(Level::Warn, "connection refused", ("reason", &why), &[]);
    // The few bytes fit any send buffer; a client that takes nothing gets nothing.
    let _ = stream.set_nonblocking(true);
    let mut stream = stream;
    let refusal = shared.tls.as_ref().map_or(NO_ROOM, |_| NO_ROOM_ALERT);
    let _ = stream.write_all(refusal);
    let _ = stream.shutdown(Shutdown::Write);
    // Unread bytes would turn the close into a reset that overtakes the answer.
    let mut sink = [0; 4096];
    for _ in 0..REFUSED_READS_MAX {
        if !stream.read(&mut sink).is_ok_and(|count| count > 0) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canned_refusal_has_its_length() {
        let text = std::str::from_utf8(NO_ROOM).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        let document: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(document["errors"][0]["code"], "UNAVAILABLE");
    }

    #[test]
    fn only_shortages_make_accept_pause() {
        use rustix::io::Errno;
        for (errno, shortage) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::CONNABORTED, false),
            (Errno::PROTO, false),
        ] {
            assert_eq!(is_shortage(&io::Error::from(errno)), shortage, "{errno:?}");
        }
    }
}
