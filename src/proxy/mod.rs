//! What a request under `/v2` means. Owns: the decision, the exchange with upstream, and turning
//! every failure into an answer. Must not: touch a socket, or know how a token comes about.
//!
//! [`Proxy::decide`] runs on a worker and touches memory only. What needs upstream is the exchange
//! it returns, which the connection's own thread runs.

pub mod access;
mod blob;
mod cache_key;
mod conditional;
mod follow;
#[cfg(fuzzing)]
pub mod fuzz;
mod headers;
mod links;
mod listing;
pub mod login;
mod manifest;
mod page;
mod pull;
mod push;
mod redirect;
mod referrers;
mod refusal;
mod registries;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::access::Access;
use crate::cache::Cache;
use crate::cache::flights::Flights;
use crate::cache::names::Scope;
use crate::config::{BlobRedirect, CacheKey, Settings, UpstreamAuth};
use crate::log;
use crate::message::{Answer, Body, Buffered, Headers, Outcome, Reply, Request, RequestBody};
use crate::oci::{ErrorCode, OciError, Registry, Repository, Route};
use crate::upstream::client::Incoming;
use crate::upstream::exchange::{Call, Fetched, HEAD_TIMEOUT, Upstream};
use crate::upstream::{Stage, UpstreamError};
use links::Own;
use registries::{Choice, Registries};

/// Said in `Retry-After` when the proxy or its way out is at a limit.
const RETRY_AFTER_SECONDS: &str = "5";
/// What every answer under `/v2` says of itself; docker takes it for the sign of a registry.
const API_VERSION: (&str, &str) = ("Docker-Distribution-Api-Version", "registry/2.0");

/// Text of a `Warning` at the most; clients take 4096 bytes.
const WARNING_BYTES_MAX: usize = 512;
/// No URI has these as they are (RFC 3986 §2), and ureq sends none that does.
const NEVER_IN_TARGET: [char; 4] = ['"', '<', '>', '`'];

/// The proxy.
#[derive(Clone)]
pub struct Proxy {
    parts: Arc<Parts>,
}

/// The registries, the way to them, and what is kept of them.
struct Parts {
    access: Access,
    upstream: Arc<Upstream>,
    registries: Registries,
    cache: Option<Arc<Cache>>,
    cache_key: CacheKey,
    manifests: Flights<manifest::Asked>,
    pages: Flights<page::Asked>,
    /// Whose referrers are to be fetched, if they are.
    follow: Option<follow::Queue>,
    /// The upstreams are ECR itself.
    is_ecr: bool,
    trust_proxy_headers: bool,
    blob_redirect: BlobRedirect,
}

impl Proxy {
    /// Of the settings those count that say what a request means.
    pub fn new(
        access: Access,
        upstream: Arc<Upstream>,
        cache: Option<Arc<Cache>>,
        settings: &Settings,
    ) -> Self {
        let chained = settings.upstream_auth == UpstreamAuth::None;
        let parts = Parts {
            access,
            upstream,
            registries: Registries::new(settings.registries.clone(), chained),
            cache,
            cache_key: settings.cache_key.clone(),
            manifests: Flights::default(),
            pages: Flights::default(),
            follow: settings.fill_referrers.then(follow::Queue::default),
            is_ecr: !chained,
            trust_proxy_headers: settings.trust_proxy_headers,
            blob_redirect: settings.outbound.blob_redirect,
        };
        Self {
            parts: Arc::new(parts),
        }
    }

    /// The work of the thread `referrers`, which `FILL_REFERRERS` needs; it never returns.
    pub fn referrers(&self) -> impl FnOnce() + Send + use<> {
        let parts = Arc::clone(&self.parts);
        move || follow::run(&parts)
    }

    /// Decides what a request under `/v2` gets. Never blocks.
    pub fn decide(&self, request: &Request) -> Answer {
        match &self.parts.access.logins {
            None => self.admitted(request),
            Some(logins) => {
                let (proxy, asked) = (self.clone(), request.clone());
                logins.admit(request, move || proxy.admitted(&asked))
            }
        }
    }

