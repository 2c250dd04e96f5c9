//! Holds `docs/protocol.md` to the sources: its lines are complete, and every test it names is there.

use std::collections::{BTreeSet, HashSet};

use crate::imports::sources;

/// Behaviours that the page lists.
const LINES: usize = 47;

fn page() -> String {
    let path = format!("{}/docs/protocol.md", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("docs/protocol.md")
}

/// Every test of the project, as the page names it.
pub(crate) fn tests() -> HashSet<String> {
    let mut names = HashSet::new();
    for (folder, prefix) in [("tests/it", ""), ("src", "src/")] {
        for (file, text) in sources(folder) {
            let file = file.trim_start_matches('/');
            let name = match prefix {
                "" => file.trim_end_matches(".rs").to_owned(),
                // The page names the module, also where its tests have a file of their own.
                prefix => format!("{prefix}{}", file.replace("/tests.rs", ".rs")),
            };
            names.extend(tests_of(&text).map(|test| format!("{name}::{test}")));
        }
    }
    names
}

/// The functions under `#[test]`.
fn tests_of(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]").skip(1).filter_map(|rest| {
        let (_, rest) = rest.split_once("fn ")?;
        Some(rest.split('(').next()?.trim())
    })
}

/// What stands between backquotes and names a test.
pub(crate) fn named(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|quoted| quoted.contains("::"))
}

/// What is wrong with the page.
fn faults(page: &str, tests: &HashSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for name in named(page).filter(|name| !tests.contains(*name)) {
        faults.push(format!("no test {name}"));
    }
    let mut numbers = Vec::new();
    for row in page.lines().filter_map(|line| line.strip_prefix("| ")) {
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        let Ok(number) = cells[0].trim().parse::<usize>() else {
            continue;
        };
        numbers.push(number);
        let held = cells.last().copied().unwrap_or_default();
        let reason = held.starts_with("no test: ");
        if cells.len() != 4 || cells.iter().any(|cell| cell.trim().is_empty()) {
            faults.push(format!("{number}: a row has four cells"));
        } else if named(held).next().is_none() && !reason {
            faults.push(format!("{number}: neither a test nor why there is none"));
        }
    }
    if !numbers.iter().copied().eq(1..=LINES) {
        faults.push(format!("lines are 1 to {LINES}: {numbers:?}"));
    }
    faults
}

#[test]
fn every_line_is_held_by_tests_that_are_there() {
    let faults = faults(&page(), &tests());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_test_of_these_files_is_on_the_page() {
    let page = page();
    let on_page: BTreeSet<&str> = named(&page).collect();
    let tests = tests();
    let own = tests.iter().filter(|test| {
        [
            "protocol_content::",
            "protocol_errors::",
            "protocol_outage::",
        ]
        .iter()
        .any(|file| test.starts_with(file))
    });
    let missing: Vec<&String> = own
        .filter(|test| !on_page.contains(test.as_str()))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_rots_is_seen() {
    let tests: HashSet<String> = ["a::b".to_owned(), "src/c.rs::d".to_owned()].into();
    let rows = |held: &str| {
        let row = |number| format!("| {number} | x | y | {held} |\n");
        (1..=LINES).map(row).collect::<String>()
    };
    assert!(faults(&rows("`a::b` `src/c.rs::d`"), &tests).is_empty());
    assert!(faults(&rows("no test: as said"), &tests).is_empty());
    assert_eq!(faults(&rows("`a::c`"), &tests).len(), LINES);
    assert_eq!(faults(&rows("`a`"), &tests).len(), LINES);
    let one_less = rows("`a::b`").replacen("| 7 |", "| 8 |", 1);
    assert_eq!(faults(&one_less, &tests).len(), 1);
    assert_eq!(
        faults(&(rows("`a::b`") + "`x::y`"), &tests),
        ["no test x::y"]
    );
    let text = "#[test]\nfn one() {}\n#[test]\n#[cfg(unix)]\nfn two() {}\nfn three() {}";
    assert_eq!(tests_of(text).collect::<Vec<_>>(), ["one", "two"]);
}
