//! The proxy without its door, for a command that fills the cache. Owns: its start and end. Must
//! not: listen.

use std::sync::Arc;

use super::build;
use super::threads::OnLost;
use crate::cache::Cache;
use crate::config::Settings;
use crate::proxy::Proxy;
use crate::proxy::access::Access;
use crate::proxy::fetch::{FetchedImage, ImageFetch};

/// Idle connections kept: as many as there are downloads of one image at a time.
const POOL: usize = 4;

/// Fills the cache; a proxy may use the directory meanwhile.
pub struct CacheFiller {
    proxy: Proxy,
    cache: Arc<Cache>,
}

impl CacheFiller {
    /// Opens the cache and the way to upstream.
    ///
    /// # Errors
    /// Why nothing can be fetched or kept, and what to do.
    pub fn open(settings: &Settings) -> Result<Self, String> {
        if settings.offline {
            return Err("OFFLINE=true: upstream must not be asked".to_owned());
        }
        let directory = build::cache_directory(settings);
        let directory = directory.ok_or("there is no cache: set CACHE_DIR")?;
        // Whatever needs a lost thread fails by its own time limit.
        let on_lost: OnLost = Arc::new(|_| {});
        let (upstream, _) = build::open_upstream(settings, POOL, &on_lost)?;
        let why = format!("cache directory {}: cannot be written", directory.display());
        let cache = build::open_cache(settings, Some(directory), &upstream)?;
        let cache = cache.filter(|cache| !cache.store.is_read_only());
        let cache = cache.ok_or(why)?;
        build::start_cache(Some(&cache), &on_lost)?;
        let access = Access::new(&settings.access, settings.offline, None);
        let proxy = Proxy::new(access, upstream, Some(Arc::clone(&cache)), settings);
        Ok(Self { proxy, cache })
    }

    /// Fetches an image. Blocks until it is there or has failed.
    pub fn fetch(&self, wanted: &ImageFetch<'_>) -> FetchedImage {
        self.proxy.fetch(wanted)
    }

    /// Stops the cache's threads, and writes what they have not written yet.
    pub fn close(self) {
        self.cache.verifier.stop();
        self.cache.sweeper.stop();
        self.cache.sweeper.write_all();
    }
}
