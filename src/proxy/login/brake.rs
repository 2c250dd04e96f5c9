//! Slows down who guesses passwords. Owns: how often a login failed lately, by address and name,
//! and how long the next attempt has to wait. Must not: know a password, or wait itself.
//!
//! Failures count twice: for the name at its address, and for the address as a whole. Who shares an
//! address with somebody who guesses (NAT, a load balancer) is held up by the latter alone, at most
//! for [`ADDRESS_DELAY_MAX`] between two attempts of all at that address, and not even by that once
//! they have logged in from there. Requests under a login that is remembered never come here.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::address::network_of;

/// Failures of a name that cost nothing: slips of the finger, and a script with an old password.
const NAME_FREE: u32 = 5;
/// Longest wait between two attempts at a name.
const NAME_DELAY_MAX: Duration = Duration::from_secs(60);
/// Failures of an address that cost nothing: several people may be behind it.
const ADDRESS_FREE: u32 = 20;
/// Longest wait between two attempts of an address.
const ADDRESS_DELAY_MAX: Duration = Duration::from_secs(10);
/// The first wait; each failure doubles it.
const DELAY_MIN: Duration = Duration::from_secs(1);
/// Failures are forgotten when none came for so long.
const FAILURES_LIFE: Duration = Duration::from_secs(15 * 60);
/// That a name has logged in from an address is forgotten after so long.
const SUCCESS_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Entries kept, of about 64 bytes; past that the oldest goes.
const ENTRIES_MAX: usize = 4096;

/// The memory of failures.
#[derive(Default)]
pub(super) struct Brake {
    entries: HashMap<FailureKey, FailureRecord>,
    names: RandomState,
}

/// An address, and the hash of a name; none: all names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FailureKey {
    address: Option<IpAddr>,
    name: Option<u64>,
}

struct FailureRecord {
    failures: u32,
    has_succeeded: bool,
    last: Instant,
}

impl Brake {
    /// How long `name` at `peer` has to wait before its next attempt; none: not at all.
    pub(super) fn wait(&self, peer: Option<IpAddr>, name: &str, now: Instant) -> Option<Duration> {
        let own = self.live(&self.key(peer, Some(name)), now);
        let all = self.live(&self.key(peer, None), now);
        let all = all.filter(|_| !own.is_some_and(|own| own.has_succeeded));
        let own = own.and_then(|own| own.wait(NAME_FREE, NAME_DELAY_MAX, now));
        let all = all.and_then(|all| all.wait(ADDRESS_FREE, ADDRESS_DELAY_MAX, now));
        own.max(all)
    }

    /// A password was wrong.
    pub(super) fn record_failure(&mut self, peer: Option<IpAddr>, name: &str, now: Instant) {
        for key in [self.key(peer, Some(name)), self.key(peer, None)] {
            let entry = self.entry(key, now);
            entry.failures = entry.failures.saturating_add(1);
            entry.last = now;
        }
    }

    /// A password was right: the failures of this name are forgotten, those of the address stay.
    pub(super) fn record_success(&mut self, peer: Option<IpAddr>, name: &str, now: Instant) {
        let key = self.key(peer, Some(name));
        let entry = self.entry(key, now);
        (entry.failures, entry.has_succeeded, entry.last) = (0, true, now);
    }

    fn live(&self, key: &FailureKey, now: Instant) -> Option<&FailureRecord> {
        self.entries.get(key).filter(|entry| entry.is_live(now))
    }

    fn entry(&mut self, key: FailureKey, now: Instant) -> &mut FailureRecord {
        if self.live(&key, now).is_none() {
            self.entries.remove(&key);
            self.make_room(now);
        }
        self.entries.entry(key).or_insert(FailureRecord {
            failures: 0,
            has_succeeded: false,
            last: now,
        })
    }

