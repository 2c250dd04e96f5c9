//! A number of things that may go on at a time. Owns: counting and waiting. Must not: know what
//! it counts.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A counted set of permits.
#[derive(Debug)]
pub struct Permits {
    free: Mutex<usize>,
    returned: Condvar,
}

/// One permit; dropping it gives it back.
#[derive(Debug)]
pub struct Permit<'a>(&'a Permits);

impl Permits {
    /// `count` permits.
    pub const fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(count),
            returned: Condvar::new(),
        }
    }

    /// Takes one, waiting until `deadline`. None when none came free.
    pub fn take(&self, deadline: Instant) -> Option<Permit<'_>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .returned
            .wait_timeout_while(self.lock(), left, |free| *free == 0);
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Permit(self))
    }

    /// The same for a permit that outlives the caller's frame.
    pub fn take_owned(self: &Arc<Self>, deadline: Instant) -> Option<OwnedPermit> {
        // The borrowed permit is not given back: the owned one will be.
        self.take(deadline).map(std::mem::forget)?;
        Some(OwnedPermit(Arc::clone(self)))
    }

    fn give_back(&self) {
        *self.lock() += 1;
        self.returned.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// One permit of a shared set; dropping it gives it back.
#[derive(Debug)]
pub struct OwnedPermit(Arc<Permits>);

impl Drop for OwnedPermit {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn no_more_than_there_are() {
        let permits = Permits::new(2);
        let now = Instant::now();
        let (first, second) = (permits.take(now), permits.take(now));
        assert!(first.is_some() && second.is_some());
        assert!(permits.take(now + Duration::from_millis(10)).is_none());
        drop(first);
        assert!(permits.take(now).is_some());
    }

    #[test]
    fn an_owned_permit_is_given_back_once() {
        let permits = Arc::new(Permits::new(1));
        let now = Instant::now();
        let owned = permits.take_owned(now);
        assert!(owned.is_some() && permits.take_owned(now).is_none());
        drop(owned);
        let again = permits.take(now);
        assert!(again.is_some() && permits.take(now).is_none());
    }

    #[test]
    fn a_waiter_gets_the_one_that_is_given_back() {
        let permits = Permits::new(1);
        let taken = permits.take(Instant::now());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                permits
                    .take(Instant::now() + Duration::from_secs(10))
                    .is_some()
            });
            drop(taken);
            assert!(waiter.join().unwrap());
        });
    }
}
