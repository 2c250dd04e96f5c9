//! The fields of log lines. Owns: the type that each has for ever, and what it means. Must not:
//! write a line.
//!
//! A log store learns the type of a field from the first line that has it, and refuses lines with
//! another. So the type belongs to the name, not to the value. `docs/log.md` has the same table.

use std::borrow::Cow;

use super::text::quote;

/// The type of a field in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldType {
    /// `true` or `false`
    Boolean,
    /// An integer, or a decimal fraction.
    Number,
    /// A string, whatever it looks like.
    Text,
}
use FieldType::{Boolean, Number, Text};

/// Every field: its name, its type, its meaning; one line each.
#[rustfmt::skip]
pub const FIELDS: &[(&str, FieldType, &str)] = &[
    ("time", Text, "when, in UTC (RFC 3339)"),
    ("level", Text, "`DEBUG`, `INFO`, `WARN` or `ERROR`"),
    ("message", Text, "what happened"),
    ("id", Text, "the request that the line belongs to"),
    ("aborted", Text, "why the reply is not whole"),
    ("account", Text, "AWS account of the identity"),
    ("address", Text, "IP address and port, or path of a socket"),
    ("addresses", Text, "addresses of a host"),
    ("age_s", Number, "time since the start of a transfer"),
    ("arn", Text, "the AWS identity"),
    ("at", Number, "offset in a blob, in bytes"),
    ("blobs", Number, "number of blobs"),
    ("bytes", Number, "bytes of the body; of a request: sent"),
    ("bytes_per_s", Number, "rate of a transfer of late"),
    ("bytes_total", Number, "bytes in all"),
    ("cache", Text, "`hit`, `miss`, `revalidated`, `stale` or `bypass`"),
    ("certificate", Text, "file of the certificate"),
    ("clients", Number, "clients that get a download's bytes"),
    ("connections_cut", Number, "transfers cut at the end"),
    ("connections_max", Number, "connections at a time"),
    ("count", Number, "number of sockets"),
    ("credentials_until", Text, "end of the credentials, or `unlimited`"),
    ("damaged", Number, "blobs that were damaged"),
    ("digest", Text, "digest of the manifest or blob"),
    ("directory", Text, "directory of the cache"),
    ("duration_ms", Number, "from the head of the request to the end of the reply"),
    ("error", Text, "what went wrong"),
    ("expires", Text, "end of a token or of credentials"),
    ("failed", Boolean, "whether something could not be fetched"),
    ("file", Text, "a file that a setting names"),
    ("first_byte_ms", Number, "until the reply began"),
    ("fit", Number, "connections that fit"),
    ("forwarded_for", Text, "the client as a front end names it"),
    ("found", Text, "digest of what came"),
    ("generation", Number, "how many tokens came before"),
    ("grace_s", Number, "`SHUTDOWN_GRACE`"),
    ("host", Text, "`Host` of the request"),
    ("idle_s", Number, "time since the last byte"),
    ("image", Text, "registry, repository and digest"),
    ("images", Number, "number of images"),
    ("images_failed", Number, "images that are not whole or not confirmed"),
    ("kind", Text, "`fill` into the cache, `pull` or `push`"),
    ("left", Number, "lanes left"),
    ("limit", Text, "name of the limit"),
    ("lines", Number, "lines dropped"),
    ("listen_pid", Text, "`LISTEN_PID`"),
    ("login", Text, "user that has logged in"),
    ("manifests", Number, "number of manifests"),
    ("method", Text, "method of the request"),
    ("ms", Number, "how long it took"),
    ("next_try_in_s", Number, "until the next try"),
    ("not_after", Text, "end of the certificate"),
    ("not_before", Text, "begin of the certificate"),
    ("offline", Boolean, "`OFFLINE`"),
    ("old_token_in_use", Boolean, "whether an older token serves"),
    ("outcome", Text, "what was done"),
    ("path", Text, "target of the request, without secrets"),
    ("pause_ms", Number, "pause before the next accept"),
    ("peer", Text, "address of the connection"),
    ("pinned_bytes", Number, "bytes of what is pinned"),
    ("place", Text, "place in the source"),
    ("proxy", Text, "outbound proxy"),
    ("quota_bytes", Number, "`CACHE_MAX_SIZE`"),
    ("read_only", Boolean, "whether the cache is only read"),
    ("reason", Text, "why"),
    ("reference", Text, "tag or digest that was asked for"),
    ("region", Text, "AWS region"),
    ("registry", Text, "registry, or all of them"),
    ("renew_in_s", Number, "until the token is renewed"),
    ("repeated", Number, "lines with the same text that were left out"),
    ("repository", Text, "repository"),
    ("seconds", Number, "how far a clock is off, or went ahead"),
    ("source", Text, "where the credentials or the region come from"),
    ("status", Number, "status of the reply"),
    ("tag", Text, "tag"),
    ("target_bytes", Number, "size that eviction aims at"),
    ("thread", Text, "name of the thread"),
    ("tls", Boolean, "whether the port speaks TLS"),
    ("to", Text, "scheme, host and port of what is called"),
    ("upstream_fault", Text, "stage at which upstream failed"),
    ("upstream_request_id", Text, "`x-amzn-requestid` of the registry"),
    ("upstream_status", Number, "status of upstream"),
    ("used_bytes", Number, "size of the cache"),
    ("user_agent", Text, "`User-Agent` of the request"),
    ("users", Number, "users in `AUTH_FILE`"),
    ("value", Number, "value of the limit"),
    ("version", Text, "version of the program"),
    ("wanted", Number, "connections that the settings ask for"),
    ("what", Text, "what was read again"),
];

/// A value as JSON. What is not of the field's type is `null`, so that no line is refused.
pub(super) fn json<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    let known = FIELDS.iter().find(|(known, ..)| *known == name);
    let fits = match known.map_or(Text, |(_, kind, _)| *kind) {
        Text => return quote(value).into(),
        Boolean => matches!(value, "true" | "false"),
        Number => serde_json::from_str::<serde_json::Number>(value).is_ok(),
    };
    match fits {
        true => value.into(),
        false => "null".into(),
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
    fn code_and_table_have_the_same_fields() {
        let mut used = BTreeSet::new();
        collect(Path::new("src"), &mut used);
        used.extend(["time", "level", "message"].map(str::to_owned));
        let known: BTreeSet<String> = FIELDS.iter().map(|(name, ..)| (*name).to_owned()).collect();
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(
            unknown.is_empty(),
            "add these to FIELDS and docs/log.md: {unknown:?}"
        );
        let unused: Vec<_> = known.difference(&used).collect();
        assert!(unused.is_empty(), "no line has these: {unused:?}");
        assert_eq!(known.len(), FIELDS.len(), "a name is there twice");
    }

    #[test]
    fn document_and_table_have_the_same_fields() {
        let document = std::fs::read_to_string("docs/log.md").unwrap();
        let rows = document.lines().filter(|line| line.starts_with("| `"));
        let rows: BTreeSet<&str> = rows.collect();
        let expected = FIELDS.iter().map(|(name, kind, meaning)| {
            let kind = format!("{kind:?}").to_lowercase();
            format!("| `{name}` | {kind} | {meaning} |")
        });
        let expected: Vec<String> = expected.collect();
        let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
        assert_eq!(rows, expected);
    }
}
