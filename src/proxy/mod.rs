//! Requests under `/v2`. Owns: deciding which requests are refused, which are answered at once, and
//! which need an exchange with upstream. Must not: touch a socket, or know how to get a token.
//!
//! [`Proxy::decide`] runs on a worker and touches memory only. The exchange that it returns is run
//! by the connection's own thread.
//!
//! Imports inside this folder point one way: `mod` → `fetch` → `follow` → `own` → `dispatch` → the
//! handlers (`blob`, `manifest`, `listing`, `referrers`, `push`) → `page` → `exchange` → everything
//! else.

mod absent;
pub mod access;
mod answer;
mod blob;
mod cache_key;
mod conditional;
mod content;
mod descriptors;
mod dispatch;
mod elements;
mod exchange;
pub mod fetch;
mod follow;
#[cfg(any(fuzzing, test))]
#[path = "../../fuzz/hooks/proxy.rs"]
pub mod fuzz;
mod headers;
mod links;
mod listing;
pub mod login;
mod lookup;
mod manifest;
mod own;
mod page;
pub mod purpose;
mod push;
mod query;
mod referrer_queue;
mod referrers;
mod refusal;
mod registries;

use std::sync::Arc;
use std::time::Instant;

use self::access::Access;
use self::answer::{API_VERSION, refuse};
use self::dispatch::{Accepted, note_target};
use self::exchange::{Parts, WayOut};
use self::fetch::{FetchedImage, ImageFetch};
pub use self::own::ACCEPT;
use self::purpose::Purpose;
use self::referrer_queue::ReferrerQueue;
use self::registries::Registries;
use crate::cache::Cache;
use crate::cache::flights::Flights;
use crate::cache::names::Scope;
use crate::config::{Settings, UpstreamAuth};
use crate::log::RequestScope;
use crate::message::{Answer, Headers, Reply, Request};
use crate::oci::{Digest, ErrorCode, OciError, Route};
use crate::permits::FairShares;
use crate::upstream::exchange::{HEAD_TIMEOUT, UPSTREAM_CACHE_FIELD, Upstream};
use crate::via::{self, ViaFault};

/// Characters that no URI has unencoded (RFC 3986 §2); ureq sends no target that has one.
const NEVER_IN_TARGET: [char; 4] = ['"', '<', '>', '`'];

/// The proxy.
#[derive(Clone)]
pub struct Proxy {
    parts: Arc<Parts>,
}

