//! The steps of one try, at DEBUG. Owns: the line that says what came of it. Must not: show a path,
//! which may be signed.

use std::time::Instant;

use super::error::UpstreamError;
use crate::log;

/// Says at DEBUG what came of one try: status and upstream's own id of it, or why none came.
pub(super) fn log_answer(
    to: &str,
    method: &str,
    begun: Instant,
    sent: Result<(u16, &str), &UpstreamError>,
) {
    let took = begun.elapsed().as_millis();
    let fields: [log::Field<'_>; 2] = [("to", &to), ("method", &method)];
    match sent {
        Ok((status, id)) => {
            let answer: [log::Field<'_>; 3] = [
                ("upstream_status", &status),
                ("first_byte_ms", &took),
                ("upstream_request_id", &id),
            ];
            log::debug("upstream answered", &[fields.as_slice(), &answer].concat());
        }
        Err(error) => {
            let fault: [log::Field<'_>; 2] = [("ms", &took), ("error", error)];
            log::debug(
                "upstream did not answer",
                &[fields.as_slice(), &fault].concat(),
            );
        }
    }
}
