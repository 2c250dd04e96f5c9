//! One request on its way to upstream and back, its registry resolved. Owns: passing it on, and the
//! form that all replies of upstream get on their way to the client. Must not: choose what answers
//! a request, or know the fields of one route.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::access::Access;
use super::answer::API_VERSION;
use super::links::{self, ClientAddress};
use super::lookup::{ManifestLookup, PageLookup};
use super::purpose::Purpose;
use super::referrer_queue::ReferrerQueue;
use super::registries::{Registries, ResolvedRequest};
use super::{headers, refusal};
use crate::address::network_of;
use crate::cache::Cache;
use crate::cache::flights::Flights;
use crate::config::{BlobRedirect, CacheKey, ImageGlobs};
use crate::message::{Body, Buffered, Headers, LogNote, Reply, Request, RequestBody, WholeBody};
use crate::oci::{Digest, Registry, Repository, Route};
use crate::permits::{FairShares, SharePermit};
use crate::transfers::Subject;
use crate::upstream::exchange::{Call, Fetched, Upstream};
use crate::upstream::incoming::Incoming;
use crate::upstream::{OFFLINE, Stage, UpstreamError};

/// Longest wait for one of a client's own uploads to end, as for a permit.
const UPLOAD_SHARE_TIMEOUT: Duration = Duration::from_secs(5);

/// What all exchanges share.
pub(super) struct Parts {
    pub(super) access: Access,
    pub(super) upstream: WayOut,
    pub(super) registries: Registries,
    pub(super) cache: Option<Arc<Cache>>,
    pub(super) cache_key: CacheKey,
    pub(super) manifests: Flights<ManifestLookup>,
    pub(super) pages: Flights<PageLookup>,
    /// Uploads at a time of each client network.
    pub(super) upload_shares: FairShares<IpAddr>,
    /// None unless `FILL_REFERRERS` is set.
    pub(super) referrer_queue: Option<ReferrerQueue>,
    /// The upstreams are ECR itself.
    pub(super) is_ecr: bool,
    pub(super) trust_proxy_headers: bool,
    pub(super) blob_redirect: BlobRedirect,
    /// Tags that keep their first digest (`FREEZE_TAGS`).
    pub(super) frozen: ImageGlobs,
    /// `OFFLINE`
    pub(super) is_offline: bool,
}

/// The way to upstream. Only [`Exchange::upstream`] gives it out, so that no handler overlooks a
/// request that must not take it.
pub(super) struct WayOut(Arc<Upstream>);

impl WayOut {
    pub(super) const fn new(upstream: Arc<Upstream>) -> Self {
        Self(upstream)
    }
}

/// Why a request gets what the cache has, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheAlone {
    /// `OFFLINE`
    Offline,
    /// The client wants no more: `Cache-Control: only-if-cached` (RFC 9111 §5.2.1.7).
    OnlyIfCached,
}

impl CacheAlone {
    /// The reason in words, for the client.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Offline => OFFLINE,
            Self::OnlyIfCached => "the request says only-if-cached: upstream was not asked",
        }
    }
}

impl Parts {
    /// The identity's registry, as far as it is known now. Touches memory only.
    pub(super) fn own_registry(&self) -> Option<Registry> {
        let known = self.ask_registry(Instant::now());
        known
            .ok()
            .or_else(|| self.cache.as_ref()?.recall_registry())
    }

    /// The identity's registry. Waits until `deadline` for an identity.
    pub(super) fn ask_registry(&self, deadline: Instant) -> Result<Registry, UpstreamError> {
        self.upstream.0.default_registry(deadline)
    }
}

/// One request, and everything that answering it takes.
pub(super) struct Exchange {
    pub(super) parts: Arc<Parts>,
    pub(super) registry: Registry,
    /// The request as the client sent it.
    pub(super) request: Arc<Request>,
    /// The request with its registry resolved. Its target is the one that upstream gets.
    pub(super) resolved: ResolvedRequest,
    /// 0 for a client's request; else the number of steps from a client's image to its referrer.
    pub(super) depth: u8,
    /// Why the request is made.
    pub(super) purpose: Purpose,
    /// When the head of the answer is due, waits for other requests included:
    /// [`HEAD_TIMEOUT`](crate::upstream::exchange::HEAD_TIMEOUT) after the request came.
    pub(super) deadline: Instant,
}

impl Exchange {
    pub(super) fn is_head(&self) -> bool {
        self.request.method == "HEAD"
    }

    /// Why the answer must come from the cache alone; none when upstream may be asked.
    pub(super) fn cache_alone(&self) -> Option<CacheAlone> {
        let reads = matches!(self.request.method.as_str(), "GET" | "HEAD");
        if reads && is_only_if_cached(&self.request.headers) {
            return Some(CacheAlone::OnlyIfCached);
        }
        self.parts.is_offline.then_some(CacheAlone::Offline)
    }

