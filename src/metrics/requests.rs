//! Finished requests. Owns: their numbers by route, method, status and the cache's part, the bytes
//! that clients got, and how long it took. Must not: know how a request is answered.
//!
//! Each request is counted once, by [`record`], when its reply has been written or cut.

use std::time::Duration;

use super::counter::{Counter, add};
use super::histogram::Histogram;
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
        if rest.ends_with("/tags/list") {
            return Self::Tags;
        }
        if rest.contains("/blobs/uploads/") || rest.ends_with("/blobs/uploads") {
            return Self::Upload;
        }
        match rest.rsplit('/').nth(1) {
            Some("blobs") => Self::Blob,
            Some("manifests") => Self::Manifest,
            Some("referrers") => Self::Referrers,
            _ if rest.is_empty() => Self::Base,
            _ if rest == "_catalog" || rest.ends_with("/_catalog") => Self::Catalog,
            _ => Self::Other,
        }
    }
}

label! {
    /// The method of a request.
    pub enum Method {
        /// DELETE
        Delete = "DELETE",
        /// GET
        Get = "GET",
        /// HEAD
        Head = "HEAD",
        /// Any other.
        Other = "other",
        /// PATCH
        Patch = "PATCH",
        /// POST
        Post = "POST",
        /// PUT
        Put = "PUT",
    }
}

impl Method {
    /// The method of this name.
    pub fn of(name: &str) -> Self {
        let known = Self::ALL.iter().find(|method| method.name() == name);
        known.copied().unwrap_or(Self::Other)
    }
}

label! {
    /// The part that the cache had in an answer, as `X-Cache` shows it.
    pub enum CacheOutcome {
        /// Not kept.
        Bypass = "bypass",
        /// It was there.
        Hit = "hit",
        /// It was not there.
        Miss = "miss",
        /// It was there, and upstream confirmed it.
        Revalidated = "revalidated",
        /// It was there, and upstream could not confirm it.
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

/// Statuses that are counted by themselves; the last is for all others.
const STATUSES: [u16; 30] = [
    200, 201, 202, 204, 206, 301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 406, 408, 409, 411,
    412, 413, 415, 416, 429, 431, 500, 502, 503, 504, 0,
];
/// Outcomes of the cache, and none.
const OUTCOMES: usize = CacheOutcome::ALL.len() + 1;
const KINDS: usize = Route::ALL.len() * Method::ALL.len() * STATUSES.len() * OUTCOMES;

static REQUESTS: [Counter; KINDS] = [const { Counter::new() }; KINDS];
static SENT_BYTES: [Counter; Source::ALL.len()] = [const { Counter::new() }; Source::ALL.len()];
static DURATIONS: [Histogram; Route::ALL.len()] = [const { Histogram::new() }; Route::ALL.len()];
static FIRST_BYTES: [Histogram; OUTCOMES] = [const { Histogram::new() }; OUTCOMES];

/// What requests are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestKind {
    /// The route.
    pub route: Route,
    /// The method.
    pub method: Method,
    /// The status of the reply; 0 for one that no list of statuses has.
    pub status: u16,
    /// The cache's part; none when it was not asked.
    pub cache: Option<CacheOutcome>,
}

impl RequestKind {
    fn index(self) -> usize {
        let status = STATUSES.iter().position(|known| *known == self.status);
        let methods = self.route as usize * Method::ALL.len() + self.method as usize;
        let statuses = methods * STATUSES.len() + status.unwrap_or(STATUSES.len() - 1);
        statuses * OUTCOMES + outcome_index(self.cache)
    }

    /// The kind with that index.
    fn at(index: usize) -> Option<Self> {
        let (statuses, cache) = (index / OUTCOMES, index % OUTCOMES);
        let (methods, status) = (statuses / STATUSES.len(), statuses % STATUSES.len());
        let (route, method) = (methods / Method::ALL.len(), methods % Method::ALL.len());
        Some(Self {
            route: *Route::ALL.get(route)?,
            method: *Method::ALL.get(method)?,
            status: *STATUSES.get(status)?,
            cache: CacheOutcome::ALL.get(cache).copied(),
        })
    }
}

/// A request that is over.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// What it is counted by.
    pub kind: RequestKind,
    /// A registry answered it.
    pub asked_upstream: bool,
    /// Body bytes that the client got.
    pub bytes: u64,
    /// From the whole head until the reply began.
    pub first_byte: Duration,
    /// From the whole head until the reply was written or cut.
    pub duration: Duration,
}

