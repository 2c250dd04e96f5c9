//! Name look-ups. Owns: the `resolve` thread and the cache of addresses. Must not: make a caller
//! wait past its deadline, or know how a name is looked up (a [`Lookup`] is handed in).
//!
//! The system's resolver may block for long, and ureq would spawn a thread for each look-up. So
//! one thread does them all, one after the other, and callers wait for its result until their
//! deadline. A name whose look-up fails keeps its last addresses for a while: DNS often fails
//! first, and the addresses mostly stay right (RFC 8767).
//!
//! Locks: the cache, held for map operations; never across a look-up.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::error::OFFLINE;
use crate::locked::{Locked as _, TimedWait as _};

/// How long addresses from the system's look-up count as fresh. It does not tell their TTL; AWS's
/// registry and S3 names have 60 s or less.
const FRESH: Duration = Duration::from_secs(30);
/// Addresses count as fresh for that long at least: a TTL of 0 would mean a look-up per request.
const FRESH_MIN: Duration = Duration::from_secs(5);
/// Addresses count as fresh for that long at most: an operator that moves a host expects it to be
/// noticed.
const FRESH_MAX: Duration = Duration::from_secs(300);
/// How long addresses are used when they cannot be looked up again (RFC 8767 §5: days at most).
const STALE_MAX: Duration = Duration::from_secs(3600);
/// How long a failed look-up is not tried again.
const FAILED: Duration = Duration::from_secs(2);
/// How long a name without addresses counts as such at most (RFC 2308 §5 allows hours): an operator
/// that adds the name expects it to be noticed.
const NOTHING_MAX: Duration = Duration::from_secs(30);
/// Longest wait for a look-up when no deadline is nearer.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a fresh look-up while old addresses are at hand.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// Names kept; a proxy knows a handful.
const NAMES_MAX: usize = 256;
/// Look-ups that may wait for the thread.
const QUEUE_MAX: usize = 64;
/// The C library's resolver keeps its answers on the stack.
const STACK_BYTES: usize = 256 * 1024;

/// How a name is looked up.
pub type Lookup = dyn Fn(&str) -> Result<Addresses, LookupError> + Send + Sync;

/// Addresses of a name, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// In the order in which they are to be tried.
    pub addresses: Vec<IpAddr>,
    /// How long they hold.
    pub fresh: Duration,
}

/// Why a look-up has no addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupError {
    /// The name server says that there are none, and for how long that holds.
    NoAddress(String, Duration),
    /// No server could say.
    Unknown(String),
}

/// The cache in front of the `resolve` thread.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<NameCache>,
    queue: SyncSender<String>,
    is_closed: bool,
}

struct NameCache {
    names: Mutex<HashMap<String, CachedName>>,
    done: Condvar,
}

/// A name in the cache.
#[derive(Default)]
struct CachedName {
    addresses: Vec<IpAddr>,
    fresh_until: Option<Instant>,
    usable_until: Option<Instant>,
    /// Why the last look-up brought nothing, and until when no other is tried.
    failed: Option<(Instant, String)>,
    pending: bool,
}

/// The state of a name for its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NameState {
    /// Use these.
    Fresh(Vec<IpAddr>),
    /// Use these. When `is_due`, look the name up again in the meantime.
    Failing {
        addresses: Vec<IpAddr>,
        is_due: bool,
    },
    /// Look the name up, and use these if that takes long.
    Stale(Vec<IpAddr>),
    /// The name has no addresses, and was looked up just now.
    Failed(String),
    /// Look the name up.
    Unknown,
}

impl CachedName {
    fn state(&self, now: Instant) -> NameState {
        let before = |until: Option<Instant>| until.is_some_and(|until| now < until);
        let usable = before(self.usable_until);
        if usable && before(self.fresh_until) {
            return NameState::Fresh(self.addresses.clone());
        }
        match (&self.failed, usable) {
            // With addresses at hand, nobody waits for a look-up that has failed before.
            (Some((until, _)), true) => NameState::Failing {
                addresses: self.addresses.clone(),
                is_due: now >= *until,
            },
            (Some((until, why)), false) if now < *until && !self.pending => {
                NameState::Failed(why.clone())
            }
            (None, true) => NameState::Stale(self.addresses.clone()),
            (_, false) => NameState::Unknown,
        }
    }