    /// The way to upstream.
    ///
    /// # Errors
    /// When this request must not take it.
    pub(super) fn upstream(&self) -> Result<&Upstream, UpstreamError> {
        match self.cache_alone() {
            None => Ok(&self.parts.upstream.0),
            Some(why) => {
                let (stage, reason) = (Stage::Offline, why.reason());
                Err(UpstreamError::at(&self.registry, stage, reason))
            }
        }
    }

    /// True when the client follows the registry's redirect itself. A HEAD is answered here: a URL
    /// that is signed for GET refuses it.
    pub(super) fn passes_redirect(&self) -> bool {
        self.parts.blob_redirect == BlobRedirect::Pass
            && self.purpose == Purpose::Client
            && self.request.method == "GET"
            && self.cache_alone().is_none()
            && matches!(self.resolved.route, Route::Blob(..))
    }

    /// The content that this request moves, as the list of transfers shows it.
    pub(super) fn subject(&self, repository: &Repository, digest: Option<&Digest>) -> Subject {
        Subject {
            registry: self.registry.to_string(),
            repository: repository.to_string(),
            digest: digest.map(Digest::to_string),
            request: Some(self.request.id.clone()),
            peer: Some(self.request.peer.to_string()),
        }
    }

    /// Time until the head of the answer is due.
    ///
    /// # Errors
    /// When there is none left.
    pub(super) fn time_left(&self) -> Result<Duration, UpstreamError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let reason = "no answer came in time".to_owned();
            return Err(UpstreamError::at(&self.registry, Stage::Timeout, reason));
        }
        Ok(left)
    }

    /// The address under which the client reaches the registry through us.
    pub(super) fn client_address(&self) -> ClientAddress {
        ClientAddress {
            origin: links::own_origin(&self.request, self.parts.trust_proxy_headers),
            prefix: self.resolved.prefix.clone(),
            added: self.resolved.added.clone(),
            parameter: self.resolved.parameter.clone(),
        }
    }

    /// Passes the request on with its body, and dresses the reply.
    pub(super) fn forward(&self, body: &mut RequestBody<'_>) -> Result<Reply, UpstreamError> {
        let _share = self.take_upload_share(body)?;
        let headers = self.upstream_headers();
        let fetched = self.upstream()?.fetch(self.call(&headers)?, body)?;
        self.dress(&self.request.method, &headers, into_reply(fetched))
    }

    /// Passes a request without a body on, and dresses the reply.
    pub(super) fn forward_bodiless(&self) -> Result<Reply, UpstreamError> {
        let mut nothing = std::io::empty();
        self.forward(&mut RequestBody::new(&mut nothing, Some(0)))
    }

    /// Passes a request without a body on, and dresses the reply. A redirect is not followed: the
    /// client gets it with the URL that it names.
    pub(super) fn forward_unfollowed(&self) -> Result<Reply, UpstreamError> {
        let headers = self.upstream_headers();
        let reply = self.upstream()?.fetch_unfollowed(self.call(&headers)?)?;
        let location = reply.headers.first("location").map(str::to_owned);
        let redirected = false;
        let fetched = Fetched { reply, redirected };
        let mut reply = self.dress(&self.request.method, &headers, into_reply(fetched))?;
        if let Some(location) = location {
            // Unlike the registry's own addresses it is not rewritten: it is signed.
            reply.headers.set("Location", location);
        }
        Ok(reply)
    }

    /// Dresses a reply that another request has fetched as this one would have.
    pub(super) fn dress_fetched(&self, fetched: Fetched) -> Result<Reply, UpstreamError> {
        let headers = self.upstream_headers();
        self.dress(&self.request.method, &headers, into_reply(fetched))
    }

    /// Dresses a reply to a request of our own with this method, which had no range and no
    /// condition.
    pub(super) fn dress_buffered(
        &self,
        method: &str,
        buffered: Buffered,
    ) -> Result<Reply, UpstreamError> {
        let reply = Reply {
            status: buffered.status,
            headers: buffered.headers,
            body: Body::Bytes(buffered.body),
            outcome: LogNote::default(),
        };
        self.dress(method, &Headers::new(), reply)
    }

    /// Dresses a page of a list, of upstream's or of the cache, as the answer to a GET.
    pub(super) fn dress_page(
        &self,
        headers: Headers,
        body: WholeBody,
    ) -> Result<Reply, UpstreamError> {
        let reply = Reply {
            status: 200,
            headers,
            body: body.into(),
            outcome: LogNote::default(),
        };
        self.dress("GET", &Headers::new(), reply)
    }

    /// Asks upstream with a target and fields of our own, and waits for the head of the reply: for
    /// `patience`, and not past the deadline. The body of a GET must come within that time, too.
    pub(super) fn ask(
        &self,
        method: &str,
        target: &str,
        headers: &Headers,
        patience: Duration,
    ) -> Result<Incoming, UpstreamError> {
        let call = Call {
            registry: &self.registry,
            method,
            target,
            headers,
            patience: patience.min(self.time_left()?),
            whole: method == "GET",
        };
        Ok(self.upstream()?.fetch_bodiless(call)?.reply)
    }

    /// The client's fields as upstream gets them.
    pub(super) fn upstream_headers(&self) -> Headers {
        headers::for_upstream(
            &self.request.headers,
            &self.resolved.route,
            &self.request.method,
        )
    }

    /// Takes the client's share of uploads for as long as its body may last. A request without a
    /// body takes none, nor does a client on a unix socket, which has no address.
    fn take_upload_share(
        &self,
        body: &RequestBody<'_>,
    ) -> Result<Option<SharePermit<'_, IpAddr>>, UpstreamError> {
        let peer = self.request.peer.address.map(network_of);
        let Some(network) = peer.filter(|_| body.length() != Some(0)) else {
            return Ok(None);
        };
        let deadline = Instant::now() + UPLOAD_SHARE_TIMEOUT;
        let share = self.parts.upload_shares.take(network, deadline);
        share.map(Some).ok_or_else(|| {
            let reason = format!("{network} runs half of MAX_UPLOADS already; try again");
            UpstreamError::at(&self.registry, Stage::Queue, reason)
        })
    }

    fn call<'a>(&'a self, headers: &'a Headers) -> Result<Call<'a>, UpstreamError> {
        Ok(Call {
            registry: &self.registry,
            method: &self.request.method,
            target: &self.resolved.target,
            headers,
            patience: self.time_left()?,
            // The head of a manifest names its digest, and a catalogue may have to be filtered, so
            // their bodies are read first.
            whole: match self.resolved.route {
                Route::Catalog => !self.parts.access.shows_everything(),
                _ => matches!(self.resolved.route, Route::Manifest(..)),
            },
        })
    }

    /// Gives upstream's reply the form that all routes share; a handler adds the fields of its own.
    /// `sent`: the fields of the request that it answers.
    fn dress(
        &self,
        method: &str,
        sent: &Headers,
        mut reply: Reply,
    ) -> Result<Reply, UpstreamError> {
        self.check_status(method, sent, &reply)?;
        if method == "HEAD" {
            let length = reply.body.length();
            reply.body = Body::Empty { length };
        }
        reply.outcome.upstream_status = Some(reply.status);
        reply.headers = headers::for_client(reply.headers, &self.client_address());
        reply.headers.set(API_VERSION.0, API_VERSION.1);
        if reply.status < 400 {
            return Ok(reply);
        }
        let route = &self.resolved.route;
        let allowed = self.parts.access.methods(route);
        Ok(refusal::as_error_document(reply, route, method, &allowed))
    }

    /// # Errors
    /// When this status is no answer to such a request.
    fn check_status(
        &self,
        method: &str,
        sent: &Headers,
        reply: &Reply,
    ) -> Result<(), UpstreamError> {
        let status = reply.status;
        let is_upload = matches!(self.resolved.route, Route::Upload(_) | Route::Uploads(_));
        let is_write = !matches!(method, "GET" | "HEAD");
        let is_answer = match status {
            // A portal or a load balancer answers with a page, and has done nothing.
            200..=299 | 404 if is_write && is_page(reply) => false,
            // Whatever a registry has made or taken is 201, 202 or 204 (distribution-spec).
            200 if is_write => method == "DELETE",
            // A part that nobody asked for would be taken for the whole.
            206 => sent.first("Range").is_some(),
            201..=299 => is_upload || !matches!(method, "GET" | "HEAD"),
            304 => sent.first("If-Modified-Since").is_some(),
            301 | 302 | 303 | 307 | 308 => self.passes_redirect(),
            // From a proxy on the way to the registry: no client of ours can log in there.
            407 => false,
            // A 101 would end HTTP on the client's connection; past 599 there is no status (RFC
            // 9110 §15).
            200 => !is_page(reply),
            400..=599 => true,
            _ => false,
        };
        if is_answer {
            return Ok(());
        }
        let stage = match status {
            300..=399 => Stage::Redirect,
            _ => Stage::Transfer,
        };
        let reason = format!("it answered {status} to a {method}");
        Err(UpstreamError::at(&self.registry, stage, reason))
    }
}

/// True for a client that wants what a cache has, and nothing else (RFC 9111 §5.2.1.7).
fn is_only_if_cached(client: &Headers) -> bool {
    let lines = client.all("Cache-Control");
    let mut directives = lines.flat_map(|line| line.split(',')).map(str::trim);
    directives.any(|directive| directive.eq_ignore_ascii_case("only-if-cached"))
}

/// True for a document for people, which no registry sends.
fn is_page(reply: &Reply) -> bool {
    let media_type = reply.headers.first("Content-Type").unwrap_or_default();
    let media_type = media_type.trim_start().to_ascii_lowercase();
    media_type.starts_with("text/html") || media_type.starts_with("application/xhtml")
}

/// Makes a reply of what was fetched. A blob host's fields are left out unless they describe the
/// blob.
fn into_reply(fetched: Fetched) -> Reply {
    let Fetched { reply, redirected } = fetched;
    let mut headers = reply.headers;
    if redirected {
        headers.retain(|name, _| headers::describes_blob(name));
    }
    Reply {
        status: reply.status,
        headers,
        body: Body::Stream {
            reader: reply.body,
            length: reply.length,
        },
        outcome: LogNote::default(),
    }
}
