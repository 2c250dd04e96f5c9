//! Times by size. Owns: the bounds that all histograms share. Must not: lock.

use std::time::Duration;

use super::counter::{Counter, add};

/// Upper bounds: microseconds, and the label `le`. A hit takes under 1 ms, a large layer an hour.
pub const BOUNDS: [(u64, &str); 16] = [
    (1_000, "0.001"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
    (30_000_000, "30"),
    (60_000_000, "60"),
    (300_000_000, "300"),
    (900_000_000, "900"),
    (3_600_000_000, "3600"),
];

/// Times, counted by [`BOUNDS`].
#[derive(Debug, Default)]
pub struct Histogram {
    /// By bound; the last one has no bound.
    counts: [Counter; BOUNDS.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    pub(super) const fn new() -> Self {
        Self {
            counts: [const { Counter::new() }; BOUNDS.len() + 1],
            sum_us: Counter::new(),
        }
    }

    /// Counts a time.
    pub fn observe(&self, time: Duration) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bound = BOUNDS.partition_point(|(bound_us, _)| *bound_us < time_us);
        add(&self.counts, bound, 1);
        self.sum_us.add(time_us);
    }

    /// The numbers of times up to each bound, and of all.
    pub fn cumulative(&self) -> [u64; BOUNDS.len() + 1] {
        let mut sum = 0;
        self.counts.each_ref().map(|count| {
            sum += count.get();
            sum
        })
    }

    /// The sum of all times, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        Duration::from_micros(self.sum_us.get()).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_up_to_its_bound_and_above() {
        let histogram = Histogram::new();
        for time_us in [0, 1_000, 1_001, 5_000_000_000] {
            histogram.observe(Duration::from_micros(time_us));
        }
        let counts = histogram.cumulative();
        assert_eq!((counts[0], counts[1], counts[15], counts[16]), (2, 3, 3, 4));
        assert!((histogram.sum_seconds() - 5_000.002_001).abs() < 1e-9);
    }

    #[test]
    fn bounds_grow_and_their_labels_are_seconds() {
        assert!(BOUNDS.is_sorted_by(|a, b| a.0 < b.0));
        for (bound_us, label) in BOUNDS {
            let seconds: f64 = label.parse().unwrap();
            assert_eq!(
                Duration::from_micros(bound_us),
                Duration::from_secs_f64(seconds)
            );
        }
    }
}
