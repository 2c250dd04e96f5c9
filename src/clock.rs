//! Sources of time. Owns: the two clocks that all parts read. Must not: wait, or know what the time
//! is for.
//!
//! Wall time (`now`) is for signatures and expiries. Monotonic time (`monotonic`) is for ages and
//! deadlines, so that a clock that is set does not change them.

use std::time::{Instant, SystemTime};

/// A source of time. Tests use one that they move by hand.
pub trait Clock: Send + Sync {
    /// Wall-clock time.
    fn now(&self) -> SystemTime;
    /// Monotonic time.
    fn monotonic(&self) -> Instant;
}

/// The machine's own clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that stands still until a test moves it.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct ManualClock {
    start: (SystemTime, Instant),
    elapsed: std::sync::Mutex<std::time::Duration>,
    slept: std::sync::Mutex<std::time::Duration>,
}

#[cfg(test)]
impl ManualClock {
    /// Starts at `now` (wall clock).
    pub(crate) fn at(now: SystemTime) -> Self {
        Self {
            start: (now, Instant::now()),
            elapsed: std::sync::Mutex::default(),
            slept: std::sync::Mutex::default(),
        }
    }

    /// Moves both clocks forward.
    pub(crate) fn advance(&self, by: std::time::Duration) {
        *self.elapsed.lock().unwrap() += by;
    }

    /// Moves the wall clock alone, as when the machine slept.
    pub(crate) fn sleep(&self, by: std::time::Duration) {
        *self.slept.lock().unwrap() += by;
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        self.start.0 + *self.elapsed.lock().unwrap() + *self.slept.lock().unwrap()
    }

    fn monotonic(&self) -> Instant {
        self.start.1 + *self.elapsed.lock().unwrap()
    }
}
