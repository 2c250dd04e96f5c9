//! Numbers that each name has for itself. Owns: the bound of names. Must not: know what is counted.
//!
//! It is a hash table without a lock: a slot is filled once, and stays.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The name of all that have no numbers of their own.
pub(super) const OTHER: &str = "other";

/// Numbers by a name of `N` words.
pub(super) struct ByName<const N: usize, T> {
    /// Names with numbers of their own.
    names_max: usize,
    taken: AtomicUsize,
    /// Made at the first use: an empty lock is not all zeros, and would take room in the binary.
    slots: OnceLock<Box<[Slot<N, T>]>>,
    others: Slot<N, T>,
}

type Slot<const N: usize, T> = OnceLock<([String; N], T)>;

impl<const N: usize, T: Default> ByName<N, T> {
    pub(super) const fn new(names_max: usize) -> Self {
        Self {
            names_max,
            taken: AtomicUsize::new(0),
            slots: OnceLock::new(),
            others: OnceLock::new(),
        }
    }

    /// The numbers of a name: new ones while there is room, else those of all others.
    pub(super) fn of(&self, name: [&str; N]) -> &T {
        // So many more than names that a free one is found soon.
        let empty = || (0..2 * self.names_max).map(|_| OnceLock::new()).collect();
        let slots = self.slots.get_or_init(empty);
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let first = usize::try_from(hasher.finish() % slots.len() as u64).unwrap_or_default();
        for slot in slots.iter().cycle().skip(first).take(slots.len()) {
            let Some((owner, numbers)) = slot.get().or_else(|| self.fill(slot, name)) else {
                break;
            };
            if *owner == name {
                return numbers;
            }
        }
        let others = || ([OTHER; N].map(str::to_owned), T::default());
        &self.others.get_or_init(others).1
    }

    /// Gives an empty slot to a name, unless there are enough. Another thread may be first.
    fn fill<'a>(&self, slot: &'a Slot<N, T>, name: [&str; N]) -> Option<&'a ([String; N], T)> {
        let more = |taken| (taken < self.names_max).then_some(taken + 1);
        self.taken.fetch_update(Relaxed, Relaxed, more).ok()?;
        let mut is_ours = false;
        let filled = slot.get_or_init(|| {
            is_ours = true;
            (name.map(str::to_owned), T::default())
        });
        if !is_ours {
            self.taken.fetch_sub(1, Relaxed);
        }
        Some(filled)
    }

    /// All names so far with their numbers, in no order; the others come last.
    pub(super) fn all(&self) -> impl Iterator<Item = ([&str; N], &T)> {
        let slots = self.slots.get().into_iter().flatten();
        let filled = slots.chain([&self.others]).filter_map(OnceLock::get);
        filled.map(|(name, numbers)| (name.each_ref().map(String::as_str), numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counter;

    #[test]
    fn names_beyond_the_limit_count_together() {
        const LIMIT: usize = 100;
        let table = ByName::<2, Counter>::new(LIMIT);
        assert!(table.all().next().is_none());
        let app = |number: usize| format!("app-{number}");
        // Two threads fill the table with the same names.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for number in 0..2 * LIMIT {
                        table.of(["r.example", &app(number)]).inc();
                    }
                });
            }
        });
        let all: Vec<_> = table.all().collect();
        assert_eq!((all.len(), table.taken.load(Relaxed)), (LIMIT + 1, LIMIT));
        let counted: u64 = all.iter().map(|(_, count)| count.get()).sum();
        assert_eq!(counted, 4 * LIMIT as u64);
        let (first, (last, others)) = (all[0], all[LIMIT]);
        assert_eq!(last, [OTHER, OTHER]);
        assert!(std::ptr::eq(table.of(first.0), first.1));
        // The same name in another registry is another repository.
        assert!(std::ptr::eq(
            table.of(["elsewhere.example", first.0[1]]),
            others
        ));
    }
}
