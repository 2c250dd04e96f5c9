//! Requests in the history. Owns: how a request counts there, and which requests are failures.
//! Must not: count anything else.

use std::time::SystemTime;

use serde_json::json;

use super::log_line::LogLine;
use super::reply::WriteFault;
use crate::calendar::format_rfc3339;
use crate::history::{self, Event, FAILURES};
use crate::log;
use crate::message::LogNote;
use crate::metrics::{CacheOutcome, Finished, Route, Source};

/// Longest text of a failure's field.
const TEXT_BYTES_MAX: usize = 512;

/// Counts the request, and keeps it when it failed. `fault`: why the reply is not whole.
pub(super) fn note(
    finished: &Finished<'_>,
    line: &LogLine<'_>,
    outcome: &LogNote,
    fault: Option<&WriteFault>,
) {
    let why = match fault {
        Some(WriteFault::Source(why)) => Some(format!("cut: {why}")),
        Some(WriteFault::Client(_)) | None => None,
    };
    let Some(end) = judge(finished, why.is_some()) else {
        return;
    };
    history::count(end, 1);
    match finished.source() {
        Source::Cache => history::count(Event::SavedBytes, finished.bytes),
        Source::Upstream => history::count(Event::UpstreamBytes, finished.bytes),
        Source::Proxy => {}
    }
    if matches!(end, Event::Refused | Event::Failed) {
        let shorten = |text: &str| {
            text.get(..text.floor_char_boundary(TEXT_BYTES_MAX))
                .map(str::to_owned)
        };
        let why = why.as_deref().or(outcome.error.as_deref());
        FAILURES.add(json!({
            "at": format_rfc3339(SystemTime::now()),
            "request": line.scope.id,
            "method": shorten(line.method),
            "target": shorten(&log::target(line.target)),
            "status": finished.status,
            "error": shorten(why.unwrap_or("upstream's own answer")),
            "peer": line.peer.to_string(),
        }));
    }
}

/// How a request counts; none outside `/v2`. Answers that ask for a login or say that content is
/// missing are no failures: clients cause both on purpose.
fn judge(finished: &Finished<'_>, cut: bool) -> Option<Event> {
    if let Route::Metrics | Route::Other | Route::Probe | Route::Status = finished.route {
        return None;
    }
    Some(match (finished.status, finished.cache) {
        (500.., _) => Event::Failed,
        _ if cut => Event::Failed,
        (401 | 404 | 416, _) => Event::Other,
        (400.., _) => Event::Refused,
        (_, Some(CacheOutcome::Hit | CacheOutcome::Revalidated)) => Event::Hit,
        (_, Some(CacheOutcome::Stale)) => Event::Stale,
        (_, Some(CacheOutcome::Bypass | CacheOutcome::Miss)) => Event::Miss,
        (_, None) => Event::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_request_counts_by_its_end() {
        let judged = |route, status, cache, cut| {
            let finished = Finished {
                route,
                method: "GET",
                status,
                cache,
                repository: None,
                asked_upstream: false,
                bytes: 0,
                first_byte: Duration::ZERO,
                duration: Duration::ZERO,
            };
            judge(&finished, cut)
        };
        let (hit, stale) = (Some(CacheOutcome::Hit), Some(CacheOutcome::Stale));
        for (route, status, cache, cut, expected) in [
            (Route::Blob, 200, hit, false, Some(Event::Hit)),
            (Route::Blob, 200, hit, true, Some(Event::Failed)),
            (Route::Manifest, 200, stale, false, Some(Event::Stale)),
            (Route::Manifest, 504, stale, false, Some(Event::Failed)),
            (Route::Manifest, 404, None, false, Some(Event::Other)),
            (Route::Base, 401, None, false, Some(Event::Other)),
            (Route::Upload, 403, None, false, Some(Event::Refused)),
            (Route::Tags, 200, None, false, Some(Event::Other)),
            (Route::Probe, 503, None, false, None),
            (Route::Status, 200, None, false, None),
        ] {
            assert_eq!(judged(route, status, cache, cut), expected, "{status}");
        }
    }
}
