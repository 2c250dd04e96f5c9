//! Slows down clients that guess passwords. Owns: how often a login failed lately, by address and
//! name, how slowly the next refusal is answered, and when there is none but 429. Must not: know a
//! password, or wait itself.
//!
//! A failure is a debt that is paid off by time. It counts twice: for the name at its address, and
//! for the address as a whole. Others at an address where somebody guesses (NAT, a load balancer)
//! are held up by the latter alone, and not even by that once they have logged in from there.
//! Logins that are remembered, right or wrong, never come here: a script that repeats one old
//! password adds no debt.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::address::network_of;

/// What one name at one address may owe. A client that waits for each answer pays off a failure
/// while it waits ([`DELAY_MAX`]), so that only guesses side by side reach the limit.
const NAME_DEBT: Debt = Debt {
    failure: DELAY_MAX,
    failures_max: 30,
};
/// What one address may owe: bcrypt of the usual cost for a fifth of a processor, and a hundred
/// people behind it that mistype at once.
const ADDRESS_DEBT: Debt = Debt {
    failure: Duration::from_millis(250),
    failures_max: 100,
};
/// Failures of a name that are answered at once: slips of the finger.
const NAME_FREE: u32 = 5;
/// How long the first refusal after those takes; each failure more doubles it ...
const DELAY_MIN: Duration = Duration::from_millis(250);
/// ... up to this: clients show "unauthorized" soon enough not to look stuck.
pub(super) const DELAY_MAX: Duration = Duration::from_secs(2);
/// How long it is remembered that a name has logged in from an address.
const SUCCESS_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Most records, of about 64 bytes each. One more replaces the record that was unused longest.
const RECORDS_MAX: usize = 4096;

/// How failures are paid off.
struct Debt {
    /// The time that pays off one failure.
    failure: Duration,
    /// Failures that may be owed at a time.
    failures_max: u32,
}

/// The memory of failures.
#[derive(Default)]
pub(super) struct Brake {
    records: HashMap<FailureKey, FailureRecord>,
    names: RandomState,
}

/// An address, and the hash of a name; none: all names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FailureKey {
    address: Option<IpAddr>,
    name: Option<u64>,
}

struct FailureRecord {
    /// When all failures so far are paid off.
    paid_off: Instant,
    has_succeeded: bool,
    last: Instant,
}

impl Brake {
    /// How long `name` at `peer` has to wait before its next attempt; none when it need not wait.
    pub(super) fn wait(&self, peer: Option<IpAddr>, name: &str, now: Instant) -> Option<Duration> {
        let own = self.find(&self.key(peer, Some(name)), now);
        let all = self.find(&self.key(peer, None), now);
        let all = all.filter(|_| !own.is_some_and(|own| own.has_succeeded));
        let own = own.and_then(|own| own.wait(&NAME_DEBT, now));
        own.max(all.and_then(|all| all.wait(&ADDRESS_DEBT, now)))
    }

    /// How long a refusal of `name` at `peer` is held back, at most [`DELAY_MAX`].
    pub(super) fn delay(&self, peer: Option<IpAddr>, name: &str, now: Instant) -> Duration {
        let record = self.find(&self.key(peer, Some(name)), now);
        let failures = record.map_or(0, |record| record.count_owed(&NAME_DEBT, now));
        let Some(doublings) = failures.checked_sub(NAME_FREE + 1) else {
            return Duration::ZERO;
        };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        DELAY_MIN.saturating_mul(factor).min(DELAY_MAX)
    }

    /// A password was wrong.
    pub(super) fn record_failure(&mut self, peer: Option<IpAddr>, name: &str, now: Instant) {
        let keys = [self.key(peer, Some(name)), self.key(peer, None)];
        for (key, debt) in keys.into_iter().zip([NAME_DEBT, ADDRESS_DEBT]) {
            let record = self.find_or_add(key, now);
            record.paid_off = record.paid_off.max(now) + debt.failure;
            record.last = now;
        }
    }

    /// A password was right: the failures of this name are forgotten, those of the address stay.
    pub(super) fn record_success(&mut self, peer: Option<IpAddr>, name: &str, now: Instant) {
        let key = self.key(peer, Some(name));
        let record = self.find_or_add(key, now);
        (record.paid_off, record.has_succeeded, record.last) = (now, true, now);
    }

    fn find(&self, key: &FailureKey, now: Instant) -> Option<&FailureRecord> {
        self.records.get(key).filter(|record| record.is_live(now))
    }

    fn find_or_add(&mut self, key: FailureKey, now: Instant) -> &mut FailureRecord {
        if self.find(&key, now).is_none() {
            self.records.remove(&key);
            self.make_room(now);
        }
        self.records.entry(key).or_insert(FailureRecord {
            paid_off: now,
            has_succeeded: false,
            last: now,
        })
    }

    fn make_room(&mut self, now: Instant) {
        if self.records.len() < RECORDS_MAX {
            return;
        }
        self.records.retain(|_, record| record.is_live(now));
        if self.records.len() < RECORDS_MAX {
            return;
        }
        let oldest = self.records.iter().min_by_key(|(_, record)| record.last);
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.records.remove(&key);
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
        now < self.paid_off || (self.has_succeeded && now < self.last + SUCCESS_LIFE)
    }

