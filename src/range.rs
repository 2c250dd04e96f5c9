//! `Content-Range`. Owns: reading the field as servers and as pushing clients write it. Must not:
//! judge whether the range is the one that was asked for.

/// A `Content-Range` (RFC 9110 §14.4). Positions count from 0, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentRange {
    /// `bytes first-last/total`, both ends included.
    Part {
        /// Position of the first byte.
        first: u64,
        /// Position of the last byte; never before the first.
        last: u64,
        /// Bytes of the whole; none when it is not known (`*`).
        total: Option<u64>,
    },
    /// `bytes */total`: the requested range cannot be sent.
    Unsatisfied {
        /// Bytes of the whole.
        total: u64,
    },
}

impl ContentRange {
    /// Reads the field of a response. None for another unit or anything malformed.
    pub fn parse(field: &str) -> Option<Self> {
        let (range, total) = field.strip_prefix("bytes ")?.split_once('/')?;
        if range == "*" {
            let total = total.parse().ok()?;
            return Some(Self::Unsatisfied { total });
        }
        let (first, last) = ends(range)?;
        let total = match total {
            "*" => None,
            total => Some(total.parse().ok().filter(|total| last < *total)?),
        };
        Some(Self::Part { first, last, total })
    }

    /// Total of a part that goes to the end of the whole.
    pub fn total_at_end(self) -> Option<u64> {
        match self {
            Self::Part { last, total, .. } => total.filter(|total| last + 1 == *total),
            Self::Unsatisfied { .. } => None,
        }
    }

    /// Position of the first byte of a part.
    pub const fn first(self) -> Option<u64> {
        match self {
            Self::Part { first, .. } => Some(first),
            Self::Unsatisfied { .. } => None,
        }
    }
}

/// Reads the field of a pushed chunk: `first-last`, both ends included (OCI distribution
/// specification, "Pushing a blob in chunks"). Some clients write it as RFC 9110 has it.
pub fn parse_chunk(field: &str) -> Option<(u64, u64)> {
    let field = field.trim();
    let range = field.strip_prefix("bytes ").unwrap_or(field);
    ends(range.split('/').next().unwrap_or_default())
}

fn ends(range: &str) -> Option<(u64, u64)> {
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_responses() {
        let part = |first, last, total| Some(ContentRange::Part { first, last, total });
        let max = u64::MAX;
        for (field, expected) in [
            ("bytes 5-9/10", part(5, 9, Some(10))),
            ("bytes 5-8/10", part(5, 8, Some(10))),
            ("bytes 5-9/*", part(5, 9, None)),
            ("bytes */10", Some(ContentRange::Unsatisfied { total: 10 })),
            ("bytes */*", None),
            ("bytes 9-5/10", None),
            ("bytes 5-10/10", None),
            ("items 5-9/10", None),
            ("5-9/10", None),
            ("bytes 5-9", None),
            ("bytes -9/10", None),
            (&format!("bytes 0-{max}/{max}"), None),
        ] {
            assert_eq!(ContentRange::parse(field), expected, "{field}");
        }
    }

    #[test]
    fn a_part_may_go_to_the_end() {
        let total = |field| ContentRange::parse(field).unwrap().total_at_end();
        assert_eq!(total("bytes 5-9/10"), Some(10));
        assert_eq!(total("bytes 5-8/10"), None);
        assert_eq!(total("bytes 5-9/*"), None);
        assert_eq!(total("bytes */10"), None);
    }

    #[test]
    fn ranges_of_chunks() {
        assert_eq!(parse_chunk("0-99"), Some((0, 99)));
        assert_eq!(parse_chunk(" bytes 5-9/10"), Some((5, 9)));
        let too_large = "0-18446744073709551616";
        for odd in ["", "5", "9-5", "-5", "a-b", "bytes */5", too_large] {
            assert_eq!(parse_chunk(odd), None, "{odd}");
        }
    }
}
