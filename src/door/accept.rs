//! Listening and the registry of connections. Owns: the accept threads, the connection cap, drain.
//! Must not: read or write a client's bytes, but for the canned refusal when there is no thread.
//!
//! Locks: the registry's map, held for map operations and for choosing the longest idle
//! connection; never across I/O.
//!
//! A connection is *idle* (no complete head) or *busy*. To close an idle one, its state goes from
//! idle to closing by compare-and-swap, and then its receiving side is shut down, which wakes its
//! thread; a thread that has a complete head goes from idle to busy the same way, so that no
//! request is ever dropped.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection;
use super::lanes::Lanes;
use super::{CONNECTION_STACK_BYTES, Limits};
use crate::message::{Desk, Peer};
use crate::{log, metrics};

/// First pause after accept failed for want of descriptors or memory; doubles up to the next.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest such pause: long enough to spare the processor, short enough to go unnoticed.
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Longest wait for a connection that was told to close to make room.
const ROOM_TIMEOUT: Duration = Duration::from_millis(250);
/// Reads of what a refused client has sent already: one head's worth.
const REFUSED_READS_MAX: usize = 8;
/// What a client gets when there is no thread for it.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
Content-Length: 85\r\nRetry-After: 2\r\nConnection: close\r\n\r\n\
{\"errors\":[{\"code\":\"UNAVAILABLE\",\"message\":\"too many connections; try again soon\"}]}\n";

const IDLE: u8 = 0;
const BUSY: u8 = 1;
const CLOSING: u8 = 2;

/// What every connection shares.
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) lanes: Lanes,
    pub(super) desk: Arc<Desk>,
    started: Instant,
    draining: AtomicBool,
    connections: Mutex<HashMap<u64, Arc<Entry>>>,
    closed: Condvar,
}

impl Shared {
    /// True once the process ends: replies then close their connection.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        // Map operations leave nothing half-done, so a poisoned lock is still good.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection as others see it.
pub(super) struct Entry {
    stream: Arc<TcpStream>,
    state: AtomicU8,
    idle_since_ms: AtomicU64,
    started: Instant,
}

impl Entry {
    pub(super) fn stream(&self) -> Arc<TcpStream> {
        Arc::clone(&self.stream)
    }

