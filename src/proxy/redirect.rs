//! `BLOB_REDIRECT=pass`. Owns: handing the registry's redirect of a blob to the client. Must not:
//! change where it leads: the URL is signed, and good for the client as it is.

use super::{CacheOutcome, Exchange, fail, marked};
use crate::config::BlobRedirect;
use crate::message::Reply;
use crate::oci::{Registry, Route};
use crate::upstream::exchange::{Call, Fetched, HEAD_TIMEOUT};

/// True for a GET of a blob when clients follow redirects themselves. A HEAD is answered here:
/// a URL that is signed for GET refuses it.
pub(super) fn is_passed(exchange: &Exchange) -> bool {
    exchange.parts.blob_redirect == BlobRedirect::Pass
        && exchange.request.method == "GET"
        && matches!(exchange.route, Route::Blob(..))
}

/// Asks the registry and passes its answer on, redirects too.
pub(super) fn pass(exchange: &Exchange, registry: &Registry) -> Reply {
    let call = Call {
        registry,
        method: &exchange.request.method,
        target: &exchange.target,
        headers: &exchange.headers,
        patience: HEAD_TIMEOUT,
        whole: false,
    };
    let fetched = exchange.parts.upstream.fetch_unfollowed(call);
    let reply = fetched.and_then(|reply| {
        let location = reply.headers.first("location").map(str::to_owned);
        let redirected = false;
        let mut reply = exchange.reply(registry, Fetched { reply, redirected })?;
        if let Some(location) = location {
            // Unlike the registry's own addresses it is not rewritten.
            reply.headers.set("Location", location);
        }
        Ok(reply)
    });
    let reply = reply.unwrap_or_else(|error| fail(&error));
    marked(reply, CacheOutcome::Bypass)
}
