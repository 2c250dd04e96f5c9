//! The only user of ureq.

/// Longest body of an API reply: a token has no fixed size, a megabyte is far above any seen.
pub const API_BODY_BYTES_MAX: u64 = 1 << 20;
