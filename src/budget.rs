//! Memory for bodies that are held whole. Owns: the budget in bytes, and waiting for a share of it.
//! Must not: allocate or read anything itself.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::locked::{Locked as _, TimedWait as _};
use crate::permits::{Permit, Permits};

/// Bytes of all bodies together that are held whole in memory: two manifests of the largest size,
/// or a thousand ordinary lists. The process stays under 120 MiB with that.
pub const BODIES_BYTES_MAX: u64 = 32 << 20;
/// Longest wait for a share of the budget: bodies are read within seconds, and a client that is
/// refused can come again before slow readers have ended.
pub const SHARE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bodies up to this size are not counted: they come by the hundred, and 256 clients that each hold
/// one take no more than 16 MiB.
pub const UNCOUNTED_BYTES_MAX: u64 = 64 << 10;

/// The bytes that a body of `bytes` takes of the budget.
pub const fn count_bytes(bytes: u64) -> u64 {
    if bytes <= UNCOUNTED_BYTES_MAX {
        0
    } else {
        bytes
    }
}

/// The budget of this process.
pub static BODIES: Budget = Budget::new(BODIES_BYTES_MAX);

/// Bytes of all pushed manifests together that are held until upstream has taken them: two of the
/// largest size. They have a budget of their own, since a client may take hours to push one. A push
/// is not refused for want of it: its manifest then comes into the cache with the next pull.
pub static PUSHED: Budget = Budget::new(8 << 20);

/// Turns at work that takes several times the bytes of a large body: parsing it, or making a list
/// from many. One thread works at a time: a parsed list takes up to ten times its bytes.
static LARGE_WORK: Permits = Permits::new(1);
/// Longest wait for a turn: each takes milliseconds, and waits for its share at the longest.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for a turn to work on a large body. None when no turn came in time.
pub fn take_turn() -> Option<Permit<'static>> {
    LARGE_WORK.take(Instant::now() + TURN_TIMEOUT)
}

/// A number of bytes that may be held at a time.
#[derive(Debug)]
pub struct Budget {
    free: Mutex<u64>,
    returned: Condvar,
}

/// Bytes taken from a budget; dropping them gives them back.
#[derive(Debug)]
pub struct Share {
    budget: &'static Budget,
    bytes: u64,
}

impl Budget {
    /// `bytes` in all.
    pub const fn new(bytes: u64) -> Self {
        Self {
            free: Mutex::new(bytes),
            returned: Condvar::new(),
        }
    }

    /// Takes `bytes`, waiting until `deadline`. None when so many did not come free.
    pub fn take(&'static self, bytes: u64, deadline: Instant) -> Option<Share> {
        let free = self.free.locked();
        let mut free = self
            .returned
            .wait_until(free, deadline, |free| *free >= bytes);
        *free = free.checked_sub(bytes)?;
        let budget = self;
        Some(Share { budget, bytes })
    }
}

impl Share {
    /// How many bytes it is.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds another share of the same budget.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.budget.free.locked() += self.bytes;
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_out_than_there_is_and_all_comes_back() {
        static BUDGET: Budget = Budget::new(10);
        let now = Instant::now();
        let mut one = BUDGET.take(4, now).unwrap();
        assert!(BUDGET.take(7, now).is_none());
        one.merge(BUDGET.take(6, now).unwrap());
        assert_eq!(one.bytes(), 10);
        assert!(BUDGET.take(1, now).is_none());
        drop(one);
        assert!(BUDGET.take(11, now).is_none());
        assert_eq!(BUDGET.take(10, now).unwrap().bytes(), 10);
    }

    #[test]
    fn a_wait_ends_as_soon_as_enough_has_come_back() {
        static BUDGET: Budget = Budget::new(10);
        let all = BUDGET.take(10, Instant::now()).unwrap();
        let waiting = std::thread::Builder::new();
        let far = Instant::now() + Duration::from_secs(60);
        let waiting = waiting
            .spawn(move || BUDGET.take(5, far).is_some())
            .unwrap();
        drop(all);
        assert!(waiting.join().unwrap());
    }
}
