//! Random numbers. Owns: making them, and what a random part of a wait is. Must not: make keys or
//! passwords.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// A number nobody outside the process can guess, for request ids and jitter; not for keys.
/// The standard library seeds each `RandomState` from the system's random source.
pub fn unguessable() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A part of `whole`: nothing for a `roll` of 0, all of it for one of 1000, and so on in turns.
pub fn portion(whole: Duration, roll: u64) -> Duration {
    let thousandths = u32::try_from(roll % 1001).unwrap_or_default();
    whole * thousandths / 1000
}
