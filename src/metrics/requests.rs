//! Finished requests. Owns: the labels by which each is counted. Must not: know how a request is
//! answered.
//!
//! Each request is counted once, by [`Finished::record`], when its reply has been written or cut.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::counted::{FILLS, FIRST_BYTES, REPOSITORY_REQUESTS, REPOSITORY_SENT_BYTES};
use super::counted::{REQUEST_DURATIONS, REQUESTS, SENT_BYTES};
use super::table::OTHER;
use crate::label::label;

label! {
    /// What a request is for, by the form of its path.
    pub enum Route {
        /// `/v2/`
        Base = "base",
        /// A blob.
        Blob = "blob",
        /// The list of repositories.
        Catalog = "catalog",
        /// A manifest.
        Manifest = "manifest",
        /// `/metrics`
        Metrics = "metrics",
        /// Anything else.
        Other = "other",
        /// `/healthz`, `/readyz`, `/version`
        Probe = "probe",
        /// Referrers of a manifest.
        Referrers = "referrers",
        /// The status page and its data.
        Status = "status",
        /// The list of tags.
        Tags = "tags",
        /// A step of an upload.
        Upload = "upload",
    }
}

impl Route {
    /// The route of a path, as `oci::Route` reads it, without a look at names and digests.
    pub fn of(path: &str) -> Self {
        let Some(rest) = path.strip_prefix("/v2/") else {
            return match path {
                "/healthz" | "/readyz" | "/version" => Self::Probe,
                "/metrics" => Self::Metrics,
                "/" | "/status" | "/status.json" => Self::Status,
                "/v2" => Self::Base,
                _ => Self::Other,
            };
        };
        match rest.rsplit('/').nth(1) {
            _ if rest.is_empty() => Self::Base,
            _ if rest.ends_with("/tags/list") => Self::Tags,
            _ if rest.contains("/blobs/uploads/") => Self::Upload,
            _ if rest.ends_with("/blobs/uploads") => Self::Upload,
            Some("blobs") => Self::Blob,
            Some("manifests") => Self::Manifest,
            Some("referrers") => Self::Referrers,
            _ if rest == "_catalog" || rest.ends_with("/_catalog") => Self::Catalog,
            _ => Self::Other,
        }
    }
}

label! {
    /// The part that the cache had in an answer, as `X-Cache` shows it.
    pub enum CacheOutcome {
        /// The cache was not asked, or does not keep the answer.
        Bypass = "bypass",
        /// The cache had it.
        Hit = "hit",
        /// The cache did not have it.
        Miss = "miss",
        /// The cache had it, and upstream confirmed it.
        Revalidated = "revalidated",
        /// The cache had it, and upstream could not confirm it.
        Stale = "stale",
    }
}

label! {
    /// Where the bytes of a reply come from.
    pub enum Source {
        /// The cache.
        Cache = "cache",
        /// The proxy itself: pages and error documents.
        Proxy = "proxy",
        /// A registry, also by way of the cache.
        Upstream = "upstream",
    }
}

/// How a download into the cache may end.
const FILL_RESULTS: [&str; 4] = ["done", "failed", "refused", "uncached"];

/// Methods that are counted by themselves.
const METHODS: [&str; 6] = ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"];
/// Statuses that are counted by themselves.
const STATUSES: [u16; 29] = [
    200, 201, 202, 204, 206, 301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 406, 408, 409, 411,
    412, 413, 415, 416, 429, 431, 500, 502, 503, 504,
];
/// `METRICS_REPOSITORIES`
pub static COUNTS_REPOSITORIES: AtomicBool = AtomicBool::new(false);

/// A request that is over.
#[derive(Debug, Clone, Copy)]
pub struct Finished<'a> {
    /// The kind of its path.
    pub route: Route,
    /// Its method.
    pub method: &'a str,
    /// The status of the reply.
    pub status: u16,
    /// The cache's part; none when it was not asked.
    pub cache: Option<CacheOutcome>,
    /// True when upstream was asked for it.
    pub asked_upstream: bool,
    /// The registry and the repository that it named.
    pub repository: Option<[&'a str; 2]>,
    /// Body bytes that the client got.
    pub bytes: u64,
    /// From the whole head until the reply began.
    pub first_byte: Duration,
    /// From the whole head until the reply was written or cut.
    pub duration: Duration,
}