impl Proxy {
    /// Takes from the settings those that concern requests.
    pub fn new(
        access: Access,
        upstream: Arc<Upstream>,
        cache: Option<Arc<Cache>>,
        settings: &Settings,
    ) -> Self {
        let chained = settings.upstream_auth == UpstreamAuth::None;
        let parts = Parts {
            access,
            upstream: WayOut::new(upstream),
            registries: Registries::new(
                settings.registries.clone(),
                settings.namespaces.clone(),
                chained,
            ),
            cache,
            cache_key: settings.cache_key.clone(),
            manifests: Flights::default(),
            pages: Flights::default(),
            // One client that drips leaves the other half to everybody else.
            upload_shares: FairShares::new(settings.max_uploads.div_ceil(2)),
            referrer_queue: settings.fill_referrers.then(ReferrerQueue::default),
            is_ecr: !chained,
            trust_proxy_headers: settings.trust_proxy_headers,
            blob_redirect: settings.outbound.blob_redirect,
            frozen: settings.freeze_tags.clone(),
            is_offline: settings.offline,
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

    /// Fetches an image into the cache, as clients would. Blocks until it is there or has failed.
    pub fn fetch(&self, wanted: &ImageFetch<'_>) -> FetchedImage {
        fetch::run(&self.parts, wanted)
    }

    /// Fetches a blob or manifest that the cache has lost. Blocks until it is there or has failed;
    /// false then.
    pub fn fetch_digest(&self, scope: Scope<'_>, digest: &Digest, is_manifest: bool) -> bool {
        fetch::fetch_digest(&self.parts, scope, digest, is_manifest).is_ok()
    }

    /// Decides how a request under `/v2` is answered. Never blocks.
    pub fn decide(&self, request: &Arc<Request>) -> Answer {
        let deadline = Instant::now() + HEAD_TIMEOUT;
        if let Err(fault) = via::check(&request.headers) {
            return Answer::Now(refuse(&as_loop(&fault)));
        }
        match &self.parts.access.logins {
            None => self.decide_admitted(request, deadline),
            Some(logins) => {
                let (proxy, request_again) = (self.clone(), Arc::clone(request));
                logins.admit(request, move || {
                    proxy.decide_admitted(&request_again, deadline)
                })
            }
        }
    }

    /// Decides for a client that has logged in, or need not.
    fn decide_admitted(&self, request: &Arc<Request>, deadline: Instant) -> Answer {
        let own_registry = || self.parts.own_registry();
        let resolved = match self.parts.registries.resolve(request, &own_registry) {
            Ok(resolved) => resolved,
            Err(error) => return Answer::Now(refuse(&as_not_found(error, &request.method))),
        };
        let namespace = resolved.namespace.clone();
        let access = &self.parts.access;
        if let Err(mut refusal) = access.admit(request, &resolved.query, &resolved.route) {
            note_target(&mut refusal, &resolved.route);
            return Answer::Now(*refusal);
        }
        if let Some(odd) = request.target.chars().find(|c| NEVER_IN_TARGET.contains(c)) {
            let why = format!("{odd} in the request target: expected it percent-encoded");
            return Answer::Now(refuse(&OciError::new(ErrorCode::BadRequest, why)));
        }
        if resolved.route == Route::Base {
            let reply = Reply::new(200, "application/json", "{}");
            let reply = reply.with(API_VERSION.0, API_VERSION.1);
            return Answer::Now(add_namespace(reply, namespace));
        }
        let parts = Arc::clone(&self.parts);
        let accepted = Accepted {
            request: Arc::clone(request),
            resolved,
            depth: 0,
            purpose: Purpose::Client,
            deadline,
        };
        Answer::Later(Box::new(move |body| {
            let mut reply = dispatch::run(&parts, accepted, body);
            mark_way_back(&mut reply.headers);
            add_namespace(reply, namespace)
        }))
    }
}

/// 508 (RFC 5842 §7.2) for a request that must go no further.
fn as_loop(fault: &ViaFault) -> OciError {
    let why = match fault {
        ViaFault::Loop => {
            "this request has been at this proxy before: its upstream leads back to it; set ECR to \
             the registry"
                .to_owned()
        }
        ViaFault::TooFar => format!(
            "this request has passed more than {} proxies (Via); check that they do not ask each \
             other",
            via::HOPS_MAX
        ),
    };
    OciError::new(ErrorCode::Unavailable, why).with_status(508)
}

/// A reference that is not a valid tag gets 404, as registries answer it (the conformance suite
/// asks for `.INVALID_MANIFEST_NAME`). A PUT gets 400, which tells why.
fn as_not_found(error: OciError, method: &str) -> OciError {
    match error.code {
        ErrorCode::TagInvalid if method != "PUT" => error.with_status(404),
        _ => error,
    }
}

/// Names the registry that the request named (distribution-spec "Registry Proxying").
fn add_namespace(reply: Reply, namespace: Option<String>) -> Reply {
    match namespace {
        None => reply,
        Some(namespace) => reply.with("OCI-Namespace", namespace),
    }
}

/// Sets the fields that a reply gets on its way back from an exchange: `Via`, and what the caches
/// of other proxies said about this request. `X-Cache` is about our own cache alone.
fn mark_way_back(headers: &mut Headers) {
    headers.set(via::VIA, via::append(headers, true));
    if let Some(words) = RequestScope::current().and_then(|request| request.upstream().cache) {
        headers.set(UPSTREAM_CACHE_FIELD, words);
    }
}
