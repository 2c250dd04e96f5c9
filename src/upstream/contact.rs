//! What we have learnt about each registry by asking it. Owns: that knowledge, and its bounds. Must
//! not: send anything.
//!
//! Locks: the table, held for map operations; the last error, held to copy it.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use super::breaker::Breaker;
use super::throttle::Throttle;
use crate::locked::Locked as _;
use crate::oci::Registry;
use crate::permits::Permits;

/// Registries that are remembered; a proxy knows a handful.
const REGISTRIES_MAX: usize = 256;

/// The time and the text of the last failure.
pub(super) type LastError = (SystemTime, String);

/// The state of one registry.
#[derive(Debug)]
pub(super) struct Contact {
    /// Whether it answers.
    pub(super) breaker: Breaker,
    /// Whether a token for it comes, for callers that have an older answer.
    pub(super) token_breaker: Breaker,
    /// Whether it wants to be left alone.
    pub(super) throttle: Throttle,
    /// Its last failure; there may have been successes since.
    pub(super) last_error: Mutex<Option<LastError>>,
    /// True when the last call that shows it did not reach the registry.
    pub(super) is_away: AtomicBool,
    /// Requests that wait for a head, so that a registry that is slow keeps no other waiting.
    pub(super) exchanges: Permits,
    /// Requests that send a body: an upload may last hours.
    pub(super) uploads: Permits,
}

/// The states of all registries that were asked.
#[derive(Debug)]
pub(super) struct Contacts {
    exchanges: usize,
    uploads: usize,
    contacts: Mutex<HashMap<Registry, Arc<Contact>>>,
}

impl Contacts {
    /// At most `exchanges` wait for a head, and at most `uploads` send a body, at a time and
    /// registry.
    pub(super) fn new(exchanges: usize, uploads: usize) -> Self {
        let contacts = Mutex::default();
        Self {
            exchanges,
            uploads,
            contacts,
        }
    }

    /// The entry of `registry`; makes an empty one when there is none.
    pub(super) fn of(&self, registry: &Registry) -> Arc<Contact> {
        let mut contacts = self.contacts.locked();
        if contacts.len() >= REGISTRIES_MAX && !contacts.contains_key(registry) {
            let now = Instant::now();
            contacts.retain(|_, contact| {
                Arc::strong_count(contact) > 1 || contact.throttle.wait(now, 0).is_some()
            });
        }
        let contact = contacts.entry(registry.clone());
        Arc::clone(contact.or_insert_with(|| {
            Arc::new(Contact {
                breaker: Breaker::default(),
                token_breaker: Breaker::default(),
                throttle: Throttle::default(),
                last_error: Mutex::default(),
                is_away: AtomicBool::default(),
                exchanges: Permits::new(self.exchanges),
                uploads: Permits::new(self.uploads),
            })
        }))
    }

    /// The entry of `registry`; none before it was asked.
    pub(super) fn get(&self, registry: &Registry) -> Option<Arc<Contact>> {
        self.contacts.locked().get(registry).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_registry_has_permits_of_its_own_and_the_registries_are_bounded() {
        let contacts = Contacts::new(1, 1);
        let [one, other, third] =
            ["one.example", "other.example", "third.example"].map(|host| host.parse().unwrap());
        let now = Instant::now();
        let held = contacts.of(&one);
        let permit = held.exchanges.take(now).unwrap();
        assert!(contacts.of(&one).exchanges.take(now).is_none());
        assert!(contacts.of(&other).exchanges.take(now).is_some());
        let minute = Duration::from_secs(60);
        contacts.of(&third).throttle.note(Some(minute), now, 0);
        // What nobody uses is forgotten, but no pause that goes on.
        for number in 0..=REGISTRIES_MAX {
            let registry = format!("r{number}.example").parse().unwrap();
            assert!(contacts.of(&registry).exchanges.take(now).is_some());
        }
        assert!(contacts.contacts.locked().len() <= REGISTRIES_MAX);
        assert!(contacts.of(&one).exchanges.take(now).is_none());
        assert!(contacts.get(&other).is_none());
        assert!(contacts.of(&third).throttle.wait(now, 0).is_some());
        drop(permit);
        assert!(contacts.of(&one).exchanges.take(now).is_some());
    }
}