    fn learn(&mut self, result: Result<Addresses, LookupError>, now: Instant) {
        self.pending = false;
        match result {
            Ok(Addresses { addresses, fresh }) if !addresses.is_empty() => {
                let fresh_until = now + fresh.clamp(FRESH_MIN, FRESH_MAX);
                *self = Self {
                    addresses,
                    fresh_until: Some(fresh_until),
                    usable_until: Some(fresh_until + STALE_MAX),
                    failed: None,
                    pending: false,
                };
            }
            Ok(_) => self.failed = Some((now + FAILED, "the name has no address".to_owned())),
            Err(LookupError::Unknown(why)) => self.failed = Some((now + FAILED, why)),
            Err(LookupError::NoAddress(why, fresh)) => {
                // RFC 8767 §4: a name that the server says is gone has no stale addresses.
                let until = now + fresh.clamp(FAILED, NOTHING_MAX);
                *self = Self {
                    failed: Some((until, why)),
                    ..Self::default()
                };
            }
        }
    }
}

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveError(pub String);

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ResolveError {}

impl Resolver {
    /// Starts the thread; it ends with the last clone of the resolver.
    ///
    /// # Errors
    /// When the thread is refused.
    pub fn start(lookup: Arc<Lookup>) -> io::Result<Self> {
        let (queue, names) = sync_channel(QUEUE_MAX);
        let shared = Arc::new(NameCache {
            names: Mutex::default(),
            done: Condvar::new(),
        });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("resolve".into())
            .stack_size(STACK_BYTES);
        thread.spawn(move || resolve(&names, &worker, &*lookup))?;
        Ok(Self {
            shared,
            queue,
            is_closed: false,
        })
    }

    /// A resolver without addresses, not even for an address: whatever connects asks one first, so
    /// nothing goes out (`OFFLINE`).
    pub fn closed() -> Self {
        let shared = NameCache {
            names: Mutex::default(),
            done: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            queue: sync_channel(1).0,
            is_closed: true,
        }
    }

    /// True for one that has no addresses.
    pub(super) const fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The system's own way of looking a name up.
    pub fn system() -> Arc<Lookup> {
        Arc::new(|host| {
            let found = (host, 0).to_socket_addrs();
            let found = found.map_err(|error| LookupError::Unknown(error.to_string()))?;
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found {
                if !addresses.contains(&address.ip()) {
                    addresses.push(address.ip());
                }
            }
            let fresh = FRESH;
            Ok(Addresses { addresses, fresh })
        })
    }

