//! What all threads of a stand-in share. Owns: the fault script, the log of requests, waiting and
//! throttling, tokens. Must not: touch a socket but to shut it.
//!
//! Locks: each mutex here stands alone; none is taken while another is held.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::fault::Script;
use crate::http::Head;
use crate::store::Store;
use crate::{Fault, Options, SERVERS, Seen, Server, metadata, sts};

pub(crate) struct Core {
    pub(crate) options: Options,
    /// By [`Server::index`].
    pub(crate) addresses: [SocketAddr; SERVERS],
    pub(crate) script: Mutex<Script>,
    pub(crate) store: Mutex<Store>,
    /// Shared by registries that take the same token: those of one region.
    pub(crate) tokens: Arc<Mutex<Tokens>>,
    pub(crate) metadata: Mutex<metadata::State>,
    seen: Mutex<Vec<Seen>>,
    seen_changed: Condvar,
    gate: Mutex<Gate>,
    gate_opened: Condvar,
    rates: [Mutex<Rate>; SERVERS],
    /// Bytes of bodies, by [`Server::index`].
    sent: [AtomicU64; SERVERS],
    connections: Mutex<HashMap<u64, (Server, Arc<TcpStream>)>>,
    accepted: AtomicUsize,
    pub(crate) sts: Mutex<sts::State>,
}

#[derive(Default)]
struct Gate {
    releases: u64,
    /// Who waits for a release now.
    stalled: usize,
    stopped: bool,
}

#[derive(Default)]
struct Rate {
    bytes_per_second: Option<u64>,
    free_at: Option<Instant>,
}

/// The tokens given out, as the text after `Basic `.
#[derive(Default)]
pub(crate) struct Tokens {
    issued: Vec<(String, TokenState)>,
    /// Seconds until a token expires, as `GetAuthorizationToken` says.
    pub(crate) life: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenState {
    Good,
    Expired,
    Unknown,
}

impl Tokens {
    /// The token for one more `GetAuthorizationToken`.
    fn issue(&mut self, options: &Options) -> String {
        let last = self.issued.last();
        if let Some((token, TokenState::Good)) = last
            && !options.rotate_tokens
        {
            return token.clone();
        }
        let mut password = format!("stand-in-password-{}", self.issued.len() + 1);
        // Base64 makes 4 characters of 3 bytes.
        while (password.len() + "AWS:".len()) * 4 / 3 < options.token_bytes {
            password.push_str("+/secret=");
        }
        let token = STANDARD.encode(format!("AWS:{password}"));
        self.issued.push((token.clone(), TokenState::Good));
        token
    }

    /// Marks every token given out so far.
    pub(crate) fn mark_all(&mut self, state: TokenState) {
        self.issued.iter_mut().for_each(|(_, old)| *old = state);
    }

    pub(crate) fn state(&self, token: &str) -> TokenState {
        let found = self.issued.iter().find(|(issued, _)| issued == token);
        found.map_or(TokenState::Unknown, |(_, state)| *state)
    }