    /// Failures that are not paid off; one that is paid in part counts whole.
    fn count_owed(&self, debt: &Debt, now: Instant) -> u32 {
        let left = self.paid_off.saturating_duration_since(now).as_millis();
        u32::try_from(left.div_ceil(debt.failure.as_millis())).unwrap_or(u32::MAX)
    }

    /// Time until one failure more may be owed.
    fn wait(&self, debt: &Debt, now: Instant) -> Option<Duration> {
        let room = debt.failure * (debt.failures_max - 1);
        let left = self.paid_off.saturating_duration_since(now);
        left.checked_sub(room).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn refusals_slow_down_with_the_failures_of_a_name_and_stay_401_for_one_that_waits() {
        let (mut brake, mut now, peer) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        let mut delays = Vec::new();
        for _ in 0..1000 {
            assert_eq!(brake.wait(peer, "alice", now), None);
            brake.record_failure(peer, "alice", now);
            let delay = brake.delay(peer, "alice", now);
            delays.push(delay.as_millis());
            now += delay;
        }
        assert_eq!(delays[..10], [0, 0, 0, 0, 0, 250, 500, 1000, 2000, 2000]);
        assert!(delays.iter().all(|delay| *delay <= 2000));
    }

    #[test]
    fn guesses_side_by_side_reach_429_and_are_let_in_again_at_a_steady_rate() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..NAME_DEBT.failures_max {
            assert_eq!(brake.wait(here, "alice", now), None);
            brake.record_failure(here, "alice", now);
        }
        assert_eq!(brake.wait(here, "alice", now), Some(NAME_DEBT.failure));
        assert_eq!(brake.wait(here, "alice", now + NAME_DEBT.failure), None);
        brake.record_failure(here, "alice", now + NAME_DEBT.failure);
        let wait = brake.wait(here, "alice", now + NAME_DEBT.failure);
        assert_eq!(wait, Some(NAME_DEBT.failure));
    }

    #[test]
    fn one_name_and_one_address_hold_up_no_other() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..NAME_DEBT.failures_max {
            brake.record_failure(here, "alice", now);
        }
        assert!(brake.wait(here, "alice", now).is_some());
        for (peer, name) in [(here, "bob"), (peer("10.0.0.2"), "alice"), (None, "alice")] {
            assert_eq!(brake.wait(peer, name, now), None, "{name}");
            assert_eq!(brake.delay(peer, name, now), Duration::ZERO, "{name}");
        }
    }

    #[test]
    fn a_client_that_tries_many_names_is_held_up_as_a_whole_but_not_for_long() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        brake.record_success(here, "carol", now);
        for number in 0..ADDRESS_DEBT.failures_max {
            assert_eq!(brake.wait(here, "bob", now), None);
            brake.record_failure(here, &format!("user{number}"), now);
        }
        assert_eq!(brake.wait(here, "bob", now), Some(ADDRESS_DEBT.failure));
        assert_eq!(brake.wait(here, "bob", now + ADDRESS_DEBT.failure), None);
        // Who has logged in from there answers for their own failures alone.
        assert_eq!(brake.wait(here, "carol", now), None);
        for _ in 0..NAME_DEBT.failures_max {
            brake.record_failure(here, "carol", now);
        }
        assert_eq!(brake.wait(here, "carol", now), Some(NAME_DEBT.failure));
    }

    #[test]
    fn a_good_login_clears_the_name_and_not_the_address() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..ADDRESS_DEBT.failures_max {
            brake.record_failure(here, "alice", now);
        }
        brake.record_success(here, "alice", now);
        assert_eq!(brake.wait(here, "alice", now), None);
        assert_eq!(brake.delay(here, "alice", now), Duration::ZERO);
        assert_eq!(brake.wait(here, "bob", now), Some(ADDRESS_DEBT.failure));
    }

    #[test]
    fn failures_are_paid_off_by_time() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..NAME_DEBT.failures_max {
            brake.record_failure(here, "alice", now);
        }
        let later = now + NAME_DEBT.failure * NAME_DEBT.failures_max;
        brake.record_failure(here, "alice", later);
        assert_eq!(brake.wait(here, "alice", later), None);
        assert_eq!(brake.delay(here, "alice", later), Duration::ZERO);
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        for number in 0..NAME_DEBT.failures_max {
            brake.record_failure(peer(&format!("2001:db8::{number:x}")), "alice", now);
        }
        assert!(brake.wait(peer("2001:db8::ffff:1"), "alice", now).is_some());
        assert_eq!(brake.wait(peer("2001:db8:0:1::1"), "alice", now), None);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_goes() {
        let (mut brake, now, here) = (Brake::default(), Instant::now(), peer("10.0.0.1"));
        for _ in 0..NAME_DEBT.failures_max {
            brake.record_failure(here, "alice", now);
        }
        for number in 0..u32::try_from(RECORDS_MAX).unwrap() {
            let other = Some(IpAddr::V4((0x0b00_0000 + number).into()));
            brake.record_failure(other, "x", now + Duration::from_millis(1));
            assert!(brake.records.len() <= RECORDS_MAX);
        }
        assert_eq!(brake.wait(here, "alice", now), None);
    }
}
