//! Calls to registries. Owns: their numbers, one set for each registry. Must not: know why a call
//! failed.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::by_name::ByName;
use super::counter::{Counter, add};
use super::histogram::Histogram;

/// Registries with numbers of their own; a proxy knows a handful. Where clients can name further
/// ones (`UPSTREAM_AUTH=none`), those beyond share one set.
pub const REGISTRIES_MAX: usize = 64;
/// Stages at which a call may fail.
pub const STAGES_MAX: usize = 12;
/// Classes of statuses.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

static REGISTRIES: ByName<1, RegistryCounters> = ByName::new(REGISTRIES_MAX);

/// The numbers of one registry.
#[derive(Debug, Default)]
pub struct RegistryCounters {
    /// How long it took until the head of its reply had come.
    pub head_times: Histogram,
    replies: [Counter; CLASSES.len()],
    errors: [Counter; STAGES_MAX],
    is_circuit_open: AtomicBool,
}

impl RegistryCounters {
    /// Counts a reply of this status.
    pub fn count_reply(&self, status: u16) {
        if let Some(class) = usize::from(status / 100).checked_sub(1) {
            add(&self.replies, class, 1);
        }
    }

    /// Counts a failure at the stage of this number.
    pub fn count_error(&self, stage: usize) {
        add(&self.errors, stage, 1);
    }

    /// Says whether requests fail at once, since the registry was out of reach.
    pub fn set_circuit(&self, is_open: bool) {
        // Written on a change only: every call reads it.
        if self.is_circuit_open() != is_open {
            self.is_circuit_open.store(is_open, Relaxed);
        }
    }

    /// True when requests fail at once.
    pub fn is_circuit_open(&self) -> bool {
        self.is_circuit_open.load(Relaxed)
    }

    /// Replies by class of status.
    pub fn replies(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CLASSES
            .into_iter()
            .zip(self.replies.iter().map(Counter::get))
    }

    /// Failures by the number of their stage.
    pub fn errors(&self) -> impl Iterator<Item = u64> {
        self.errors.iter().map(Counter::get)
    }
}

/// The numbers of a registry.
pub fn counters_of(name: &str) -> &'static RegistryCounters {
    REGISTRIES.of([name])
}

/// The numbers of all registries so far, with their names.
pub fn all() -> impl Iterator<Item = (&'static str, &'static RegistryCounters)> {
    REGISTRIES.all().map(|([name], counters)| (name, counters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_counts_for_itself() {
        let name = |number| format!("registries-test-{number}.example");
        let (one, two) = (counters_of(&name(1)), counters_of(&name(2)));
        assert!(!std::ptr::eq(one, two) && std::ptr::eq(one, counters_of(&name(1))));
        one.count_reply(206);
        one.count_reply(503);
        one.count_reply(999);
        one.count_reply(0);
        one.count_error(3);
        one.count_error(STAGES_MAX);
        let replies: Vec<_> = one.replies().map(|(_, count)| count).collect();
        assert_eq!(replies, [0, 1, 0, 0, 1]);
        assert_eq!(one.errors().nth(3), Some(1));
        assert_eq!(one.errors().sum::<u64>(), 1);
        assert_eq!(two.replies().map(|(_, count)| count).sum::<u64>(), 0);
    }
}
