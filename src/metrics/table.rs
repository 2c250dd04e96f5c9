//! Numbers by name. Owns: the bound of the names. Must not: know what is counted.
//!
//! It is a hash table of linked rows without a lock: a row is made once, and stays.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::number::Number;
use super::text::{MetricKind, Samples};

/// The name of all that have no row of their own.
pub(super) const OTHER: &str = "other";
/// Rows of a bucket follow each other: sixteen, in a table with a thousand.
const BUCKETS: usize = 64;

/// Numbers by the values of `N` labels. The first `MAX` names have numbers of their own; all others
/// share one.
#[derive(Debug)]
pub struct Table<T, const N: usize, const MAX: usize> {
    buckets: [Link<T, N>; BUCKETS],
    len: AtomicUsize,
}

type Link<T, const N: usize> = OnceLock<Box<Row<T, N>>>;

#[derive(Debug)]
struct Row<T, const N: usize> {
    name: [String; N],
    number: T,
    next: Link<T, N>,
}

impl<T: Default, const N: usize, const MAX: usize> Table<T, N, MAX> {
    pub(super) const fn new() -> Self {
        Self {
            buckets: [const { OnceLock::new() }; BUCKETS],
            len: AtomicUsize::new(0),
        }
    }

    /// The number of a name: a new one while there is room, else that of all others.
    pub fn of(&self, name: [&str; N]) -> &T {
        &self.row(name).number
    }

    /// The name under which this one counts.
    pub(super) fn name_of(&self, name: [&str; N]) -> [&str; N] {
        self.row(name).name.each_ref().map(String::as_str)
    }

    fn row(&self, name: [&str; N]) -> &Row<T, N> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let bucket = usize::try_from(hasher.finish() % BUCKETS as u64).unwrap_or_default();
        let mut link = self.buckets.get(bucket).unwrap_or(&self.buckets[0]);
        loop {
            let row = match link.get() {
                Some(row) => row,
                None if name != [OTHER; N] && self.len.load(Relaxed) >= MAX => {
                    return self.row([OTHER; N]);
                }
                // Another thread may be first, with another name.
                None => link.get_or_init(|| {
                    self.len.fetch_add(1, Relaxed);
                    Box::new(Row {
                        name: name.map(str::to_owned),
                        number: T::default(),
                        next: OnceLock::new(),
                    })
                }),
            };
            if row.name == name {
                return row;
            }
            link = &row.next;
        }
    }
}

impl<T: Number, const N: usize, const MAX: usize> Number for Table<T, N, MAX> {
    const KIND: MetricKind = T::KIND;

    fn write(&self, _: &[&str], out: &mut Samples) {
        for bucket in &self.buckets {
            let mut link = bucket;
            while let Some(row) = link.get() {
                row.number
                    .write(&row.name.each_ref().map(String::as_str), out);
                link = &row.next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counter;
    use crate::metrics::text::tests::written;

    #[test]
    fn names_beyond_the_limit_count_together() {
        const LIMIT: usize = 100;
        let table = Table::<Counter, 2, LIMIT>::new();
        let rows = || written(&["a", "b"], |out| table.write(&[], out));
        assert_eq!(rows(), "");
        let app = |number: usize| format!("app-{number}");
        for number in 0..2 * LIMIT {
            table.of(["r.example", &app(number)]).inc();
        }
        // Two threads make the same rows, and find those that there are.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for number in 0..LIMIT {
                        table.of(["r.example", &app(number)]).inc();
                    }
                });
            }
        });
        for (name, count) in [
            (["r.example", "app-0"], 3),
            (["r.example", "app-99"], 3),
            ([OTHER, OTHER], LIMIT as u64),
        ] {
            assert_eq!(table.name_of(name), name);
            assert_eq!(table.of(name).get(), count);
        }
        // The same name in another registry is another repository.
        assert_eq!(table.name_of(["elsewhere.example", "app-0"]), [OTHER; 2]);
        let lines = rows().lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(lines, LIMIT + 1);
    }

    #[test]
    fn threads_that_come_at_once_count_in_one_row() {
        let table = Table::<Counter, 1, 1000>::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..500 {
                        table.of([number.to_string().as_str()]).inc();
                    }
                });
            }
        });
        assert_eq!(table.len.load(Relaxed), 500);
        let counted = (0..500).map(|number| table.of([number.to_string().as_str()]).get());
        assert!(counted.into_iter().all(|count| count == 4));
    }
}
