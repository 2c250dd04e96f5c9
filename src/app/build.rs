//! The parts that serving and the commands have in common: the way to upstream, tokens, the cache.
//! Owns: building them from the settings. Must not: decide who uses them.

use std::path::PathBuf;
use std::sync::Arc;

use super::threads::{self, OnLost};
use crate::aws::token::{TokenConfig, Tokens};
use crate::cache::pins::Pins;
use crate::cache::scrub::Scrubber;
use crate::cache::store::OpenFault;
use crate::cache::{self, Cache};
use crate::clock::SystemClock;
use crate::config::{CacheDir, ImageGlobs, Settings, UpstreamAuth};
use crate::image_name::ImageName;
use crate::log;
use crate::proxy::Proxy;
use crate::upstream::client::Client;
use crate::upstream::dns::Dns;
use crate::upstream::exchange::Upstream;
use crate::upstream::outbound::Proxies;
use crate::upstream::redirect::Redirects;
use crate::upstream::resolver::Resolver;
use crate::upstream::{Authorizer, FixedToken};

/// Stack of the token thread: TLS and JSON, measured well below.
const TOKEN_STACK_BYTES: usize = 512 * 1024;
/// Stack of the cache's threads: `sweep` parses manifests, `verify` hashes.
const CACHE_STACK_BYTES: usize = 512 * 1024;
/// The volume of the container image.
const DEFAULT_CACHE_DIR: &str = "/cache";

/// Builds the way to upstream, with `pool` idle connections at the most, and starts the token
/// thread.
///
/// # Errors
/// When a thread is refused, or the authorities cannot be read.
pub(super) fn open_upstream(
    settings: &Settings,
    pool: usize,
    on_lost: &OnLost,
) -> Result<(Arc<Upstream>, Option<Arc<Tokens>>), String> {
    let client = Arc::new(new_client(settings, pool)?);
    let tokens = start_tokens(settings, &client, on_lost)?;
    let authorizer: Arc<dyn Authorizer> = match &tokens {
        Some(tokens) => Arc::clone(tokens) as Arc<dyn Authorizer>,
        None => Arc::new(FixedToken::default()),
    };
    let upstream = Upstream::new(
        client,
        authorizer,
        redirects(settings),
        settings.max_exchanges,
        settings.max_uploads,
    );
    Ok((Arc::new(upstream), tokens))
}

/// The hosts that blobs may come from, and the hosts that the operator gave.
pub fn redirects(settings: &Settings) -> Redirects {
    let aws = &settings.aws;
    let endpoints = [
        &aws.endpoint_url_ecr,
        &aws.endpoint_url,
        &aws.profile_endpoints.ecr,
        &aws.profile_endpoints.any,
    ];
    let endpoints = endpoints.into_iter().flatten();
    let endpoints: Vec<&str> = endpoints.map(String::as_str).collect();
    Redirects::new(&settings.blob_hosts, &settings.registries, &endpoints)
}

/// Builds the HTTP client towards registries and AWS: name look-ups, outbound proxies, TLS, and up
/// to `pool` idle connections. `check` uses it, too.
///
/// # Errors
/// When the thread of the look-ups is refused, or the authorities cannot be read.
pub fn new_client(settings: &Settings, pool: usize) -> Result<Client, String> {
    let proxies = Proxies::new(&settings.outbound);
    if settings.offline {
        return Client::new(Resolver::closed(), proxies, None, pool);
    }
    let lookup = match settings.outbound.resolvers.as_slice() {
        [] => Resolver::system(),
        servers => Dns::lookup(servers.to_vec()),
    };
    let resolver = Resolver::start(lookup).map_err(|error| format!("thread resolve: {error}"))?;
    let bundle = settings.aws.ca_bundle.as_deref();
    Client::new(resolver, proxies, bundle, pool)
}

/// Starts the token thread, unless the upstream wants no token or must not be asked.
fn start_tokens(
    settings: &Settings,
    client: &Arc<Client>,
    on_lost: &OnLost,
) -> Result<Option<Arc<Tokens>>, String> {
    if settings.upstream_auth == UpstreamAuth::None || settings.offline {
        return Ok(None);
    }
    let tokens = new_tokens(settings, client);
    let running = Arc::clone(&tokens);
    threads::start_vital("token", TOKEN_STACK_BYTES, on_lost, move || running.run())?;
    Ok(Some(tokens))
}