    /// The addresses of `host` (a name or an address, in brackets or not), waiting until
    /// `deadline` for a look-up where one is needed.
    ///
    /// # Errors
    /// When the name has no address, or the look-up did not end in time.
    pub fn addresses(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, ResolveError> {
        if self.is_closed {
            return Err(ResolveError(OFFLINE.to_owned()));
        }
        if let Some(addresses) = resolve_locally(host) {
            return Ok(addresses);
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let mut names = self.shared.names.locked();
        let asked = Instant::now();
        loop {
            let now = Instant::now();
            let name = entry(&mut names, &host);
            let (at_hand, limit) = match name.state(now) {
                NameState::Fresh(addresses) => return Ok(addresses),
                NameState::Failed(why) => return Err(resolve_error(&host, &why)),
                NameState::Failing { addresses, is_due } => {
                    if is_due && !name.pending {
                        // Without room in the queue, the next one tries.
                        name.pending = self.queue.try_send(host).is_ok();
                    }
                    return Ok(addresses);
                }
                NameState::Stale(addresses) => (Some(addresses), asked + REFRESH_TIMEOUT),
                NameState::Unknown => (None, asked + LOOKUP_TIMEOUT),
            };
            let otherwise = |why| at_hand.ok_or_else(|| resolve_error(&host, why));
            let left = limit.min(deadline).saturating_duration_since(now);
            if left.is_zero() {
                return otherwise("no answer from the name server in time");
            }
            if !name.pending {
                if self.queue.try_send(host.clone()).is_err() {
                    return otherwise("too many look-ups are waiting");
                }
                name.pending = true;
            }
            names = self.shared.done.wait_for(names, left);
        }
    }
}

/// The addresses of a literal address or of this host's own names, which need no look-up (RFC 6761
/// §6.3).
fn resolve_locally(host: &str) -> Option<Vec<IpAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Some(vec![address]);
    }
    is_localhost(host).then(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

/// True for `localhost` and what is below it.
pub(super) fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn entry<'a>(names: &'a mut HashMap<String, CachedName>, host: &str) -> &'a mut CachedName {
    if names.len() >= NAMES_MAX && !names.contains_key(host) {
        names.retain(|_, name| name.pending);
    }
    names.entry(host.to_owned()).or_default()
}

fn resolve_error(host: &str, why: &str) -> ResolveError {
    ResolveError(format!("no address for {host}: {why}"))
}

