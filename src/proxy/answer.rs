//! Answers of the proxy's own. Owns: error documents, the status of each failure of upstream, and
//! what an answer says about the cache. Must not: ask upstream, or look at a request.

use std::time::SystemTime;

use crate::log::{self, Level};
use crate::message::Reply;
pub(super) use crate::metrics::CacheOutcome;
use crate::oci::{ErrorCode, OciError};
use crate::upstream::{Stage, UpstreamError};

/// Value of `Retry-After` when the proxy or its way out is at a limit.
pub(super) const RETRY_AFTER_SECONDS: &str = "5";
/// Every answer under `/v2` has this field; docker takes it for the sign of a registry.
pub(super) const API_VERSION: (&str, &str) = ("Docker-Distribution-Api-Version", "registry/2.0");
/// The beginning of what `aws` says when nothing is configured; what could be follows.
const UNCONFIGURED: &str = "no AWS credentials configured";
/// The beginning of the text of a `Warning` where upstream was not asked: whoever gets a 404 with
/// it knows that it is not the registry's word.
pub(super) const OFFLINE_MARK: &str = "offline: ";
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
    let warning = match why.stage {
        Stage::Offline => format!("299 - \"{OFFLINE_MARK}{text}\""),
        _ => format!("299 - \"upstream is out of reach: {text}\""),
    };
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
    match error.stage {
        Stage::Offline => fail_saying(error, format!("it is not in the cache; {error}")),
        _ => fail_saying(error, error.to_string()),
    }
}

/// The same for a client that asks for what the cache does not have. When there is no way out at
/// all, it is told that, and not how this host might get credentials; the log has it all.
pub(super) fn fail_miss(error: &UpstreamError) -> Reply {
    let told = error.to_string();
    let is_cut_off = match error.stage {
        // `aws` says so of a call that reached nobody.
        Stage::Authorize => told.contains(UNCONFIGURED) || told.contains("; check network"),
        stage => stage.is_out_of_reach(),
    };
    if !is_cut_off {
        return mark(fail(error), CacheOutcome::Miss);
    }
    let why = match told.split_once(UNCONFIGURED) {
        Some((before, _)) => format!("{before}{UNCONFIGURED}"),
        None => told,
    };
    let text = format!("not in the cache, and upstream is out of reach: {why}");
    mark(fail_saying(error, text), CacheOutcome::Miss)
}

/// `text`: what the client is told.
fn fail_saying(error: &UpstreamError, text: String) -> Reply {
    let status = match error.stage {
        Stage::ClientBody => 400,
        Stage::Connect | Stage::Offline | Stage::Resolve | Stage::Timeout => 504,
        Stage::Redirect | Stage::Refused | Stage::Tls | Stage::Transfer => 502,
        Stage::Authorize | Stage::Queue => 503,
        Stage::Throttled => 429,
    };
    // The request's own line is the warning.
    let fields: [log::Field<'_>; 1] = [("status", &status)];
    log::cause(Level::Info, "upstream failed", ("error", error), &fields);
    let code = match status {
        429 => ErrorCode::TooManyRequests,
        _ => ErrorCode::Unavailable,
    };
    let refusal = OciError::new(code, text).with_status(status);
    let mut reply = refuse(&refusal);
    reply.outcome.error = Some(error.to_string());
    reply.outcome.upstream_fault = Some(error.stage.name());
    if matches!(status, 429 | 503) {
        let seconds = error.retry_after.map(|after| after.as_secs() + 1);
        let seconds = seconds.map(|seconds| seconds.to_string());
        let seconds = seconds.unwrap_or_else(|| RETRY_AFTER_SECONDS.to_owned());
        reply.headers.set("Retry-After", seconds);
    }
    reply
}

/// The reply, or the answer that [`fail`] makes of the failure.
pub(super) fn or_fail(reply: Result<Reply, UpstreamError>) -> Reply {
    reply.unwrap_or_else(|error| fail(&error))
}

/// An error document as a reply.
pub(super) fn refuse(error: &OciError) -> Reply {
    Reply::error(error).with(API_VERSION.0, API_VERSION.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Body;

    #[test]
    fn a_miss_without_a_way_out_is_no_lecture_on_credentials() {
        let told = |stage, reason: &str| {
            let (to, reason) = ("https://r".to_owned(), reason.to_owned());
            let reply = fail_miss(&UpstreamError::new(stage, to, reason));
            let Body::Bytes(body) = reply.body else {
                panic!("no document");
            };
            (
                String::from_utf8(body.to_vec()).unwrap(),
                reply.outcome.error.unwrap(),
            )
        };
        let out_of_reach = "not in the cache, and upstream is out of reach";
        let lecture = "no AWS credentials configured: set AWS_ACCESS_KEY_ID and so on";
        let (document, logged) = told(Stage::Authorize, lecture);
        assert!(
            document.contains(out_of_reach) && !document.contains("AWS_ACCESS"),
            "{document}"
        );
        assert!(logged.contains("set AWS_ACCESS_KEY_ID"), "{logged}");
        assert!(told(Stage::Connect, "refused").0.contains(out_of_reach));
        let (document, _) = told(Stage::Authorize, "AccessDenied; grant it");
        assert!(
            !document.contains(out_of_reach) && document.contains("grant it"),
            "{document}"
        );
    }

    #[test]
    fn failures_have_their_status() {
        let status = |stage| {
            let (to, reason) = ("https://r".to_owned(), "why".to_owned());
            fail(&UpstreamError::new(stage, to, reason)).status
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
