//! Builds every part in order, starts the threads, waits for signals, drains. Owns: the order of
//! start and stop, and what ends the process. Must not: hold any rule of its own about requests.
//!
//! Order: certificates and logins → listeners → descriptors → name look-ups and the way out → token
//! thread → workers → lanes → door. A start needs neither network nor credentials; what is missing
//! shows in `/readyz`.

mod build;
mod capacity;
mod files;
mod filler;
pub mod listen;
mod notify;
mod operator;
pub(crate) mod plain_token;
mod port_owner;
mod prefetch;
mod progress;
mod reload;
mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

pub use self::build::{cache_directory, new_client, new_tokens, pins, redirects};
pub use self::files::file_faults;
pub use self::filler::CacheFiller;
use crate::aws::token::Tokens;
use crate::cache::Cache;
use crate::clock::SystemClock;
use crate::config::{self, Settings};
use crate::door::{
    CrossOrigin, Door, DoorLimits, Drained, Lanes, MinRate, ServerTls, TlsFiles, Workers,
};
use crate::log;
use crate::message::{Answer, Decider, Desk, Entrance, Request};
use crate::metrics::requests;
use crate::pages::{self, Pages};
use crate::pool::Pool;
use crate::proxy::Proxy;
use crate::proxy::access::Access;
use crate::proxy::login::Logins;
use crate::status::{Sources, list_registries};
use crate::upstream::client::POOL_MAX;
use crate::upstream::exchange::Upstream;
use listen::Address;
use operator::{OperatorPages, OwnDoor};
use reload::{FileStamps, Reloader, WatchedFiles};
use threads::OnLost;

/// Longest wait for the last log lines at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Stack of the thread that fetches referrers: what a connection's thread does, and JSON.
const REFERRERS_STACK_BYTES: usize = 512 * 1024;
/// Stack of the threads that only wait and pass on.
const SMALL_STACK_BYTES: usize = 128 * 1024;

/// Time that answers at `METRICS_LISTEN` get to end: scrapers come again.
const OPERATORS_GRACE: Duration = Duration::from_secs(1);

/// Something that ends the process, or may end it.
enum AppEvent {
    Drained(Drained),
    /// The thread of this name is gone, or tiny_http is cut off.
    Lost(String),
    Signal(i32),
}

/// Serves until a signal ends it; returns the exit code. Blocks for as long.
pub fn run(settings: Settings) -> u8 {
    log::init(settings.log_level, settings.log_format);
    log::hook_panics();
    for warning in &settings.warnings {
        log::warn(warning, &[]);
    }
    let (events, incoming) = channel();
    let code = match start(&settings, &events) {
        Ok(running) => running.wait(&incoming, &events, settings.shutdown_grace),
        Err(StartError::Settings(faults)) => {
            for fault in faults {
                log::error("bad setting", &[("error", &fault)]);
            }
            config::EXIT_SETTINGS
        }
        Err(StartError::Start(why)) => {
            log::error("start failed", &[("error", &why)]);
            config::EXIT_FAILED
        }
    };
    log::flush(FLUSH_TIMEOUT);
    code
}

/// Why the proxy did not start.
enum StartError {
    /// A file that a setting names is not fit.
    Settings(Vec<String>),
    Start(String),
}

impl From<String> for StartError {
    fn from(why: String) -> Self {
        Self::Start(why)
    }
}

struct RunningProxy {
    door: Arc<Door>,
    /// At `METRICS_LISTEN`.
    operators: Option<Arc<OwnDoor>>,
    tokens: Option<Arc<Tokens>>,
    cache: Option<Arc<Cache>>,
    draining: Arc<AtomicBool>,
    reloader: Reloader,
    _socket_file: Option<listen::SocketFile>,
}

