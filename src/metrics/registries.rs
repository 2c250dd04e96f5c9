//! Calls to registries. Owns: their numbers, one set for each registry. Must not: know why a call
//! failed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::counter::Counter;
use super::histogram::Histogram;

/// Registries with numbers of their own; a proxy knows a handful. Where clients can name further
/// ones (`UPSTREAM_AUTH=none`), those beyond share one set.
pub const REGISTRIES_MAX: usize = 64;
/// The name of that set.
const OTHER: &str = "other";
/// Stages at which a call may fail.
pub const STAGES_MAX: usize = 12;
/// Classes of statuses, `1xx` to `5xx`.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

static REGISTRIES: [OnceLock<RegistryCounters>; REGISTRIES_MAX] =
    [const { OnceLock::new() }; REGISTRIES_MAX];
static OTHERS: OnceLock<RegistryCounters> = OnceLock::new();

/// The numbers of one registry.
#[derive(Debug)]
pub struct RegistryCounters {
    /// The registry's name.
    pub name: String,
    /// How long it took until the head of its reply had come.
    pub head_times: Histogram,
    replies: [Counter; CLASSES.len()],
    errors: [Counter; STAGES_MAX],
    is_circuit_open: AtomicBool,
}

impl RegistryCounters {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            head_times: Histogram::new(),
            replies: [const { Counter::new() }; CLASSES.len()],
            errors: [const { Counter::new() }; STAGES_MAX],
            is_circuit_open: AtomicBool::new(false),
        }
    }

    /// Counts a reply of this status.
    pub fn count_reply(&self, status: u16) {
        let class = usize::from(status / 100).checked_sub(1);
        if let Some(replies) = class.and_then(|class| self.replies.get(class)) {
            replies.inc();
        }
    }

    /// Counts a failure at the stage of this number.
    pub fn count_error(&self, stage: usize) {
        if let Some(errors) = self.errors.get(stage) {
            errors.inc();
        }
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

/// The numbers of a registry. Takes no lock, but for the first call with a new name.
pub fn counters_of(name: &str) -> &'static RegistryCounters {
    for slot in &REGISTRIES {
        let counters = slot.get_or_init(|| RegistryCounters::new(name));
        if counters.name == name {
            return counters;
        }
    }
    OTHERS.get_or_init(|| RegistryCounters::new(OTHER))
}

/// The numbers of all registries so far.
pub fn all() -> impl Iterator<Item = &'static RegistryCounters> {
    REGISTRIES.iter().chain([&OTHERS]).map_while(OnceLock::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_counts_for_itself_and_too_many_count_together() {
        let name = |number| format!("registries-test-{number}.example");
        let (one, two) = (counters_of(&name(1)), counters_of(&name(2)));
        assert!(!std::ptr::eq(one, two) && std::ptr::eq(one, counters_of(&name(1))));
        one.count_reply(206);
        one.count_reply(503);
        one.count_reply(999);
        one.count_error(3);
        one.count_error(STAGES_MAX);
        let replies: Vec<_> = one.replies().map(|(_, count)| count).collect();
        assert_eq!(replies, [0, 1, 0, 0, 1]);
        assert_eq!(one.errors().nth(3), Some(1));
        assert_eq!(one.errors().sum::<u64>(), 1);
        assert_eq!(two.replies().map(|(_, count)| count).sum::<u64>(), 0);
        for number in 0..=REGISTRIES_MAX {
            counters_of(&name(number));
        }
        let beyond = counters_of(&name(REGISTRIES_MAX + 1));
        assert_eq!(beyond.name, OTHER);
        assert!(std::ptr::eq(one, counters_of(&name(1))));
        assert_eq!(all().count(), REGISTRIES_MAX + 1);
    }
}
