//! The text format of Prometheus, version 0.0.4. Owns: how a family of numbers is written. Must
//! not: know what the numbers mean.
//!
//! <https://github.com/prometheus/docs/blob/main/docs/instrumenting/exposition_formats.md>

use std::fmt::{Display, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

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

/// Numbers under one name, which are read from an `S`.
pub struct Family<S: 'static> {
    /// Without [`PREFIX`].
    pub name: &'static str,
    /// How Prometheus reads them.
    pub kind: MetricKind,
    /// The names of their labels.
    pub labels: &'static [&'static str],
    /// Their meaning, in one sentence.
    pub help: &'static str,
    write: fn(&S, &mut Samples),
}

impl<S> Family<S> {
    /// Numbers under this name. `write` writes those that there are.
    pub const fn new(
        kind: MetricKind,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        write: fn(&S, &mut Samples),
    ) -> Self {
        Self {
            name,
            kind,
            labels,
            help,
            write,
        }
    }

    /// The family as text; none when it has no number.
    pub fn text(&self, from: &S) -> Option<String> {
        let mut samples = Samples {
            text: String::new(),
            name: self.name,
            labels: self.labels,
        };
        (self.write)(from, &mut samples);
        let (name, help, kind) = (self.name, self.help, self.kind.name());
        let head = format!("# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n");
        (!samples.text.is_empty()).then(|| head + &samples.text)
    }
}

/// The numbers of one family, as they are written.
#[derive(Debug)]
pub struct Samples {
    text: String,
    name: &'static str,
    labels: &'static [&'static str],
}

impl Samples {
    /// Writes a number with these values of the labels.
    pub fn with(&mut self, values: &[&str], value: impl Display) {
        self.part("", values, None, value);
    }

    /// Writes a number without labels; nothing when there is none.
    pub fn optional(&mut self, value: Option<impl Display>) {
        value.into_iter().for_each(|value| self.with(&[], value));
    }

    /// Writes a point in time; nothing when there is none.
    pub fn time(&mut self, values: &[&str], time: Option<SystemTime>) {
        if let Some(since) = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
            self.with(values, since.as_secs());
        }
    }

    /// Writes a part of a histogram. `bound`: that of a bucket.
    pub(super) fn part(
        &mut self,
        suffix: &str,
        values: &[&str],
        bound: Option<&str>,
        value: impl Display,
    ) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{PREFIX}{}{suffix}", self.name);
        let own = self.labels.iter().copied().zip(values.iter().copied());
        let mut before = '{';
        for (label, value) in own.chain(bound.map(|bound| ("le", bound))) {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            let value = value.replace('\n', "\\n");
            let _ = write!(self.text, "{before}{label}=\"{value}\"");
            before = ',';
        }
        let after = if before == '{' { " " } else { "} " };
        let _ = writeln!(self.text, "{after}{value}");
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What `write` writes of a family `x` with these labels.
    pub(in crate::metrics) fn written(
        labels: &'static [&'static str],
        write: impl FnOnce(&mut Samples),
    ) -> String {
        let mut samples = Samples {
            text: String::new(),
            name: "x",
            labels,
        };
        write(&mut samples);
        samples.text
    }

    fn family(write: fn(&u8, &mut Samples)) -> String {
        let family = Family {
            name: "x_total",
            kind: MetricKind::Counter,
            labels: &["a", "b"],
            help: "Things.",
            write,
        };
        family.text(&4).unwrap_or_default()
    }

    #[test]
    fn a_family_has_one_head_and_a_line_for_each_number() {
        let text = family(|from, out| {
            out.with(&["1", "2"], 3);
            out.with(&[], from);
        });
        let expected = "# HELP aws_ecr_proxy_x_total Things.\n\
                        # TYPE aws_ecr_proxy_x_total counter\n\
                        aws_ecr_proxy_x_total{a=\"1\",b=\"2\"} 3\n\
                        aws_ecr_proxy_x_total 4\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_hostile_value_stays_one_value() {
        let text = written(&["a"], |out| out.with(&["\\\"} 1\nforged 2\u{e9}"], 0));
        let expected = "aws_ecr_proxy_x{a=\"\\\\\\\"} 1\\nforged 2\u{e9}\"} 0\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_nobody_has_is_left_out() {
        let text = family(|_, out| {
            out.time(&[], None);
            out.optional(None::<u8>);
        });
        assert_eq!(text, "");
    }
}