fn start(settings: &Settings, events: &Sender<AppEvent>) -> Result<RunningProxy, StartError> {
    let on_lost = report_lost_to(events);
    let mut watched = Vec::new();
    let tls = load_tls(settings, &mut watched);
    let logins = open_logins(settings, &mut watched);
    let (tls, logins) = match (tls, logins) {
        (Ok(tls), Ok(logins)) => (tls, logins),
        (tls, logins) => {
            let mut faults = tls.err().unwrap_or_default();
            faults.extend(logins.err());
            return Err(StartError::Settings(faults));
        }
    };
    let bound = listen::open(settings)?;
    let own_address = operator::bind(&settings.metrics)?;
    watch_signals(events)?;
    let cache_directory = cache_directory(settings);
    let own_listeners = own_address.as_ref().map_or(0, |own| own.listeners.len());
    let listeners = bound.listeners.len() + own_listeners;
    let connections = capacity::fit_connections(settings, listeners, cache_directory.is_some())?;
    let (upstream, tokens) = build::open_upstream(settings, connections.min(POOL_MAX), &on_lost)?;
    let draining = Arc::new(AtomicBool::new(false));
    let cache = build::open_cache(settings, cache_directory, &upstream)?;
    let access = Access::new(&settings.access, settings.offline, logins);
    let sources = collect_sources(
        settings,
        &upstream,
        tokens.as_ref(),
        cache.as_ref(),
        &draining,
        connections,
    );
    let decider = build_decider(settings, access, sources, &on_lost)?;
    let workers = start_workers(settings, decider, &on_lost)?;
    let limits = door_limits(settings, connections);
    let reloader = Reloader::start(watched, &on_lost)?;
    let own_door = |bound| operator::open_door(bound, workers.clone(), Arc::clone(&on_lost));
    let operators = own_address.map(own_door).transpose()?.map(Arc::new);
    let (sockets, main) = (bound.listeners, Entrance::Main);
    let door = Door::open(
        sockets,
        workers.clone(),
        limits,
        tls,
        main,
        Arc::clone(&on_lost),
    )
    .map_err(|error| format!("thread accept: {error}"))?;
    build::start_cache(cache.as_deref(), &on_lost)?;
    announce(settings, &bound.addresses, connections);
    if settings.has_notify_socket {
        notify::start(workers)?;
    }
    Ok(RunningProxy {
        door: Arc::new(door),
        operators,
        tokens,
        cache,
        draining,
        reloader,
        _socket_file: bound.file,
    })
}

/// Starts the workers, and opens the lanes to them.
fn start_workers(
    settings: &Settings,
    decider: Arc<Decider>,
    on_lost: &OnLost,
) -> Result<Workers, String> {
    let fault = |error| format!("workers: {error}");
    let desk = Arc::new(Desk::default());
    let pool = Pool::start(settings.workers, &desk, &decider, on_lost).map_err(fault)?;
    let on_lost = Arc::clone(on_lost);
    let half_lost = Box::new(move || on_lost("lanes to tiny_http"));
    let lanes = Lanes::open(pool.address(), settings.lanes, half_lost)
        .map_err(|error| format!("lanes to tiny_http: {error}"))?;
    pool.seal().map_err(fault)?;
    Ok(Workers {
        lanes: Arc::new(lanes),
        desk,
        decider,
    })
}

/// Reads certificate and key, if the door is to speak TLS, and adds them to the watched files.
fn load_tls(
    settings: &Settings,
    watched: &mut Vec<WatchedFiles>,
) -> Result<Option<Arc<ServerTls>>, Vec<String>> {
    let Some(files) = TlsFiles::of(&settings.tls) else {
        return Ok(None);
    };
    if !settings.tls.enabled {
        let why = "SSL_CERTIFICATE and SSL_KEY are not used: ENABLE_SSL is not true";
        log::warn(why, &[]);
        return Ok(None);
    }
    let stamps = FileStamps::take(files.paths());
    let tls = Arc::new(ServerTls::load(files)?);
    let again = Arc::clone(&tls);
    let reload = Box::new(move || again.reload());
    watched.push(WatchedFiles::new("TLS certificate", stamps, reload));
    Ok(Some(tls))
}

fn door_limits(settings: &Settings, connections: usize) -> DoorLimits {
    let limits = DoorLimits::new(connections);
    DoorLimits {
        connections_per_peer: settings.max_connections_per_peer,
        trust_proxy_headers: settings.trust_proxy_headers,
        cross_origin: CrossOrigin {
            origins: settings.access.origins.clone(),
            read_only: settings.access.read_only,
        },
        min_rate: MinRate {
            bytes_per_second: settings.min_rate,
            ..limits.min_rate
        },
        ..limits
    }
}