impl Finished {
    /// Where its bytes come from.
    pub const fn source(&self) -> Source {
        match self.kind.cache {
            // Our own words about a failure.
            _ if self.kind.status >= 500 => Source::Proxy,
            Some(CacheOutcome::Hit | CacheOutcome::Revalidated | CacheOutcome::Stale) => {
                Source::Cache
            }
            Some(CacheOutcome::Bypass | CacheOutcome::Miss) => Source::Upstream,
            None if self.asked_upstream => Source::Upstream,
            None => Source::Proxy,
        }
    }
}

/// Counts a request.
pub fn record(finished: &Finished) {
    let kind = finished.kind;
    add(&REQUESTS, kind.index(), 1);
    add(&SENT_BYTES, finished.source() as usize, finished.bytes);
    if let Some(durations) = DURATIONS.get(kind.route as usize) {
        durations.observe(finished.duration);
    }
    if let Some(first_bytes) = FIRST_BYTES.get(outcome_index(kind.cache)) {
        first_bytes.observe(finished.first_byte);
    }
}

/// Each kind of request that has come, and how many did.
pub fn kinds() -> impl Iterator<Item = (RequestKind, u64)> {
    let counts = REQUESTS.iter().map(Counter::get).enumerate();
    let counted = counts.filter(|(_, count)| *count > 0);
    counted.filter_map(|(index, count)| Some((RequestKind::at(index)?, count)))
}

/// Body bytes that clients got, by where they came from.
pub fn sent_bytes() -> impl Iterator<Item = (&'static str, u64)> {
    let bytes = SENT_BYTES.iter().map(Counter::get);
    Source::ALL.iter().map(|source| source.name()).zip(bytes)
}

/// How long requests took, by route.
pub fn durations() -> impl Iterator<Item = (&'static str, &'static Histogram)> {
    Route::ALL.iter().map(|route| route.name()).zip(&DURATIONS)
}

/// How long requests took until their reply began, by the cache's part.
pub fn first_bytes() -> impl Iterator<Item = (&'static str, &'static Histogram)> {
    let outcomes = CacheOutcome::ALL.iter().map(|outcome| outcome.name());
    outcomes.chain(["none"]).zip(&FIRST_BYTES)
}

fn outcome_index(cache: Option<CacheOutcome>) -> usize {
    cache.map_or(CacheOutcome::ALL.len(), |cache| cache as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_counter_of_its_own() {
        for index in 0..KINDS {
            let kind = RequestKind::at(index).unwrap();
            assert_eq!(kind.index(), index, "{kind:?}");
        }
        assert_eq!(RequestKind::at(KINDS), None);
    }

    #[test]
    fn a_request_is_counted_under_its_kind() {
        // No other test has this one.
        let kind = RequestKind {
            route: Route::Catalog,
            method: Method::Patch,
            status: 418,
            cache: Some(CacheOutcome::Stale),
        };
        let finished = Finished {
            kind,
            asked_upstream: true,
            bytes: 7,
            first_byte: Duration::from_millis(1),
            duration: Duration::from_secs(1),
        };
        assert_eq!(finished.source(), Source::Cache);
        record(&finished);
        record(&finished);
        let found: Vec<_> = kinds().collect();
        // A status that is not in the list is 0.
        assert!(
            found.contains(&(RequestKind { status: 0, ..kind }, 2)),
            "{found:?}"
        );
        let from_cache = sent_bytes().find(|(source, _)| *source == "cache");
        assert!(from_cache.unwrap().1 >= 14);
    }

    #[test]
    fn bytes_are_of_the_cache_of_upstream_or_our_own() {
        let answered = |status, cache, asked_upstream| Finished {
            kind: RequestKind {
                route: Route::Blob,
                method: Method::Get,
                status,
                cache,
            },
            asked_upstream,
            bytes: 1,
            first_byte: Duration::ZERO,
            duration: Duration::ZERO,
        };
        for (cache, asked_upstream, source) in [
            (Some(CacheOutcome::Hit), false, Source::Cache),
            (Some(CacheOutcome::Revalidated), true, Source::Cache),
            (Some(CacheOutcome::Miss), false, Source::Upstream),
            (Some(CacheOutcome::Bypass), true, Source::Upstream),
            (None, true, Source::Upstream),
            (None, false, Source::Proxy),
        ] {
            let finished = answered(200, cache, asked_upstream);
            assert_eq!(finished.source(), source, "{cache:?}");
            assert_eq!(answered(504, cache, asked_upstream).source(), Source::Proxy);
        }
    }

    #[test]
    fn words_are_bounded_whatever_a_client_sends() {
        assert_eq!(Method::of("GET"), Method::Get);
        for odd in ["get", "OTHER", "other\"} 1", "\n", ""] {
            assert_eq!(Method::of(odd), Method::Other, "{odd:?}");
        }
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
