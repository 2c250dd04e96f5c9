//! Taking a lock. Owns: what a poisoned lock means. Must not: wait for anything else.
//!
//! A thread that panics poisons the lock it holds. Here the value behind a lock is always changed
//! in one step that cannot panic half-way (an assignment, an operation of a map, arithmetic), so it
//! is still good. A value that needs more than that must not be locked in this way.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock that holds a good value even if it is poisoned.
pub trait Locked<T> {
    /// Takes the lock. Blocks until it is free.
    fn locked(&self) -> MutexGuard<'_, T>;
}

impl<T> Locked<T> for Mutex<T> {
    fn locked(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
