//! Ranges and conditions in a request. Owns: the rules of RFC 9110 §13.1 (conditions) and §14
//! (ranges). Must not: do I/O.

use crate::message::{Headers, Request};

/// The bytes of a blob to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selected {
    /// Bytes `start..end`, as 206.
    Part { start: u64, end: u64 },
    /// 416.
    Unsatisfiable,
    /// All of it, as 200.
    Whole,
}

/// The request in a `Range` field, before the size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeSpec {
    /// `first-`, or `first-last`.
    From(u64, Option<u64>),
    /// `first-last` with the last byte before the first. RFC 9110 §14.2 lets it be ignored, too;
    /// registries refuse it.
    Inverted,
    /// `-length`
    Suffix(u64),
    /// No range, several of them (for which the whole is a right answer too), another unit, or a
    /// malformed field, which is ignored.
    Whole,
}

/// Selects what a request gets of a blob of `size` bytes with this `etag` (quoted). None when the
/// client holds the blob already.
pub(super) fn select(request: &Request, etag: &str, size: u64) -> Option<Selected> {
    if is_not_modified(&request.headers, etag) {
        return None;
    }
    // A range on a HEAD has no meaning (RFC 9110 §14.2).
    Some(match request.method.as_str() {
        "HEAD" => Selected::Whole,
        _ => requested_range(&request.headers, etag).select(size),
    })
}

/// Reads `Range`, unless `If-Range` names another representation than `etag`.
pub(super) fn requested_range(headers: &Headers, etag: &str) -> RangeSpec {
    if headers
        .first("If-Range")
        .is_some_and(|condition| condition != etag)
    {
        return RangeSpec::Whole;
    }
    let mut fields = headers.all("Range");
    match (fields.next(), fields.next()) {
        (Some(range), None) => parse(range).unwrap_or(RangeSpec::Whole),
        _ => RangeSpec::Whole,
    }
}

fn parse(range: &str) -> Option<RangeSpec> {
    let (unit, spec) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || spec.contains(',') {
        return None;
    }
    let (first, last) = spec.trim().split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A position beyond 64 bits is beyond the end of anything.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first.is_empty(), last.is_empty()) {
        (true, _) => Some(RangeSpec::Suffix(number(last)?)),
        (false, true) => Some(RangeSpec::From(number(first)?, None)),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            Some(match first <= last {
                true => RangeSpec::From(first, Some(last)),
                false => RangeSpec::Inverted,
            })
        }
    }
}

impl RangeSpec {
    /// Selects from a blob of `size` bytes. An empty blob is always sent whole.
    pub(super) const fn select(self, size: u64) -> Selected {
        match self {
            _ if size == 0 => Selected::Whole,
            Self::Whole => Selected::Whole,
            Self::Inverted | Self::Suffix(0) => Selected::Unsatisfiable,
            Self::From(first, _) if first >= size => Selected::Unsatisfiable,
            Self::Suffix(length) => Selected::Part {
                start: size.saturating_sub(length),
                end: size,
            },
            Self::From(first, None) => Selected::Part {
                start: first,
                end: size,
            },
            Self::From(first, Some(last)) => {
                let end = if last < size { last + 1 } else { size };
                Selected::Part { start: first, end }
            }
        }
    }
}

