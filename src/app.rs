//! Builds every part in order, starts the threads, waits for signals, drains. Owns: the order of
//! start and stop, and what ends the process. Must not: hold any rule of its own about requests.
//!
//! Order: listeners → descriptors → name look-ups and the way out → token thread → workers →
//! lanes → door. A start needs neither network nor credentials; what is missing shows in `/readyz`.

mod capacity;
mod listen;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::aws::token::{TokenConfig, Tokens};
use crate::cache::store::OpenError;
use crate::cache::{self, Cache};
use crate::clock::SystemClock;
use crate::config::{self, CacheDir, Settings, UpstreamAuth};
use crate::door::{Door, Drained, Lanes, Limits, MinRate};
use crate::log;
use crate::message::{Answer, Desk, Request};
use crate::pages::{Pages, Readiness};
use crate::pool::{Decide, Pool};
use crate::proxy::Proxy;
use crate::upstream::client::{Client, POOL_MAX};
use crate::upstream::exchange::Upstream;
use crate::upstream::redirect::Redirects;
use crate::upstream::resolver::Resolver;
use crate::upstream::{Anonymous, Authorizer};

/// Longest wait for the last log lines at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Stack of the token thread: TLS and JSON, measured well below.
const TOKEN_STACK_BYTES: usize = 512 * 1024;
/// Stack of the sweep thread: manifests are parsed there.
const SWEEP_STACK_BYTES: usize = 512 * 1024;
/// Where a container image keeps its volume.
const DEFAULT_CACHE_DIR: &str = "/cache";
/// Stack of the threads that only wait and pass on.
const SMALL_STACK_BYTES: usize = 128 * 1024;

/// What ends, or may end, the process.
enum Event {
    Drained(Drained),
    /// The thread of this name is gone, or tiny_http is cut off.
    Lost(String),
    Signal(i32),
}

/// Serves until a signal ends it; returns the exit code. Blocks for as long.
pub fn run(settings: Settings) -> u8 {
    log::init(settings.log_level, settings.log_format);
    log::hook_panics();
    let (events, incoming) = channel();
    let code = match start(&settings, &events) {
        Ok(running) => running.wait(&incoming, &events, settings.shutdown_grace),
        Err(why) => {
            log::error("start failed", &[("error", &why)]);
            config::EXIT_FAILED
        }
    };
    log::flush(FLUSH_TIMEOUT);
    code
}

struct Running {
    door: Arc<Door>,
    tokens: Option<Arc<Tokens>>,
    cache: Option<Arc<Cache>>,
    draining: Arc<AtomicBool>,
    _socket_file: Option<listen::SocketFile>,
}

fn start(settings: &Settings, events: &Sender<Event>) -> Result<Running, String> {
    let bound = listen::open(settings)?;
    let on_lost = on_lost(events);
    watch_signals(events).map_err(|error| format!("signals: {error}"))?;
    let cache_directory = cache_directory(settings);
    let connections = capacity::connections(settings, cache_directory.is_some())?;
    let resolver =
        Resolver::start(Resolver::system()).map_err(|error| format!("thread resolve: {error}"))?;
    let bundle = settings.aws.ca_bundle.as_deref();
    let client = Arc::new(Client::new(resolver, bundle, connections.min(POOL_MAX))?);
    let tokens = start_tokens(settings, &client, &on_lost)?;
    let authorizer: Arc<dyn Authorizer> = match &tokens {
        Some(tokens) => Arc::clone(tokens) as Arc<dyn Authorizer>,
        None => Arc::new(Anonymous),
    };
    let redirects = Redirects::new(&settings.blob_hosts);
    let (exchanges, uploads) = (settings.max_exchanges, settings.max_uploads);
    let upstream = Arc::new(Upstream::new(
        client, authorizer, redirects, exchanges, uploads,
    ));
    let draining = Arc::new(AtomicBool::new(false));
    let cache = open_cache(settings, cache_directory, &upstream, &on_lost)?;
    let decide = decide(
        settings,
        upstream,
        tokens.clone(),
        cache.clone(),
        Arc::clone(&draining),
    );
    let desk = Arc::new(Desk::default());
    let workers = |error| format!("workers: {error}");
    let pool = Pool::start(settings.workers, &desk, &decide, &on_lost).map_err(workers)?;
    let lanes_lost = Arc::clone(&on_lost);
    let half_lost = Box::new(move || lanes_lost("lanes to tiny_http"));
    let lanes = Lanes::open(pool.address(), settings.lanes, half_lost)
        .map_err(|error| format!("lanes to tiny_http: {error}"))?;
    pool.seal().map_err(workers)?;
    let limits = limits(settings, connections);
    let door = Door::open(bound.listeners, lanes, desk, limits, on_lost)
        .map_err(|error| format!("thread accept: {error}"))?;
    announce(settings, &bound.names, connections);
    Ok(Running {
        door: Arc::new(door),
        tokens,
        cache,
        draining,
        _socket_file: bound.file,
    })
}