    /// The same for a client that may come in.
    fn admitted(&self, request: &Request) -> Answer {
        let access = &self.parts.access;
        let meant = match self
            .parts
            .registries
            .read(request, &|| self.parts.own_registry())
        {
            Ok(meant) => meant,
            Err(error) => return Answer::Now(refuse(&not_there(error, &request.method))),
        };
        let echo = meant.namespace.clone();
        let methods = access.methods(&meant.route);
        if !methods.contains(&request.method.as_str()) {
            let error = access.unsupported(request);
            return Answer::Now(refuse(&error).with("Allow", methods.join(", ")));
        }
        if let Err(error) = access.check(&meant.target, &meant.route) {
            return Answer::Now(refuse(&error));
        }
        if let Some(odd) = request.target.chars().find(|c| NEVER_IN_TARGET.contains(c)) {
            let why = format!("{odd} in the request target: expected it percent-encoded");
            return Answer::Now(refuse(&OciError::new(ErrorCode::BadRequest, why)));
        }
        let target = match listing::target(&meant.route, &meant.target, self.parts.is_ecr) {
            Ok(target) => target,
            Err(error) => return Answer::Now(refuse(&error)),
        };
        if meant.route == Route::Base {
            let reply = Reply::new(200, "application/json", "{}");
            let reply = reply.with(API_VERSION.0, API_VERSION.1);
            return Answer::Now(echoed(reply, echo));
        }
        let exchange = Exchange {
            parts: Arc::clone(&self.parts),
            partition: cache_key::partition(&self.parts.cache_key, request, &meant.path),
            own: Own {
                address: links::own_address(request, self.parts.trust_proxy_headers),
                prefix: meant.prefix,
                parameter: meant.parameter,
            },
            headers: headers::for_upstream(&request.headers, &meant.route, &request.method),
            request: request.clone(),
            choice: meant.choice,
            path: meant.path,
            target: push::target(target, &meant.route),
            route: meant.route,
            depth: 0,
        };
        Answer::Later(Box::new(move |body| echoed(exchange.run(body), echo)))
    }
}

impl Parts {
    /// The identity's registry, as far as it is known now. Touches memory only.
    fn own_registry(&self) -> Option<Registry> {
        let known = self.upstream.default_registry(Instant::now());
        known.ok().or_else(|| self.cache.as_ref()?.remembered())
    }
}

/// Nothing is there under what can be no tag: who asks for it is told so, as a registry does (the
/// conformance suite asks for `.INVALID_MANIFEST_NAME`). That no tag is like that, a PUT is told.
fn not_there(error: OciError, method: &str) -> OciError {
    match error.code {
        ErrorCode::TagInvalid if method != "PUT" => error.with_status(404),
        _ => error,
    }
}

/// Says which registry the request named (distribution-spec "Registry Proxying").
fn echoed(reply: Reply, namespace: Option<String>) -> Reply {
    match namespace {
        None => reply,
        Some(namespace) => reply.with("OCI-Namespace", namespace),
    }
}

/// One request on its way to upstream and back.
struct Exchange {
    parts: Arc<Parts>,
    /// Of the tag entries.
    partition: String,
    own: Own,
    /// The client's fields as upstream gets them.
    headers: Headers,
    /// As the client sent it.
    request: Request,
    choice: Choice,
    /// The path without a registry's host in it.
    path: String,
    /// As upstream gets it.
    target: String,
    route: Route,
    /// 0 for a client's; else how far from a client's image what is asked for was found.
    depth: u8,
}

impl Exchange {
    fn run(self, body: &mut RequestBody<'_>) -> Reply {
        let registry = match self.registry() {
            Ok(registry) => registry,
            Err(error) => return fail(&error),
        };
        if let Choice::IfCalled(name) = &self.choice
            && !registries::is_it(&registry, name)
        {
            return refuse(&registries::unknown(name));
        }
        if push::is_push(&self.route, &self.request.method) {
            return push::run(&self, &registry, body);
        }
        if redirect::is_passed(&self) {
            return redirect::pass(&self, &registry);
        }
        match &self.route {
            Route::Catalog | Route::Tags(_) => return listing::get(&self, &registry),
            Route::Referrers(repository, digest) => {
                return referrers::get(&self, &registry, repository, digest);
            }
            _ => {}
        }
        let Some(cache) = &self.parts.cache else {
            return self.forward_or_fail(&registry, body);
        };
        let context = Pull {
            exchange: &self,
            cache,
            registry: &registry,
        };
        match &self.route {
            Route::Blob(repository, digest) => blob::get(&context, repository, digest),
            Route::Manifest(repository, reference) => {
                manifest::get(&context, repository, reference)
            }
            Route::Base
            | Route::Catalog
            | Route::Referrers(..)
            | Route::Tags(_)
            | Route::Upload(_)
            | Route::Uploads(_) => self.forward_or_fail(&registry, body),
        }
    }

    /// The registry that is asked for: the one the client names, the first that is set, that of the
    /// identity, or, before there is an identity, the one the cache was filled from.
    fn registry(&self) -> Result<Registry, UpstreamError> {
        if let Choice::Known(registry) = &self.choice {
            return Ok(registry.clone());
        }
        if let Some(registry) = self.parts.registries.default() {
            return Ok(registry.clone());
        }
        match self.parts.own_registry() {
            Some(registry) => Ok(registry),
            None => self
                .parts
                .upstream
                .default_registry(Instant::now() + HEAD_TIMEOUT),
        }
    }