/// True when the client holds the representation `etag` (quoted) already: `If-None-Match` is `*` or
/// names it. Some clients name it weakly or without its quotes.
pub(super) fn is_not_modified(headers: &Headers, etag: &str) -> bool {
    headers
        .all("If-None-Match")
        .flat_map(|field| field.split(','))
        .map(str::trim)
        .any(|given| {
            let given = given.strip_prefix("W/").unwrap_or(given);
            given == "*" || given == etag || given == etag.trim_matches('"')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(range: &str, size: u64) -> Selected {
        requested_range(&Headers::from_iter([("Range", range)]), "\"t\"").select(size)
    }

    const fn part(start: u64, end: u64) -> Selected {
        Selected::Part { start, end }
    }

    #[test]
    fn ranges() {
        assert_eq!(select("bytes=0-", 10), part(0, 10));
        assert_eq!(select("bytes=2-4", 10), part(2, 5));
        assert_eq!(select("Bytes = 2-4", 10), part(2, 5));
        assert_eq!(select("bytes=9-9", 10), part(9, 10));
        assert_eq!(select("bytes=5-99", 10), part(5, 10));
        assert_eq!(select("bytes=5-99999999999999999999999", 10), part(5, 10));
        assert_eq!(select("bytes=5-18446744073709551615", 10), part(5, 10));
        assert_eq!(select("bytes=-3", 10), part(7, 10));
        assert_eq!(select("bytes=-30", 10), part(0, 10));
    }

    #[test]
    fn ranges_beyond_the_end() {
        for range in [
            "bytes=10-",
            "bytes=10-12",
            "bytes=-0",
            "bytes=5-2",
            "bytes=500-0",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(select(range, 10), Selected::Unsatisfiable, "{range}");
        }
        assert_eq!(select("bytes=0-", 0), Selected::Whole);
    }

    #[test]
    fn fields_that_are_no_single_byte_range_are_ignored() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-",
            "bytes=1-b",
            "items=0-1",
            "bytes=0-1,3-4",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=0x1-2",
            "0-1",
        ] {
            assert_eq!(select(range, 10), Selected::Whole, "{range}");
        }
        let twice = Headers::from_iter([("Range", "bytes=0-1"), ("Range", "bytes=2-3")]);
        assert_eq!(requested_range(&twice, "\"t\""), RangeSpec::Whole);
    }

    #[test]
    fn a_range_of_another_representation_is_the_whole() {
        let fields = |tag| Headers::from_iter([("Range", "bytes=1-"), ("If-Range", tag)]);
        assert_eq!(
            requested_range(&fields("\"t\""), "\"t\"").select(10),
            part(1, 10)
        );
        assert_eq!(
            requested_range(&fields("\"u\""), "\"t\"").select(10),
            Selected::Whole
        );
        assert_eq!(
            requested_range(&fields("W/\"t\""), "\"t\"").select(10),
            Selected::Whole
        );
    }

    #[test]
    fn conditions() {
        let held =
            |value| is_not_modified(&Headers::from_iter([("If-None-Match", value)]), "\"t\"");
        for value in ["\"t\"", "t", "W/\"t\"", "*", "\"a\", \"t\""] {
            assert!(held(value), "{value}");
        }
        for value in ["", "\"a\"", "tt", "W/\"a\""] {
            assert!(!held(value), "{value}");
        }
        assert!(!is_not_modified(&Headers::new(), "\"t\""));
    }

    #[test]
    fn no_odd_range_leaves_the_blob() {
        const PARTS: [&str; 16] = [
            "bytes=",
            "bytes",
            "=",
            "-",
            ",",
            " ",
            "0",
            "9",
            "10",
            "18446744073709551615",
            "+1",
            "x",
            "*",
            "/",
            "\t",
            "99999999999999999999",
        ];
        let mut parts = 0;
        for start in 0..200_000_u64 {
            let mut seed = start;
            let mut range = if seed % 4 == 0 {
                String::new()
            } else {
                "bytes=".to_owned()
            };
            for _ in 0..seed % 6 {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                range.push_str(PARTS[usize::try_from((seed >> 33) % 16).unwrap()]);
            }
            for size in [0, 1, 10, u64::MAX] {
                if let Selected::Part { start, end } = select(&range, size) {
                    assert!(
                        start < end && end <= size,
                        "{range} of {size}: {start}..{end}"
                    );
                    parts += 1;
                }
            }
        }
        assert!(
            parts > 1000,
            "{parts} parts were selected: too few to show anything"
        );
    }
}
