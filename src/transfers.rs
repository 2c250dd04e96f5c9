//! Blobs on their way. Owns: the table of downloads and uploads that run, and how far each is.
//! Must not: know what a blob is for, or take a lock while bytes move.
//!
//! A *fill* is the download of one cold blob into the cache, a *pull* what one client gets, a
//! *push* what one client sends. A fill's clients get their bytes from its file as they arrive;
//! such a pull is [joined](Transfer::joined) to its fill.
//!
//! Lock: the table, held for a look-up when a transfer begins or ends, and for a copy of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::label::label;
use crate::locked::Locked;

/// Transfers listed at a time: four for each of the connections that are usual. Others run unlisted
/// and are counted.
pub const LISTED_MAX: usize = 4096;
/// Time over which a rate is measured: shorter ones jump, longer ones hide a stall.
const WINDOW: Duration = Duration::from_secs(3);
/// A total that nobody has told.
const UNKNOWN: u64 = u64::MAX;

/// The transfers of this process.
pub static TRANSFERS: Transfers = Transfers::new();

label! {
    /// What a transfer does.
    pub enum TransferKind {
        /// From upstream into the cache.
        Fill = "fill",
        /// To a client.
        Pull = "pull",
        /// From a client to upstream.
        Push = "push",
    }
}

/// What is transferred, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The registry's host.
    pub registry: String,
    /// The repository.
    pub repository: String,
    /// The blob's digest. None for an upload whose digest is told at its end.
    pub digest: Option<String>,
    /// The id of the client's request; none for a fill, which may serve many.
    pub request: Option<String>,
    /// The client's address; none for a fill.
    pub peer: Option<String>,
}

/// One download or upload. Its numbers are written by the one thread that moves its bytes, and read
/// by anybody.
#[derive(Debug)]
pub struct Transfer {
    /// What it does.
    pub kind: TransferKind,
    /// Its bytes come from the cache; otherwise from upstream, or (a push) go there.
    pub from_cache: bool,
    /// What is transferred.
    pub subject: Subject,
    /// The fill that a pull gets its bytes from.
    pub joined: Option<Arc<Self>>,
    started: Instant,
    total: AtomicU64,
    bytes: AtomicU64,
    /// Milliseconds after the start at which the last bytes came.
    moved: AtomicU64,
    clients: AtomicU32,
    ended: AtomicBool,
    background: AtomicBool,
    window: RateWindow,
}

/// The start of the time that is being measured, and the rate of the time before it.
#[derive(Debug, Default)]
struct RateWindow {
    /// Milliseconds after the start.
    since: AtomicU64,
    bytes: AtomicU64,
    /// Bytes a second.
    rate: AtomicU64,
}

impl Transfer {
    /// A transfer that begins now, not yet listed. `total`: bytes in all, when known.
    pub fn new(kind: TransferKind, from_cache: bool, subject: Subject, total: Option<u64>) -> Self {
        Self {
            kind,
            from_cache,
            subject,
            joined: None,
            started: Instant::now(),
            total: AtomicU64::new(total.unwrap_or(UNKNOWN)),
            bytes: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            clients: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            background: AtomicBool::new(false),
            window: RateWindow::default(),
        }
    }

    /// The same for a pull whose bytes come from this fill, if from any.
    #[must_use]
    pub fn joined_to(mut self, fill: Option<&Arc<Self>>) -> Self {
        self.joined = fill.map(Arc::clone);
        self
    }

    /// Upstream has answered: bytes begin to move, and there are `total` of them. `have`: bytes of
    /// an earlier attempt.
    pub fn begin(&self, have: u64, total: u64) {
        self.total.store(total, Relaxed);
        self.window.bytes.store(have, Relaxed);
        self.window.since.store(self.milliseconds(), Relaxed);
        self.set_bytes(have);
    }

    /// So many more bytes have moved.
    pub fn add(&self, bytes: u64) {
        self.set_bytes(self.bytes().saturating_add(bytes));
    }

