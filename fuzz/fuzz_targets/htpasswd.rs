//! `AUTH_FILE`, and the patterns of `ALLOW_REPOSITORIES`. The first line is the list of patterns,
//! the rest a file; each of its names is held against the patterns.
#![no_main]

use aws_ecr_proxy::config::Globs;
use aws_ecr_proxy::proxy::login::htpasswd::Users;
use aws_ecr_proxy_fuzz::show;

/// Names of one input that are held against the patterns: a long file has too many.
const NAMES_MATCHED_MAX: usize = 16;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return show("no text");
    };
    let (list, file) = text.split_once('\n').unwrap_or((text, text));
    let names = names(file);
    let mut outcome = match Globs::parse(list) {
        Ok(globs) => matches(&globs, list, &names),
        Err(_) => "no patterns".to_owned(),
    };
    match Users::parse(file) {
        Ok(users) => {
            assert_eq!(users.count(), names.len(), "other users than {names:?}");
            for name in names {
                assert!(users.has(name), "{name:?} is not known");
                assert!(!users.has(&format!("{name} ")) && !name.is_empty());
                assert_eq!(name.trim(), name, "blanks are a part of a name");
            }
            outcome.push_str(&format!("; {users:?}"));
        }
        Err(fault) => {
            // The length of a bcrypt hash, without what it begins with. The fuzzer has put the
            // words of our fault into its place; a hash has no blanks.
            let hashes = file.lines().filter_map(|line| line.split_once(':'));
            let mut hashes = hashes.filter(|(_, hash)| hash.len() >= 53 && !hash.contains(' '));
            assert!(
                !hashes.any(|(_, hash)| fault.contains(hash)),
                "a hash in {fault}"
            );
            outcome.push_str("; fault");
            for (line, _) in fault.split("; ").filter_map(|part| part.split_once(':')) {
                outcome.push_str(&format!(" in {line}"));
            }
        }
    }
    show(&outcome);
});

/// What stands before the colon in each line that is neither blank nor a comment.
fn names(file: &str) -> Vec<&str> {
    let lines = file.strip_prefix('\u{feff}').unwrap_or(file).lines();
    lines
        .filter(|line| !line.trim().is_empty() && !line.trim().starts_with('#'))
        .filter_map(|line| line.split(':').next())
        .collect()
}

/// Which of the names the patterns match; each of them as a plain recursion has it.
fn matches(globs: &Globs, list: &str, names: &[&str]) -> String {
    let mut outcome = format!("everything {}", globs.match_everything());
    let names = names.iter().filter(|name| name.len() <= 64);
    for name in names.take(NAMES_MATCHED_MAX) {
        let found = globs.matches(name);
        if list.len() <= 64 && list.matches('*').count() <= 4 {
            let mut patterns = list.split(',').map(|pattern| pattern.trim().as_bytes());
            let expected =
                patterns.any(|pattern| !pattern.is_empty() && fits(pattern, name.as_bytes()));
            assert_eq!(found, expected, "{name:?} and {list:?}");
        }
        outcome.push_str(&format!("; {name} {found}"));
    }
    outcome
}

fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, _) => name.is_empty(),
        (Some((b'*', rest)), None) => fits(rest, name),
        (Some((b'*', rest)), Some((_, others))) => fits(rest, name) || fits(pattern, others),
        (Some((b'?', rest)), Some((_, others))) => fits(rest, others),
        (Some((wanted, rest)), Some((c, others))) => wanted == c && fits(rest, others),
        (Some(_), None) => false,
    }
}