    fn forward_or_fail(&self, registry: &Registry, body: &mut RequestBody<'_>) -> Reply {
        self.forward(registry, body, HEAD_TIMEOUT)
            .unwrap_or_else(|error| fail(&error))
    }

    /// Passes the request on, and the reply back, whose head must come within `patience`.
    fn forward(
        &self,
        registry: &Registry,
        body: &mut RequestBody<'_>,
        patience: Duration,
    ) -> Result<Reply, UpstreamError> {
        let call = Call {
            registry,
            method: &self.request.method,
            target: &self.target,
            headers: &self.headers,
            patience,
            // Its digest is told in the head, so it is read before the head goes out.
            whole: matches!(self.route, Route::Manifest(..)),
        };
        self.reply(registry, self.parts.upstream.fetch(call, body)?)
    }

    /// Makes upstream's reply the client's: what both share here, what a route adds in its file.
    fn reply(&self, registry: &Registry, fetched: Fetched) -> Result<Reply, UpstreamError> {
        self.reply_to(&self.request.method, registry, fetched)
    }

    /// The same for upstream's reply to another method.
    fn reply_to(
        &self,
        method: &str,
        registry: &Registry,
        fetched: Fetched,
    ) -> Result<Reply, UpstreamError> {
        let Fetched {
            reply: incoming,
            redirected,
        } = fetched;
        let outcome = Outcome {
            upstream: Some(incoming.status.to_string()),
            ..Outcome::default()
        };
        if let Some(stage) = self.no_answer(method, incoming.status) {
            let reason = format!("answered {} to a {method}", incoming.status);
            let to = registry.url();
            return Err(UpstreamError { stage, to, reason });
        }
        let body = if method == "HEAD" {
            Body::Empty {
                length: incoming.length,
            }
        } else {
            Body::Stream {
                reader: incoming.body,
                length: incoming.length,
            }
        };
        let mut headers = headers::for_client(incoming.headers, &self.own);
        headers.set(API_VERSION.0, API_VERSION.1);
        if redirected {
            // A blob host speaks of its own object, not of the blob.
            headers.retain(|name, _| headers::is_of_the_blob(name));
        }
        let reply = Reply {
            status: incoming.status,
            headers,
            body,
            outcome,
        };
        let allowed = self.parts.access.methods(&self.route);
        let reply = refusal::documented(reply, &self.route, method, &allowed);
        let fields = &self.request.headers;
        match &self.route {
            Route::Blob(_, digest) if matches!(method, "GET" | "HEAD") => {
                Ok(pull::unless_held(pull::blob(reply, digest), fields))
            }
            Route::Manifest(_, reference) if matches!(method, "GET" | "HEAD") => {
                let reply = pull::manifest(reply, reference, registry)?;
                Ok(pull::unless_held(reply, fields))
            }
            Route::Catalog => listing::catalogue(reply, &self.parts.access, registry),
            Route::Tags(_) => Ok(listing::names(reply)),
            Route::Referrers(..) => Ok(referrers::list(reply)),
            Route::Base
            | Route::Blob(..)
            | Route::Manifest(..)
            | Route::Upload(_)
            | Route::Uploads(_) => Ok(reply),
        }
    }
}

impl Exchange {
    /// What is wrong with a status that is no answer to this exchange.
    fn no_answer(&self, method: &str, status: u16) -> Option<Stage> {
        let sent = |name| self.headers.first(name).is_some();
        let is_upload = matches!(self.route, Route::Upload(_) | Route::Uploads(_));
        let is_answer = match status {
            // A part that nobody asked for would be taken for the whole.
            206 => sent("Range"),
            201..=299 => is_upload || !matches!(method, "GET" | "HEAD"),
            304 => sent("If-Modified-Since"),
            301 | 302 | 303 | 307 | 308 => redirect::is_passed(self),
            // Of a proxy on the way to the registry: no client of ours can log in there.
            407 => false,
            // A 101 would end HTTP on the client's connection; past 599 there is no status (RFC
            // 9110 §15).
            200 | 400..=599 => true,
            _ => false,
        };
        let stage = match status {
            300..=399 => Stage::Redirect,
            _ => Stage::Transfer,
        };
        (!is_answer).then_some(stage)
    }
}

/// A pull that may be answered from the cache.
struct Pull<'a> {
    exchange: &'a Exchange,
    cache: &'a Arc<Cache>,
    registry: &'a Registry,
}

