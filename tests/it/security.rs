//! Holds `docs/security.md` to the sources: each claim names tests, and they are there.

use std::collections::HashSet;

use crate::protocol::{named, tests};

/// Fewer claims than this would mean that the page was not read.
const CLAIMS_MIN: usize = 25;

/// The rows of two cells: a claim, and what holds it.
fn claims(page: &str) -> Vec<(&str, &str)> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.map(|row| row.trim_end_matches(" |").split(" | ").collect::<Vec<_>>());
    let pairs = cells.filter_map(|cells| match cells.as_slice() {
        [claim, held] => Some((*claim, *held)),
        _ => None,
    });
    let is_head = |claim: &str| claim == "claim" || claim.starts_with("---");
    pairs.filter(|(claim, _)| !is_head(claim)).collect()
}

/// What is wrong with a page of claims.
pub(crate) fn faults(page: &str, tests: &HashSet<String>, claims_min: usize) -> Vec<String> {
    let missing = named(page).filter(|name| !tests.contains(*name));
    let mut faults: Vec<String> = missing.map(|name| format!("no test {name}")).collect();
    let claims = claims(page);
    for (claim, held) in &claims {
        if named(held).next().is_none() && !held.starts_with("no test: ") {
            faults.push(format!("no test holds: {claim}"));
        }
    }
    if claims.len() < claims_min {
        faults.push(format!("{} claims, expected {claims_min}", claims.len()));
    }
    faults
}

#[test]
fn every_claim_is_held_by_tests_that_are_there() {
    let path = format!("{}/docs/security.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(path).expect("docs/security.md");
    let faults = faults(&page, &tests(), CLAIMS_MIN);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_claim_without_its_test_is_seen() {
    let tests: HashSet<String> = ["a::b".to_owned()].into();
    let page = |held: &str| {
        let head = "| claim | held by |\n| --- | --- |\n| who | what | what not |\n";
        head.to_owned() + &format!("| It holds. | {held} |\n").repeat(CLAIMS_MIN)
    };
    assert!(faults(&page("`a::b`"), &tests, CLAIMS_MIN).is_empty());
    assert!(faults(&page("no test: as said"), &tests, CLAIMS_MIN).is_empty());
    assert_eq!(
        faults(&page("`a::c`"), &tests, CLAIMS_MIN).len(),
        CLAIMS_MIN
    );
    assert_eq!(faults(&page("`a`"), &tests, CLAIMS_MIN).len(), CLAIMS_MIN);
    assert_eq!(faults("", &tests, CLAIMS_MIN).len(), 1);
}