fn limits(settings: &Settings, connections: usize) -> Limits {
    let limits = Limits::new(connections);
    Limits {
        connections_per_peer: settings.max_connections_per_peer,
        min_rate: MinRate {
            bytes_per_second: settings.min_rate,
            ..limits.min_rate
        },
        ..limits
    }
}

fn announce(settings: &Settings, bound: &[String], connections: usize) {
    let registry = settings.registry.as_ref().map_or_else(
        || "that of the identity".to_owned(),
        |registry| registry.url(),
    );
    for address in bound {
        log::info(
            &format!("listening on {address}"),
            &[
                ("registry", &registry),
                ("version", &config::VERSION),
                ("connections_max", &connections),
            ],
        );
    }
}

fn on_lost(events: &Sender<Event>) -> Arc<dyn Fn(&str) + Send + Sync> {
    // Sender is Sync, and a closed channel means that the process is ending anyway.
    let events = events.clone();
    Arc::new(move |name| drop(events.send(Event::Lost(name.to_owned()))))
}

fn watch_signals(events: &Sender<Event>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let events = events.clone();
    let watch = move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    };
    Builder::new()
        .name("signal".into())
        .stack_size(SMALL_STACK_BYTES)
        .spawn(watch)?;
    Ok(())
}

/// Starts the token thread, unless the upstream wants no token.
fn start_tokens(
    settings: &Settings,
    client: &Arc<Client>,
    on_lost: &Arc<dyn Fn(&str) + Send + Sync>,
) -> Result<Option<Arc<Tokens>>, String> {
    if settings.upstream_auth == UpstreamAuth::None {
        return Ok(None);
    }
    let config = TokenConfig {
        aws: settings.aws.clone(),
        renew_interval: settings.renew_interval,
        registry: settings.registry.clone(),
    };
    let tokens = Tokens::new(config, Arc::new(Arc::clone(client)), Arc::new(SystemClock));
    let (running, on_lost) = (Arc::clone(&tokens), Arc::clone(on_lost));
    let run = move || {
        // Returns by itself only when it was told to stop.
        if catch_unwind(AssertUnwindSafe(|| running.run())).is_err() {
            on_lost("token");
        }
    };
    let thread = Builder::new()
        .name("token".into())
        .stack_size(TOKEN_STACK_BYTES);
    thread
        .spawn(run)
        .map_err(|error| format!("thread token: {error}"))?;
    Ok(Some(tokens))
}

/// Where the cache is to be, if there is to be one.
fn cache_directory(settings: &Settings) -> Option<PathBuf> {
    match &settings.cache_dir {
        CacheDir::At(directory) => Some(directory.clone()),
        CacheDir::Off => None,
        CacheDir::Unset => {
            let default = PathBuf::from(DEFAULT_CACHE_DIR);
            default.is_dir().then_some(default)
        }
    }
}