impl<'a> Pull<'a> {
    const fn scope(&self, repository: &'a Repository) -> Scope<'a> {
        Scope {
            registry: self.registry,
            repository,
        }
    }

    fn is_head(&self) -> bool {
        self.exchange.request.method == "HEAD"
    }

    /// Names what is asked for in the memory of 404s and in flights.
    fn key(&self, repository: &Repository, what: &dyn Display) -> String {
        format!("{}/{repository} {what}", self.registry)
    }

    /// Passes the request on without keeping anything.
    fn bypass(&self) -> Reply {
        let mut nothing = std::io::empty();
        let body = &mut RequestBody::new(&mut nothing, Some(0));
        marked(
            self.exchange.forward_or_fail(self.registry, body),
            CacheOutcome::Bypass,
        )
    }

    /// Upstream's own answer, where it was not what was asked for.
    fn refused(&self, refused: Buffered) -> Reply {
        let fetched = Fetched {
            reply: refused.into(),
            redirected: false,
        };
        let reply = self.exchange.reply(self.registry, fetched);
        marked(
            reply.unwrap_or_else(|error| fail(&error)),
            CacheOutcome::Miss,
        )
    }

    /// Asks upstream whether `target` is there, under `headers`. Blocks for `patience`.
    fn head(
        &self,
        target: &str,
        headers: &Headers,
        patience: Duration,
    ) -> Result<Incoming, UpstreamError> {
        let registry = self.registry;
        let call = Call {
            registry,
            method: "HEAD",
            target,
            headers,
            patience,
            whole: false,
        };
        Ok(self.exchange.parts.upstream.fetch_bodiless(call)?.reply)
    }

    /// The fields under which the cache itself asks: what the client accepts, and nothing that
    /// would make the answer less than the whole.
    fn own_headers(&self) -> Headers {
        let mut headers = self.exchange.headers.clone();
        const KEPT: [&str; 3] = ["Accept", "Accept-Encoding", "User-Agent"];
        headers.retain(|name, _| KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(name)));
        headers
    }
}

/// What the cache had to do with an answer, as `X-Cache` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CacheOutcome {
    Bypass,
    Hit,
    Miss,
    Revalidated,
    Stale,
}

/// Says in the reply, and in the log, what the cache had to do with it.
fn marked(mut reply: Reply, outcome: CacheOutcome) -> Reply {
    let (shown, logged) = match outcome {
        CacheOutcome::Bypass => ("BYPASS", "bypass"),
        CacheOutcome::Hit => ("HIT", "hit"),
        CacheOutcome::Miss => ("MISS", "miss"),
        CacheOutcome::Revalidated => ("REVALIDATED", "revalidated"),
        CacheOutcome::Stale => ("STALE", "stale"),
    };
    reply.headers.set("X-Cache", shown);
    // Users of the nginx proxy watch this one.
    reply.headers.set("X-Cache-Status", shown);
    reply.outcome.cache = Some(logged);
    reply
}

/// The `Warning` of an answer that upstream could not confirm (RFC 7234 §5.5; the distribution-spec
/// allows 299 alone).
fn stale_warning(why: &UpstreamError) -> String {
    let text: String = why
        .to_string()
        .chars()
        .filter(|c| !"\"\\".contains(*c))
        .collect();
    let mut end = text.len().min(WARNING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!(
        "299 - \"upstream is out of reach: {}\"",
        text.get(..end).unwrap_or_default()
    )
}

/// The one place that turns a failure of upstream into an answer. Out of reach is 504, out of
/// order 502, and what will pass by itself or by mending our own settings 503.
fn fail(error: &UpstreamError) -> Reply {
    let status = match error.stage {
        Stage::ClientBody => 400,
        Stage::Connect | Stage::Resolve | Stage::Timeout => 504,
        Stage::Redirect | Stage::Refused | Stage::Tls | Stage::Transfer => 502,
        Stage::Authorize | Stage::Queue => 503,
    };
    log::warn("upstream failed", &[("status", &status), ("error", error)]);
    let refusal = OciError::new(ErrorCode::Unavailable, error.to_string()).with_status(status);
    let mut reply = refuse(&refusal);
    reply.outcome.upstream = Some(error.stage.name().to_owned());
    if status == 503 {
        reply.headers.set("Retry-After", RETRY_AFTER_SECONDS);
    }
    reply
}

/// An error document as a reply.
fn refuse(error: &OciError) -> Reply {
    let mut reply = Reply::new(error.status, "application/json", error.document());
    reply.headers.set(API_VERSION.0, API_VERSION.1);
    reply.outcome.error = Some(error.message.clone());
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_their_status() {
        let status = |stage| {
            let (to, reason) = ("https://r".to_owned(), "why".to_owned());
            fail(&UpstreamError { stage, to, reason }).status
        };
        assert_eq!(status(Stage::Connect), 504);
        assert_eq!(status(Stage::Resolve), 504);
        assert_eq!(status(Stage::Timeout), 504);
        assert_eq!(status(Stage::Tls), 502);
        assert_eq!(status(Stage::Refused), 502);
        assert_eq!(status(Stage::Authorize), 503);
        assert_eq!(status(Stage::Queue), 503);
    }
}
