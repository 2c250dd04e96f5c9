//! The steps of one try, at DEBUG. Owns: the line that says what came of it. Must not: show a path,
//! which may be signed.

use std::time::Instant;

use super::error::UpstreamError;
use super::incoming::Incoming;
use crate::log;

/// Logs the outcome of one try at DEBUG: status and upstream's own id, or why no answer came.
pub(super) fn log_answer(
    to: &str,
    method: &str,
    begun: Instant,
    sent: Result<&Incoming, &UpstreamError>,
) {
    let sent = sent.map(Incoming::seen);
    let took = begun.elapsed().as_millis();
    let mut fields: Vec<log::Field<'_>> = vec![("to", &to), ("method", &method)];
    match &sent {
        Ok((status, id)) => {
            fields.push(("upstream_status", status));
            fields.push(("first_byte_ms", &took));
            if !id.is_empty() {
                fields.push(("upstream_request_id", id));
            }
            log::debug("upstream answered", &fields);
        }
        Err(error) => {
            fields.push(("ms", &took));
            fields.push(("error", error));
            log::debug("upstream did not answer", &fields);
        }
    }
}