    fn make_room(&mut self, now: Instant) {
        if self.entries.len() < ENTRIES_MAX {
            return;
        }
        self.entries.retain(|_, entry| entry.is_live(now));
        if self.entries.len() < ENTRIES_MAX {
            return;
        }
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last);
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.entries.remove(&key);
        }
    }

    fn key(&self, peer: Option<IpAddr>, name: Option<&str>) -> FailureKey {
        FailureKey {
            address: peer.map(network_of),
            name: name.map(|name| self.names.hash_one(name)),
        }
    }
}

impl FailureRecord {
    fn is_live(&self, now: Instant) -> bool {
        let life = if self.has_succeeded {
            SUCCESS_LIFE
        } else {
            FAILURES_LIFE
        };
        now < self.last + life
    }

    fn wait(&self, free: u32, max: Duration, now: Instant) -> Option<Duration> {
        let doublings = self.failures.checked_sub(free)?;
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let delay = DELAY_MIN.saturating_mul(factor).min(max);
        let left = (self.last + delay).saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn peer(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn the_wait_grows_with_the_failures_of_a_name() {
        let (mut brake, mut now, peer) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..NAME_FREE {
            assert_eq!(brake.wait(peer, "alice", now), None);
            brake.record_failure(peer, "alice", now);
        }
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = brake.wait(peer, "alice", now).unwrap();
            waits.push(wait.as_secs());
            assert!(brake.wait(peer, "alice", now + wait / 2).is_some());
            now += wait;
            assert_eq!(brake.wait(peer, "alice", now), None);
            brake.record_failure(peer, "alice", now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn one_name_and_one_address_hold_up_no_other() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..10 {
            brake.record_failure(here, "alice", now);
        }
        assert!(brake.wait(here, "alice", now).is_some());
        assert_eq!(brake.wait(here, "bob", now), None);
        assert_eq!(brake.wait(peer("10.0.0.2"), "alice", now), None);
        assert_eq!(brake.wait(None, "alice", now), None);
    }

    #[test]
    fn who_tries_many_names_is_held_up_as_a_whole_but_not_for_long() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        brake.record_success(here, "carol", now);
        for number in 0..100 {
            brake.record_failure(here, &format!("user{number}"), now);
        }
        assert_eq!(brake.wait(here, "bob", now), Some(ADDRESS_DELAY_MAX));
        assert_eq!(brake.wait(here, "bob", now + ADDRESS_DELAY_MAX), None);
        // Who has logged in from there answers for their own failures alone.
        assert_eq!(brake.wait(here, "carol", now), None);
        for _ in 0..NAME_FREE {
            brake.record_failure(here, "carol", now);
        }
        assert_eq!(brake.wait(here, "carol", now), Some(SECOND));
    }

    #[test]
    fn a_good_login_clears_the_name_and_not_the_address() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..ADDRESS_FREE {
            brake.record_failure(here, "alice", now);
        }
        brake.record_success(here, "alice", now);
        assert_eq!(brake.wait(here, "alice", now), None);
        assert_eq!(brake.wait(here, "bob", now), Some(SECOND));
    }

    #[test]
    fn failures_are_forgotten() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..100 {
            brake.record_failure(here, "alice", now);
        }
        let later = now + FAILURES_LIFE;
        brake.record_failure(here, "alice", later);
        assert_eq!(brake.wait(here, "alice", later), None);
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        for number in 0..NAME_FREE {
            brake.record_failure(peer(&format!("2001:db8::{number}")), "alice", now);
        }
        assert!(brake.wait(peer("2001:db8::ffff:1"), "alice", now).is_some());
        assert_eq!(brake.wait(peer("2001:db8:0:1::1"), "alice", now), None);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_goes() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..NAME_FREE {
            brake.record_failure(here, "alice", now);
        }
        for number in 0..u32::try_from(ENTRIES_MAX).unwrap() {
            let other = Some(IpAddr::V4((0x0b00_0000 + number).into()));
            brake.record_failure(other, "x", now + Duration::from_millis(1));
            assert!(brake.entries.len() <= ENTRIES_MAX);
        }
        assert_eq!(brake.wait(here, "alice", now), None);
    }
}
