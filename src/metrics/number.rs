//! Numbers that are counted. Owns: one that grows, one that rises and falls, and times by size.
//! Must not: lock, or know what is counted.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::text::{MetricKind, Samples};

/// A number that `/metrics` shows.
pub(super) trait Number {
    /// How Prometheus reads it.
    const KIND: MetricKind;

    /// Writes it, under these values of its family's labels.
    fn write(&self, values: &[&str], out: &mut Samples);
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Number for Counter {
    const KIND: MetricKind = MetricKind::Counter;

    fn write(&self, values: &[&str], out: &mut Samples) {
        out.with(values, self.get());
    }
}

/// A number of things that are there now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub(super) const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    /// Counts one thing for as long as the value lives.
    pub fn hold(&'static self) -> Held {
        self.0.fetch_add(1, Relaxed);
        Held(self)
    }

    /// Says how many there are.
    pub fn set(&self, count: u32) {
        self.0.store(count.into(), Relaxed);
    }
}

impl Number for Gauge {
    const KIND: MetricKind = MetricKind::Gauge;

    fn write(&self, values: &[&str], out: &mut Samples) {
        out.with(values, self.0.load(Relaxed).max(0));
    }
}

/// One thing that a [`Gauge`] counts.
#[derive(Debug)]
pub struct Held(&'static Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Upper bounds in milliseconds. A hit takes under 1 ms, a large layer an hour.
#[rustfmt::skip]
const BOUNDS_MS: [u32; 16] = [
    1, 5, 10, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000,
    3_600_000,
];

/// Times, counted by size.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One count for each bound, and one for what is above the last.
    counts: [Counter; BOUNDS_MS.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    /// Counts a time.
    pub fn observe(&self, time: Duration) {
        let is_below = |bound: &u32| Duration::from_millis(u64::from(*bound)) < time;
        if let Some(count) = self.counts.get(BOUNDS_MS.partition_point(is_below)) {
            count.inc();
        }
        self.sum_us
            .add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}

impl Number for Histogram {
    const KIND: MetricKind = MetricKind::Histogram;

    fn write(&self, values: &[&str], out: &mut Samples) {
        let bounds = BOUNDS_MS.map(|bound| (f64::from(bound) / 1e3).to_string());
        let bounds = bounds.iter().map(String::as_str).chain(["+Inf"]);
        let mut sum = 0;
        for (bound, count) in bounds.zip(&self.counts) {
            sum += count.get();
            out.part("_bucket", values, Some(bound), sum);
        }
        let seconds = Duration::from_micros(self.sum_us.get()).as_secs_f64();
        out.part("_sum", values, None, seconds);
        out.part("_count", values, None, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::text::tests::written;

    #[test]
    fn a_time_counts_up_to_its_bound_and_above() {
        let histogram = Histogram::default();
        for time_us in [0, 1_000, 1_001, 1_500_000, 5_000_000_000] {
            histogram.observe(Duration::from_micros(time_us));
        }
        let text = written(&["a"], |out| histogram.write(&["1"], out));
        for line in [
            "_bucket{a=\"1\",le=\"0.001\"} 2",
            "_bucket{a=\"1\",le=\"0.005\"} 3",
            "_bucket{a=\"1\",le=\"1\"} 3",
            "_bucket{a=\"1\",le=\"2.5\"} 4",
            "_bucket{a=\"1\",le=\"3600\"} 4",
            "_bucket{a=\"1\",le=\"+Inf\"} 5",
            "_sum{a=\"1\"} 5001.502001",
            "_count{a=\"1\"} 5",
        ] {
            let line = format!("aws_ecr_proxy_x{line}");
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        assert!(BOUNDS_MS.is_sorted());
    }
}