    /// So many bytes have moved in all: after a new start it may be fewer than before.
    pub fn set_bytes(&self, bytes: u64) {
        let now = self.milliseconds();
        self.bytes.store(bytes, Relaxed);
        self.moved.store(now, Relaxed);
        let since = self.window.since.load(Relaxed);
        let before = self.window.bytes.load(Relaxed);
        if bytes < before {
            self.window.bytes.store(bytes, Relaxed);
        }
        if now - since.min(now) >= milliseconds(WINDOW) {
            self.window
                .rate
                .store(per_second(bytes, before, now - since), Relaxed);
            self.window.bytes.store(bytes, Relaxed);
            self.window.since.store(now, Relaxed);
        }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Bytes in all, when known.
    pub fn total(&self) -> Option<u64> {
        let total = self.total.load(Relaxed);
        (total != UNKNOWN).then_some(total)
    }

    /// Bytes a second of late. It falls while nothing comes.
    pub fn rate(&self) -> u64 {
        let since = self.window.since.load(Relaxed);
        let age = self.milliseconds().saturating_sub(since);
        let rate = self.window.rate.load(Relaxed);
        if rate > 0 && age < milliseconds(WINDOW) {
            return rate;
        }
        per_second(self.bytes(), self.window.bytes.load(Relaxed), age)
    }

    /// Time since the start.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time since the last byte.
    pub fn idle(&self) -> Duration {
        self.age()
            .saturating_sub(Duration::from_millis(self.moved.load(Relaxed)))
    }

    /// Clients that get their bytes from this fill.
    pub fn clients(&self) -> u32 {
        self.clients.load(Relaxed)
    }

    /// True when nothing moves any more.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// True while no client waits for it.
    pub fn is_background(&self) -> bool {
        self.background.load(Relaxed)
    }

    /// Says whether a client waits for it.
    pub fn set_background(&self, on: bool) {
        self.background.store(on, Relaxed);
    }

    /// A client gets its bytes from this fill for as long as the value lives.
    pub fn join(self: &Arc<Self>) -> JoinedClient {
        self.clients.fetch_add(1, Relaxed);
        JoinedClient(Arc::clone(self))
    }

    fn milliseconds(&self) -> u64 {
        milliseconds(self.age())
    }
}

/// A client's part in a fill.
#[derive(Debug)]
pub struct JoinedClient(Arc<Transfer>);

impl Drop for JoinedClient {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Relaxed);
    }
}

/// A transfer that runs; dropping it ends it.
#[derive(Debug)]
pub struct Running {
    transfer: Arc<Transfer>,
    table: &'static Transfers,
    /// None when it is not listed.
    key: Option<u64>,
}

impl PartialEq for Running {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.transfer, &other.transfer)
    }
}

impl Eq for Running {}

impl std::ops::Deref for Running {
    type Target = Transfer;

    fn deref(&self) -> &Transfer {
        &self.transfer
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.transfer.ended.store(true, Relaxed);
        let mut table = self.table.lock();
        match self.key {
            Some(key) => drop(table.listed.remove(&key)),
            None => table.unlisted -= 1,
        }
    }
}

/// A table of transfers.
#[derive(Debug)]
pub struct Transfers(Mutex<Table>);

#[derive(Debug)]
struct Table {
    listed: BTreeMap<u64, Arc<Transfer>>,
    unlisted: usize,
    next: u64,
}

impl Transfers {
    const fn new() -> Self {
        Self(Mutex::new(Table {
            listed: BTreeMap::new(),
            unlisted: 0,
            next: 0,
        }))
    }

    /// Lists a transfer until the value is dropped.
    pub fn list(&'static self, transfer: impl Into<Arc<Transfer>>) -> Running {
        let transfer = transfer.into();
        let mut table = self.lock();
        let key = (table.listed.len() < LISTED_MAX).then_some(table.next);
        table.next += 1;
        match key {
            Some(key) => drop(table.listed.insert(key, Arc::clone(&transfer))),
            None => table.unlisted += 1,
        }
        drop(table);
        Running {
            transfer,
            table: self,
            key,
        }
    }

