//! Faults of arguments and variables. Owns: how they are written, and how a value is shown. Must
//! not: show a secret.

use std::fmt;

/// Longest part of a value that is shown.
pub(super) const SHOWN_CHARACTERS_MAX: usize = 200;

/// A fault in arguments or variables: one line, no secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(String);

impl Fault {
    /// A fault that shows only outside the table. `text` must hold no secret.
    pub const fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value fit to be shown: on one line, and without the parts of a URL that may hold a password
/// (RFC 3986 §3.2.1 user information, §3.4 query).
pub(super) fn mask(value: &str) -> String {
    // In `@file` nothing precedes the sign. A password may hold a `?`, so it goes first.
    let without_user = match value.rsplit_once('@') {
        Some((user, rest)) if !user.is_empty() => {
            let scheme = user.find("://").and_then(|end| user.get(..end + 3));
            format!("{}***@{rest}", scheme.unwrap_or_default())
        }
        _ => value.to_owned(),
    };
    let (head, query) = match without_user.split_once('?') {
        Some((head, _)) => (head, "?…"),
        None => (without_user.as_str(), ""),
    };
    let mut shown = head.to_owned();
    shown.push_str(query);
    let mut line: String = shown
        .chars()
        .take(SHOWN_CHARACTERS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if shown.chars().nth(SHOWN_CHARACTERS_MAX).is_some() {
        line.push('…');
    }
    line
}
