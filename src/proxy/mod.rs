//! What a request under `/v2` means. Owns: the decision, the exchange with upstream, and turning
//! every failure into an answer. Must not: touch a socket, or know how a token comes about.
//!
//! [`Proxy::decide`] runs on a worker and touches memory only. What needs upstream is the exchange
//! it returns, which the connection's own thread runs.

mod headers;
mod listing;
mod pull;
mod push;

use std::sync::Arc;

use crate::log;
use crate::message::{Answer, Body, Headers, Outcome, Reply, Request, RequestBody};
use crate::oci::{ErrorCode, OciError, Registry, Route};
use crate::upstream::exchange::{Call, Fetched, Upstream};
use crate::upstream::{Stage, UpstreamError};

/// Said in `Retry-After` when the proxy or its way out is at a limit.
const RETRY_AFTER_SECONDS: &str = "5";
/// What every answer under `/v2` says of itself; docker takes it for the sign of a registry.
const API_VERSION: (&str, &str) = ("Docker-Distribution-Api-Version", "registry/2.0");

/// No URI has these as they are (RFC 3986 §2), and ureq sends none that does.
const NEVER_IN_TARGET: [char; 4] = ['"', '<', '>', '`'];

/// The proxy: one registry and the way to it.
pub struct Proxy {
    upstream: Arc<Upstream>,
    registry: Option<Registry>,
    trust_proxy_headers: bool,
}

impl Proxy {
    /// `registry`: none for the one that belongs to the identity. `trust_proxy_headers`: believe
    /// what `Forwarded` and `X-Forwarded-*` say of the address the client sees.
    pub const fn new(
        upstream: Arc<Upstream>,
        registry: Option<Registry>,
        trust_proxy_headers: bool,
    ) -> Self {
        Self {
            upstream,
            registry,
            trust_proxy_headers,
        }
    }

    /// Decides what a request under `/v2` gets. Never blocks.
    pub fn decide(&self, request: &Request) -> Answer {
        let route = match Route::parse(request.path()) {
            Ok(route) => route,
            Err(error) => return Answer::Now(refuse(&error)),
        };
        let methods = route.methods();
        if !methods.contains(&request.method.as_str()) {
            let why = format!("{} is not possible here", request.method);
            let error = OciError::new(ErrorCode::Unsupported, why);
            return Answer::Now(refuse(&error).with("Allow", methods.join(", ")));
        }
        if let Some(odd) = request.target.chars().find(|c| NEVER_IN_TARGET.contains(c)) {
            let why = format!("{odd} in the request target: expected it percent-encoded");
            return Answer::Now(refuse(&OciError::new(ErrorCode::BadRequest, why)));
        }
        if route == Route::Base {
            let reply = Reply::new(200, "application/json", "{}");
            return Answer::Now(reply.with(API_VERSION.0, API_VERSION.1));
        }
        let exchange = Exchange {
            upstream: Arc::clone(&self.upstream),
            registry: self.registry.clone(),
            own_address: headers::own_address(request, self.trust_proxy_headers),
            headers: headers::for_upstream(&request.headers, &route),
            method: request.method.clone(),
            target: headers::without_namespace(&request.target),
            route,
        };
        Answer::Later(Box::new(move |body| exchange.run(body)))
    }
}

/// One request on its way to upstream and back.
struct Exchange {
    upstream: Arc<Upstream>,
    registry: Option<Registry>,
    own_address: String,
    headers: Headers,
    method: String,
    target: String,
    route: Route,
}

impl Exchange {
    fn run(self, body: &mut RequestBody<'_>) -> Reply {
        let call = Call {
            registry: self.registry.as_ref(),
            method: &self.method,
            target: &self.target,
            headers: &self.headers,
            // Its digest is told in the head, so it is read before the head goes out.
            whole: matches!(self.route, Route::Manifest(..)),
        };
        match self.upstream.fetch(call, body) {
            Ok(fetched) => self.reply(fetched).unwrap_or_else(|error| fail(&error)),
            Err(error) => fail(&error),
        }
    }

    /// Makes upstream's reply the client's: what both share here, what a route adds in its file.
    fn reply(&self, fetched: Fetched) -> Result<Reply, UpstreamError> {
        let Fetched {
            reply: incoming,
            registry,
            redirected,
        } = fetched;
        let outcome = Outcome {
            upstream: Some(incoming.status.to_string()),
            ..Outcome::default()
        };
        // A 101 would end HTTP on the client's connection; past 599 there is no status (RFC 9110
        // §15).
        let stage = match incoming.status {
            200..=299 | 304 | 400..=599 => None,
            300..=399 => Some(Stage::Redirect),
            _ => Some(Stage::Transfer),
        };
        if let Some(stage) = stage {
            let reason = format!("answered {} to a {}", incoming.status, self.method);
            let to = registry.url();
            return Err(UpstreamError { stage, to, reason });
        }
        let body = if self.method == "HEAD" {
            Body::Empty {
                length: incoming.length,
            }
        } else {
            Body::Stream {
                reader: incoming.body,
                length: incoming.length,
            }
        };
        let mut headers = headers::for_client(incoming.headers, &self.own_address);
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
        match &self.route {
            Route::Blob(_, digest) => Ok(pull::blob(reply, digest)),
            Route::Manifest(_, reference) if matches!(self.method.as_str(), "GET" | "HEAD") => {
                pull::manifest(reply, reference, &registry)
            }
            Route::Catalog | Route::Tags(_) => Ok(listing::names(reply)),
            Route::Uploads(_) | Route::Upload(_) | Route::Manifest(..) => Ok(push::reply(reply)),
            Route::Base | Route::Referrers(..) => Ok(reply),
        }
    }
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
