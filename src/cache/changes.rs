//! What was pushed or deleted through us, and when. Owns: the order of changes and answers. Must
//! not: know what was pushed, or do I/O.
//!
//! A question to upstream and a change may cross: an answer from before a change must not be kept
//! after it. A caller notes the [`Moment`] before it asks, and keeps the answer only if no [`Fact`]
//! in it has changed since. Upstream's order is not ours, either: of two pushes of one tag at a
//! time, the answer that comes last need not be that of the push that came last. So after such a
//! pair upstream is asked.
//!
//! A change is noted first, and then what it makes wrong is removed from the cache. So a caller
//! that writes an older answer and then looks here finds the change, or the removal takes what it
//! wrote.
//!
//! Repositories share a fixed number of bounded lists. A client that changes more names than fit
//! makes its own list forget the older half, which counts as changed: a few answers are not kept.
//!
//! Locks: each list, held for map operations.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::paths::Scope;
use crate::locked::Locked as _;
use crate::oci::{Digest, Tag};

/// Lists that the repositories share.
const LISTS: usize = 256;
/// Changes in one list: what pipelines push while one question is asked, many times over. All
/// lists together stay in 4 MB.
const CHANGES_MAX: usize = 256;

/// A point in the order of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// Something that upstream says about a repository, and that a change ends.
#[derive(Debug, Clone, Copy, Hash)]
pub enum Fact<'a> {
    /// What the tag means, or that it means nothing.
    Tag(&'a Tag),
    /// The manifest or blob is there; a deletion ends that.
    Present(&'a Digest),
    /// The manifest or blob is not there; a push ends that.
    Absent(&'a Digest),
    /// Which manifests and tags there are.
    Contents,
}

/// A change that was noted.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// When it was noted.
    pub at: Moment,
    /// When the same fact had changed before.
    pub previous: Moment,
}

/// All changes.
#[derive(Debug)]
pub struct Changes {
    count: AtomicU64,
    lists: Vec<Mutex<ListKey>>,
    keys: RandomState,
}

#[derive(Debug, Default)]
struct ListKey {
    /// When a fact changed last, by its hash.
    last: HashMap<u64, u64>,
    /// Changes up to this one may be forgotten.
    forgotten: u64,
}

impl Moment {
    /// After every change: what is written does not come from upstream.
    #[cfg(test)]
    pub(super) const LAST: Self = Self(u64::MAX);
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            count: AtomicU64::new(0),
            lists: (0..LISTS).map(|_| Mutex::default()).collect(),
            keys: RandomState::new(),
        }
    }
}

impl Changes {
    /// The moment to note before upstream is asked.
    pub fn now(&self) -> Moment {
        Moment(self.count.load(Ordering::SeqCst))
    }

    /// Upstream has taken a change that ends `fact`. Must come before what the cache holds of it
    /// is removed.
    pub fn note(&self, scope: Scope<'_>, fact: Fact<'_>) -> Change {
        let mut list = self.list(scope);
        if list.last.len() >= CHANGES_MAX {
            list.forget_older_half();
        }
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        let previous = list.last.insert(self.key(scope, fact), number);
        Change {
            at: Moment(number),
            previous: Moment(previous.unwrap_or(list.forgotten)),
        }
    }

    /// When a fact changed last, or an earlier moment for one that never did.
    pub fn last(&self, scope: Scope<'_>, fact: Fact<'_>) -> Moment {
        let list = self.list(scope);
        let last = list.last.get(&self.key(scope, fact)).copied();
        Moment(last.unwrap_or(list.forgotten))
    }

    /// True when none of the facts has changed since.
    pub fn are_unchanged(&self, since: Moment, scope: Scope<'_>, facts: &[Fact<'_>]) -> bool {
        facts.iter().all(|fact| self.last(scope, *fact) <= since)
    }

    fn key(&self, scope: Scope<'_>, fact: Fact<'_>) -> u64 {
        let registry = scope.registry.name();
        self.keys
            .hash_one((registry, scope.repository.as_str(), fact))
    }

    #[expect(clippy::indexing_slicing, reason = "a remainder is within the lists")]
    fn list(&self, scope: Scope<'_>) -> MutexGuard<'_, ListKey> {
        let hash = self
            .keys
            .hash_one((scope.registry.name(), scope.repository.as_str()));
        let number = usize::try_from(hash % LISTS as u64).unwrap_or_default();
        self.lists[number].locked()
    }
}

