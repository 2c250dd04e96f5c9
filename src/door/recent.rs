//! What the history keeps of a request. Owns: how a request counts there, and which of them are
//! failures. Must not: count anything else.

use std::time::SystemTime;

use super::log_line::LogLine;
use super::reply::WriteFault;
use crate::history::{Bytes, FAILURES, Failure, HISTORY, Outcome, minute_now};
use crate::log;
use crate::message::LogNote;
use crate::metrics::{CacheOutcome, Finished, Route, Source};

/// Counts the request, and keeps it when it failed. `fault`: why the reply is not whole.
pub(super) fn note(
    finished: &Finished,
    line: &LogLine<'_>,
    outcome: &LogNote,
    fault: Option<&WriteFault>,
) {
    let cut = match fault {
        Some(WriteFault::Source(why)) => Some(format!("cut: {why}")),
        Some(WriteFault::Client(_)) | None => None,
    };
    let Some(end) = judge(finished, cut.is_some()) else {
        return;
    };
    let minute = minute_now();
    HISTORY.count(end, minute);
    match finished.source() {
        Source::Cache => HISTORY.add(Bytes::Saved, finished.bytes, minute),
        Source::Upstream => HISTORY.add(Bytes::Upstream, finished.bytes, minute),
        Source::Proxy => {}
    }
    if matches!(end, Outcome::Refused | Outcome::Failed) {
        let why = cut.or_else(|| outcome.error.clone());
        FAILURES.add(Failure {
            at: SystemTime::now(),
            request: line.scope.id().to_owned(),
            method: line.method.to_owned(),
            target: log::target(line.target),
            status: finished.kind.status,
            error: why.unwrap_or_else(|| "upstream's own answer".to_owned()),
            peer: line.peer.to_string(),
        });
    }
}

/// How a request counts; none outside `/v2`. A login that is asked for, and content that is not
/// there, are everyday answers: clients ask for both on purpose.
fn judge(finished: &Finished, cut: bool) -> Option<Outcome> {
    let kind = finished.kind;
    match kind.route {
        Route::Metrics | Route::Other | Route::Probe | Route::Status => return None,
        _ => {}
    }
    Some(match (kind.status, kind.cache) {
        _ if cut => Outcome::Failed,
        (500.., _) => Outcome::Failed,
        (401 | 404 | 416, _) => Outcome::Other,
        (400.., _) => Outcome::Refused,
        (_, Some(CacheOutcome::Hit | CacheOutcome::Revalidated)) => Outcome::Hit,
        (_, Some(CacheOutcome::Stale)) => Outcome::Stale,
        (_, Some(CacheOutcome::Bypass | CacheOutcome::Miss)) => Outcome::Miss,
        (_, None) => Outcome::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Method;
    use crate::metrics::requests::RequestKind;
    use std::time::Duration;

    #[test]
    fn a_request_counts_by_its_end() {
        let judged = |route, status, cache, cut| {
            let finished = Finished {
                kind: RequestKind {
                    route,
                    method: Method::Get,
                    status,
                    cache,
                },
                asked_upstream: false,
                bytes: 0,
                first_byte: Duration::ZERO,
                duration: Duration::ZERO,
            };
            judge(&finished, cut)
        };
        let (hit, stale) = (Some(CacheOutcome::Hit), Some(CacheOutcome::Stale));
        for (route, status, cache, cut, expected) in [
            (Route::Blob, 200, hit, false, Some(Outcome::Hit)),
            (Route::Blob, 200, hit, true, Some(Outcome::Failed)),
            (Route::Manifest, 200, stale, false, Some(Outcome::Stale)),
            (Route::Manifest, 504, stale, false, Some(Outcome::Failed)),
            (Route::Manifest, 404, None, false, Some(Outcome::Other)),
            (Route::Base, 401, None, false, Some(Outcome::Other)),
            (Route::Upload, 403, None, false, Some(Outcome::Refused)),
            (Route::Tags, 200, None, false, Some(Outcome::Other)),
            (Route::Probe, 503, None, false, None),
            (Route::Status, 200, None, false, None),
        ] {
            assert_eq!(judged(route, status, cache, cut), expected, "{status}");
        }
    }
}
