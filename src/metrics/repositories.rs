//! Requests by repository, for `METRICS_REPOSITORIES=true`. Owns: their numbers. Must not: count a
//! name that nobody has shown to exist.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::by_name::ByName;
use super::counter::Counter;

/// Repositories with numbers of their own; each is two lines of every scrape.
pub const REPOSITORIES_MAX: usize = 1000;

static IS_ENABLED: AtomicBool = AtomicBool::new(false);
static REPOSITORIES: ByName<2, RepositoryCounters> = ByName::new(REPOSITORIES_MAX);

/// The numbers of one repository.
#[derive(Debug, Default)]
pub struct RepositoryCounters {
    /// Requests that were answered with success.
    pub requests: Counter,
    /// Body bytes that clients got.
    pub sent_bytes: Counter,
}

/// From now on repositories are counted.
pub fn enable() {
    IS_ENABLED.store(true, Relaxed);
}

/// Counts a request that was answered with success, if repositories are counted.
pub fn count(registry: &str, repository: &str, sent_bytes: u64) {
    if IS_ENABLED.load(Relaxed) {
        let counters = REPOSITORIES.of([registry, repository]);
        counters.requests.inc();
        counters.sent_bytes.add(sent_bytes);
    }
}

/// The numbers of all repositories, with the names of registry and repository.
pub fn all() -> impl Iterator<Item = ([&'static str; 2], &'static RepositoryCounters)> {
    REPOSITORIES.all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_counted_once_that_is_enabled() {
        count("r.example", "app", 1);
        assert!(all().next().is_none());
        enable();
        count("r.example", "app", 2);
        let (name, counters) = all().next().unwrap();
        let counted = (counters.requests.get(), counters.sent_bytes.get());
        assert_eq!((name, counted), (["r.example", "app"], (1, 2)));
    }
}
