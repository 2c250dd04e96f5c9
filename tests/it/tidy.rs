//! Checks rules about the shape of the sources that no lint can check.

use crate::imports::sources;

const COLUMNS_MAX: usize = 100;
const LINES_MAX: usize = 600;
/// What no committed file holds; written apart, or this file would hold it.
const UNFINISHED: [&str; 5] = [
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("to", "do!("),
    concat!("db", "g!("),
    concat!("#[ign", "ore"),
];

/// What is wrong with a file of any kind.
fn unfinished(file: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for mark in UNFINISHED.iter().filter(|mark| line.contains(**mark)) {
            faults.push(format!("{file}:{}: {mark}", number + 1));
        }
    }
    faults
}

/// What is wrong with a file's shape.
fn misshapen(file: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.starts_with("//! ") {
        faults.push(format!("{file}: does not open with what it owns (`//! …`)"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{file}: {lines} lines, more than {LINES_MAX}"));
    }
    for (number, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            faults.push(format!("{file}:{}: {columns} columns", number + 1));
        }
    }
    faults
}

#[test]
fn sources_are_in_shape() {
    let sources = sources("src");
    assert!(!sources.is_empty());
    let shape = sources
        .iter()
        .flat_map(|(file, text)| misshapen(file, text));
    let faults: Vec<String> = shape.collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn nothing_is_left_unfinished() {
    let folders = ["src", "tests", "examples"];
    let sources = folders.iter().flat_map(|folder| sources(folder));
    let faults: Vec<String> = sources
        .flat_map(|(file, text)| unfinished(&file, &text))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn faults_are_seen() {
    for mark in UNFINISHED {
        assert_eq!(
            unfinished("a.rs", &format!("//! a\n// {mark}\n")).len(),
            1,
            "{mark}"
        );
    }
    assert_eq!(
        unfinished("a.rs", "//! a\nfn f() {}\n"),
        Vec::<String>::new()
    );
    assert_eq!(misshapen("a.rs", "//! a\n"), Vec::<String>::new());
    assert_eq!(misshapen("a.rs", "fn f() {}\n").len(), 1);
    assert_eq!(
        misshapen("a.rs", &format!("//! a\n{}", "\n".repeat(600))).len(),
        1
    );
    assert_eq!(
        misshapen("a.rs", &format!("//! a\n//{}\n", "é".repeat(99))).len(),
        1
    );
    assert_eq!(
        misshapen("a.rs", &format!("//! a\n//{}\n", "é".repeat(98))).len(),
        0
    );
}