impl ListKey {
    fn forget_older_half(&mut self) {
        let mut numbers: Vec<u64> = self.last.values().copied().collect();
        let middle = numbers.len() / 2;
        let (_, middle, _) = numbers.select_nth_unstable(middle);
        self.forgotten = *middle;
        self.last.retain(|_, number| *number > self.forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Registry, Repository};

    struct Case {
        changes: Changes,
        registry: Registry,
    }

    impl Case {
        fn new() -> Self {
            Self {
                changes: Changes::default(),
                registry: "r.example".parse().unwrap(),
            }
        }

        fn note(&self, repository: &str, tag: &str) -> Change {
            self.with(repository, tag, |scope, fact| {
                self.changes.note(scope, fact)
            })
        }

        fn is_unchanged(&self, since: Moment, repository: &str, tag: &str) -> bool {
            self.with(repository, tag, |scope, fact| {
                self.changes.are_unchanged(since, scope, &[fact])
            })
        }

        fn with<T>(
            &self,
            repository: &str,
            tag: &str,
            with: impl FnOnce(Scope<'_>, Fact<'_>) -> T,
        ) -> T {
            let repository: Repository = repository.parse().unwrap();
            let scope = Scope {
                registry: &self.registry,
                repository: &repository,
            };
            with(scope, Fact::Tag(&tag.parse().unwrap()))
        }
    }

    #[test]
    fn a_change_is_seen_by_questions_before_it_and_by_no_others() {
        let case = Case::new();
        let before = case.changes.now();
        let change = case.note("team/app", "1.0");
        assert!(!case.is_unchanged(before, "team/app", "1.0"));
        assert!(case.is_unchanged(change.at, "team/app", "1.0"));
        assert!(case.is_unchanged(case.changes.now(), "team/app", "1.0"));
        assert!(case.is_unchanged(before, "team/app", "2.0"));
        assert!(case.is_unchanged(before, "team/other", "1.0"));
    }

    #[test]
    fn that_a_digest_is_there_ends_with_another_change_than_that_it_is_not() {
        let case = Case::new();
        let digest = format!("sha256:{:064x}", 1).parse().unwrap();
        case.with("team/app", "1.0", |scope, _| {
            let before = case.changes.now();
            case.changes.note(scope, Fact::Absent(&digest));
            let unchanged = |fact| case.changes.are_unchanged(before, scope, &[fact]);
            assert!(!unchanged(Fact::Absent(&digest)) && unchanged(Fact::Present(&digest)));
            case.changes.note(scope, Fact::Present(&digest));
            assert!(!unchanged(Fact::Present(&digest)) && unchanged(Fact::Contents));
        });
    }

    #[test]
    fn of_two_changes_at_a_time_the_later_one_sees_the_earlier() {
        let case = Case::new();
        let begun = case.changes.now();
        let (first, second) = (case.note("a", "1.0"), case.note("a", "1.0"));
        assert!(first.previous <= begun && second.previous > begun);
        // What the first one writes is not kept, since upstream may have taken it last.
        assert!(!case.is_unchanged(first.at, "a", "1.0"));
        let begun = case.changes.now();
        assert!(case.note("a", "1.0").previous <= begun);
    }

    #[test]
    fn a_flood_of_changes_is_bounded_and_costs_its_own_list() {
        let case = Case::new();
        let before = case.changes.now();
        for number in 0..CHANGES_MAX * 10 {
            case.note("team/app", &number.to_string());
            let lists = case.changes.lists.iter();
            let most = lists.map(|list| list.lock().unwrap().last.len()).max();
            assert!(most <= Some(CHANGES_MAX));
        }
        // What was forgotten counts as changed, and what came since is known.
        assert!(!case.is_unchanged(before, "team/app", "never"));
        let after = case.changes.now();
        case.note("team/app", "one");
        assert!(case.is_unchanged(after, "team/app", "never"));
        let others = (0..100).filter(|n| case.is_unchanged(before, &format!("team/{n}"), "1.0"));
        assert!(others.count() > 90);
    }
}
