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
/// How the fault of `aws` begins when no credentials are configured; the possible sources follow.
const UNCONFIGURED: &str = "no AWS credentials configured";
/// How the text of a `Warning` begins when upstream was not asked. A proxy that gets a 404 with it
/// knows that the registry has not answered.
pub(super) const OFFLINE_MARK: &str = "offline: ";
/// Longest text of a `Warning`; clients take 4096 bytes.
const WARNING_BYTES_MAX: usize = 512;

/// Notes in the reply, and for its log line, what the cache had of it.
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

/// Turns a failure of upstream into an answer; nothing else does. The status is 504 when upstream
/// is out of reach, and 502 when it is out of order. It is 503 when the failure passes by itself or
/// with a change of our own settings.
pub(super) fn fail(error: &UpstreamError) -> Reply {
    match error.stage {
        Stage::Offline => fail_saying(error, format!("it is not in the cache; {error}")),
        _ => fail_saying(error, error.to_string()),
    }
}

/// Turns a failure of upstream into an answer for content that the cache lacks. When nothing
/// outside is in reach, the answer says so, and leaves out how this host might get credentials. The
/// log has the whole text.
pub(super) fn fail_miss(error: &UpstreamError) -> Reply {
    let fault = error.to_string();
    let is_cut_off = match error.stage {
        // `aws` advises this when a call reached nobody.
        Stage::Authorize => fault.contains(UNCONFIGURED) || fault.contains("; check network"),
        stage => stage.is_out_of_reach(),
    };
    if !is_cut_off {
        return mark(fail(error), CacheOutcome::Miss);
    }
    let why = match fault.split_once(UNCONFIGURED) {
        Some((before, _)) => format!("{before}{UNCONFIGURED}"),
        None => fault,
    };
    let text = format!("not in the cache, and upstream is out of reach: {why}");
    mark(fail_saying(error, text), CacheOutcome::Miss)
}

/// Answers with the status of a failure of upstream, and `text` for the client.
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

/// Says at DEBUG why the cache answers as it does.
pub(super) fn log_reason(reason: &str) {
    log::debug("cache decided", &[("reason", &reason)]);
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