/// Opens the cache, if there is to be one, and starts its thread. A directory that cannot be used
/// is said in the log, and the proxy runs without a cache: it is still of use.
fn open_cache(
    settings: &Settings,
    directory: Option<PathBuf>,
    upstream: &Arc<Upstream>,
    on_lost: &Arc<dyn Fn(&str) + Send + Sync>,
) -> Result<Option<Arc<Cache>>, String> {
    let Some(directory) = directory else {
        return Ok(None);
    };
    let kept = cache::Settings {
        quota: settings.cache_max_size,
        tag_ttl: settings.cache_tag_ttl,
        max_fills: settings.max_fills,
    };
    let cache = match Cache::open(&directory, kept, Arc::clone(upstream)) {
        Ok(cache) => Arc::new(cache),
        // Using it would lose what a newer version has written there.
        Err(error @ OpenError::Newer { .. }) => return Err(error.to_string()),
        Err(error) => {
            log::error("running without a cache", &[("error", &error)]);
            return Ok(None);
        }
    };
    let (sweeper, on_lost) = (Arc::clone(&cache.sweeper), Arc::clone(on_lost));
    let sweep = move || {
        // Returns by itself only when it was told to stop.
        if catch_unwind(AssertUnwindSafe(|| sweeper.run())).is_err() {
            on_lost("sweep");
        }
    };
    let thread = Builder::new()
        .name("sweep".into())
        .stack_size(SWEEP_STACK_BYTES);
    thread
        .spawn(sweep)
        .map_err(|error| format!("thread sweep: {error}"))?;
    let root = cache.store.root().display();
    log::info(
        "cache opened",
        &[
            ("directory", &root),
            ("quota_bytes", &settings.cache_max_size),
        ],
    );
    Ok(Some(cache))
}

/// What the workers run: `/v2` is the proxy's, the rest the pages'.
fn decide(
    settings: &Settings,
    upstream: Arc<Upstream>,
    tokens: Option<Arc<Tokens>>,
    cache: Option<Arc<Cache>>,
    draining: Arc<AtomicBool>,
) -> Arc<Decide> {
    let proxy = Proxy::new(
        upstream,
        settings.registry.clone(),
        cache.clone(),
        settings.cache_key.clone(),
        settings.trust_proxy_headers,
    );
    let version = serde_json::json!({
        "version": config::VERSION,
        "commit": config::COMMIT,
        "build_date": config::build_date(),
    });
    let pages = Pages::new(readiness(tokens, cache), draining, version.to_string());
    Arc::new(move |request: &Request| {
        let path = request.path();
        if path == "/v2" || path.starts_with("/v2/") {
            proxy.decide(request)
        } else {
            Answer::Now(pages.answer(request))
        }
    })
}

fn readiness(tokens: Option<Arc<Tokens>>, cache: Option<Arc<Cache>>) -> Box<Readiness> {
    let Some(tokens) = tokens else {
        return Box::new(|| Ok("the upstream needs no token".to_owned()));
    };
    Box::new(move || {
        let status = tokens.status();
        if status.has_token {
            let who = status
                .arn
                .unwrap_or_else(|| "an identity not yet named".to_owned());
            let until = status
                .expires
                .map_or_else(|| "unknown".to_owned(), log::timestamp);
            return Ok(format!("token of {who} until {until}"));
        }
        let why = status
            .last_error
            .unwrap_or_else(|| "waiting for the first token".to_owned());
        match &cache {
            Some(cache) if cache.has_content() => Ok(format!("cache only, without a token: {why}")),
            _ => Err(why),
        }
    })
}

impl Running {
    fn wait(self, incoming: &Receiver<Event>, events: &Sender<Event>, grace: Duration) -> u8 {
        loop {
            // The channel cannot close: `events` is held here.
            let Ok(event) = incoming.recv() else {
                return config::EXIT_THREAD_LOST;
            };
            match event {
                Event::Lost(name) => {
                    log::error("thread lost; ending", &[("thread", &name)]);
                    return config::EXIT_THREAD_LOST;
                }
                Event::Signal(SIGHUP) => log::info("nothing to reload on SIGHUP", &[]),
                Event::Signal(_) if self.draining.swap(true, Ordering::SeqCst) => {
                    log::warn("second signal; ending at once", &[]);
                    return config::EXIT_FAILED;
                }
                Event::Signal(_) => {
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
                Event::Drained(drained) => {
                    if let Some(tokens) = &self.tokens {
                        tokens.stop();
                    }
                    if let Some(cache) = &self.cache {
                        cache.sweeper.stop();
                        cache.sweeper.write_index_now();
                    }
                    log::info("stopped", &[("connections_cut", &drained.cut)]);
                    return config::EXIT_OK;
                }
            }
        }
    }

    fn drain(&self, events: Sender<Event>, grace: Duration) -> std::io::Result<()> {
        let door = Arc::clone(&self.door);
        let drain = move || drop(events.send(Event::Drained(door.drain(grace))));
        Builder::new()
            .name("drain".into())
            .stack_size(SMALL_STACK_BYTES)
            .spawn(drain)?;
        Ok(())
    }
}
