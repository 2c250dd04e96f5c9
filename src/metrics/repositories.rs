//! Requests by repository, for `METRICS_REPOSITORIES=true`. Owns: their numbers, and the bound of
//! names. Must not: count a name that nobody has shown to exist.
//!
//! The table is a hash table without a lock: a slot is filled once, and stays.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::counter::Counter;

/// Repositories with numbers of their own; each is two lines of every scrape.
pub const REPOSITORIES_MAX: usize = 1000;
/// Slots of the table: so many more that one is found soon.
const SLOTS: usize = 2 * REPOSITORIES_MAX;

/// Its slots, once repositories are counted. An empty lock is not all zeros, so that a table of
/// them without that would take 144 KB of the binary.
static TABLE: OnceLock<Box<[OnceLock<RepositoryCounters>]>> = OnceLock::new();
static TAKEN: AtomicUsize = AtomicUsize::new(0);
static OTHERS: Numbers = Numbers::new();

/// The numbers of one repository.
#[derive(Debug)]
pub struct RepositoryCounters {
    /// The registry's name.
    pub registry: String,
    /// The repository's.
    pub repository: String,
    /// What was counted.
    pub numbers: Numbers,
}

/// Numbers of a repository, or of all that have none of their own.
#[derive(Debug)]
pub struct Numbers {
    /// Requests that were answered with success.
    pub requests: Counter,
    /// Body bytes that clients got.
    pub sent_bytes: Counter,
}

impl Numbers {
    const fn new() -> Self {
        Self {
            requests: Counter::new(),
            sent_bytes: Counter::new(),
        }
    }
}

/// From now on repositories are counted.
pub fn enable() {
    TABLE.get_or_init(|| (0..SLOTS).map(|_| OnceLock::new()).collect());
}

/// Counts a request that was answered with success, if repositories are counted.
pub fn count(registry: &str, repository: &str, sent_bytes: u64) {
    if let Some(table) = TABLE.get() {
        let numbers = numbers_of(table, registry, repository);
        numbers.requests.inc();
        numbers.sent_bytes.add(sent_bytes);
    }
}

/// The numbers of a repository: new ones while there are any, else those of all others.
fn numbers_of<'a>(
    table: &'a [OnceLock<RepositoryCounters>],
    registry: &str,
    repository: &str,
) -> &'a Numbers {
    let mut hasher = DefaultHasher::new();
    (registry, repository).hash(&mut hasher);
    let first = usize::try_from(hasher.finish() % SLOTS as u64).unwrap_or_default();
    for slot in table.iter().cycle().skip(first).take(SLOTS) {
        let Some(counters) = slot.get().or_else(|| fill(slot, registry, repository)) else {
            break;
        };
        if counters.registry == registry && counters.repository == repository {
            return &counters.numbers;
        }
    }
    &OTHERS
}

/// Gives an empty slot to a repository, unless there are enough. Another thread may be first.
fn fill<'a>(
    slot: &'a OnceLock<RepositoryCounters>,
    registry: &str,
    repository: &str,
) -> Option<&'a RepositoryCounters> {
    let more = |taken| (taken < REPOSITORIES_MAX).then_some(taken + 1);
    TAKEN.fetch_update(Relaxed, Relaxed, more).ok()?;
    let mut is_ours = false;
    let counters = slot.get_or_init(|| {
        is_ours = true;
        RepositoryCounters {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            numbers: Numbers::new(),
        }
    });
    if !is_ours {
        TAKEN.fetch_sub(1, Relaxed);
    }
    Some(counters)
}

/// The numbers of all repositories that have their own, in no order.
pub fn all() -> impl Iterator<Item = &'static RepositoryCounters> {
    TABLE.get().into_iter().flatten().filter_map(OnceLock::get)
}

/// The numbers of the others, once there are any.
pub fn others() -> Option<&'static Numbers> {
    (OTHERS.requests.get() > 0).then_some(&OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_limit_count_together() {
        let name = |number: usize| format!("app-{number}");
        count("r.example", "app", 1);
        assert!(all().next().is_none() && others().is_none(), "not enabled");
        enable();
        // Two threads fill the table with the same names.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    (0..2 * REPOSITORIES_MAX)
                        .for_each(|number| count("r.example", &name(number), 1))
                });
            }
        });
        let (names, counted) = (all().count(), TAKEN.load(Relaxed));
        assert_eq!((names, counted), (REPOSITORIES_MAX, REPOSITORIES_MAX));
        let own: u64 = all().map(|counters| counters.numbers.requests.get()).sum();
        let rest = others().expect("some");
        assert_eq!(own + rest.requests.get(), 4 * REPOSITORIES_MAX as u64);
        assert_eq!(rest.sent_bytes.get(), rest.requests.get());
        assert!(own > REPOSITORIES_MAX as u64);
        let first = all().next().unwrap();
        let table = TABLE.get().unwrap();
        let again = numbers_of(table, "r.example", &first.repository);
        assert!(std::ptr::eq(again, &first.numbers));
        // The same name in another registry is another repository.
        let elsewhere = numbers_of(table, "other.example", &first.repository);
        assert!(std::ptr::eq(elsewhere, &OTHERS));
    }
}