    /// The listed transfers, the oldest first, and the number of those that are not listed. A pull
    /// is left out while its fill runs: the fill stands for it, and counts its clients.
    pub fn running(&self) -> (Vec<Arc<Transfer>>, usize) {
        let table = self.lock();
        let stands_alone = |transfer: &&Arc<Transfer>| match &transfer.joined {
            Some(fill) => fill.is_ended(),
            None => true,
        };
        let listed = table.listed.values().filter(stands_alone);
        (listed.map(Arc::clone).collect(), table.unlisted)
    }

    /// True while clients wait for bytes of upstream.
    pub fn serve_clients(&self) -> bool {
        let table = self.lock();
        let waits = |transfer: &Arc<Transfer>| {
            transfer.kind == TransferKind::Fill && !transfer.is_background()
        };
        table.listed.values().any(waits)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.locked()
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn per_second(bytes: u64, before: u64, milliseconds: u64) -> u64 {
    bytes.saturating_sub(before).saturating_mul(1000) / milliseconds.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> &'static Transfers {
        Box::leak(Box::new(Transfers::new()))
    }

    fn transfer(kind: TransferKind) -> Transfer {
        Transfer::new(kind, false, Subject::default(), None)
    }

    #[test]
    fn a_pull_shows_when_its_fill_has_ended() {
        let table = table();
        let fill = Arc::new(transfer(TransferKind::Fill));
        let filling = table.list(Arc::clone(&fill));
        let pull = table.list(transfer(TransferKind::Pull).joined_to(Some(&fill)));
        let client = fill.join();
        let kinds = || -> Vec<TransferKind> {
            let (running, _) = table.running();
            running.iter().map(|transfer| transfer.kind).collect()
        };
        assert_eq!((kinds(), fill.clients()), (vec![TransferKind::Fill], 1));
        drop(filling);
        assert_eq!(kinds(), [TransferKind::Pull]);
        drop((pull, client));
        assert_eq!((kinds(), fill.clients()), (vec![], 0));
    }

    #[test]
    fn bytes_and_total_are_what_was_told() {
        let transfer = transfer(TransferKind::Push);
        assert_eq!((transfer.bytes(), transfer.total()), (0, None));
        transfer.add(5);
        transfer.add(6);
        assert_eq!((transfer.bytes(), transfer.total()), (11, None));
        transfer.begin(7, 20);
        assert_eq!((transfer.bytes(), transfer.total()), (7, Some(20)));
        transfer.set_bytes(3);
        assert_eq!(transfer.bytes(), 3);
        assert!(transfer.idle() <= transfer.age());
    }

    #[test]
    fn a_rate_is_bytes_by_time() {
        assert_eq!(per_second(3000, 1000, 4000), 500);
        assert_eq!(per_second(1, 5, 0), 0);
        let transfer = transfer(TransferKind::Push);
        transfer.add(1 << 40);
        assert!(transfer.rate() > 1 << 30, "all came in this moment");
    }

    #[test]
    fn more_than_the_limit_run_unlisted_and_are_counted() {
        let table = table();
        let mut running: Vec<Running> = (0..LISTED_MAX + 2)
            .map(|_| table.list(transfer(TransferKind::Pull)))
            .collect();
        let (listed, unlisted) = table.running();
        assert_eq!((listed.len(), unlisted), (LISTED_MAX, 2));
        running.pop();
        running.remove(0);
        let _next = table.list(transfer(TransferKind::Pull));
        let (listed, unlisted) = table.running();
        assert_eq!((listed.len(), unlisted), (LISTED_MAX, 1));
        drop(running);
        assert_eq!(table.running().0.len(), 1);
    }
}
