//! Limits on how many things go on at a time, in all or for each holder. Owns: counting and
//! waiting. Must not: know what is counted.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::locked::{Locked as _, TimedWait as _};

/// A counted set of permits.
#[derive(Debug)]
pub struct Permits {
    counts: Mutex<Counts>,
    returned: Condvar,
}

#[derive(Debug)]
struct Counts {
    free: usize,
    /// Callers that wait: to wake nobody costs a call of the kernel, too.
    waiting: usize,
}

/// One permit; dropping it gives it back.
#[derive(Debug)]
pub struct Permit<'a>(&'a Permits);

impl Permits {
    /// `count` permits.
    pub const fn new(count: usize) -> Self {
        Self {
            counts: Mutex::new(Counts {
                free: count,
                waiting: 0,
            }),
            returned: Condvar::new(),
        }
    }

    /// Takes one, waiting until `deadline`. None when none came free.
    pub fn take(&self, deadline: Instant) -> Option<Permit<'_>> {
        let mut counts = self.counts.locked();
        if counts.free == 0 {
            let is_free = |counts: &Counts| counts.free > 0;
            counts.waiting += 1;
            counts = self.returned.wait_until(counts, deadline, is_free);
            counts.waiting -= 1;
        }
        counts.free = counts.free.checked_sub(1)?;
        Some(Permit(self))
    }

    /// Takes a permit that may outlive the caller, waiting until `deadline`.
    pub fn take_owned(self: &Arc<Self>, deadline: Instant) -> Option<OwnedPermit> {
        // The borrowed permit is not given back: the owned one will be.
        self.take(deadline).map(std::mem::forget)?;
        Some(OwnedPermit(Arc::clone(self)))
    }

    fn give_back(&self) {
        let mut counts = self.counts.locked();
        counts.free += 1;
        let is_awaited = counts.waiting > 0;
        drop(counts);
        if is_awaited {
            self.returned.notify_one();
        }
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

/// Permits of which no holder has more than a share.
#[derive(Debug)]
pub struct FairShares<K> {
    each: usize,
    taken: Mutex<HashMap<K, usize>>,
    returned: Condvar,
}

/// One permit out of a share; dropping it gives it back.
#[derive(Debug)]
pub struct SharePermit<'a, K: Eq + Hash> {
    shares: &'a FairShares<K>,
    holder: K,
}

impl<K: Copy + Eq + Hash> FairShares<K> {
    /// `each` permits for each holder.
    pub fn new(each: usize) -> Self {
        Self {
            each,
            taken: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Takes one out of the holder's share, waiting until `deadline`. None when none came free.
    pub fn take(&self, holder: K, deadline: Instant) -> Option<SharePermit<'_, K>> {
        let is_free = |taken: &HashMap<K, usize>| taken.get(&holder) < Some(&self.each);
        let taken = self.taken.locked();
        let mut taken = self.returned.wait_until(taken, deadline, is_free);
        if !is_free(&taken) {
            return None;
        }
        *taken.entry(holder).or_default() += 1;
        let shares = self;
        Some(SharePermit { shares, holder })
    }
}

impl<K: Eq + Hash> FairShares<K> {}

impl<K: Eq + Hash> Drop for SharePermit<'_, K> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.locked();
        if let Some(count) = taken.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                // As many entries as there are holders.
                taken.remove(&self.holder);
            }
        }
        drop(taken);
        self.shares.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn nobody_has_more_than_a_share_and_nothing_is_left_of_it() {
        let (shares, now) = (FairShares::new(2), Instant::now());
        let held = [shares.take('a', now), shares.take('a', now)];
        assert!(held.iter().all(Option::is_some));
        assert!(shares.take('a', now + Duration::from_millis(10)).is_none());
        assert!(shares.take('b', now).is_some());
        drop(held);
        assert!(shares.take('a', now).is_some());
        assert!(shares.taken.locked().is_empty());
    }

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
                    .take(Instant::now() + Duration::from_secs(60))
                    .is_some()
            });
            drop(taken);
            assert!(waiter.join().unwrap());
        });
    }
}
