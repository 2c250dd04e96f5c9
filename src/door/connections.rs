//! The registry of connections. Owns: who is connected, who is idle and who is busy, the caps, what
//! all connections share. Must not: read or write a client's bytes.
//!
//! Locks: the registry, held for map operations and for choosing the longest idle
//! connection; never across I/O.
//!
//! A connection is *idle* (no complete head) or *busy*. To close an idle one, its state goes from
//! idle to closing by compare-and-swap, and then its receiving side is shut down, which wakes its
//! thread; a thread that has a complete head goes from idle to busy the same way, so that no
//! request is ever dropped.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::Limits;
use super::lanes::Lanes;
use super::peers::{Client, Counts};
use super::stream::Stream;
use super::tls::Tls;
use crate::message::Desk;

/// Longest wait for a connection that was told to close to make room.
const ROOM_TIMEOUT: Duration = Duration::from_millis(250);

const IDLE: u8 = 0;
const BUSY: u8 = 1;
const CLOSING: u8 = 2;

/// What every connection shares.
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) lanes: Lanes,
    pub(super) desk: Arc<Desk>,
    /// None: plain HTTP.
    pub(super) tls: Option<Arc<Tls>>,
    started: Instant,
    draining: AtomicBool,
    /// Readable for good once the drain has begun; wakes who waits for clients.
    drain_begun: OwnedFd,
    registry: Mutex<Registry>,
    closed: Condvar,
}

/// Who is connected.
#[derive(Default)]
struct Registry {
    last_number: u64,
    entries: HashMap<u64, Arc<Entry>>,
    per_client: Counts,
}

impl Registry {
    fn of(&self, client: Option<Client>) -> usize {
        client.map_or(0, |client| self.per_client.of(client))
    }
}

impl Shared {
    /// # Errors
    /// When a descriptor is refused.
    pub(super) fn new(
        limits: Limits,
        lanes: Lanes,
        desk: Arc<Desk>,
        tls: Option<Arc<Tls>>,
    ) -> io::Result<Self> {
        Ok(Self {
            limits,
            lanes,
            desk,
            tls,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            drain_begun: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            registry: Mutex::default(),
            closed: Condvar::new(),
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

    /// What becomes readable when the process ends.
    pub(super) fn drain_begun(&self) -> impl AsFd {
        self.drain_begun.as_fd()
    }

    /// Connections open now.
    pub(super) fn count(&self) -> usize {
        self.registry().entries.len()
    }

    /// Registers a connection from `address`, idle as it is.
    pub(super) fn enter(&self, stream: Stream, address: Option<IpAddr>) -> Arc<Entry> {
        let mut registry = self.registry();
        registry.last_number += 1;
        let entry = Arc::new(Entry {
            number: registry.last_number,
            client: address.map(Client::from),
            stream: Arc::new(stream),
            state: AtomicU8::new(IDLE),
            idle_since_ms: AtomicU64::new(millis(self.started.elapsed())),
            started: self.started,
        });
        if let Some(client) = entry.client {
            registry.per_client.add(client);
        }
        registry.entries.insert(entry.number, Arc::clone(&entry));
        entry
    }

    /// Takes a connection out, and its owner's hold on it; the socket closes with the last.
    pub(super) fn leave(&self, entry: Arc<Entry>) {
        let mut registry = self.registry();
        let registered = registry.entries.remove(&entry.number);
        if let Some(client) = entry.client {
            registry.per_client.remove(client);
        }
        drop(registry);
        // Closing may take the system a while.
        drop((registered, entry));
        self.closed.notify_all();
    }

    /// Makes room for one connection more from `address`, if need be in the place of the longest
    /// idle one: of the same client where that has as many as it may.
    ///
    /// # Errors
    /// Why there is no room.
    pub(super) fn make_room(&self, address: Option<IpAddr>) -> Result<(), String> {
        let client = address.map(Client::from);
        let (most, most_per_client) = (self.limits.connections, self.limits.connections_per_peer);
        let crowds = |registry: &Registry| registry.of(client) >= most_per_client;
        if !self.make_room_among(crowds, |entry| entry.client == client) {
            let who = client.map_or_else(String::new, |client| client.to_string());
            return Err(format!("all {most_per_client} of {who} are busy"));
        }
        let full = |registry: &Registry| registry.entries.len() >= most;
        if !self.make_room_among(full, |_| true) {
            return Err("every connection is busy".to_owned());
        }
        Ok(())
    }

    /// True when it is not, or no longer, `full`.
    fn make_room_among(
        &self,
        full: impl Fn(&Registry) -> bool,
        may_go: impl Fn(&Entry) -> bool,
    ) -> bool {
        if !full(&self.registry()) {
            return true;
        }
        if !self.close_longest_idle_of(may_go) {
            return false;
        }
        let is_full = |registry: &mut Registry| full(registry);
        let waited = self
            .closed
            .wait_timeout_while(self.registry(), ROOM_TIMEOUT, is_full);
        let (registry, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !full(&registry)
    }

    /// Ends the connection that has been idle longest; false when none is idle.
    pub(super) fn close_longest_idle(&self) -> bool {
        self.close_longest_idle_of(|_| true)
    }

    fn close_longest_idle_of(&self, may_go: impl Fn(&Entry) -> bool) -> bool {
        let registry = self.registry();
        let mut idle: Vec<&Arc<Entry>> = registry
            .entries
            .values()
            .filter(|entry| entry.state.load(Ordering::SeqCst) == IDLE && may_go(entry))
            .collect();
        idle.sort_unstable_by_key(|entry| entry.idle_since_ms.load(Ordering::Relaxed));
        // One that got its head in this moment is passed over for the next.
        idle.iter().any(|entry| entry.close_if_idle())
    }

    /// Ends idle connections as they become idle, waits up to `grace` for busy ones, cuts the rest
    /// and says how many those were.
    pub(super) fn empty(&self, grace: Duration) -> usize {
        let deadline = Instant::now() + grace;
        let mut registry = self.registry();
        loop {
            registry.entries.values().for_each(|entry| {
                entry.close_if_idle();
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if registry.entries.is_empty() || left.is_zero() {
                break;
            }
            let waited = self.closed.wait_timeout(registry, left);
            (registry, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        // Those that were idle are on their way out, with nothing left to say.
        let busy = |entry: &&Arc<Entry>| entry.state.load(Ordering::SeqCst) == BUSY;
        let cut = registry
            .entries
            .values()
            .filter(busy)
            .map(|entry| entry.cut());
        cut.count()
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Map operations leave nothing half-done, so a poisoned lock is still good.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection as others see it.
pub(super) struct Entry {
    number: u64,
    client: Option<Client>,
    stream: Arc<Stream>,
    state: AtomicU8,
    idle_since_ms: AtomicU64,
    started: Instant,
}

impl Entry {
    /// Names the connection; no two have the same.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn stream(&self) -> Arc<Stream> {
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
