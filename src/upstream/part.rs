//! Parts of a blob. Owns: whether a 206 brings the range that was asked for. Must not: know what
//! the range is for.

use crate::message::Headers;
use crate::range::ContentRange;

/// The length of a 206's body, from its `Content-Range` (RFC 9110 §14.4). `asked`: the `Range` of
/// the request. `length`: what the framing of the reply says. Several ranges are not checked.
///
/// # Errors
/// When the reply brings another range, or its length differs from that of the range.
pub(super) fn check_reply(
    asked: &str,
    headers: &Headers,
    length: Option<u64>,
) -> Result<Option<u64>, String> {
    if asked.contains(',') {
        return Ok(length);
    }
    let field = headers.first("Content-Range").unwrap_or_default();
    let length_of_part = ContentRange::parse(field).and_then(|part| answers(part, asked));
    match (length_of_part, length) {
        (None, _) => Err(format!(
            "it answered 206 with the range \"{field}\" to \"{asked}\""
        )),
        (Some(expected), Some(length)) if length != expected => Err(format!(
            "it answered 206 with {length} bytes for the range \"{field}\""
        )),
        (expected, _) => Ok(expected),
    }
}

/// The bytes of `part`, if it is what `asked` means: `bytes=first-last`, `bytes=first-` or
/// `bytes=-count` (RFC 9110 §14.1.2).
fn answers(part: ContentRange, asked: &str) -> Option<u64> {
    let ContentRange::Part { first, last, total } = part else {
        return None;
    };
    let (unit, range) = asked.split_once('=')?;
    let (from, to) = range.trim().split_once('-')?;
    let is_end = total.is_none_or(|total| last + 1 == total);
    let fits = match (number(from), number(to)) {
        (Some(from), Some(to)) => first == from && (last == to || last < to && is_end),
        (Some(from), None) => first == from && is_end,
        (None, Some(count)) => {
            let start = total.map(|total| total.saturating_sub(count));
            start.is_none_or(|start| first == start) && is_end
        }
        (None, None) => false,
    };
    let is_answer = unit.trim().eq_ignore_ascii_case("bytes") && fits;
    (last - first).checked_add(1).filter(|_| is_answer)
}

/// Digits alone, which fit.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: &str, brought: &str, length: Option<u64>) -> Option<Option<u64>> {
        let headers = Headers::from_iter([("Content-Range", brought)]);
        check_reply(asked, &headers, length).ok()
    }

    #[test]
    fn the_range_that_was_asked_for_is_an_answer() {
        for (asked, brought, length) in [
            ("bytes=5-9", "bytes 5-9/20", 5),
            ("bytes=5-9", "bytes 5-9/*", 5),
            ("Bytes=5-99", "bytes 5-19/20", 15),
            ("bytes=5-", "bytes 5-19/20", 15),
            ("bytes=-4", "bytes 16-19/20", 4),
            ("bytes=-40", "bytes 0-19/20", 20),
            ("bytes=0-0", "bytes 0-0/1", 1),
        ] {
            let expected = Some(Some(length));
            assert_eq!(check(asked, brought, Some(length)), expected, "{brought}");
            assert_eq!(check(asked, brought, None), expected, "{brought}");
            assert_eq!(check(asked, brought, Some(length + 1)), None, "{brought}");
        }
        // Several ranges come as multipart, without the field.
        assert_eq!(check("bytes=0-1,5-6", "", Some(99)), Some(Some(99)));
    }

    #[test]
    fn any_other_range_is_none() {
        for (asked, brought) in [
            ("bytes=5-9", "bytes 4-9/20"),
            ("bytes=5-9", "bytes 5-10/20"),
            ("bytes=5-9", "bytes 5-8/20"),
            ("bytes=5-", "bytes 0-19/20"),
            ("bytes=5-", "bytes 5-18/20"),
            ("bytes=-4", "bytes 0-3/20"),
            ("bytes=5-9", "bytes */20"),
            ("bytes=5-9", "bytes 9-5/20"),
            ("bytes=5-9", "bytes 5-9/9"),
            ("bytes=5-9", "items 5-9/20"),
            ("bytes=5-9", ""),
            (
                "bytes=0-",
                "bytes 0-18446744073709551615/18446744073709551615",
            ),
            ("bytes=0-", "bytes 0-18446744073709551615/*"),
            ("bytes=+5-9", "bytes 5-9/20"),
        ] {
            assert_eq!(check(asked, brought, None), None, "{asked} {brought}");
        }
    }
}