fn announce(settings: &Settings, bound: &[Address], connections: usize) {
    let registry = list_registries(&settings.registries);
    for address in bound {
        log::info(
            &format!("listening on {address}"),
            &[
                ("registry", &registry),
                ("tls", &settings.tls.enabled),
                ("version", &config::VERSION),
                ("connections_max", &connections),
            ],
        );
    }
    if settings.access.origins == ["*"] && settings.access.auth_file.is_none() {
        let why = "any web page that is open in a browser which reaches this proxy can use it; \
                   name the pages in ACCESS_CONTROL_ALLOW_ORIGIN, or set AUTH_FILE";
        log::warn(why, &[]);
    }
    if is_guarded(settings) {
        return;
    }
    for address in bound.iter().filter(|address| !address.is_local()) {
        log::warn(
            "everybody who reaches this address can pull and push with this proxy's AWS rights; \
             set AUTH_FILE, SSL_CLIENT_CA or READ_ONLY, or LISTEN_HOST=127.0.0.1",
            &[("address", address)],
        );
    }
}

/// True when a setting limits what a client that can connect may do.
const fn is_guarded(settings: &Settings) -> bool {
    let access = &settings.access;
    let asks_for_certificates = settings.tls.enabled && settings.tls.client_ca.is_some();
    let takes_no_push = access.read_only || settings.offline;
    access.auth_file.is_some() || takes_no_push || asks_for_certificates
}

/// Reads the logins, if clients must log in, and adds their file to the watched files.
fn open_logins(
    settings: &Settings,
    watched: &mut Vec<WatchedFiles>,
) -> Result<Option<Arc<Logins>>, String> {
    let Some(path) = &settings.access.auth_file else {
        return Ok(None);
    };
    let stamps = FileStamps::take(vec![path.clone()]);
    let logins = Logins::open(path, Arc::new(SystemClock));
    let logins = Arc::new(logins.map_err(|why| format!("AUTH_FILE={why}"))?);
    log::info(
        "clients must log in",
        &[("file", &path.display()), ("users", &logins.count())],
    );
    let again = Arc::clone(&logins);
    let reload = Box::new(move || {
        again.reload().map_err(|why| vec![why])?;
        log::info("AUTH_FILE read again", &[("users", &again.count())]);
        Ok(())
    });
    watched.push(WatchedFiles::new("AUTH_FILE", stamps, reload));
    Ok(Some(logins))
}

fn report_lost_to(events: &Sender<AppEvent>) -> OnLost {
    // Sender is Sync, and a closed channel means that the process is ending anyway.
    let events = events.clone();
    Arc::new(move |name| drop(events.send(AppEvent::Lost(name.to_owned()))))
}

fn watch_signals(events: &Sender<AppEvent>) -> Result<(), String> {
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1]);
    let mut signals = signals.map_err(|error| format!("signals: {error}"))?;
    let events = events.clone();
    threads::start("signal", SMALL_STACK_BYTES, move || {
        for signal in signals.forever() {
            if events.send(AppEvent::Signal(signal)).is_err() {
                return;
            }
        }
    })
}

/// Names the parts that know what readiness, status and metrics show.
fn collect_sources(
    settings: &Settings,
    upstream: &Arc<Upstream>,
    tokens: Option<&Arc<Tokens>>,
    cache: Option<&Arc<Cache>>,
    draining: &Arc<AtomicBool>,
    connections: usize,
) -> Sources {
    Sources {
        registries: settings.registries.clone(),
        offline: settings.offline,
        tokens: tokens.cloned(),
        upstream: Arc::clone(upstream),
        cache: cache.cloned(),
        allowed: settings.access.repositories.clone(),
        draining: Arc::clone(draining),
        started: (Instant::now(), SystemTime::now()),
        workers: settings.workers,
        connections_max: connections,
    }
}

