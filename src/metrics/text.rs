//! The text format of Prometheus, version 0.0.4. Owns: how a family of numbers is written. Must
//! not: know what the numbers mean.
//!
//! <https://github.com/prometheus/docs/blob/main/docs/instrumenting/exposition_formats.md>

use std::fmt::{Display, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use super::histogram::{BOUNDS, Histogram};
use crate::label::label;

/// `Content-Type` of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Every name begins with it.
pub const PREFIX: &str = "aws_ecr_proxy_";

label! {
    /// What a family's numbers are.
    pub enum MetricKind {
        /// They only grow.
        Counter = "counter",
        /// They rise and fall.
        Gauge = "gauge",
        /// Times by size.
        Histogram = "histogram",
    }
}

/// A label and its value.
pub type Label<'a> = (&'a str, &'a str);

/// The text of one family. Numbers that nobody has are left out, and with them the whole family.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    name: &'a str,
    /// `# HELP` and `# TYPE`, until there is a number.
    head: Option<(&'a str, MetricKind)>,
}

impl<'a> Samples<'a> {
    /// Begins a family at the end of `text`. `help`: one sentence.
    pub fn new(text: &'a mut String, name: &'a str, kind: MetricKind, help: &'a str) -> Self {
        let head = Some((help, kind));
        Self { text, name, head }
    }

    /// Writes a number without labels.
    pub fn plain(&mut self, value: impl Display) {
        self.with(&[], value);
    }

    /// Writes a number with these labels.
    pub fn with(&mut self, labels: &[Label<'_>], value: impl Display) {
        self.sample("", labels, value);
    }

    /// Writes a number for each value of a label.
    pub fn each<'v>(
        &mut self,
        label: &str,
        numbers: impl Iterator<Item = (&'v str, impl Display)>,
    ) {
        for (value, number) in numbers {
            self.with(&[(label, value)], number);
        }
    }

    /// Writes a number without labels; nothing when there is none.
    pub fn optional(&mut self, value: Option<impl Display>) {
        if let Some(value) = value {
            self.plain(value);
        }
    }

    /// Writes a point in time; nothing when there is none.
    pub fn time(&mut self, labels: &[Label<'_>], time: Option<SystemTime>) {
        if let Some(since) = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
            self.with(labels, since.as_secs());
        }
    }

    /// Writes a histogram, if it has counted anything.
    fn histogram(&mut self, label: Label<'_>, histogram: &Histogram) {
        let counts = histogram.cumulative();
        let [.., all] = counts;
        if all == 0 {
            return;
        }
        let bounds = BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        for (bound, count) in bounds.zip(counts) {
            self.sample("_bucket", &[label, ("le", bound)], count);
        }
        self.sample("_sum", &[label], histogram.sum_seconds());
        self.sample("_count", &[label], all);
    }

    /// Writes a histogram for each value of a label.
    pub fn histograms<'v>(
        &mut self,
        label: &str,
        histograms: impl Iterator<Item = (&'v str, &'v Histogram)>,
    ) {
        histograms.for_each(|(value, times)| self.histogram((label, value), times));
    }

    fn sample(&mut self, suffix: &str, labels: &[Label<'_>], value: impl Display) {
        let name = self.name;
        if let Some((help, kind)) = self.head.take() {
            // Writing to a string cannot fail.
            let _ = writeln!(self.text, "# HELP {PREFIX}{name} {help}");
            let _ = writeln!(self.text, "# TYPE {PREFIX}{name} {}", kind.name());
        }
        let _ = write!(self.text, "{PREFIX}{name}{suffix}");
        for (number, (label, value)) in labels.iter().enumerate() {
            let before = if number == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{label}=\"");
            value.chars().for_each(|c| push_escaped(self.text, c));
            self.text.push('"');
        }
        let after = if labels.is_empty() { " " } else { "} " };
        let _ = writeln!(self.text, "{after}{value}");
    }
}

/// A character of a label's value, as the format escapes it.
fn push_escaped(text: &mut String, c: char) {
    match c {
        '\\' => text.push_str("\\\\"),
        '"' => text.push_str("\\\""),
        '\n' => text.push_str("\\n"),
        c => text.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_family_has_one_head_and_a_line_for_each_number() {
        let mut text = String::new();
        let mut samples = Samples::new(&mut text, "x_total", MetricKind::Counter, "Things.");
        samples.with(&[("a", "1"), ("b", "2")], 3);
        samples.plain(4);
        let expected = "# HELP aws_ecr_proxy_x_total Things.\n\
                        # TYPE aws_ecr_proxy_x_total counter\n\
                        aws_ecr_proxy_x_total{a=\"1\",b=\"2\"} 3\n\
                        aws_ecr_proxy_x_total 4\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_hostile_value_stays_one_value() {
        let mut text = String::new();
        let mut samples = Samples::new(&mut text, "x", MetricKind::Gauge, "Things.");
        samples.with(&[("a", "\\\"} 1\nforged 2\u{e9}")], 0);
        let last = text.lines().last().unwrap();
        let expected = "aws_ecr_proxy_x{a=\"\\\\\\\"} 1\\nforged 2\u{e9}\"} 0";
        assert_eq!((text.lines().count(), last), (3, expected));
    }

    #[test]
    fn what_nobody_has_is_left_out() {
        let mut text = String::new();
        let mut samples = Samples::new(&mut text, "x_seconds", MetricKind::Histogram, "Times.");
        let histogram = Histogram::new();
        samples.histogram(("a", "1"), &histogram);
        samples.time(&[], None);
        assert_eq!(text, "");
        histogram.observe(Duration::from_millis(1500));
        Samples::new(&mut text, "x_seconds", MetricKind::Histogram, "Times.")
            .histogram(("a", "1"), &histogram);
        for line in [
            "aws_ecr_proxy_x_seconds_bucket{a=\"1\",le=\"1\"} 0",
            "aws_ecr_proxy_x_seconds_bucket{a=\"1\",le=\"2.5\"} 1",
            "aws_ecr_proxy_x_seconds_bucket{a=\"1\",le=\"+Inf\"} 1",
            "aws_ecr_proxy_x_seconds_sum{a=\"1\"} 1.5",
            "aws_ecr_proxy_x_seconds_count{a=\"1\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
