//! Entry points for the fuzzer; compiled for it alone. Owns: what must hold for any bytes.
//! Must not: be part of the program.

use super::sources::profile;

/// A shared credentials or config file.
///
/// # Panics
/// When a fault shows a value, or a section has no name.
pub fn profile(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        profile::fuzz::profile(text);
    }
}