/// The thread: looks up one name after the other until the last resolver is gone.
fn resolve(queue: &Receiver<String>, shared: &NameCache, lookup: &Lookup) {
    while let Ok(host) = queue.recv() {
        // The hook has logged the panic; the next name may fare better.
        let result = catch_unwind(AssertUnwindSafe(|| lookup(&host)));
        let panicked = |_| Err(LookupError::Unknown("the look-up panicked".to_owned()));
        let result = result.unwrap_or_else(panicked);
        entry(&mut shared.names.locked(), &host).learn(result, Instant::now());
        shared.done.notify_all();
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn a_closed_resolver_knows_not_even_addresses() {
        let resolver = Resolver::closed();
        for host in ["r.example", "127.0.0.1", "[::1]", "localhost"] {
            let fault = resolver.addresses(host, soon()).unwrap_err();
            assert_eq!(fault.0, OFFLINE, "{host}");
        }
    }

    fn found(seconds: u64) -> Result<Addresses, LookupError> {
        let addresses = vec![IpAddr::from([127, 0, 0, 1])];
        let fresh = Duration::from_secs(seconds);
        Ok(Addresses { addresses, fresh })
    }

    fn unknown() -> Result<Addresses, LookupError> {
        Err(LookupError::Unknown("no such host".to_owned()))
    }

    fn nothing(seconds: u64) -> Result<Addresses, LookupError> {
        let fresh = Duration::from_secs(seconds);
        Err(LookupError::NoAddress("gone".to_owned(), fresh))
    }

    /// Says from which second on a name is no longer in a state for which `holds` is true.
    fn lasts(name: &CachedName, now: Instant, holds: fn(&NameState) -> bool) -> u64 {
        let at = |second| name.state(now + Duration::from_secs(second));
        (0..4000).find(|second| !holds(&at(*second))).unwrap()
    }

    #[test]
    fn addresses_last_as_long_as_said_within_limits() {
        let now = Instant::now();
        for (ttl_s, fresh_s) in [(0, 5), (4, 5), (60, 60), (86_400, 300)] {
            let mut name = CachedName::default();
            name.learn(found(ttl_s), now);
            let is_fresh = |state: &NameState| matches!(state, NameState::Fresh(_));
            assert_eq!(lasts(&name, now, is_fresh), fresh_s, "{ttl_s}");
            let is_known = |state: &NameState| *state != NameState::Unknown;
            assert_eq!(lasts(&name, now, is_known), fresh_s + 3600, "{ttl_s}");
        }
    }

    #[test]
    fn negative_answers_last_as_long_as_said_within_limits() {
        let now = Instant::now();
        for (ttl_s, failed_s) in [(0, 2), (20, 20), (86_400, 30)] {
            let mut name = CachedName::default();
            name.learn(nothing(ttl_s), now);
            let is_failed = |state: &NameState| matches!(state, NameState::Failed(_));
            assert_eq!(lasts(&name, now, is_failed), failed_s, "{ttl_s}");
        }
    }

    #[test]
    fn old_addresses_outlive_silence_but_not_a_no() {
        let now = Instant::now();
        let mut name = CachedName::default();
        name.learn(found(5), now);
        let later = now + Duration::from_secs(6);
        let addresses = name.addresses.clone();
        assert_eq!(name.state(later), NameState::Stale(addresses.clone()));
        name.learn(unknown(), later);
        let failing = |is_due| NameState::Failing {
            addresses: addresses.clone(),
            is_due,
        };
        assert_eq!(name.state(later), failing(false));
        assert_eq!(name.state(later + FAILED), failing(true));
        name.learn(nothing(20), later);
        assert_eq!(name.state(later), NameState::Failed("gone".into()));
        name.learn(found(5), later);
        assert!(matches!(name.state(later), NameState::Fresh(_)));
    }

    #[test]
    fn addresses_and_localhost_need_no_look_up() {
        let resolver = Resolver::start(Arc::new(|_| panic!("asked"))).unwrap();
        let count = |host| resolver.addresses(host, soon()).unwrap().len();
        for host in ["127.0.0.1", "::1", "[::1]"] {
            assert_eq!(count(host), 1, "{host}");
        }
        for host in ["localhost", "LocalHost.", "a.localhost"] {
            assert_eq!(count(host), 2, "{host}");
        }
    }

    #[test]
    fn a_name_is_looked_up_once_while_fresh() {
        let count = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&count);
        let lookup = move |_: &str| {
            seen.fetch_add(1, Ordering::Relaxed);
            found(60)
        };
        let resolver = Resolver::start(Arc::new(lookup)).unwrap();
        for host in ["a.example", "A.example", "a.example."] {
            assert!(resolver.addresses(host, soon()).is_ok());
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_failure_is_told_and_not_repeated_at_once() {
        let count = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&count);
        let lookup = move |_: &str| {
            seen.fetch_add(1, Ordering::Relaxed);
            unknown()
        };
        let resolver = Resolver::start(Arc::new(lookup)).unwrap();
        for _ in 0..3 {
            let error = resolver.addresses("a.example", soon()).unwrap_err();
            assert_eq!(error.0, "no address for a.example: no such host");
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_hanging_look_up_holds_nobody_past_the_deadline() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = Mutex::new(held);
        let lookup = move |_: &str| {
            let _ = held.lock().unwrap().recv();
            found(60)
        };
        let resolver = Resolver::start(Arc::new(lookup)).unwrap();
        let deadline = Instant::now() + Duration::from_millis(30);
        let error = resolver.addresses("a.example", deadline).unwrap_err();
        assert!(error.0.contains("in time"), "{error}");
        release.send(()).unwrap();
        assert!(resolver.addresses("a.example", soon()).is_ok());
    }

    #[test]
    fn a_look_up_that_panics_ends_no_thread() {
        let lookup = |host: &str| match host {
            "bad.example" => panic!("a name that no test expects to be harmless"),
            _ => found(60),
        };
        let resolver = Resolver::start(Arc::new(lookup)).unwrap();
        let error = resolver.addresses("bad.example", soon()).unwrap_err();
        assert!(error.0.contains("panicked"), "{error}");
        assert!(resolver.addresses("good.example", soon()).is_ok());
    }

    #[test]
    fn the_cache_is_bounded() {
        let resolver = Resolver::start(Arc::new(|_| found(60))).unwrap();
        for number in 0..NAMES_MAX * 2 {
            resolver
                .addresses(&format!("h{number}.example"), soon())
                .unwrap();
        }
        assert!(resolver.shared.names.locked().len() <= NAMES_MAX);
    }
}
