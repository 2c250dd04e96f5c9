//! The text of `/metrics`: its form, and that code and documents name the same. Owns: nothing.

use std::collections::BTreeSet;
use std::fs;

use super::*;
use crate::config::process_environment;
use crate::metrics::text::{MetricKind, PREFIX};

/// The beginning of the table in `docs/metrics.md`; it goes on to the end of the page.
const TABLE_HEAD: &str = "| name | type | labels | meaning |\n| --- | --- | --- | --- |\n";

/// Every family: name, kind, labels and meaning.
fn families() -> Vec<(&'static str, MetricKind, String, &'static str)> {
    fn row<S>(family: &Family<S>) -> (&'static str, MetricKind, String, &'static str) {
        let labels = family.labels.join(", ");
        (family.name, family.kind, labels, family.help)
    }
    let mut all: Vec<_> = COUNTED.iter().map(row).collect();
    all.extend(READ.iter().map(row));
    all.sort_by_key(|(name, ..)| *name);
    all
}

fn table() -> String {
    let rows = families().into_iter().map(|(name, kind, labels, help)| {
        format!(
            "| `{PREFIX}{name}` | {} | {labels} | {help} |\n",
            kind.name()
        )
    });
    format!("{TABLE_HEAD}{}", rows.collect::<String>())
}

#[test]
fn the_document_has_every_metric_and_no_other() {
    let page = fs::read_to_string("docs/metrics.md").unwrap();
    let (before, _) = page.split_once(TABLE_HEAD).expect("the table");
    let expected = format!("{before}{}", table());
    if process_environment()
        .iter()
        .any(|(name, _)| name == "UPDATE_DOCS")
    {
        fs::write("docs/metrics.md", &expected).unwrap();
        return;
    }
    assert_eq!(page, expected, "run UPDATE_DOCS=1 cargo test");
}

#[test]
fn names_end_in_their_unit() {
    let mut seen = BTreeSet::new();
    for (name, kind, _, help) in families() {
        assert!(seen.insert(name), "{name} is there twice");
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{name}"
        );
        assert_eq!(kind == Counter, name.ends_with("_total"), "{name}");
        if kind == MetricKind::Histogram {
            assert!(name.ends_with("_seconds"), "{name}");
        }
        assert!(
            help.ends_with('.') && !help.contains(['\\', '\n', '|']),
            "{name}: {help}"
        );
    }
}

/// The metrics that a text names, without the endings of histograms.
fn named_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    let names = words.filter_map(|word| word.strip_prefix(PREFIX));
    let base = |name: &str| {
        let ends = ["_bucket", "_count", "_sum"];
        let of_histogram = |base: &&str| {
            let mut all = families().into_iter();
            all.any(|(name, kind, ..)| kind == MetricKind::Histogram && name == *base)
        };
        let found = ends
            .iter()
            .filter_map(|end| name.strip_suffix(end))
            .find(of_histogram);
        found.unwrap_or(name).to_owned()
    };
    names.map(base).collect()
}

#[test]
fn dashboard_and_alerts_name_what_there_is() {
    let known: BTreeSet<String> = families()
        .iter()
        .map(|(name, ..)| (*name).to_owned())
        .collect();
    let dashboard = named_in(&fs::read_to_string("deploy/grafana/dashboard.json").unwrap());
    assert_eq!(
        dashboard, known,
        "the dashboard shows every metric and no other"
    );
    let alerts = fs::read_to_string("deploy/prometheus/alerts.yml").unwrap();
    let tests = fs::read_to_string("deploy/prometheus/alerts_test.yml").unwrap();
    for text in [&alerts, &tests] {
        let unknown: Vec<String> = named_in(text).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "no such metrics: {unknown:?}");
    }
    let names = |text: &str, key: &str| -> BTreeSet<String> {
        let lines = text
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(key));
        lines.map(|name| name.trim().to_owned()).collect()
    };
    let (rules, tested) = (names(&alerts, "- alert:"), names(&tests, "alertname:"));
    assert!(
        rules.len() >= 6 && rules == tested,
        "a test for each alert: {rules:?} {tested:?}"
    );
}