impl Finished<'_> {
    /// Where its bytes come from.
    pub const fn source(&self) -> Source {
        match self.cache {
            // The proxy's own error document.
            _ if self.status >= 500 => Source::Proxy,
            Some(CacheOutcome::Hit | CacheOutcome::Revalidated | CacheOutcome::Stale) => {
                Source::Cache
            }
            Some(CacheOutcome::Bypass | CacheOutcome::Miss) => Source::Upstream,
            None if self.asked_upstream => Source::Upstream,
            None => Source::Proxy,
        }
    }

    /// Counts the request.
    pub fn record(&self) {
        let method = METHODS.iter().find(|known| **known == self.method);
        let status = STATUSES.iter().find(|known| **known == self.status);
        let status = status.map_or_else(|| OTHER.to_owned(), u16::to_string);
        let route = self.route.name();
        let cache = self.cache.map_or("none", CacheOutcome::name);
        REQUESTS
            .of([route, method.unwrap_or(&OTHER), &status, cache])
            .inc();
        SENT_BYTES.of([self.source().name()]).add(self.bytes);
        REQUEST_DURATIONS.of([route]).observe(self.duration);
        FIRST_BYTES.of([cache]).observe(self.first_byte);
        // A name that nobody has shown to exist is not counted.
        if let Some(name) = self.repository
            && self.status < 400
            && COUNTS_REPOSITORIES.load(Relaxed)
        {
            REPOSITORY_REQUESTS.of(name).inc();
            REPOSITORY_SENT_BYTES.of(name).add(self.bytes);
        }
    }
}

/// Begins at zero those series whose first step must show in a rate.
pub fn begin_at_zero() {
    for source in Source::ALL {
        SENT_BYTES.of([source.name()]);
    }
    for result in FILL_RESULTS {
        FILLS.of([result]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Finished<'_> = Finished {
        route: Route::Blob,
        method: "GET",
        status: 200,
        cache: None,
        asked_upstream: false,
        repository: None,
        bytes: 1,
        first_byte: Duration::ZERO,
        duration: Duration::ZERO,
    };

    #[test]
    fn a_request_is_counted_under_its_kind() {
        // No other test has this one.
        let finished = Finished {
            route: Route::Catalog,
            method: "odd",
            status: 418,
            cache: Some(CacheOutcome::Stale),
            repository: Some(["r.example", "app"]),
            ..GET
        };
        finished.record();
        finished.record();
        let of_kind = REQUESTS.of(["catalog", "other", "other", "stale"]);
        assert_eq!(of_kind.get(), 2);
        assert!(SENT_BYTES.of(["cache"]).get() >= 2);
    }

    #[test]
    fn repositories_that_exist_are_counted_once_that_is_enabled() {
        let named = |status| Finished {
            repository: Some(["r.example", "requests-test"]),
            status,
            bytes: 2,
            ..GET
        };
        named(200).record();
        COUNTS_REPOSITORIES.store(true, Relaxed);
        named(200).record();
        named(404).record();
        let name = ["r.example", "requests-test"];
        assert_eq!(REPOSITORY_REQUESTS.of(name).get(), 1);
        assert_eq!(REPOSITORY_SENT_BYTES.of(name).get(), 2);
    }

    #[test]
    fn bytes_are_of_the_cache_of_upstream_or_our_own() {
        for (cache, asked_upstream, source) in [
            (Some(CacheOutcome::Hit), false, Source::Cache),
            (Some(CacheOutcome::Revalidated), true, Source::Cache),
            (Some(CacheOutcome::Miss), false, Source::Upstream),
            (Some(CacheOutcome::Bypass), true, Source::Upstream),
            (None, true, Source::Upstream),
            (None, false, Source::Proxy),
        ] {
            let finished = |status| Finished {
                status,
                cache,
                asked_upstream,
                ..GET
            };
            assert_eq!(finished(200).source(), source, "{cache:?}");
            assert_eq!(finished(504).source(), Source::Proxy);
        }
    }

    #[test]
    fn words_are_bounded_whatever_a_client_sends() {
        for odd in [
            "*",
            "/v2x/a/blobs/b",
            "/v2/a",
            "/V2/",
            "//metrics",
            "/metrics/",
            "",
        ] {
            assert_eq!(Route::of(odd), Route::Other, "{odd:?}");
        }
    }
}
