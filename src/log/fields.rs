//! The fields of log lines. Owns: the type that each has for ever, and how a value is written. Must
//! not: write a line.
//!
//! A log store learns the type of a field from the first line that has it, and refuses lines with
//! another. So the type belongs to the name, not to the value. `docs/log.md` has all of them.

use std::borrow::Cow;
use std::fmt::Display;

/// A field of a line: its name, and its value.
pub type Field<'a> = (&'a str, &'a dyn Display);

/// A field, if it has a value.
pub fn optional<'a, T: Display>(name: &'a str, value: &'a Option<T>) -> Option<Field<'a>> {
    value.as_ref().map(|value| (name, value as _))
}

/// Fields that are `true` or `false`.
#[rustfmt::skip]
const BOOLEANS: [&str; 5] = [
    "failed", "offline", "old_token_in_use", "read_only", "tls",
];
/// Fields that are integers or decimal fractions. All others are text, whatever they look like.
#[rustfmt::skip]
const NUMBERS: [&str; 37] = [
    "age_s", "at", "blobs", "bytes", "bytes_per_s", "bytes_total", "clients", "connections_cut",
    "connections_max", "count", "damaged", "duration_ms", "first_byte_ms", "fit", "generation",
    "grace_s", "idle_s", "images", "images_failed", "left", "lines", "manifests", "ms",
    "next_try_in_s", "pause_ms", "pinned_bytes", "quota_bytes", "renew_in_s", "repeated", "seconds",
    "status", "target_bytes", "upstream_status", "used_bytes", "users", "value", "wanted",
];

/// A value as JSON. A value of another type than the field's is `null`, so that no line is refused.
pub(super) fn json<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    let fits = if BOOLEANS.contains(&name) {
        matches!(value, "true" | "false")
    } else if NUMBERS.contains(&name) {
        serde_json::from_str::<serde_json::Number>(value).is_ok()
    } else {
        return quote(value).into();
    };
    match fits {
        true => value.into(),
        false => "null".into(),
    }
}

/// A value as text: in quotes where it could be taken for something else.
pub(super) fn text(value: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.:/@+,%*?&=~…[]".contains(c);
    match !value.is_empty() && value.chars().all(is_plain) {
        true => value.into(),
        false => quote(value).into(),
    }
}

/// A JSON string, in which no value can forge a line.
pub(super) fn quote(value: &str) -> String {
    // No string fails.
    serde_json::to_string(value).unwrap_or_default()
}

/// Cuts `text`, and marks the place where it was cut.
pub(super) fn shorten(text: &mut String, bytes_max: usize) {
    let kept = text.floor_char_boundary(bytes_max);
    if kept < text.len() {
        text.truncate(kept);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn a_field_keeps_its_type_whatever_its_value() {
        for (name, value, shown) in [
            ("account", "123456789012", "\"123456789012\""),
            ("account", "012345678901", "\"012345678901\""),
            ("tag", "2024", "\"2024\""),
            ("reference", "7", "\"7\""),
            ("upstream_fault", "200", "\"200\""),
            ("duration_ms", "0.031", "0.031"),
            ("bytes", "18446744073709551615", "18446744073709551615"),
            ("seconds", "-86400", "-86400"),
            ("status", "connect", "null"),
            ("duration_ms", "NaN", "null"),
            ("bytes", "007", "null"),
            ("tls", "true", "true"),
            ("tls", "1", "null"),
            ("not_in_the_table", "1", "\"1\""),
        ] {
            assert_eq!(json(name, value), shown, "{name}={value}");
        }
    }

    /// The names in a list of fields: it ends with the bracket that was open before it, or, where
    /// a variable takes it, at a semicolon. A field is `("name", value)`.
    fn names_in(list: &str, ends_at_semicolon: bool) -> BTreeSet<String> {
        let mut depth = 0_i32;
        let end = list.char_indices().find(|(_, c)| {
            depth += match c {
                '(' | '[' | '{' => 1,
                ')' | ']' | '}' => -1,
                _ => 0,
            };
            depth < 0 || (ends_at_semicolon && *c == ';' && depth == 0)
        });
        let list = &list[..end.map_or(0, |(end, _)| end)];
        let name = |part: &str| {
            let (name, rest) = part.trim_start().strip_prefix('"')?.split_once('"')?;
            let is_name = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            (is_name && rest.starts_with(',')).then(|| name.to_owned())
        };
        list.split('(').skip(1).filter_map(name).collect()
    }

    /// The names of the fields in all calls of the log.
    fn fields_in(source: &str) -> BTreeSet<String> {
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let mut found = BTreeSet::new();
        for call in ["debug(", "info(", "warn(", "error(", "cause("] {
            let call = format!("log::{call}");
            for (at, _) in source.match_indices(&call) {
                found.extend(names_in(&source[at + call.len()..], false));
            }
        }
        for (at, _) in source.match_indices("fields.push(") {
            found.extend(names_in(&source[at + "fields.push(".len()..], false));
        }
        for (at, _) in source.match_indices("Field<'_>") {
            let (before, list) = source[at..].split_once('=').unwrap_or_default();
            if before.len() < 30 {
                found.extend(names_in(list, true));
            }
        }
        found
    }

    fn collect(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                // The log itself calls its functions by their own names.
                let source = match path.ends_with("src/log.rs") {
                    true => source.replace(" error(", " log::error("),
                    false => source,
                };
                found.extend(fields_in(&source));
            }
        }
    }

    #[test]
    fn code_and_document_have_the_same_fields() {
        let mut used = BTreeSet::new();
        collect(Path::new("src"), &mut used);
        used.extend(["time", "level", "message"].map(str::to_owned));
        let document = std::fs::read_to_string("docs/log.md").unwrap();
        let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows: Vec<(&str, &str)> = rows
            .map(|row| {
                let (name, rest) = row.split_once("` | ").unwrap();
                (name, rest.split(" | ").next().unwrap())
            })
            .collect();
        let known: BTreeSet<String> = rows.iter().map(|(name, _)| (*name).to_owned()).collect();
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "add to docs/log.md: {unknown:?}");
        let unused: Vec<_> = known.difference(&used).collect();
        assert!(unused.is_empty(), "no line has these: {unused:?}");
        assert_eq!(known.len(), rows.len(), "a name is there twice");
        for kind in ["boolean", "number", "text"] {
            let documented = rows.iter().filter(|(_, own)| *own == kind);
            let documented: BTreeSet<&str> = documented.map(|(name, _)| *name).collect();
            let typed: BTreeSet<&str> = match kind {
                "boolean" => BOOLEANS.into(),
                "number" => NUMBERS.into(),
                _ => continue,
            };
            assert_eq!(documented, typed, "{kind}");
        }
        let kinds = ["boolean", "number", "text"];
        assert!(rows.iter().all(|(_, kind)| kinds.contains(kind)));
    }
}