    pub(crate) fn issued(&self) -> impl Iterator<Item = &str> {
        self.issued.iter().map(|(token, _)| token.as_str())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panicking connection thread leaves nothing half done that another could trip over.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub(crate) fn new(options: Options, addresses: [SocketAddr; SERVERS]) -> Self {
        Self {
            tokens: Arc::new(Mutex::new(Tokens {
                issued: Vec::new(),
                life: options.token_life,
            })),
            sts: Mutex::new(sts::State::new(&options)),
            metadata: Mutex::new(metadata::State::new(&options)),
            options,
            addresses,
            script: Mutex::default(),
            store: Mutex::default(),
            seen: Mutex::default(),
            seen_changed: Condvar::new(),
            gate: Mutex::default(),
            gate_opened: Condvar::new(),
            rates: Default::default(),
            sent: Default::default(),
            connections: Mutex::default(),
            accepted: AtomicUsize::new(0),
        }
    }

    /// The host and port of a server as its URLs name it.
    pub(crate) fn authority(&self, server: Server) -> String {
        let port = self.addresses[server.index()].port();
        match server {
            Server::S3 => format!("{}:{port}", self.options.s3_host),
            Server::Registry | Server::Api | Server::Metadata => format!("127.0.0.1:{port}"),
        }
    }

    /// Scheme and host in absolute `Link`s and `Location`s.
    pub(crate) fn public_base(&self) -> String {
        let own = || format!("http://{}", self.authority(Server::Registry));
        self.options.public_base.clone().unwrap_or_else(own)
    }

    /// A server's idea of the time: only the APIs' clock is skewed.
    pub(crate) fn now(&self, server: Server) -> SystemTime {
        let skew = match server {
            Server::Api => self.options.clock_skew,
            Server::Metadata | Server::Registry | Server::S3 => 0,
        };
        let by = Duration::from_secs(skew.unsigned_abs());
        let now = SystemTime::now();
        if skew < 0 { now - by } else { now + by }
    }

    /// A token as `GetAuthorizationToken` gives it out.
    pub(crate) fn issue_token(&self) -> String {
        lock(&self.tokens).issue(&self.options)
    }

    pub(crate) fn take_fault(&self, server: Server, head: &Head, form: &str) -> Option<Fault> {
        // The APIs have one path; what tells their calls apart is a field or the form.
        let call = head.first("x-amz-target").unwrap_or_default();
        let target = format!("{} {call} {form}", head.target);
        lock(&self.script).take(server, &head.method, &target)
    }

    // === the log of requests ===

    pub(crate) fn record(&self, server: Server, connection: u64, head: &Head) -> usize {
        let mut seen = lock(&self.seen);
        seen.push(Seen {
            server,
            connection,
            method: head.method.clone(),
            target: head.target.clone(),
            headers: head.headers.clone(),
            body_len: 0,
            status: None,
            at: Instant::now(),
        });
        self.seen_changed.notify_all();
        seen.len() - 1
    }

    /// Notes the body's length, and the status once there is one.
    pub(crate) fn complete(&self, entry: usize, body_len: u64, status: Option<u16>) {
        if let Some(seen) = lock(&self.seen).get_mut(entry) {
            seen.body_len = body_len;
            seen.status = status.or(seen.status);
        }
        self.seen_changed.notify_all();
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    pub(crate) fn wait_for(&self, limit: Duration, mut done: impl FnMut(&[Seen]) -> bool) -> bool {
        let wait = |seen: &mut Vec<Seen>| !done(seen);
        let outcome = self
            .seen_changed
            .wait_timeout_while(lock(&self.seen), limit, wait);
        !outcome
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .timed_out()
    }

    // === waiting ===

    /// Waits until somebody releases what is stalled; false when the stand-in stops.
    pub(crate) fn wait_for_release(&self) -> bool {
        let mut gate = lock(&self.gate);
        gate.stalled += 1;
        let releases = gate.releases;
        let closed = |gate: &mut Gate| !gate.stopped && gate.releases == releases;
        let gate = self.gate_opened.wait_while(gate, closed);
        let mut gate = gate.unwrap_or_else(PoisonError::into_inner);
        gate.stalled -= 1;
        !gate.stopped
    }

    pub(crate) fn stalled(&self) -> usize {
        lock(&self.gate).stalled
    }

    pub(crate) fn release(&self) {
        lock(&self.gate).releases += 1;
        self.gate_opened.notify_all();
    }

    /// Waits; false when the stand-in stops.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        let running = |gate: &mut Gate| !gate.stopped;
        let outcome = self
            .gate_opened
            .wait_timeout_while(lock(&self.gate), time, running);
        !outcome.unwrap_or_else(PoisonError::into_inner).0.stopped
    }

    // === throttling ===

    pub(crate) fn set_rate(&self, server: Server, bytes_per_second: Option<u64>) {
        *lock(&self.rates[server.index()]) = Rate {
            bytes_per_second,
            free_at: None,
        };
    }

    /// Bytes to send at a time, so that a slow server sends often.
    pub(crate) fn piece_at_rate(&self, server: Server) -> Option<usize> {
        let rate = lock(&self.rates[server.index()]).bytes_per_second?;
        Some(
            usize::try_from(rate / 20)
                .unwrap_or(usize::MAX)
                .clamp(1, 64 * 1024),
        )
    }

    /// Waits until `bytes` may be sent; false when the stand-in stops.
    pub(crate) fn throttle(&self, server: Server, bytes: usize) -> bool {
        let wait = {
            let mut rate = lock(&self.rates[server.index()]);
            let Some(bytes_per_second) = rate.bytes_per_second else {
                return true;
            };
            let nanos = bytes as u64 * 1_000_000_000 / bytes_per_second.max(1);
            let start = rate
                .free_at
                .unwrap_or_else(Instant::now)
                .max(Instant::now());
            rate.free_at = Some(start + Duration::from_nanos(nanos));
            start.saturating_duration_since(Instant::now())
        };
        wait.is_zero() || self.pause(wait)
    }

    // === what was sent ===

    pub(crate) fn count_sent(&self, server: Server, bytes: usize) {
        self.sent[server.index()].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, server: Server) -> u64 {
        self.sent[server.index()].load(Ordering::Relaxed)
    }

    // === connections ===

    pub(crate) fn stopped(&self) -> bool {
        lock(&self.gate).stopped
    }

    pub(crate) fn stop(&self) {
        lock(&self.gate).stopped = true;
        self.gate_opened.notify_all();
        for server in Server::ALL {
            self.cut_connections(server);
        }
    }

    pub(crate) fn keep(&self, id: u64, server: Server, stream: &Arc<TcpStream>) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        lock(&self.connections).insert(id, (server, Arc::clone(stream)));
    }

    pub(crate) fn forget(&self, id: u64) {
        lock(&self.connections).remove(&id);
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn connections(&self, server: Server) -> usize {
        let connections = lock(&self.connections);
        connections.values().filter(|(of, _)| *of == server).count()
    }

    pub(crate) fn cut_connections(&self, server: Server) {
        for (of, stream) in lock(&self.connections).values() {
            if *of == server {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}
