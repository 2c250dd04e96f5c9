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
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use crate::label::label;
use crate::locked::Locked;

/// Transfers listed at a time: four for each of the connections that are usual. Others run unlisted
/// and are counted.
pub const LISTED_MAX: usize = 4096;
/// Time over which a rate is measured: shorter ones jump, longer ones hide a stall.
const WINDOW_MS: u64 = 3_000;
/// Stands for a total that is not known.
const UNKNOWN: u64 = u64::MAX;

/// The transfers of this process.
pub static TRANSFERS: LazyLock<Transfers> = LazyLock::new(Transfers::default);

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
    /// The blob's digest. None for an upload whose digest comes at its end.
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

/// The time that is being measured: its start in milliseconds after that of the transfer, the bytes
/// there were then, and the rate of the time before it in bytes a second.
#[derive(Debug, Default)]
struct RateWindow {
    since: AtomicU64,
    bytes: AtomicU64,
    rate: AtomicU64,
}

impl RateWindow {
    fn begin(&self, since: u64, bytes: u64, rate: u64) {
        self.since.store(since, Relaxed);
        self.bytes.store(bytes, Relaxed);
        self.rate.store(rate, Relaxed);
    }
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
            total: total.unwrap_or(UNKNOWN).into(),
            bytes: AtomicU64::default(),
            moved: AtomicU64::default(),
            clients: AtomicU32::default(),
            ended: AtomicBool::default(),
            background: AtomicBool::default(),
            window: RateWindow::default(),
        }
    }

    /// Notes that upstream has answered: `total` bytes begin to move. `have`: bytes of an earlier
    /// attempt.
    pub fn begin(&self, have: u64, total: u64) {
        self.total.store(total, Relaxed);
        self.window.begin(self.milliseconds(), have, 0);
        self.set_bytes(have);
    }

    /// Adds bytes that have moved.
    pub fn add(&self, bytes: u64) {
        self.set_bytes(self.bytes().saturating_add(bytes));
    }

    /// Sets the bytes that have moved in all; after a new start they may be fewer than before.
    pub fn set_bytes(&self, bytes: u64) {
        let now = self.milliseconds();
        self.bytes.store(bytes, Relaxed);
        self.moved.store(now, Relaxed);
        let is_new_start = bytes < self.window.bytes.load(Relaxed);
        let age = now.saturating_sub(self.window.since.load(Relaxed));
        if is_new_start || age >= WINDOW_MS {
            self.window.begin(now, bytes, self.rate_since(age));
        }
    }

    /// Bytes a second in the last moments. It falls while nothing comes.
    pub fn rate(&self) -> u64 {
        let since = self.window.since.load(Relaxed);
        let age = self.milliseconds().saturating_sub(since);
        match self.window.rate.load(Relaxed) {
            rate @ 1.. if age < WINDOW_MS => rate,
            _ => self.rate_since(age),
        }
    }

    /// Bytes a second since the window began, so many milliseconds ago.
    fn rate_since(&self, age: u64) -> u64 {
        let before = self.window.bytes.load(Relaxed);
        let moved = self.bytes().saturating_sub(before);
        moved.saturating_mul(1000) / age.max(1)
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

    /// Time since the start.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time since the last byte.
    pub fn idle(&self) -> Duration {
        let moved = Duration::from_millis(self.moved.load(Relaxed));
        self.age().saturating_sub(moved)
    }

    /// Clients that get their bytes from this fill.
    pub fn clients(&self) -> u32 {
        self.clients.load(Relaxed)
    }

    /// True while no client waits for this transfer.
    pub fn is_background(&self) -> bool {
        self.background.load(Relaxed)
    }

    /// Sets whether no client waits for this transfer.
    pub fn set_background(&self, on: bool) {
        self.background.store(on, Relaxed);
    }

    /// Counts a client that gets its bytes from this fill, for as long as the value lives.
    pub fn join(self: &Arc<Self>) -> JoinedClient {
        self.clients.fetch_add(1, Relaxed);
        JoinedClient(Arc::clone(self))
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX)
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
    number: u64,
}

impl std::ops::Deref for Running {
    type Target = Transfer;

    fn deref(&self) -> &Transfer {
        &self.transfer
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.transfer.ended.store(true, Relaxed);
        let mut table = self.table.0.locked();
        if table.listed.remove(&self.number).is_none() {
            table.unlisted -= 1;
        }
    }
}

/// A table of transfers.
#[derive(Debug, Default)]
pub struct Transfers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// The key is their number, which grows.
    listed: BTreeMap<u64, Arc<Transfer>>,
    unlisted: usize,
    begun: u64,
}

impl Transfers {
    /// Lists a transfer until the value is dropped.
    pub fn list(&'static self, transfer: impl Into<Arc<Transfer>>) -> Running {
        let transfer = transfer.into();
        let mut table = self.0.locked();
        table.begun += 1;
        let number = table.begun;
        if table.listed.len() < LISTED_MAX {
            table.listed.insert(number, Arc::clone(&transfer));
        } else {
            table.unlisted += 1;
        }
        Running {
            transfer,
            table: self,
            number,
        }
    }

    /// The listed transfers, the oldest first, and the number of those that are not listed. A pull
    /// is left out while its fill runs: the fill stands for it, and counts its clients.
    pub fn running(&self) -> (Vec<Arc<Transfer>>, usize) {
        let table = self.0.locked();
        let fill_has_ended = |fill: &Arc<Transfer>| fill.ended.load(Relaxed);
        let listed = table.listed.values();
        let alone = listed.filter(|transfer| transfer.joined.as_ref().is_none_or(fill_has_ended));
        (alone.map(Arc::clone).collect(), table.unlisted)
    }

    /// True while clients wait for bytes of upstream.
    pub fn serve_clients(&self) -> bool {
        let waits = |it: &Arc<Transfer>| it.kind == TransferKind::Fill && !it.is_background();
        self.0.locked().listed.values().any(waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> &'static Transfers {
        Box::leak(Box::default())
    }

    fn transfer(kind: TransferKind) -> Transfer {
        Transfer::new(kind, false, Subject::default(), None)
    }

    #[test]
    fn a_pull_shows_when_its_fill_has_ended() {
        let table = table();
        let fill = Arc::new(transfer(TransferKind::Fill));
        let filling = table.list(Arc::clone(&fill));
        let mut pull = transfer(TransferKind::Pull);
        pull.joined = Some(Arc::clone(&fill));
        let pull = table.list(pull);
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
        let transfer = transfer(TransferKind::Push);
        transfer.window.begin(0, 1000, 0);
        transfer.bytes.store(3000, Relaxed);
        let rates = [4000, 0].map(|age| transfer.rate_since(age));
        assert_eq!(rates, [500, 2_000_000]);
        transfer.add(1 << 40);
        assert!(transfer.rate() > 1 << 30, "all came in this moment");
        transfer.begin(7, 20);
        assert_eq!(transfer.rate(), 0, "what was there before did not come now");
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