/// Builds the store of tokens for the identity in the settings. Calls nothing yet. `check` uses it,
/// too.
pub fn new_tokens(settings: &Settings, client: &Arc<Client>) -> Arc<Tokens> {
    let config = TokenConfig {
        aws: settings.aws.clone(),
        renew_interval: settings.renew_interval,
        registry: settings.registries.first().cloned(),
    };
    Tokens::new(config, Arc::new(Arc::clone(client)), Arc::new(SystemClock))
}

/// The directory of the cache; none when it is off. `check` uses it, too.
pub fn cache_directory(settings: &Settings) -> Option<PathBuf> {
    match &settings.cache_dir {
        CacheDir::At(directory) => Some(directory.clone()),
        CacheDir::Off => None,
        CacheDir::Unset => {
            let default = PathBuf::from(DEFAULT_CACHE_DIR);
            default.is_dir().then_some(default)
        }
    }
}

/// The images that eviction never touches: those of `PIN`, else those of `PREFETCH`. Reads the file
/// of the latter; while that cannot be read, it names none.
pub fn pins(settings: &Settings) -> Pins {
    pins_with(
        settings,
        settings.prefetch.images.read().unwrap_or_default(),
    )
}

/// The images that eviction never touches, when the images of `PREFETCH` are known.
pub(super) fn pins_with(settings: &Settings, prefetched: Vec<ImageName>) -> Pins {
    let names = match settings.pin == ImageGlobs::default() {
        true => prefetched,
        false => Vec::new(),
    };
    Pins {
        globs: vec![settings.pin.clone(), settings.freeze_tags.clone()],
        names,
        default_registry: settings.registries.first().cloned(),
    }
}

/// Opens the cache, unless it is off. When the directory cannot be used, the log says so and the
/// proxy runs without a cache: it is still of use.
pub(super) fn open_cache(
    settings: &Settings,
    directory: Option<PathBuf>,
    upstream: &Arc<Upstream>,
) -> Result<Option<Arc<Cache>>, String> {
    let Some(directory) = directory else {
        let why = "OFFLINE=true serves the cache alone, and there is none: set CACHE_DIR";
        return match settings.offline {
            true => Err(why.to_owned()),
            false => Ok(None),
        };
    };
    let kept = cache::CacheSettings {
        quota: settings.cache_max_size,
        tag_ttl: settings.cache_tag_ttl,
        max_fills: settings.max_fills,
        offline: settings.offline,
        background_rate: settings.prefetch.rate,
        default_registry: settings.registries.first().cloned(),
        pins: pins(settings),
    };
    let cache = match Cache::open(&directory, kept, Arc::clone(upstream)) {
        Ok(cache) => Arc::new(cache),
        // Using it would lose what a newer version has written there.
        Err(error) if matches!(error.fault, OpenFault::Newer(_)) => return Err(error.to_string()),
        Err(error) if settings.offline => return Err(error.to_string()),
        Err(error) => {
            log::error("running without a cache", &[("error", &error)]);
            return Ok(None);
        }
    };
    let root = cache.store.root().display();
    log::info(
        "cache opened",
        &[
            ("directory", &root),
            ("quota_bytes", &settings.cache_max_size),
            ("read_only", &cache.store.is_read_only()),
            ("offline", &settings.offline),
        ],
    );
    Ok(Some(cache))
}

/// Starts the threads of the cache, if there is one. They begin with looking at every file: a proxy
/// opens its door before, since on few cores that would delay it.
pub(super) fn start_cache(cache: Option<&Cache>, on_lost: &OnLost) -> Result<(), String> {
    let Some(cache) = cache else { return Ok(()) };
    let sweeper = Arc::clone(&cache.sweeper);
    threads::start_vital("sweep", CACHE_STACK_BYTES, on_lost, move || sweeper.run())?;
    let verifier = Arc::clone(&cache.verifier);
    threads::start_vital("verify", CACHE_STACK_BYTES, on_lost, move || verifier.run())
}

/// Starts the thread `scrub`, if it is wanted. It fetches damaged blobs through the proxy.
pub(super) fn start_scrub(settings: &Settings, proxy: &Proxy, cache: &Cache) -> Result<(), String> {
    if settings.scrub_interval.is_zero() || cache.store.is_read_only() {
        return Ok(());
    }
    let proxy = proxy.clone();
    let scrubber = Scrubber {
        store: Arc::clone(&cache.store),
        names: Arc::clone(&cache.names),
        fetch: Box::new(move |scope, digest, is_manifest| {
            proxy.fetch_digest(scope, digest, is_manifest)
        }),
        interval: settings.scrub_interval,
    };
    threads::start("scrub", CACHE_STACK_BYTES, move || scrubber.run())
}
