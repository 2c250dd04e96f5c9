//! Answers of the proxy's own. Owns: error documents, the status of each failure of upstream, and
//! what an answer says about the cache. Must not: ask upstream, or look at a request.

use std::time::SystemTime;

use super::headers::DIGEST_FIELD;
use crate::log::{self, Level};
use crate::message::Reply;
pub(super) use crate::metrics::CacheOutcome;
use crate::oci::{Digest, ErrorCode, OciError, Reference, Route};
use crate::upstream::{Stage, UpstreamError};

/// Value of `Retry-After` when the proxy or its way out is at a limit.
pub(super) const RETRY_AFTER_SECONDS: &str = "5";
/// Every answer under `/v2` has this field; docker takes it for the sign of a registry.
pub(super) const API_VERSION: (&str, &str) = ("Docker-Distribution-Api-Version", "registry/2.0");
/// Longest text of a `Warning`; clients take 4096 bytes.
const WARNING_BYTES_MAX: usize = 512;

/// Writes the part that the cache had into the reply, and into its log line.
pub(super) fn mark(mut reply: Reply, outcome: CacheOutcome) -> Reply {
    let shown = outcome.name().to_ascii_uppercase();
    reply.headers.set("X-Cache", shown.as_str());
    // Users of the nginx proxy watch this one.
    reply.headers.set("X-Cache-Status", shown);
    reply.outcome.cache = Some(outcome);
    reply
}

/// Marks an answer that upstream could not confirm (RFC 7234 §5.5; the distribution-spec allows
/// the code 299 alone).
pub(super) fn mark_stale(reply: Reply, why: &UpstreamError) -> Reply {
    let text: String = why
        .to_string()
        .chars()
        .filter(|c| !"\"\\".contains(*c))
        .collect();
    let mut end = text.len().min(WARNING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    let warning = format!("299 - \"upstream is out of reach: {text}\"");
    mark(reply, CacheOutcome::Stale).with("Warning", warning)
}

/// Seconds since upstream last confirmed an answer (RFC 9111 §5.1).
pub(super) fn age(confirmed: SystemTime) -> u64 {
    let age = SystemTime::now().duration_since(confirmed);
    age.unwrap_or_default().as_secs()
}

/// Turns a failure of upstream into an answer; nothing else does. Out of reach is 504, out of order
/// 502. What passes by itself, or by a change of our own settings, is 503.
pub(super) fn fail(error: &UpstreamError) -> Reply {
    let status = match error.stage {
        Stage::ClientBody => 400,
        Stage::Connect | Stage::Resolve | Stage::Timeout => 504,
        Stage::Redirect | Stage::Refused | Stage::Tls | Stage::Transfer => 502,
        Stage::Authorize | Stage::Queue => 503,
    };
    // The request's own line is the warning.
    let fields: [log::Field<'_>; 1] = [("status", &status)];
    log::cause(Level::Info, "upstream failed", ("error", error), &fields);
    let refusal = OciError::new(ErrorCode::Unavailable, error.to_string()).with_status(status);
    let mut reply = refuse(&refusal);
    reply.outcome.upstream_fault = Some(error.stage.name());
    if status == 503 {
        reply.headers.set("Retry-After", RETRY_AFTER_SECONDS);
    }
    reply
}

/// Notes what a route names. A tag's digest is the one that the reply names.
pub(super) fn note_target(reply: &mut Reply, route: &Route) {
    let (repository, reference, digest) = match route {
        Route::Base | Route::Catalog => return,
        Route::Blob(repository, digest) | Route::Referrers(repository, digest) => {
            (repository, None, Some(digest.to_string()))
        }
        Route::Manifest(repository, reference) => {
            let named = reply.headers.first(DIGEST_FIELD);
            let named = named.and_then(|named| named.parse::<Digest>().ok());
            let digest = match reference {
                Reference::Digest(digest) => Some(digest.to_string()),
                Reference::Tag(_) => named.map(|named| named.to_string()),
            };
            (repository, Some(reference.as_str().to_owned()), digest)
        }
        Route::Tags(repository) | Route::Upload(repository) | Route::Uploads(repository) => {
            (repository, None, None)
        }
    };
    reply.outcome.repository = Some(repository.to_string());
    reply.outcome.reference = reference;
    reply.outcome.digest = digest;
}

/// Says at DEBUG why the cache answered as it did.
pub(super) fn explain(reason: &'static str) {
    log::debug("cache decided", &[("reason", &reason)]);
}

/// The reply, or the answer that [`fail`] makes of the failure.
pub(super) fn or_fail(reply: Result<Reply, UpstreamError>) -> Reply {
    reply.unwrap_or_else(|error| fail(&error))
}

/// An error document as a reply.
pub(super) fn refuse(error: &OciError) -> Reply {
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