    /// A complete head is there. False when the connection was told to close before.
    pub(super) fn set_busy(&self) -> bool {
        self.state
            .compare_exchange(IDLE, BUSY, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// The reply is written.
    pub(super) fn set_idle(&self) {
        self.idle_since_ms
            .store(millis(self.started.elapsed()), Ordering::Relaxed);
        let _ = self
            .state
            .compare_exchange(BUSY, IDLE, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Ends the connection if it is idle.
    fn close_if_idle(&self) -> bool {
        let swap = self
            .state
            .compare_exchange(IDLE, CLOSING, Ordering::SeqCst, Ordering::SeqCst);
        if swap.is_ok() {
            // Wakes the thread from its read; fails only when the client is gone already.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        swap.is_ok()
    }
}

/// The listening side of the proxy.
pub struct Door {
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
}

/// What a drain came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy when the time was over, and were cut.
    pub cut: usize,
}

impl Door {
    /// Starts one accept thread per listener. `on_lost` is called with the thread's name when one
    /// of them ends before the drain.
    ///
    /// # Errors
    /// When a thread or a descriptor is refused.
    pub fn open(
        listeners: Vec<TcpListener>,
        lanes: Lanes,
        desk: Arc<Desk>,
        limits: Limits,
        on_lost: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            limits,
            lanes,
            desk,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            connections: Mutex::default(),
            closed: Condvar::new(),
        });
        for listener in &listeners {
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

    /// Lanes to tiny_http that still work.
    pub fn lanes_alive(&self) -> usize {
        self.shared.lanes.alive()
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.shared.connections().len()
    }

    /// Stops accepting; replies from now on close their connection.
    pub fn stop_accepting(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        for listener in &self.listeners {
            // Wakes the accept thread; on Linux a listening socket may be shut down.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
    }

    /// Stops accepting, closes idle connections, waits up to `grace` for busy ones, cuts the rest.
    /// Blocks for as long.
    pub fn drain(&self, grace: Duration) -> Drained {
        self.stop_accepting();
        let deadline = Instant::now() + grace;
        let mut connections = self.shared.connections();
        loop {
            connections.values().for_each(|entry| {
                entry.close_if_idle();
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if connections.is_empty() || left.is_zero() {
                break;
            }
            let waited = self.shared.closed.wait_timeout(connections, left);
            (connections, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        // Those that were idle are on their way out, with nothing left to say.
        let busy = |entry: &&Arc<Entry>| entry.state.load(Ordering::SeqCst) == BUSY;
        let cut = connections.values().filter(busy).map(|entry| {
            let zero = Some(Duration::ZERO);
            let _ = rustix::net::sockopt::set_socket_linger(&*entry.stream, zero);
            let _ = entry.stream.shutdown(Shutdown::Both);
        });
        Drained { cut: cut.count() }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut backoff = BACKOFF_MIN;
    let mut number = 0;
    while !shared.is_draining() {
        match listener.accept() {
            Ok((stream, address)) => {
                backoff = BACKOFF_MIN;
                number += 1;
                admit(shared, stream, address, number);
            }
            Err(_) if shared.is_draining() => return,
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
                log::warn(
                    "accept failed; pausing",
                    &[("error", &error), ("pause_ms", &pause)],
                );
                // First the pause: whoever was let in last gets the time to say what it wants.
                std::thread::sleep(backoff);
                close_longest_idle(shared);
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM: nothing wrong with the client, there is no room for it.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    shortages
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Gives the connection a thread, in the place of the longest idle one when the cap is reached.
fn admit(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr, number: u64) {
    if !make_room(shared) {
        return refuse(&stream, "every connection is busy");
    }
    let entry = Arc::new(Entry {
        stream: Arc::new(stream),
        state: AtomicU8::new(IDLE),
        idle_since_ms: AtomicU64::new(millis(shared.started.elapsed())),
        started: shared.started,
    });
    let peer = Peer {
        address: Some(address.ip()),
        port: address.port(),
        tls: false,
    };
    shared.connections().insert(number, Arc::clone(&entry));
    let thread = std::thread::Builder::new().name(format!("conn-{number}"));
    let (run_shared, run_entry) = (Arc::clone(shared), Arc::clone(&entry));
    let run = move || run_connection(&run_shared, run_entry, &peer, number);
    if let Err(error) = thread.stack_size(CONNECTION_STACK_BYTES).spawn(run) {
        shared.connections().remove(&number);
        refuse(&entry.stream, &format!("no thread: {error}"));
        close_longest_idle(shared);
    }
}

fn run_connection(shared: &Shared, entry: Arc<Entry>, peer: &Peer, number: u64) {
    let serve = AssertUnwindSafe(|| connection::serve(shared, &entry, peer));
    if catch_unwind(serve).is_err() {
        metrics::PANICS.inc();
        let _ = rustix::net::sockopt::set_socket_linger(&*entry.stream, Some(Duration::ZERO));
    }
    // The socket closes with its last owner, so ours goes before the waiters are told.
    let registered = shared.connections().remove(&number);
    drop((registered, entry));
    shared.closed.notify_all();
}

/// True when there is room for one connection more.
fn make_room(shared: &Shared) -> bool {
    if shared.connections().len() < shared.limits.connections {
        return true;
    }
    if !close_longest_idle(shared) {
        return false;
    }
    let full = |all: &mut HashMap<u64, Arc<Entry>>| all.len() >= shared.limits.connections;
    let waited = shared
        .closed
        .wait_timeout_while(shared.connections(), ROOM_TIMEOUT, full);
    let (connections, _) = waited.unwrap_or_else(PoisonError::into_inner);
    connections.len() < shared.limits.connections
}

fn close_longest_idle(shared: &Shared) -> bool {
    let connections = shared.connections();
    let mut idle: Vec<&Arc<Entry>> = connections
        .values()
        .filter(|entry| entry.state.load(Ordering::Acquire) == IDLE)
        .collect();
    idle.sort_unstable_by_key(|entry| entry.idle_since_ms.load(Ordering::Relaxed));
    // One that got its head in this moment is passed over for the next.
    idle.iter().any(|entry| entry.close_if_idle())
}

/// Tells the client without waiting for it: the accept thread must not block.
fn refuse(stream: &TcpStream, why: &str) {
    metrics::CONNECTIONS_REFUSED.inc();
    log::warn("connection refused", &[("reason", &why)]);
    // The few bytes fit any send buffer; a client that takes nothing gets nothing.
    let _ = stream.set_nonblocking(true);
    let mut stream = stream;
    let _ = stream.write_all(NO_ROOM);
    let _ = stream.shutdown(Shutdown::Write);
    // Unread bytes would turn the close into a reset that overtakes the answer.
    let mut sink = [0; 4096];
    for _ in 0..REFUSED_READS_MAX {
        if !stream.read(&mut sink).is_ok_and(|count| count > 0) {
            return;
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
