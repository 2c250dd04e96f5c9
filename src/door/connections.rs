//! The table of connections. Owns: which connections are open, idle or busy, the caps, and the
//! state that all connections share. Must not: read or write a client's bytes.
//!
//! Locks: the table, held for map operations and for choosing the longest idle
//! connection; never across I/O.
//!
//! A connection is *idle* (no complete head) or *busy*. To close an idle one, its state goes from
//! idle to closing by compare-and-swap, and then its receiving side is shut down, which wakes its
//! thread; a thread that has a complete head goes from idle to busy the same way, so that no
//! request is ever dropped. At the drain a request that came before is still read from the shut
//! socket, and its thread goes from closing to busy.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::lanes::Workers;
use super::limits::DoorLimits;
use super::peers::{Network, NetworkCounts};
use super::stream::ClientStream;
use super::tls::ServerTls;
use crate::locked::{Locked as _, TimedWait as _};
use crate::message::Entrance;
use crate::metrics::{CONNECTIONS, Held};

/// Longest wait for a connection that was told to close to make room.
const ROOM_TIMEOUT: Duration = Duration::from_millis(250);

const IDLE: u8 = 0;
const BUSY: u8 = 1;
const CLOSING: u8 = 2;

/// The state that all connections share.
pub(super) struct DoorState {
    pub(super) limits: DoorLimits,
    pub(super) workers: Workers,
    pub(super) entrance: Entrance,
    /// None: plain HTTP.
    pub(super) tls: Option<Arc<ServerTls>>,
    started: Instant,
    draining: AtomicBool,
    /// Readable for good once the drain has begun; it wakes threads that wait for clients.
    drain_begun: OwnedFd,
    table: Mutex<ConnectionTable>,
    /// Told of each connection that leaves the table.
    departure: Condvar,
}

/// The connections of all clients.
#[derive(Default)]
struct ConnectionTable {
    last_number: u64,
    connections: HashMap<u64, Arc<Connection>>,
    per_network: NetworkCounts,
}

impl ConnectionTable {
    fn count_of(&self, client: Option<Network>) -> usize {
        client.map_or(0, |client| self.per_network.count_of(client))
    }
}

impl DoorState {
    /// # Errors
    /// When a descriptor is refused.
    pub(super) fn new(
        limits: DoorLimits,
        workers: Workers,
        tls: Option<Arc<ServerTls>>,
        entrance: Entrance,
    ) -> io::Result<Self> {
        Ok(Self {
            limits,
            workers,
            entrance,
            tls,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            drain_begun: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            table: Mutex::default(),
            departure: Condvar::new(),
        })
    }

