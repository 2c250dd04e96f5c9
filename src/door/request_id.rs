//! The id of a request. Owns: which ids are taken over from clients. Must not: trust their length
//! or their characters.

use std::sync::Arc;

use crate::log::RequestScope;
use crate::message::Headers;
use crate::random::unguessable;
use crate::via;

/// Longest id that is taken over: a UUID has 36 characters, ids of load balancers up to 100.
const ID_BYTES_MAX: usize = 128;
/// Length of a `traceparent` of version 00 (W3C Trace Context §3.2).
const TRACE_BYTES: usize = 55;

/// Makes the scope of a request with these fields. Its id is the client's `X-Request-Id`, else the
/// trace id of its `traceparent`, else a new one.
pub(super) fn new_scope(headers: &Headers, http11: bool) -> Arc<RequestScope> {
    let trace = only(headers, "traceparent").filter(|trace| trace_id(trace).is_some());
    let kept = only(headers, "X-Request-Id").filter(|id| is_id(id));
    let id = kept.or_else(|| trace.and_then(trace_id));
    let id = id.map_or_else(generate, str::to_owned);
    RequestScope::new(id, trace.map(str::to_owned), via::append(headers, http11))
}

/// Makes a new id.
pub(super) fn generate() -> String {
    format!("{:016x}", unguessable())
}

/// The value of a field; none when the field is there twice.
fn only<'a>(headers: &'a Headers, name: &'a str) -> Option<&'a str> {
    let mut values = headers.all(name);
    values.next().filter(|_| values.next().is_none())
}

fn is_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:=+/@".contains(&byte);
    (1..=ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// The trace id of a valid `traceparent` (W3C Trace Context §3.2.2). A later version may have more
/// behind a dash, but no longer than a line of a log may be.
fn trace_id(text: &str) -> Option<&str> {
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut parts = text.splitn(5, '-');
    let (version, id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let whole = match version {
        "00" => text.len() == TRACE_BYTES,
        "ff" => false,
        _ => text.len() <= 2 * ID_BYTES_MAX,
    };
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let valid = is_hex(version, 2) && is_hex(id, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    (whole && valid && !is_zero(id) && !is_zero(parent)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn id(fields: &[(&str, &str)]) -> String {
        let headers = Headers::from_iter(fields.iter().copied());
        new_scope(&headers, true).id.clone()
    }

    #[test]
    fn a_valid_id_is_kept() {
        let long = "x".repeat(ID_BYTES_MAX);
        for kept in [
            "7",
            "req-1.2:3_4=+/@",
            "8d5c1f0e-4b1a-4d7c-9d51-0e3f9a2b7c11",
            &long,
        ] {
            assert_eq!(id(&[("x-request-id", kept)]), kept);
        }
        assert_eq!(
            id(&[("traceparent", TRACE)]),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(
            id(&[("traceparent", TRACE), ("X-Request-Id", "mine")]),
            "mine"
        );
        let bad = [("traceparent", TRACE), ("X-Request-Id", "not mine")];
        assert_eq!(id(&bad), "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn any_other_id_is_replaced() {
        let long = "x".repeat(ID_BYTES_MAX + 1);
        for bad in [
            "", "a b", "a\tb", "a\"b", "a,b", "a;b", "a\\n", "<a>", &long,
        ] {
            let made = id(&[("X-Request-Id", bad)]);
            assert!(made.len() == 16 && made != bad, "{bad:?} {made}");
        }
        let twice = id(&[("X-Request-Id", "a"), ("X-Request-Id", "b")]);
        assert_eq!(twice.len(), 16);
        assert_ne!(id(&[]), id(&[]));
    }

    #[test]
    fn only_a_valid_traceparent_counts() {
        let zeros = "00000000000000000000000000000000";
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &format!("00-{zeros}-00f067aa0ba902b7-01"),
            &TRACE.replace("00-4", "ff-4"),
            &format!("{TRACE}-more"),
            &format!("01{}-{}", &TRACE[2..], "x".repeat(ID_BYTES_MAX * 2)),
        ] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
        let later = format!("01{}-more", &TRACE[2..]);
        assert!(trace_id(&later).is_some());
    }
}
