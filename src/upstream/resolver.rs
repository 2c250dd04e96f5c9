//! Name look-ups. Owns: the `resolve` thread and the cache of addresses. Must not: make a caller
//! wait past its deadline.
//!
//! The system's resolver blocks for as long as it likes and ureq's own way around that spawns a
//! thread per look-up, so one thread does them all, one after the other, and callers wait for its
//! result until their deadline. A name that cannot be looked up any more keeps its last addresses
//! for a while: DNS is often the first thing to go, and the addresses mostly stay right.
//!
//! Locks: the cache, held for map operations; never across a look-up.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::NextTimeout;

/// How long addresses count as fresh: the TTL of AWS's registry and S3 names is 60 s or less, and
/// the system's look-up does not tell it.
const FRESH: Duration = Duration::from_secs(30);
/// How long addresses are used when they cannot be looked up again.
const STALE_MAX: Duration = Duration::from_secs(3600);
/// How long a failed look-up is not tried again.
const FAILED: Duration = Duration::from_secs(2);
/// Longest wait for a look-up when no deadline is nearer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a fresh look-up while old addresses are at hand.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// Names kept; a proxy knows a handful.
const NAMES_MAX: usize = 256;
/// Look-ups that may wait for the thread.
const QUEUE_MAX: usize = 64;
/// The C library's resolver keeps its answers on the stack.
const STACK_BYTES: usize = 256 * 1024;

/// How a name is looked up; tests hand in their own.
pub type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// The cache in front of the `resolve` thread.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
    queue: SyncSender<String>,
}

struct Shared {
    names: Mutex<HashMap<String, Name>>,
    done: Condvar,
}

#[derive(Default)]
struct Name {
    addresses: Vec<IpAddr>,
    found: Option<Instant>,
    failed: Option<(Instant, String)>,
    pending: bool,
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
        let shared = Arc::new(Shared {
            names: Mutex::default(),
            done: Condvar::new(),
        });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("resolve".into())
            .stack_size(STACK_BYTES);
        thread.spawn(move || resolve(&names, &worker, &*lookup))?;
        Ok(Self { shared, queue })
    }

    /// The system's own way of looking a name up.
    pub fn system() -> Arc<Lookup> {
        Arc::new(|host| {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in (host, 0).to_socket_addrs()? {
                if !addresses.contains(&address.ip()) {
                    addresses.push(address.ip());
                }
            }
            Ok(addresses)
        })
    }

    /// The addresses of `host` (a name or an address, in brackets or not), waiting until
    /// `deadline` for a look-up where one is needed.
    ///
    /// # Errors
    /// When the name has no address, or the look-up did not end in time.
    pub fn addresses(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, ResolveError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let mut names = self.shared.lock();
        let asked = Instant::now();
        loop {
            let now = Instant::now();
            let name = entry(&mut names, &host);
            let age = name.found.map(|found| now.saturating_duration_since(found));
            if age.is_some_and(|age| age < FRESH) {
                return Ok(name.addresses.clone());
            }
            let usable = age.is_some_and(|age| age < STALE_MAX);
            let recent = name.failed.as_ref().filter(|(at, _)| now - *at < FAILED);
            if let (false, Some((_, why))) = (name.pending, recent) {
                return if usable {
                    Ok(name.addresses.clone())
                } else {
                    Err(fault(&host, why))
                };
            }
            let limit = if usable {
                asked + REFRESH_TIMEOUT
            } else {
                asked + LOOKUP_TIMEOUT
            };
            let left = limit.min(deadline).saturating_duration_since(now);
            if left.is_zero() {
                let late = "no answer from the name server in time";
                return if usable {
                    Ok(name.addresses.clone())
                } else {
                    Err(fault(&host, late))
                };
            }
            if !name.pending {
                if self.queue.try_send(host.clone()).is_err() {
                    return Err(fault(&host, "too many look-ups are waiting"));
                }
                name.pending = true;
            }
            let waited = self.shared.done.wait_timeout(names, left);
            (names, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Name>> {
        // Each name is written in one go, so a poisoned lock is still good.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry<'a>(names: &'a mut HashMap<String, Name>, host: &str) -> &'a mut Name {
    if names.len() >= NAMES_MAX && !names.contains_key(host) {
        names.retain(|_, name| name.pending);
    }
    names.entry(host.to_owned()).or_default()
}

fn fault(host: &str, why: &str) -> ResolveError {
    ResolveError(format!("no address for {host}: {why}"))
}

/// The thread: looks up one name after the other until the last resolver is gone.
fn resolve(queue: &Receiver<String>, shared: &Shared, lookup: &Lookup) {
    while let Ok(host) = queue.recv() {
        let result = lookup(&host);
        let now = Instant::now();
        {
            let mut names = shared.lock();
            let name = entry(&mut names, &host);
            name.pending = false;
            match result {
                Ok(addresses) if !addresses.is_empty() => {
                    *name = Name {
                        addresses,
                        found: Some(now),
                        failed: None,
                        pending: false,
                    };
                }
                Ok(_) => name.failed = Some((now, "the name has no address".to_owned())),
                Err(error) => name.failed = Some((now, error.to_string())),
            }
        }
        shared.done.notify_all();
    }
}

/// ureq's view: called for every request, also when a pooled connection is then used.
impl UreqResolver for Resolver {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.authority().ok_or(ureq::Error::HostNotFound)?;
        let plain = uri.scheme_str() == Some("http");
        let port = authority.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let limit = if timeout.after.is_not_happening() {
            LOOKUP_TIMEOUT
        } else {
            *timeout.after
        };
        let addresses = self
            .addresses(authority.host(), Instant::now() + limit)
            .map_err(|error| ureq::Error::Other(Box::new(error)))?;
        let mut resolved = self.empty();
        for address in addresses.into_iter().take(resolved_max(&resolved)) {
            resolved.push(SocketAddr::new(address, port));
        }
        Ok(resolved)
    }
}

/// ureq takes 16 addresses and panics at the next.
const fn resolved_max(_: &ResolvedSocketAddrs) -> usize {
    16
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
    fn addresses_need_no_look_up() {
        let resolver = Resolver::start(Arc::new(|_| panic!("asked"))).unwrap();
        for host in ["127.0.0.1", "::1", "[::1]"] {
            assert_eq!(resolver.addresses(host, soon()).unwrap().len(), 1, "{host}");
        }
    }

    #[test]
    fn a_name_is_looked_up_once_while_fresh() {
        let count = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&count);
        let lookup = move |_: &str| {
            seen.fetch_add(1, Ordering::Relaxed);
            Ok(vec![IpAddr::from([127, 0, 0, 1])])
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
            Err(io::Error::other("no such host"))
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
            Ok(vec![IpAddr::from([127, 0, 0, 1])])
        };
        let resolver = Resolver::start(Arc::new(lookup)).unwrap();
        let deadline = Instant::now() + Duration::from_millis(30);
        let error = resolver.addresses("a.example", deadline).unwrap_err();
        assert!(error.0.contains("in time"), "{error}");
        release.send(()).unwrap();
        assert!(resolver.addresses("a.example", soon()).is_ok());
    }

    #[test]
    fn the_cache_is_bounded() {
        let resolver =
            Resolver::start(Arc::new(|_| Ok(vec![IpAddr::from([127, 0, 0, 1])]))).unwrap();
        for number in 0..NAMES_MAX * 2 {
            resolver
                .addresses(&format!("h{number}.example"), soon())
                .unwrap();
        }
        assert!(resolver.shared.lock().len() <= NAMES_MAX);
    }
}