    /// True once the process ends: replies then close their connection.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// The process ends.
    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
        // Fails only when the count is at its maximum, and then it is readable already.
        let _ = rustix::io::write(&self.drain_begun, &1_u64.to_ne_bytes());
    }

    /// A descriptor that becomes readable when the drain begins.
    pub(super) fn drain_begun(&self) -> impl AsFd {
        self.drain_begun.as_fd()
    }

    /// Connections open now.
    pub(super) fn count(&self) -> usize {
        self.table.locked().connections.len()
    }

    /// Registers a connection from `address`, idle as it is.
    pub(super) fn register(
        &self,
        stream: ClientStream,
        address: Option<IpAddr>,
    ) -> Arc<Connection> {
        let mut table = self.table.locked();
        table.last_number += 1;
        let connection = Arc::new(Connection {
            number: table.last_number,
            client: address.map(Network::from),
            stream: Arc::new(stream),
            state: AtomicU8::new(IDLE),
            idle_since_ms: AtomicU64::new(millis(self.started.elapsed())),
            started: self.started,
            _counted: CONNECTIONS.hold(),
        });
        if let Some(client) = connection.client {
            table.per_network.add(client);
        }
        table
            .connections
            .insert(connection.number, Arc::clone(&connection));
        if self.is_draining() {
            // The drain has looked through the table already, and would wait for it.
            connection.close_if_idle();
        }
        connection
    }

    /// Removes a connection from the table and drops the caller's handle. The socket closes with
    /// the last handle.
    pub(super) fn unregister(&self, connection: Arc<Connection>) {
        let mut table = self.table.locked();
        let removed = table.connections.remove(&connection.number);
        if let Some(client) = connection.client {
            table.per_network.remove(client);
        }
        drop(table);
        // Closing may take the system a while.
        drop((removed, connection));
        self.departure.notify_all();
    }

    /// Makes room for one more connection from `address`. At a cap, the longest idle connection is
    /// closed for it: one of the same client when that client is at its own cap.
    ///
    /// # Errors
    /// Why there is no room.
    pub(super) fn make_room(&self, address: Option<IpAddr>) -> Result<(), String> {
        let client = address.map(Network::from);
        let (most, most_per_client) = (self.limits.connections, self.limits.connections_per_peer);
        let is_crowded = |table: &ConnectionTable| table.count_of(client) >= most_per_client;
        if !self.make_room_among(is_crowded, |connection| connection.client == client) {
            let client = client.map_or_else(String::new, |client| client.to_string());
            return Err(format!(
                "all {most_per_client} connections of {client} are busy"
            ));
        }
        let is_full = |table: &ConnectionTable| table.connections.len() >= most;
        if !self.make_room_among(is_full, |_| true) {
            return Err(format!("all {most} connections are busy"));
        }
        Ok(())
    }

    /// When the table `is_full`, closes the longest idle connection that `may_go`. True when there
    /// is room afterwards.
    fn make_room_among(
        &self,
        is_full: impl Fn(&ConnectionTable) -> bool,
        may_go: impl Fn(&Connection) -> bool,
    ) -> bool {
        if !is_full(&self.table.locked()) {
            return true;
        }
        if !self.close_longest_idle_of(may_go) {
            return false;
        }
        let (table, deadline) = (self.table.locked(), Instant::now() + ROOM_TIMEOUT);
        let table = self
            .departure
            .wait_until(table, deadline, |table| !is_full(table));
        !is_full(&table)
    }

    /// Ends the connection that has been idle longest; false when none is idle.
    pub(super) fn close_longest_idle(&self) -> bool {
        self.close_longest_idle_of(|_| true)
    }

    fn close_longest_idle_of(&self, may_go: impl Fn(&Connection) -> bool) -> bool {
        let table = self.table.locked();
        let mut idle: Vec<&Arc<Connection>> = table
            .connections
            .values()
            .filter(|connection| {
                connection.state.load(Ordering::SeqCst) == IDLE && may_go(connection)
            })
            .collect();
        idle.sort_unstable_by_key(|connection| connection.idle_since_ms.load(Ordering::Relaxed));
        // A connection that got its head in this moment stays, and the next one is closed.
        idle.iter().any(|connection| connection.close_if_idle())
    }

    /// Ends idle connections as they become idle, waits up to `grace` for busy ones, then cuts the
    /// rest and returns their number.
    pub(super) fn drain(&self, grace: Duration) -> usize {
        let deadline = Instant::now() + grace;
        let mut table = self.table.locked();
        loop {
            table.connections.values().for_each(|connection| {
                connection.close_if_idle();
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if table.connections.is_empty() || left.is_zero() {
                break;
            }
            table = self.departure.wait_for(table, left);
        }
        // Idle connections are closing already, and no reply is lost with them.
        let busy = |connection: &&Arc<Connection>| connection.state.load(Ordering::SeqCst) == BUSY;
        let cut = table
            .connections
            .values()
            .filter(busy)
            .map(|connection| connection.cut());
        cut.count()
    }
}

/// A connection as others see it.
pub(super) struct Connection {
    number: u64,
    client: Option<Network>,
    stream: Arc<ClientStream>,
    state: AtomicU8,
    idle_since_ms: AtomicU64,
    started: Instant,
    _counted: Held,
}

impl Connection {
    /// Names the connection; no two have the same.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn stream(&self) -> Arc<ClientStream> {
        Arc::clone(&self.stream)
    }

    /// Marks the connection as busy: a complete head is there. False when it was told to close
    /// before that, unless this is `forgiven`.
    pub(super) fn set_busy(&self, forgiven: bool) -> bool {
        let set_from = |state| {
            let order = Ordering::SeqCst;
            let swap = self.state.compare_exchange(state, BUSY, order, order);
            swap.is_ok()
        };
        set_from(IDLE) || (forgiven && set_from(CLOSING))
    }

    /// Marks the connection as idle: the reply is written.
    pub(super) fn set_idle(&self) {
        self.idle_since_ms
            .store(millis(self.started.elapsed()), Ordering::Relaxed);
        let _ = self
            .state
            .compare_exchange(BUSY, IDLE, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Ends the connection if it is idle.
    pub(super) fn close_if_idle(&self) -> bool {
        let swap = self
            .state
            .compare_exchange(IDLE, CLOSING, Ordering::SeqCst, Ordering::SeqCst);
        if swap.is_ok() {
            // Wakes the thread from its read; fails only when the client is gone already.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        swap.is_ok()
    }

    /// Ends the connection at once, with a reset.
    fn cut(&self) {
        self.reset_on_close();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Makes the coming close a reset.
    pub(super) fn reset_on_close(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(&*self.stream, Some(Duration::ZERO));
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::Lanes;
    use crate::message::{Decider, Desk};
    use std::io::Read as _;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    #[test]
    fn bug_a_drain_waited_for_whoever_connected_in_its_first_moment() {
        let name = format!("connections-test-{}", std::process::id());
        let nowhere = SocketAddr::from_abstract_name(name).unwrap();
        let workers = Workers {
            lanes: Arc::new(Lanes::open(&nowhere, 0, Box::new(|| ())).unwrap()),
            desk: Arc::new(Desk::default()),
            decider: Arc::new(Decider::new(|_| unreachable!())),
        };
        let limits = DoorLimits::new(1);
        let state = DoorState::new(limits, workers, None, Entrance::Main).unwrap();
        state.set_draining();
        state.drain(Duration::ZERO);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let late = state.register(listener.accept().unwrap().0.into(), None);
        let limit = Duration::from_secs(30);
        late.stream().set_read_timeout(limit).unwrap();
        // Its thread does not wait for a request.
        assert_eq!((&*late.stream()).read(&mut [0]).unwrap(), 0);
        assert!(!late.set_busy(false));
        state.unregister(late);
        assert_eq!(state.count(), 0);
    }
}
