//! Random numbers. Owns: [`unguessable`]. Must not: make keys or passwords.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A number nobody outside the process can guess, for request ids and jitter; not for keys.
/// The standard library seeds each `RandomState` from the system's random source.
pub fn unguessable() -> u64 {
    RandomState::new().build_hasher().finish()
}
