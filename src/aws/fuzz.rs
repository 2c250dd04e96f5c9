//! The entry points of the fuzzer on the AWS side, compiled for it and for tests. Owns: the rules
//! that hold for any bytes. Must not: be part of the program.

use super::sources::profile;

/// A shared credentials or config file. Returns what was read of it.
///
/// # Panics
/// When a fault shows a value, or a section has no name.
pub fn profile(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| "no text".to_owned(), profile::fuzz::profile)
}
