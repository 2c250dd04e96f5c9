//! The registry of connections. Owns: who is connected, who is idle and who is busy, the cap, what
//! all connections share. Must not: read or write a client's bytes.
//!
//! Locks: the registry's map, held for map operations and for choosing the longest idle
//! connection; never across I/O.
//!
//! A connection is *idle* (no complete head) or *busy*. To close an idle one, its state goes from
//! idle to closing by compare-and-swap, and then its receiving side is shut down, which wakes its
//! thread; a thread that has a complete head goes from idle to busy the same way, so that no
//! request is ever dropped.

use std::collections::HashMap;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Limits;
use super::lanes::Lanes;
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
    connections: Mutex<HashMap<u64, Arc<Entry>>>,
    closed: Condvar,
}

impl Shared {
    pub(super) fn new(
        limits: Limits,
        lanes: Lanes,
        desk: Arc<Desk>,
        tls: Option<Arc<Tls>>,
    ) -> Self {
        Self {
            limits,
            lanes,
            desk,
            tls,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            connections: Mutex::default(),
            closed: Condvar::new(),
        }
    }

    /// True once the process ends: replies then close their connection.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// The process ends.
    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Connections open now.
    pub(super) fn count(&self) -> usize {
        self.connections().len()
    }

    /// Registers a connection, idle as it is.
    pub(super) fn enter(&self, number: u64, stream: Stream) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            stream: Arc::new(stream),
            state: AtomicU8::new(IDLE),
            idle_since_ms: AtomicU64::new(millis(self.started.elapsed())),
            started: self.started,
        });
        self.connections().insert(number, Arc::clone(&entry));
        entry
    }

    /// Takes a connection out, and its owner's hold on it; the socket closes with the last.
    pub(super) fn leave(&self, number: u64, entry: Arc<Entry>) {
        let registered = self.connections().remove(&number);
        drop((registered, entry));
        self.closed.notify_all();
    }

    /// True when there is room for one connection more, if need be in the place of the longest
    /// idle one.
    pub(super) fn make_room(&self) -> bool {
        if self.count() < self.limits.connections {
            return true;
        }
        if !self.close_longest_idle() {
            return false;
        }
        let full = |all: &mut HashMap<u64, Arc<Entry>>| all.len() >= self.limits.connections;
        let waited = self
            .closed
            .wait_timeout_while(self.connections(), ROOM_TIMEOUT, full);
        let (connections, _) = waited.unwrap_or_else(PoisonError::into_inner);
        connections.len() < self.limits.connections
    }

    /// Ends the connection that has been idle longest; false when none is idle.
    pub(super) fn close_longest_idle(&self) -> bool {
        let connections = self.connections();
        let mut idle: Vec<&Arc<Entry>> = connections
            .values()
            .filter(|entry| entry.state.load(Ordering::SeqCst) == IDLE)
            .collect();
        idle.sort_unstable_by_key(|entry| entry.idle_since_ms.load(Ordering::Relaxed));
        // One that got its head in this moment is passed over for the next.
        idle.iter().any(|entry| entry.close_if_idle())
    }

    /// Ends idle connections as they become idle, waits up to `grace` for busy ones, cuts the rest
    /// and says how many those were.
    pub(super) fn empty(&self, grace: Duration) -> usize {
        let deadline = Instant::now() + grace;
        let mut connections = self.connections();
        loop {
            connections.values().for_each(|entry| {
                entry.close_if_idle();
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if connections.is_empty() || left.is_zero() {
                break;
            }
            let waited = self.closed.wait_timeout(connections, left);
            (connections, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        // Those that were idle are on their way out, with nothing left to say.
        let busy = |entry: &&Arc<Entry>| entry.state.load(Ordering::SeqCst) == BUSY;
        let cut = connections.values().filter(busy).map(|entry| entry.cut());
        cut.count()
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
    stream: Arc<Stream>,
    state: AtomicU8,
    idle_since_ms: AtomicU64,
    started: Instant,
}

impl Entry {
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
