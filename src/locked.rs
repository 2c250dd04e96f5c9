//! Taking a lock, and waiting for its value to change. Owns: what a poisoned lock means. Must not:
//! know what is locked.
//!
//! A thread that panics poisons the lock it holds. Here the value behind a lock is always changed
//! in one step that cannot panic half-way (an assignment, an operation of a map, arithmetic), so it
//! is still good. A value that needs more than that must not be locked in this way.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

/// A wait with an end. The caller looks at the value to see whether it has changed as awaited.
pub trait TimedWait {
    /// Waits for a change, for `most` at the longest; may return before.
    fn wait_for<'a, T>(&self, value: MutexGuard<'a, T>, most: Duration) -> MutexGuard<'a, T>;

    /// Waits until `is_ready` says yes of the value, or until `deadline`.
    fn wait_until<'a, T>(
        &self,
        value: MutexGuard<'a, T>,
        deadline: Instant,
        is_ready: impl Fn(&T) -> bool,
    ) -> MutexGuard<'a, T>;
}

impl TimedWait for Condvar {
    fn wait_for<'a, T>(&self, value: MutexGuard<'a, T>, most: Duration) -> MutexGuard<'a, T> {
        let waited = self.wait_timeout(value, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn wait_until<'a, T>(
        &self,
        value: MutexGuard<'a, T>,
        deadline: Instant,
        is_ready: impl Fn(&T) -> bool,
    ) -> MutexGuard<'a, T> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.wait_timeout_while(value, left, |value| !is_ready(value));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