/// Builds what decides: `/v2` goes to the proxy, all else to the pages.
fn build_decider(
    settings: &Settings,
    access: Access,
    sources: Sources,
    on_lost: &OnLost,
) -> Result<Arc<Decider>, String> {
    let sources = Arc::new(sources);
    let (upstream, cache) = (Arc::clone(&sources.upstream), sources.cache.clone());
    let draining = Arc::clone(&sources.draining);
    let (logins, metrics) = (access.logins.clone(), &settings.metrics);
    if metrics.repositories {
        requests::COUNTS_REPOSITORIES.store(true, Ordering::Relaxed);
    }
    let operators = OperatorPages::new(Arc::clone(&sources), settings.status_page, logins, metrics);
    let proxy = Proxy::new(access, upstream, cache.clone(), settings);
    if settings.fill_referrers && cache.is_some() && !settings.offline {
        threads::start("referrers", REFERRERS_STACK_BYTES, proxy.referrers())?;
    }
    prefetch::start(settings, &proxy, cache.as_ref(), on_lost)?;
    if let Some(cache) = &cache {
        build::start_scrub(settings, &proxy, cache)?;
    }
    let version = serde_json::json!({
        "version": config::VERSION,
        "commit": config::COMMIT,
        "build_date": config::build_date(),
    });
    let readiness = Box::new(move || sources.readiness());
    let pages = Pages::new(readiness, draining, version.to_string());
    let decide = move |request: &Arc<Request>| {
        let refusal = pages::refusal_without_certificate(request);
        if let Some(refusal) = refusal.filter(|_| !operators.is_open(request)) {
            return Answer::Now(refusal);
        }
        let path = request.path();
        let is_registry = path == "/v2" || path.starts_with("/v2/");
        if is_registry && request.peer.entrance == Entrance::Main {
            return proxy.decide(request);
        }
        let answer = operators.answer(request);
        answer.unwrap_or_else(|| Answer::Now(pages.answer(request)))
    };
    Ok(Arc::new(Decider::new(decide)))
}

impl RunningProxy {
    fn wait(self, incoming: &Receiver<AppEvent>, events: &Sender<AppEvent>, grace: Duration) -> u8 {
        let mut looked = Instant::now();
        loop {
            progress::log_due(&mut looked);
            let event = match incoming.recv_timeout(progress::LOOK) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => continue,
                // The channel cannot close: `events` is held here.
                Err(RecvTimeoutError::Disconnected) => return config::EXIT_THREAD_LOST,
            };
            match event {
                AppEvent::Lost(name) => {
                    log::error("thread lost; ending", &[("thread", &name)]);
                    return config::EXIT_THREAD_LOST;
                }
                AppEvent::Signal(SIGHUP) => self.reloader.reload_now(),
                // Other daemons write their state at it; unhandled it would end the process.
                AppEvent::Signal(SIGUSR1) => log::info("SIGUSR1 is ignored", &[]),
                AppEvent::Signal(_) if self.draining.swap(true, Ordering::SeqCst) => {
                    log::warn("second signal; ending at once", &[]);
                    return config::EXIT_FAILED;
                }
                AppEvent::Signal(_) => {
                    notify::stopping();
                    self.door.stop_accepting();
                    log::info("draining", &[("grace_s", &grace.as_secs())]);
                    if let Err(error) = self.drain(events.clone(), grace) {
                        log::error(
                            "no thread to drain with; ending at once",
                            &[("error", &error)],
                        );
                        return config::EXIT_FAILED;
                    }
                }
                AppEvent::Drained(drained) => {
                    if let Some(tokens) = &self.tokens {
                        tokens.stop();
                    }
                    if let Some(cache) = &self.cache {
                        cache.verifier.stop();
                        cache.sweeper.stop();
                        cache.sweeper.write_all();
                    }
                    log::info("stopped", &[("connections_cut", &drained.cut)]);
                    return config::EXIT_OK;
                }
            }
        }
    }

    fn drain(&self, events: Sender<AppEvent>, grace: Duration) -> Result<(), String> {
        let (door, operators) = (Arc::clone(&self.door), self.operators.clone());
        let cache = self.cache.clone();
        let drain = move || {
            let drained = door.drain(grace);
            if let Some(cache) = cache {
                cache.fills.settle();
            }
            // Operators' pages answer until the end.
            if let Some(operators) = operators {
                operators.door.drain(OPERATORS_GRACE);
            }
            drop(events.send(AppEvent::Drained(drained)));
        };
        threads::start("drain", SMALL_STACK_BYTES, drain)
    }
}
